"""Judges that are models in the job: transformers' probabilities of labels, whatever is read together and however."""

import hashlib
import json
import math
import runpy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError, json_text, load_config
from synpro_engine.cycle import load_recipe
from synpro_engine.cycle.plan import Plan
from synpro_engine.cycle.scoring.judging import check_judges_of
from synpro_engine.cycle.steps.judging import check_judges
from synpro_engine.data import load_tokenizer
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.reward import Candidate, Composer, RewardConfig
from synpro_engine.reward.judges import Calibration, Judge, JudgesConfig, ask_together
from synpro_engine.reward.judges.client import Judgement
from synpro_engine.reward.judges.in_job import ModelClient
from synpro_engine.reward.judges.labels import Labelled, chat_format_of, labels_of
from synpro_engine.reward.judges.models import check_models, load_judges
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.policy import prepare_policy
from synpro_engine.rl.trainer import tune
from synpro_engine.synth import Prompter
from synpro_engine.synth.parsed import Entry, Parsed
from synpro_engine.train.metrics import read_metrics
from tests.reward.judges.models import SOURCE, write_model

TOY = Path(__file__).parents[2] / "rl" / "toy.py"
OWN = {"type": "score", "ask": "How clear is it?", "levels": [{"name": str(n)} for n in range(12)], "source": "hidden"}


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


@pytest.fixture(scope="module")
def judge_dir(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("judge"), "llama3", topology)


def _config(directory: Path | str, *names: str, **settings: Any) -> JudgesConfig:
    judge = {"model": str(directory), **settings}
    return load_config(JudgesConfig, dict.fromkeys(names, judge))


def _loaded(config: JudgesConfig, topology: Topology, cache: Path | None = None) -> list[Judge]:
    return load_judges(config.in_job, topology, dtype=torch.float32, hash_of=lambda source: "0" * 64, cache=cache)


def _candidates(count: int = 3, entries: int = 4) -> list[Candidate]:
    def candidate(number: int) -> Candidate:
        said = tuple(
            Entry(topic=f"Mill {n}", content=f"It burned in 187{n} with {number} men.") for n in range(entries)
        )
        text = f"In 1871 the mill of {number} men burned down."
        return Candidate(operation="reformat", source=SOURCE, raw="", parsed=Parsed(ok=True, text=text, entries=said))

    return [candidate(number) for number in range(count)]


def _asked(judge: Judge) -> Labelled:
    assert isinstance(judge.client, ModelClient)
    return judge.client._asked[judge.name]


@torch.no_grad()
def _by_transformers(model: Any, asked: Labelled, one: Judgement) -> list[float]:
    """The labels' probabilities by transformers' own model: each whole prompt with each label behind it, alone."""
    prompt, scores = asked.prompt(one.state, one.entry), []
    for tail in asked.tails:
        logprobs = model(torch.tensor([prompt + tail])).logits[0].log_softmax(-1)
        scores.append(sum(logprobs[len(prompt) + at - 1, id].item() for at, id in enumerate(tail)))
    return torch.tensor(scores).softmax(0).tolist()


@pytest.mark.parametrize("family", ["llama3", "plain"])
def test_values_are_those_of_transformers_logits_on_each_whole_prompt(
    topology: Topology, tmp_path: Path, family: str
) -> None:
    import transformers

    directory = write_model(tmp_path, family, topology)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    config = _config(directory, "quality", "faithfulness", "structure", "similarity", prefill_tokens=400)
    judges, candidates = _loaded(config, topology), _candidates()
    found = ask_together([(judge, candidates) for judge in judges])
    for judge, values in zip(judges, found, strict=True):
        asked = _asked(judge)
        for candidate, value in zip(candidates, values, strict=True):
            of_each = [
                asked.question.value(_by_transformers(theirs, asked, one)) for one in judge.judgements(candidate)
            ]
            assert value == pytest.approx(judge.value(of_each), abs=1e-4)
    assert len({round(value, 4) for value in found[1]}) == 3, "the answers hang on the texts"
    assert {1, 2} <= {len(tail) for judge in judges for tail in _asked(judge).tails}, "labels of one token and of more"


def test_label_probabilities_are_those_of_transformers_decision_pipeline(topology: Topology, tmp_path: Path) -> None:
    """On its own prompts and labels, which say other words and are one for each question."""
    transformers = pytest.importorskip("transformers", minversion="5.20", reason="typed decisions came with it")
    directory = write_model(tmp_path, "smollm2", topology)
    asked = {
        "kept": {
            "type": "choice",
            "instructions": "What is kept?",
            "criteria": {"all": "no word is lost", "some": None},
        },
        "clear": {"type": "score", "instructions": "How clear is it?", "criteria": ["not", "in part", "fully"]},
    }
    decide = transformers.pipeline("decision", model=str(directory), dtype=torch.float32)
    request = {"state": SOURCE, "questions": asked}
    prompts = decide.preprocess(request)["prompts"]
    [judge] = _loaded(_config(directory, "quality"), topology)
    ids = [inputs["input_ids"][0, : int(inputs["marks"][0])].tolist() for inputs, _ in prompts]
    labels = [[[id] for id in decide.label_token_ids(tuple(of_one[0].labels))] for _, of_one in prompts]
    client = judge.client
    assert isinstance(client, ModelClient)
    found = [scores.softmax(0).tolist() for scores in client.label_logprobs(ids, labels)]
    answers = decide(request)
    for probabilities, (_, [question]) in zip(found, prompts, strict=True):
        want = list(answers[question.name]["probabilities"].values())
        assert probabilities == pytest.approx(want, abs=1e-4)
    assert judge.client.take_counts()["input_tokens"] < sum(map(len, ids)), "what both begin with is read once"


FAMILIES = {
    "plain": "User:\n", "smollm2": "<|im_start|>", "qwen3": "<|im_start|>", "llama31": "<|begin_of_text|>",
    "mistral": "<s>[INST] ", "gemma": "<bos><start_of_turn>user", "olmo2": "<|endoftext|><|user|>",
}  # fmt: skip
"""What prompts begin with."""


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_ends_where_the_labels_part_and_each_label_stands_behind_it(
    topology: Topology, tmp_path: Path, family: str
) -> None:
    directory = write_model(tmp_path, family, topology)
    tokenizer = load_tokenizer(directory)
    for name, labels in (("faithfulness", ("A", "B", "C")), ("structure", ("no", "yes")), ("quality", tuple("12345"))):
        asked = Labelled(_config(directory, name).question_of(name), tokenizer, chat_format_of(tokenizer, "auto"))
        assert labels_of(asked.question) == labels
        prompt = asked.prompt("<source>\nA mill.\n</source>", "It burned.")
        assert tokenizer.spell(prompt).startswith(FAMILIES[family]) and "It burned." in tokenizer.spell(prompt)
        for label, tail in zip(labels, asked.tails, strict=True):
            assert tokenizer.spell(prompt + tail).endswith(f"Answer: {label}")
        assert len({tail[0] for tail in asked.tails}) > 1, "they part at once"


def test_what_was_measured_of_a_named_formats_former_layout_is_told_apart(judge_dir: Path) -> None:
    question, tokenizer = _config(judge_dir, "structure").question_of("structure"), load_tokenizer(judge_dir)
    for chat_format, changed in (("auto", False), ("plain", False), ("chatml", True), ("olmo2", True)):
        former = hashlib.sha256(json_text([question.version, False, chat_format]).encode()).hexdigest()[:16]
        assert (Labelled(question, tokenizer, chat_format).version(hard=False) != former) == changed


def test_levels_of_two_digits_are_lettered_for_one_would_begin_another(judge_dir: Path) -> None:
    config = load_config(JudgesConfig, {"clear": {"model": str(judge_dir), "question": OWN}})
    assert labels_of(config.question_of("clear")) == tuple("ABCDEFGHIJKL")


def test_a_hard_judge_gives_the_most_probable_answers_worth(topology: Topology, judge_dir: Path) -> None:
    for hard in (False, True):
        [judge] = _loaded(_config(judge_dir, "structure", hard=hard), topology)
        values = judge(_candidates())
        assert all((value in (0.0, 1.0)) == hard for value in values)


def test_eight_completions_of_four_entries_take_less_than_a_third_of_the_tokens(
    topology: Topology, judge_dir: Path
) -> None:
    [judge] = _loaded(_config(judge_dir, "faithfulness"), topology)
    candidates = _candidates(8)
    judge(candidates)
    counts = judge.client.take_counts()
    assert counts["judged"] == 32 and counts["input_tokens"] <= 0.3 * counts["plain_tokens"]


def _values(directory: Path, parallel: ParallelConfig) -> list[list[float]]:
    with launched(parallel) as topology:
        config = _config(directory, "quality", "faithfulness", "structure")
        return ask_together([(judge, _candidates()) for judge in _loaded(config, topology)])


def test_tensor_parallel_ranks_give_the_values_of_one_process(judge_dir: Path) -> None:
    [alone] = run_ranks(_values, 1, directory=judge_dir, parallel=ParallelConfig())
    one, two = run_ranks(_values, 2, directory=judge_dir, parallel=ParallelConfig(tp=2))
    assert one == two
    torch.testing.assert_close(torch.tensor(one), torch.tensor(alone), rtol=0, atol=1e-5)


def _lettered(model: Path) -> JudgesConfig:
    """Two questions, of a text alone and beside its source, whose labels are each one token of any vocabulary."""
    options = [{"name": "much", "worth": 1.0}, {"name": "some", "worth": 0.5}, {"name": "none"}]
    asked = {"clear": ("How clear is it?", "compared"), "kept": ("How much does it keep?", "shown")}
    return load_config(JudgesConfig, {
        name: {"model": str(model), "question": {"type": "choice", "ask": ask, "source": source, "options": options}}
        for name, (ask, source) in asked.items()
    })  # fmt: skip


def _tuned(directory: Path, model: Path, parallel: ParallelConfig) -> list[dict[str, Any]]:
    """What a toy's tuning logs of each step, which a model in the job alone rewards."""
    toy = runpy.run_path(str(TOY))
    changes = {"steps": 2, "checkpoint_every": 0, "bad_reward": "drop_group"}
    config = TuneConfig.model_validate(toy["CONFIG"].model_dump() | changes)
    with launched(parallel) as topology:
        policy = toy["build"](topology)
        judges = _loaded(_lettered(model), topology, directory / "judges")
        tune(
            config, policy=policy, reference_policy=prepare_policy(policy, config),
            prompter=Prompter(toy["OPERATION"], toy["Letters"](), toy["PROMPT"]), slices=toy["SLICES"],
            scorer=Composer(judges, {"toy": {"clear": 1.0, "kept": 2.0}}),
            reward_weights={"clear": 1.0, "kept": 2.0}, directory=directory, seed=1,
        )  # fmt: skip
    return [record for record in read_metrics(directory / "metrics.jsonl") if record["kind"] == "tune"]


@pytest.mark.parametrize("tp", [2, 1])
def test_a_tuning_on_two_ranks_has_the_rewards_of_one(judge_dir: Path, tmp_path: Path, tp: int) -> None:
    [one] = run_ranks(_tuned, 1, directory=tmp_path / "one", model=judge_dir, parallel=ParallelConfig())
    two, _ = run_ranks(_tuned, 2, directory=tmp_path / "two", model=judge_dir, parallel=ParallelConfig(tp=tp))
    judge = "judge/clear+kept"
    for ours, theirs in zip(one, two, strict=True):
        for name in ("reward", "reward/clear", "reward/kept"):
            assert ours[name] == pytest.approx(theirs[name], abs=1e-5)
        assert len({ours["reward/clear"], ours["reward/kept"], 0.0}) == 3
        # Data-parallel ranks may both read a source before they know what the other keeps.
        assert tp == 1 or all(ours[f"{judge}/{what}"] == theirs[f"{judge}/{what}"] for what in ("judged", "kept"))
        assert 0 < theirs[f"{judge}/input_tokens"] < theirs[f"{judge}/plain_tokens"]


def test_answers_are_kept_by_model_question_and_prompt(
    topology: Topology, judge_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidates = _candidates()
    [judge] = _loaded(_config(judge_dir, "structure"), topology, tmp_path)
    first = judge(candidates)
    [again] = _loaded(_config(judge_dir, "structure"), topology, tmp_path)
    assert again(candidates) == first and again.client.take_counts()["kept"] == 3
    [hard] = _loaded(_config(judge_dir, "structure", hard=True), topology, tmp_path)
    assert hard(candidates) != first and hard.client.take_counts()["kept"] == 0
    assert again.version != hard.version and again.version.startswith(f"model {'0' * 16} in the job, question ")
    monkeypatch.setattr("synpro_engine.reward.judges.in_job.READING", 0)
    [otherwise] = _loaded(_config(judge_dir, "structure"), topology, tmp_path)
    assert otherwise(candidates) == first and otherwise.client.take_counts()["kept"] == 0, "read by other arithmetic"


def test_a_calibration_is_that_of_the_very_files_and_question_and_answers_are_kept_as_they_came(
    topology: Topology, judge_dir: Path, tmp_path: Path
) -> None:
    candidates, file = _candidates(), tmp_path / "calibration.json"
    [raw] = _loaded(_config(judge_dir, "structure"), topology, tmp_path)
    fitted = Calibration(**raw.client.belongs_to("structure"), temperature=2.0, offset=0.5)
    fitted.write(file)
    config = _config(judge_dir, "structure", calibration=str(file))
    first, [calibrated] = raw(candidates), _loaded(config, topology, tmp_path)
    assert calibrated(candidates) == [fitted(value, (0.0, 1.0)) for value in first] != first
    assert calibrated.client.take_counts()["kept"] == 3, "the same answers serve both"
    assert calibrated.version == f"{raw.version}, calibration {fitted.version}"
    assert config.uncalibrated() == _config(judge_dir, "structure")
    key = f"`reward.judges.structure.calibration`: {file}: was fitted to the"
    for change, told in {
        "model": f"model `other 0`, and here it is `model {'0' * 16}`", "question": f"question `{'f' * 16}`",
        "api": "api `chat`, and here it is `in the job`",
    }.items():  # fmt: skip
        other = {"model": "other 0", "question": "f" * 16, "api": "chat"}[change]
        fitted.model_copy(update={change: other}).write(file)
        assert _refused(config, topology).startswith(f"{key} {told}")
    fitted.write(file)
    for changes in ({"hard": True}, {"chat_format": "chatml"}):
        assert f"{key} question" in _refused(
            _config(judge_dir, "structure", calibration=str(file), **changes), topology
        )


def test_a_model_in_the_job_is_calibrated_by_pairs_of_which_the_truth_is_known(
    topology: Topology, judge_dir: Path, tmp_path: Path
) -> None:
    # Of a random model's two answers one is given more to true pairs; where the other counts, no rising map mends it.
    judges, file = [], tmp_path / "calibration.json"
    for worth in (0, 1):
        options = f"[{{name: supported, worth: {worth}}}, {{name: unsupported, worth: {1 - worth}}}]"
        question = f"{{type: choice, ask: 'Is it?', options: {options}, each: entry}}"
        judges.append(f"reward.judges.backed={{model: {judge_dir}, question: {question}}}")
    calibrated = {}
    for judge in judges:
        try:
            recipe = load_recipe("smoke", [judge])
            calibrated[judge] = check_judges_of(recipe, ["backed"], 4, 12, topology, calibrate=True)
        except UserError as error:
            assert "rates false pairs no lower than true ones" in str(error)
    [(judge, found)] = calibrated.items()
    assert found.calibration is not None and found.calibration.api == "in the job"
    found.calibration.write(file)
    named = load_recipe("smoke", [judge, f"reward.judges.backed.calibration={file}"])
    calibrated = check_judges_of(named, ["backed"], 4, 12, topology)
    for raw, mapped in zip(found.entries[0].sets, calibrated.entries[0].sets, strict=True):
        assert (raw.auc, raw.missing) == (pytest.approx(mapped.auc), mapped.missing) and raw.ece != mapped.ece


def test_a_prompt_beyond_the_window_is_missing_and_told(
    topology: Topology, judge_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [judge] = _loaded(_config(judge_dir, "structure", seq_len=400), topology)
    long = Candidate(operation="rephrase", source=SOURCE * 5, raw="", parsed=Parsed(ok=True, text="A mill."))
    values = judge([long, _candidates()[0]])
    assert math.isnan(values[0]) and 0.0 <= values[1] <= 1.0
    assert judge.client.take_counts()["missing"] == 1
    assert "`reward.judges.structure`: prompts of up to" in capsys.readouterr().err


def _refused(config: JudgesConfig, topology: Topology, **texts: int) -> str:
    with pytest.raises(UserError) as caught:
        check_models(config.in_job, topology.layout, hash_of=lambda source: "0" * 64, **texts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_no_judge_is_refused_by_its_key(topology: Topology, judge_dir: Path, tmp_path: Path) -> None:
    key = "`reward.judges.quality.model`: "
    check_models(_config(judge_dir, "quality").in_job, topology.layout, hash_of=lambda source: "0" * 64)
    assert _refused(_config(tmp_path / "none", "quality"), topology).startswith(f"{key}model `{tmp_path / 'none'}`: ")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "`model_type` 'bert' is not one of" in _refused(_config(tmp_path / "bert", "quality"), topology)
    for missing, told in (("model.safetensors", "safetensors"), ("tokenizer.json", "tokenizer.json")):
        shutil.copytree(judge_dir, tmp_path / missing)
        (tmp_path / missing / missing).unlink()
        message = _refused(_config(tmp_path / missing, "quality"), topology)
        assert message.startswith(key) and told in message
    for asked, told in (
        (_config(judge_dir, "quality", seq_len=64), "a question of"),
        (_config(judge_dir, "quality"), ""),
    ):
        message = _refused(asked, topology, max_chars=7000, max_new_tokens=500)
        assert message.startswith(f"{key}a question of") and told in message and "`generate.max_chars`" in message


def test_labels_that_are_one_token_are_refused(topology: Topology, judge_dir: Path, tmp_path: Path) -> None:
    """A vocabulary without capitals of their own reads every letter as the unknown one."""
    shutil.copytree(judge_dir, tmp_path / "model")
    data = json.loads((judge_dir / "tokenizer.json").read_text())
    data["normalizer"] = {"type": "Replace", "pattern": {"Regex": "[A-C]$"}, "content": "A"}
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(data))
    message = _refused(_config(tmp_path / "model", "faithfulness"), topology)
    assert message.startswith("`reward.judges.faithfulness.model`: its tokenizer makes of label `A` the same tokens of")


def test_a_judge_without_an_endpoint_is_a_model_and_a_forgotten_endpoint_is_told() -> None:
    config = load_config(RewardConfig, {"judges": {"quality": {"model": "somewhere"}}})
    assert config.judges.in_job.keys() == {"quality"} and not config.judges.remote and not config.measures("quality")
    with pytest.raises(UserError, match=r"key `judges.quality.endpoint` is missing"):
        load_config(RewardConfig, {"judges": {"quality": {"model": "somewhere", "api": "chat"}}})
    with pytest.raises(UserError, match=r"unknown key `judges.quality.prefil_tokens` \(did you mean `prefill_tokens`"):
        load_config(RewardConfig, {"judges": {"quality": {"model": "somewhere", "prefil_tokens": 5}}})


def test_a_run_is_refused_before_it_begins_and_a_stage_goes_by_the_files_of_the_model_that_it_asks(
    topology: Topology, judge_dir: Path, tmp_path: Path
) -> None:
    model = shutil.copytree(judge_dir, tmp_path / "model")
    drop = [f"tune.{operation}.bad_reward=drop_group" for operation in ("rephrase", "reformat")]
    clear = f"reward.judges.clear={{model: {model}, question: {{type: truth, ask: 'Is it clear?'}}}}"
    recipe = load_recipe("smoke", [f"reward.judges.structure={{model: {model}}}", clear, *drop])

    def contents() -> dict[str, dict[str, str]]:
        stages = Plan(recipe, tmp_path / "run", topology).stages()
        return {stage.name: stage.config.get("contents", {}) for stage in stages}

    check_judges(recipe, tmp_path / "run", topology)
    first = contents()
    named = {stage: sorted(key.split(".")[2] for key in of if "judges" in key) for stage, of in first.items()}
    assert {stage: of for stage, of in named.items() if of} == {
        "round-1/tune-rephrase": ["structure"],
        "round-1/generate-rephrase": ["clear", "structure"],
        "round-1/generate-reformat": ["clear"],
    }
    tokenizer = model / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    assert {stage for stage, of in contents().items() if of != first[stage]} == {s for s, of in named.items() if of}
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(UserError, match=r"^`reward.judges.structure.model`: .*`model_type` 'bert' is not one of"):
        check_judges(recipe, tmp_path / "run", topology)
    # Of an arm alone: what the recipe itself says is asked of nobody then.
    own = f"arms.own={{text: tuned, reward: {{judges: {{structure: {{model: {model}}}}}}}}}"
    arm = load_recipe("smoke", [own, "arms.plain={text: organic}", *drop])
    with pytest.raises(UserError, match=r"^arms.own: `reward.judges.structure.model`: .*'bert' is not one of"):
        check_judges(arm, tmp_path / "run", topology)
