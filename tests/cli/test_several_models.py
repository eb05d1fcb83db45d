"""`synpro average` and `synpro ensemble`: the mean of weights, the mean of probabilities, and what is no such thing."""

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from docs.site.schemas import faults_in
from synpro_engine.cli.main import main
from synpro_engine.cycle.scoring import member
from synpro_engine.cycle.scoring.member import Member
from synpro_engine.cycle.steps.weights import load_model
from synpro_engine.data import load_tokenizer
from synpro_engine.dist import ParallelConfig, launched
from synpro_engine.model.build import build_model
from synpro_engine.model.hf import export_hf, import_hf
from synpro_engine.model.model import Model
from synpro_engine.model.state import canonical_state
from synpro_engine.train import checkpoint_mean
from synpro_engine.train.checkpoint import save_checkpoint
from synpro_engine.train.checkpoint_files import StoredTensors, whole_tensors
from tests.cli.refusals import refused, succeeded

SETTINGS = (
    *("pretrain.max_steps=6", "pretrain.checkpoint_every=2", "pretrain.keep_checkpoints=9", "pretrain.plateau=null"),
    *("pretrain.in_run=null", "pretrain.ema.decay=0.5", "pretrain.average.start=2", "pretrain.evaluate_with=ema"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining with three checkpoints, both averages kept and the exponential one handed on; it asks a quiz."""
    directory = tmp_path_factory.mktemp("runs") / "run"
    quiz = directory.with_name("quiz.jsonl")
    write_quiz(quiz)
    asks = f"held_out={{quiz: {{source: {quiz}, choices_field: choices}}}}"
    assert main(["pretrain", "smoke", *SETTINGS, asks, "pretrain.tasks_every=6", "--dir", str(directory)]) == 0
    return directory


def write_quiz(path: Path) -> None:
    asked = [
        {"id": str(at), "prompt": f"The state of the union in year {at} is", "choices": ["good", "bad", f"as in {at}"],
         "gold": at % 3}
        for at in range(6)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(one) + "\n" for one in asked))


def steps(run: Path) -> list[str]:
    return [str(run / "pretrain" / "checkpoints" / f"step-{step:08d}") for step in (2, 4, 6)]


def tensors(path: str | Path) -> dict[str, Tensor]:
    return whole_tensors(Path(path) / "state")


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models of one shape, as Hugging Face directories with the run's tokenizer."""
    folder, tokenizer = tmp_path_factory.mktemp("published"), load_tokenizer(run / "tokenize" / "tokenizer")
    with launched(ParallelConfig()) as topology:
        shape = load_model(run / "pretrain", topology, torch.float32).config
        for seed in range(3):
            export_hf(build_model(shape, topology, dtype=torch.bfloat16, seed=seed), folder / str(seed), tokenizer)
    return [folder / str(seed) for seed in range(3)]


# ---- average


@pytest.mark.parametrize(("weights", "shares"), [("raw", ()), ("ema", (1.0, 1.0, 2.0)), (None, ())])
def test_the_mean_of_checkpoints_is_that_of_their_fp32_weights(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], weights: str | None, shares: tuple[float, ...]
) -> None:
    options = [*(word for share in shares for word in ("--share", str(share)))]
    options += [] if weights is None else ["--weights", weights]
    succeeded(capsys, "average", *steps(run), "--output", str(tmp_path / "mean"), *options)
    stored, found = [tensors(path) for path in steps(run)], tensors(tmp_path / "mean" / "checkpoint")
    prefix = "optimizer." + {"raw": "param", "ema": "ema", None: "ema"}[weights]  # handed on is the exponential one
    parts = shares or (1.0, 1.0, 1.0)
    assert set(found) == {key for key in stored[0] if not key.startswith("optimizer.")}
    for key, tensor in found.items():
        each = [of[f"{prefix}.{key}"].double() * part for of, part in zip(stored, parts, strict=True)]
        expected = torch.stack(each).sum(0) / sum(parts)
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-9, msg=key)


def test_the_mean_of_copies_is_the_model_bit_for_bit(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = steps(run)[-1]
    succeeded(capsys, "average", last, last, last, "--weights", "raw", "--output", str(tmp_path / "mean"))
    stored = tensors(last)
    assert all(torch.equal(tensor, stored[key]) for key, tensor in tensors(tmp_path / "mean" / "checkpoint").items())


def test_a_mean_is_a_model_for_the_other_commands_and_replaces_an_earlier_one_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mean = str(tmp_path / "mean")
    for _ in range(2):
        succeeded(capsys, "average", *steps(run), "--output", mean)
    succeeded(capsys, "average", mean, steps(run)[0], "--output", str(tmp_path / "again"))
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"id": "a", "text": "My fellow citizens of the Senate"}) + "\n")
    assert "text" in succeeded(capsys, "ensemble", mean, steps(run)[0], "--text", str(text))
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    assert "not replaced" in refused(capsys, "average", *steps(run), "--output", str(tmp_path / "thesis"))


def test_a_mean_of_models_that_read_documents_apart_reads_so_and_is_of_such_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = []
    with launched(ParallelConfig()) as topology:
        model = load_model(run / "pretrain", topology, torch.float32)
        for number in range(2):
            apart.append(str(tmp_path / f"apart-{number}"))
            save_checkpoint(Path(apart[-1]), model, {"config": {"separate_documents": True}})
    tokenizer, mean = ("--tokenizer", str(run / "tokenize" / "tokenizer")), str(tmp_path / "mean")
    succeeded(capsys, "average", *apart, *tokenizer, "--output", mean)
    succeeded(capsys, "average", *steps(run), "--output", str(tmp_path / "plain"))
    with launched(ParallelConfig()) as topology:
        assert member.open_members([mean], None, topology)[0].apart
        assert not member.open_members([str(tmp_path / "plain")], None, topology)[0].apart
    line = refused(capsys, "average", apart[0], steps(run)[0], *tokenizer, "--output", mean)
    assert f"{steps(run)[0]}: read documents of a window together" in line and "apart;" in line


def test_published_models_are_averaged_into_one(
    published: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [str(path) for path in published]
    succeeded(capsys, "average", *named, "--share", "1", "--share", "2", "--share", "1", "--output",
              str(tmp_path / "mean"))  # fmt: skip
    with launched(ParallelConfig()) as topology:
        of = [canonical_state(import_hf(path, topology).model, dtype=torch.float32) for path in published]
        found = import_hf(tmp_path / "mean", topology, dtype=torch.bfloat16).model
        for name, tensor in canonical_state(found).items():
            expected = (of[0][name].double() + 2 * of[1][name].double() + of[2][name].double()) / 4
            assert torch.equal(tensor, expected.to(torch.bfloat16)), name
    for file in ("config.json", "tokenizer.json", "tokenizer.model"):
        assert (tmp_path / "mean" / file).exists() == (published[0] / file).exists(), file
    assert (tmp_path / "mean" / "config.json").read_text() == (published[0] / "config.json").read_text()


def test_tensors_are_made_one_at_a_time(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    mean_of, order = checkpoint_mean.mean_of, []

    def watched(*arguments: Any) -> Tensor:
        alive.append(sum(ref() is not None for ref in made))
        result = mean_of(*arguments)
        made.append(weakref.ref(result))
        return result

    def read(self: StoredTensors, key: str) -> Tensor:
        order.append(key)
        return getitem(self, key)

    getitem = StoredTensors.__getitem__
    monkeypatch.setattr(checkpoint_mean, "mean_of", watched)
    monkeypatch.setattr(StoredTensors, "__getitem__", read)
    assert main(["average", *steps(run), "--output", str(tmp_path / "mean")]) == 0
    assert len(made) > 10 and max(alive) <= 1
    assert order == [key for key in dict.fromkeys(order) for _ in range(3)]  # a tensor of all models, then the next


def other_model(run: Path, folder: Path, **changes: Any) -> Path:
    """A checkpoint of another shape, as a stage of the run would have it: with the run's tokenizer."""
    with launched(ParallelConfig()) as topology:
        shape = load_model(run / "pretrain", topology, torch.float32).config
        save_checkpoint(folder, build_model(shape.model_copy(update=changes), topology, seed=1))
    return folder


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ffn": 96}, "tensor `model.layers.0.mlp.gate_proj.weight` has shape (96, 64), the model needs (128, 64)"),
        ({"layers": 1}, "tensor `model.layers.1.self_attn.q_proj.weight` is missing"),
        ({"rope_theta": 1e4}, "`rope_theta` is 500000.0 there, 10000.0 here"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_their_first_difference(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], said: str
) -> None:
    other = other_model(run, tmp_path / "other", **changes)
    tokenizer = str(run / "tokenize" / "tokenizer")
    line = refused(
        capsys, "average", steps(run)[0], str(other), "--tokenizer", tokenizer, "--output", str(tmp_path / "mean")
    )
    assert str(other) in line and said in line
    assert not (tmp_path / "mean").exists()


def test_what_is_no_number_in_one_of_the_models_is_refused_by_its_tensor(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with launched(ParallelConfig()) as topology:
        model = build_model(load_model(run / "pretrain", topology, torch.float32).config, topology)
        norm = model.final_norm_weight()
        assert norm is not None
        norm.data[3] = torch.nan
        save_checkpoint(tmp_path / "broken", model)
    tokenizer = str(run / "tokenize" / "tokenizer")
    line = refused(capsys, "average", steps(run)[0], str(tmp_path / "broken"), "--tokenizer", tokenizer, "--output",
                   str(tmp_path / "mean"))  # fmt: skip
    assert "tensor `decoder.final_layernorm.weight`: holds NaN or infinity" in line
    assert not (tmp_path / "mean").exists()


def test_shares_and_forms_that_make_no_mean_are_refused(
    run: Path, published: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = ("--output", str(tmp_path / "mean"))
    first, second, _ = steps(run)
    assert "1 are given for 2 models" in refused(capsys, "average", first, second, *output, "--share", "1")
    both = ("--share", "1", "--share", "0")
    assert "must be numbers above 0" in refused(capsys, "average", first, second, *output, *both)
    assert "give two models or more" in refused(capsys, "average", first, *output)
    assert "give models of one form" in refused(capsys, "average", first, str(published[0]), *output)
    assert "is for checkpoints" in refused(
        capsys, "average", str(published[0]), str(published[1]), *output, "--weights", "ema"
    )


def another_tokenizer(published: Path, folder: Path) -> Path:
    """The same model with a tokenizer that gives texts other ids."""
    shutil.copytree(published, folder)
    for file in (*folder.glob("tokenizer*"), *folder.glob("special_tokens*"), folder / "manifest.json"):
        file.unlink()
    import tokenizers

    vocabulary = tokenizers.models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")
    tokenizers.Tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    return folder


def test_models_of_other_tokenizers_and_vocabularies_are_refused_in_one_line(
    run: Path, published: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(another_tokenizer(published[0], tmp_path / "other"))
    wider = str(other_model(run, tmp_path / "wider", vocab_size=640))
    tokenizer = ("--tokenizer", str(run / "tokenize" / "tokenizer"))
    for command, more in (("average", ("--output", str(tmp_path / "mean"))), ("ensemble", ())):
        line = refused(capsys, command, str(published[1]), other, *more)
        assert f"{other}: reads text with another tokenizer than {published[1]}" in line
        line = refused(capsys, command, steps(run)[0], wider, *tokenizer, *more)
        assert f"{wider}: has a vocabulary of 640, {steps(run)[0]} one of 512" in line
        line = refused(capsys, command, steps(run)[0], wider, *more)
        assert f"{wider}: no tokenizer is recorded with it" in line


# ---- ensemble


def test_the_table_and_the_record_say_what_evaluation_says_of_each_model(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "ensemble.json"
    told = succeeded(capsys, "ensemble", *steps(run), "--output", str(record))
    found = json.loads(record.read_text())
    lines = (run / "pretrain" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if json.loads(line)["kind"] == "eval"][-1]
    # Handed on is what was evaluated: the exponential average.
    assert last["weights"] == "ema"
    assert found["members"][-1]["loss"]["validation"] == pytest.approx(last["validation_loss"], rel=1e-6)
    assert found["loss"]["validation"] == found["members"][-1]["together"]["validation"]
    mean = sum(of["loss"]["validation"] for of in found["members"]) / 3
    assert found["loss"]["validation"] < mean
    assert f"{found['loss']['validation']:.4f} nats a token" in told and steps(run)[1] in told
    assert found["texts"]["validation"]["tokens"] > 1000 and faults_in(tmp_path) == []


def test_questions_that_the_run_asked_are_asked_of_each_model_and_of_all(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = tmp_path / "ensemble.json"
    told = succeeded(capsys, "ensemble", *steps(run), "--output", str(record))
    found = json.loads(record.read_text())
    lines = (run / "pretrain" / "metrics.jsonl").read_text().splitlines()
    last = [json.loads(line) for line in lines if json.loads(line)["kind"] == "tasks"][-1]
    answers = found["members"][-1]["answers"]["held-out-quiz"]
    assert {f"quiz/{name}": value for name, value in answers.items()} == pytest.approx(
        {key: value for key, value in last.items() if key.startswith("quiz/")}, rel=1e-6
    )
    assert found["questions"]["held-out-quiz"] == {"questions": 6, "chance": pytest.approx(1 / 3)}
    together = found["answers"]["held-out-quiz"]
    assert found["members"][-1]["answers_together"]["held-out-quiz"] == together
    assert "held-out-quiz: 6 questions, of which guessing answers 33.3 %" in told
    assert f"{together['bits_per_byte']:.4f}" in told and faults_in(tmp_path) == []


def test_questions_of_a_text_are_asked_and_its_right_answers_are_the_text(
    run: Path, published: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_quiz(tmp_path / "quiz.jsonl")
    record, text = tmp_path / "ensemble.json", f"{{source: {tmp_path / 'quiz.jsonl'}, choices_field: choices}}"
    succeeded(capsys, "ensemble", str(run / "pretrain"), str(published[0]), "--text", text, "--output", str(record))
    found = json.loads(record.read_text())
    assert found["texts"]["quiz"]["documents"] == found["questions"]["quiz"]["questions"] == 6
    assert 0.0 <= found["answers"]["quiz"]["accuracy"] <= 1.0 and found["answers"]["quiz"]["bits_per_byte"] > 0.0


def test_prompts_of_tasks_carry_no_loss_and_models_of_both_forms_go_together(
    run: Path, published: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [{"id": str(n), "prompt": "The state of the union is", "response": f"good, number {n}"} for n in range(5)]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(task) + "\n" for task in tasks))
    record = tmp_path / "ensemble.json"
    succeeded(capsys, "ensemble", str(run / "pretrain"), str(published[0]), "--text", str(tmp_path / "tasks.jsonl"),
              "--output", str(record), "--micro-batch", "2")  # fmt: skip
    found, tokenizer = json.loads(record.read_text()), load_tokenizer(run / "tokenize" / "tokenizer")
    responses = sum(len(tokenizer.encode(task["response"])) for task in tasks)
    assert responses <= found["texts"]["tasks"]["tokens"] <= responses + 2 * len(tasks)  # an end behind each
    assert [of["weights"] is None for of in found["members"]] == [False, False]


def test_a_model_reads_its_windows_as_its_checkpoint_says_that_it_was_trained(run: Path, tmp_path: Path) -> None:
    with launched(ParallelConfig()) as topology:
        model = load_model(run / "pretrain", topology, torch.float32)
        save_checkpoint(tmp_path / "apart", model, {"config": {"separate_documents": True}})
        places = [steps(run)[0], str(tmp_path / "apart")]
        members = member.open_members(places, run / "tokenize" / "tokenizer", topology)
    assert [one.apart for one in members] == [False, True]


def test_one_model_is_in_memory_at_a_time(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[weakref.ref[Any]] = []
    load = member.load_model

    def watched(*arguments: Any, **settings: Any) -> Model:
        assert all(ref() is None for ref in loaded), "an earlier member is still there"
        model = load(*arguments, **settings)
        loaded.extend(weakref.ref(parameter) for parameter in model.parameters())
        return model

    monkeypatch.setattr(member, "load_model", watched)
    succeeded(capsys, "ensemble", *steps(run))
    assert len(loaded) > 3 and Member.load is not None


def test_models_that_lie_in_no_run_need_a_text(published: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "ensemble", str(published[0]), str(published[1]))
    assert "lies in no run whose held-out text could be taken; name texts with --text" in line


# ---- export


def test_an_export_has_the_weights_that_are_asked_for(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = tensors(steps(run)[-1])["optimizer.ema.decoder.final_layernorm.weight"]
    last = tensors(steps(run)[-1])["decoder.final_layernorm.weight"]
    for options, expected in (((), stored), (("--weights", "raw"), last)):
        output = tmp_path / "-".join(("out", *options[1:]))
        succeeded(capsys, "export", str(run / "config.yaml"), "--dir", str(run), "--output", str(output), *options)
        with launched(ParallelConfig()) as topology:
            norm = import_hf(output, topology).model.final_norm_weight()
        assert norm is not None and torch.equal(norm.detach(), expected)
