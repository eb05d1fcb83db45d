"""The study on real text: its arms are recipes, its page says what records say, and a tiny one comes to its end."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.common.records import read_lines
from benchmarks.real_text.__main__ import _identity, main
from benchmarks.real_text.commands import Commands
from benchmarks.real_text.rates import hours
from benchmarks.real_text.study import FROM_SCRATCH, RECIPE, SIZES, UNTUNED_SIZES, Job, Study, expected, jobs
from benchmarks.real_text.texts import texts
from benchmarks.real_text.tuned import PUBLISHED, settings_record
from synpro_engine.config import UserError, json_text
from synpro_engine.cycle import load_recipe

TINY = RECIPE.with_name("tiny.yaml")
ROOT = RECIPE.parents[2]
NAMES = ("state", "size", "arms", "pairs", "worth", "curve", "texts", "tuning", "later", "cost", "picture")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(RECIPE, tmp_path, PUBLISHED)


def test_trainings_from_scratch_read_as_many_tokens_as_theta_and_an_arm_together(study: Study) -> None:
    whole = study.recipe()
    for name in FROM_SCRATCH:
        own = study.recipe(Job(name, 2))
        assert own.pretrain.max_steps == whole.pretrain.max_steps + whole.continued.steps
        assert own.pretrain.schedule == whole.pretrain.schedule and own.pretrain.seed == 2 and not own.arms
        assert own.pretrain.schedule.total_steps == own.pretrain.max_steps
        times = (SIZES | UNTUNED_SIZES).get(name, 1)
        assert own.corpus.max_train_tokens == times * (whole.corpus.max_train_tokens or 0)
    assert study.recipe(Job("untuned", 1)).pretrain.optimizer.weight_decay == 0.1
    assert study.recipe(Job("unique-2", 1)).pretrain.optimizer == whole.pretrain.optimizer
    untuned = [study.recipe(Job(name, 1)) for name in ("untuned", *UNTUNED_SIZES)]
    assert all((one.pretrain, one.model) == (untuned[0].pretrain, untuned[0].model) for one in untuned)
    assert len({str(one.tokenizer.path) for one in untuned[1:]}) == 1, "losses a token compare under one vocabulary"


def test_arms_differ_from_tuned_repetition_in_what_they_are_named_for(study: Study) -> None:
    whole = study.recipe()
    decay = {name: whole.of_arm(name).pretrain.optimizer.weight_decay for name in whole.arms}
    assert set(decay.values()) == {1.0}
    influence = {name: one.influence for name, one in whole.arms.items() if one.text == "tuned"}
    assert influence == {"tuned": "measured", "tuned-without-influence": "none", "placebo": "shuffled"}
    assert {whole.of_arm(name).generate.samples for name in influence} == {2}
    kept = [whole.of_arm(name).filter.best for name in ("prompted", "best-of-n", "prompted-all")]
    assert [None if one is None else (one.by, one.keep) for one in kept] == [(None, 2), ("influence", 2), None]


def test_every_arm_and_seed_is_trained_once_and_repetition_first() -> None:
    recipe = load_recipe(str(RECIPE))
    order = jobs(recipe)
    assert order[0] == Job("repetition") and len(set(order)) == len(order)
    found = expected(recipe)
    assert len(found) == len(set(found)) == len(recipe.seeds) * (len(recipe.arms) + len(FROM_SCRATCH))
    assert len(recipe.seeds) >= 3


def test_trainings_on_more_text_alone_have_the_shared_tokenizer_made_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[list[str]] = []

    def run(self: Commands, arguments: list[str]) -> None:
        ran.append(arguments)
        if arguments[0] == "tokenize":
            Study(RECIPE, tmp_path, ()).tokenizer.mkdir(parents=True)

    monkeypatch.setattr(Commands, "run", run)
    monkeypatch.setattr("benchmarks.real_text.__main__.records_of", lambda study, job: [])
    assert main(["--dir", str(tmp_path), "--only", "untuned,unique-2"]) == 0
    untuned, tokenize, *larger = ran[:3]
    assert [one[0] for one in ran] == ["pretrain", "tokenize", *["pretrain"] * 7]
    assert untuned[-1].endswith("untuned/seed-1") and tokenize[-1].endswith("run")
    assert [one[-1].removeprefix(str(tmp_path)) for one in larger] == ["/unique-2/seed-1"]
    with pytest.raises(SystemExit):
        main(["--dir", str(tmp_path), "--only", "unique-8"])


def _sweep(name: str, *trials: tuple[str, float, str]) -> dict[str, Any]:
    made = [
        {"trial": number, "state": state, "loss": loss, "settings": {"pretrain.optimizer.name": kind}}
        for number, (kind, loss, state) in enumerate(trials)
    ]
    return {"bench": "data_bound_sweep", "sweep": name, "trials": made}


def test_whoever_joins_generates_by_the_settings_of_the_run_that_arms_share(study: Study) -> None:
    *_, evaluate = study.commands(Job("prompted"))
    assert [word for word in study.join() if "=" in word] == [word for word in evaluate if "=" in word] != []
    assert study.join()[-3:] == ["--dir", str(study.run), "--join"]


def test_tuned_settings_are_those_of_the_best_whole_trial(tmp_path: Path) -> None:
    swept = _sweep("all", ("muon", 4.2, "complete"), ("adamw", 4.4, "complete"), ("adamw", 4.1, "pruned"))
    found = settings_record([_sweep("tuned", ("adamw", 3.0, "complete")), swept])
    assert found["settings"][-1] == "pretrain.optimizer.name=muon" and "trial 0 of the sweep `all`" in found["source"]
    assert found["swept"] and "pretrain.ema.decay=0.99" in found["settings"]
    recipe = Study(RECIPE, tmp_path, tuple(found["settings"])).recipe()
    assert recipe.pretrain.optimizer.name == "muon" and recipe.probe.kind == "next_step"


def test_without_a_sweep_on_record_published_figures_are_taken_and_it_is_said() -> None:
    found = settings_record([{"bench": "data_bound", "arm": "untuned"}])
    assert tuple(found["settings"]) == PUBLISHED and "no sweep" in found["source"] and not found["swept"]


def _page(tmp_path: Path) -> Path:
    docs = tmp_path / "docs"
    docs.mkdir()
    marks = (f"<!-- real-text-{name} -->\n<!-- end of real-text-{name} -->\n" for name in NAMES)
    (docs / "real-text.md").write_text("".join(marks))
    (docs / "evidence.md").write_text("<!-- evidence-real-text -->\n<!-- end of evidence-real-text -->\n")
    return docs


def test_a_page_without_records_claims_nothing(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text("")
    docs = _page(tmp_path)
    assert main(["--from", str(tmp_path / "r.jsonl"), "--docs", str(docs)]) == 0
    page = (docs / "real-text.md").read_text()
    assert "0 of 56 trainings are on record." in page and "nothing is claimed" in page and "|" not in page
    assert "None yet" in (docs / "evidence.md").read_text()
    assert not (docs / "images").exists()


def test_the_committed_page_has_every_block() -> None:
    page = (ROOT / "docs" / "real-text.md").read_text()
    assert all(f"<!-- real-text-{name} -->" in page for name in NAMES)


def _record(arm: str, seed: int, loss: float, tokens: int = 100) -> dict[str, Any]:
    theta, own = {220: 9.0}, {step: loss + 440 / step for step in (440, 660, 880)}
    curve = [{"step": step, "reference": value, "validation": value} for step, value in (theta | own).items()]
    return {"bench": "real_text", "arm": arm, "seed": seed, "unique_tokens": tokens, "tokens": 1200, "curve": curve,
            "losses": {"validation": loss + 0.5, "passages": 6.0}, "training_seconds": 60.0}  # fmt: skip


def _tuned(seed: int, loss: float) -> dict[str, Any]:
    made = {"accepted": 9, "completion_tokens": 900, "stage_seconds": 120.0}
    varied = {"texts": 9, "mean_words": 40.0, "distinct_2": 0.5, "overlap_8": 0.25, "rare_words": None}
    held = {"difference/influence": 0.01, "low/influence": -0.01, "high/influence": 0.03, "reward": 1.0}
    return _record("tuned", seed, loss) | {
        "pool": {"round-1": {"rephrase": 1234}},
        "generated": {"rephrase": made},
        "influence": {"rephrase": {"generated": 0.002, "sources": None}},
        "diversity": {"organic": varied, "rephrase": varied},
        "tuning": {"rephrase": {"steps": 24, "seconds": 600.0, "sampled_tokens": 100, "held_out": held}},
    }


def test_the_page_is_made_from_records_alone(tmp_path: Path) -> None:
    sizes = {"repetition": 100, "unique-2": 200, "unique-4": 400}
    settings: dict[str, Any] = {"bench": "real_text_settings", "settings": ["pretrain.optimizer.lr=1"]}
    records = [settings | {"source": "here", "recipe": _identity(RECIPE, settings)}]
    for seed in (1, 2, 3):
        records += [_record(arm, seed, 4.5 - tokens / 800, tokens) for arm, tokens in sizes.items()]
        records += [_tuned(seed, 4.2), _record("placebo", seed, 4.3)]
    of = {"value": 0.25, "low": 0.125, "high": 0.375}
    kinds = ("sources", "prompted", "tuned")
    records += [
        {"bench": "real_text_later", "at": at, "slices": 9, "influence": dict.fromkeys(kinds, of), "difference": of,
         "ranks": dict.fromkeys(kinds, rank)}
        for at, rank in (("theta", 1.0), ("tuned", 0.5))
    ]  # fmt: skip
    (tmp_path / "r.jsonl").write_text("".join(json_text(one) + "\n" for one in records))
    docs = _page(tmp_path)
    assert main(["--from", str(tmp_path / "r.jsonl"), "--docs", str(docs)]) == 0
    page = (docs / "real-text.md").read_text()
    assert "15 of 56 trainings" in page and "Missing: repetition (seeds 4); untuned (seeds 1, 2, 3, 4)" in page
    assert "| tuned | 3 | 4.700 | 4.700 to 4.700 | 4.700 | -0.175 (-0.175 to -0.175) |" in page
    assert "| tuned | 2.30 (" in page and "| repetition | 1 | 1 | 1 |  |  |  |" in page
    assert (
        "untuned repetition waits for three sizes: `untuned`, `unique-2-untuned`, `unique-4-untuned` are missing"
        in page
    )
    assert "| tuned | 2.30 (" in (docs / "evidence.md").read_text()
    assert "Less synthetic text than organic" not in page
    assert "a model of 2.10M parameters" in page
    assert "| placebo | +0.100 | 0.100 to 0.100 |" in page and "| 6.000 |" in page
    assert "| tuned | 9 | 1,234 | +0.0020 |  | 40 | 0.500 | 0.250 |  |" in page
    assert "| tuned | rephrase | 24 | influence | +0.0100 | -0.0100 to +0.0300 |" in page
    shown = " | ".join(["0.2500 (0.1250 to 0.3750)"] * 3 + ["+0.2500 (0.1250 to 0.3750)"])
    assert f"| theta | {shown} | 1.00 | 1.00 |" in page and f"| the end of `tuned` | {shown} | 0.50 | 0.50 |" in page
    assert "| tuned | 1,000 | 2.0 | 10.0 | 1.0 |" in page and "(images/real_text.png)" in page
    assert (docs / "images" / "real_text.png").stat().st_size > 10_000


def test_a_pool_that_is_smaller_than_the_organic_text_is_named() -> None:
    assert "Less" not in texts([_tuned(1, 4.2)])
    found = texts([_tuned(1, 4.2) | {"unique_tokens": 1235}])
    assert found.endswith("Less synthetic text than organic: `tuned` (1,234 tokens).")


def test_hours_are_those_of_all_trainings(study: Study) -> None:
    rates = {"student_tokens_per_s": 4096.0, "tuning_step_seconds": 50.0, "prompted_slice_seconds": 2.4,
             "tuned_slice_seconds": 1.2}  # fmt: skip
    found = hours(study.recipe(), rates)
    assert found["training"] == pytest.approx((440 + 9 * 4 * 440 + 5 * 4 * 880) / 3600)
    assert found["tuning"] == pytest.approx(1.0) and found["generation"] == pytest.approx(6.0)


def test_records_of_another_recipe_are_refused(tmp_path: Path) -> None:
    records = tmp_path / "records.jsonl"
    told: dict[str, Any] = {"bench": "real_text_settings", "settings": [], "source": "here"}
    records.write_text(json_text(told | {"recipe": _identity(TINY, told)}) + "\n")
    for where in (["--from", str(records)], ["--dir", str(tmp_path)]):
        with pytest.raises(UserError, match="its records are of the recipe `real-text-tiny`"):
            main(where)
    assert main(["--recipe", str(TINY), "--from", str(records)]) == 0


def test_arms_that_went_on_from_different_thetas_are_refused(tmp_path: Path) -> None:
    records, told = tmp_path / "records.jsonl", {"bench": "real_text_settings", "settings": [], "source": "here"}
    one, other, alone = _record("repetition", 1, 4.0), _record("placebo", 1, 4.0), _record("untuned", 1, 4.0)
    for arm in (other, alone):
        arm["curve"][0]["validation"] += 2e-4
    one["curve"][0]["reference"] += 1e-6  # rounding
    settings = told | {"recipe": _identity(RECIPE, told)}
    for arms in ([one, alone, _record("tuned", 1, 4.0)], [one, alone, other]):
        records.write_text("".join(json_text(line) + "\n" for line in (settings, *arms)))
        if other in arms:
            with pytest.raises(UserError, match="placebo goes on from another theta than repetition did"):
                main(["--from", str(records)])
        else:
            assert main(["--from", str(records)]) == 0


@pytest.mark.slow
def test_a_tiny_study_goes_on_where_it_was_stopped_and_comes_to_its_end(tmp_path: Path) -> None:
    arguments = ["--recipe", str(TINY), "--dir", str(tmp_path / "study")]
    records = tmp_path / "study" / "records.jsonl"
    main([*arguments, "--minutes", "0.3"])
    before = read_lines(records)
    assert main(arguments) == 0
    found = read_lines(records)
    assert found[: len(before)] == before and found[0]["bench"] == "real_text_settings"
    trained = [one for one in found if one["bench"] == "real_text"]
    assert sorted((one["arm"], one["seed"]) for one in trained) == sorted(expected(load_recipe(str(TINY))))
    by_arm = {(one["arm"], one["seed"]): one for one in trained}
    theta = by_arm["repetition", 1]["curve"][0]
    assert all(one["curve"][0] == theta for one in trained if one["arm"] in ("tuned", "best-of-n"))
    assert {one["tokens"] for one in trained} == {16 * 8 * 64}
    assert by_arm["unique-4", 1]["unique_tokens"] > 2 * by_arm["untuned", 1]["unique_tokens"]
    tuned, prompted = by_arm["tuned", 2], by_arm["prompted", 2]
    assert set(tuned["losses"]) == {"validation", "passages"}
    assert tuned["tuning"]["rephrase"]["steps"] == 2 and prompted["tuning"] == {}
    assert tuned["generated"]["rephrase"]["accepted"] and tuned["pool"]["round-1"]["rephrase"] > 0
    assert main(arguments) == 0 and read_lines(records) == found
    assert main([*arguments, "--later"]) == 0
    later = [one for one in read_lines(records) if one["bench"] == "real_text_later"]
    assert [one["at"] for one in later] == ["theta", "oracle", "prompted", "tuned"]
    assert set(later[0]["ranks"].values()) == {1.0} != set(later[1]["ranks"].values())
    assert 0 < later[0]["slices"] <= tuned["generated"]["rephrase"]["accepted"]
    means = {kind: one["value"] for kind, one in later[0]["influence"].items()}
    assert later[0]["difference"]["value"] == pytest.approx(means["tuned"] - means["prompted"])
    assert main([*arguments, "--later"]) == 0 and len(read_lines(records)) == len(found) + 4
