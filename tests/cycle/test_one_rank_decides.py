"""What a job goes by is what rank 0 sees, also where another rank, on another node, sees other files by the same names.

Each rank works in a directory of its own. In rank 1's everything was made anew with other settings, and more is there.
"""

import json
import os
import runpy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.cli.commands.opening import opened_cycle
from synpro_engine.config import new_artifact, to_yaml
from synpro_engine.config.artifact import MANIFEST
from synpro_engine.cycle import Cycle, ModelPair, explain_document, load_recipe, score_documents
from synpro_engine.cycle.plan import Plan
from synpro_engine.cycle.run_layout import CHECKPOINT, DIRECTION
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.probe import load_probe
from synpro_engine.cycle.steps.tuning import chosen_to_tune
from synpro_engine.cycle.steps.weights import export_stage, load_model, stage_checkpoint
from synpro_engine.data import train_sentencepiece
from synpro_engine.dist import ParallelConfig, Topology, launched, on_main
from synpro_engine.dist.job import SharedError
from synpro_engine.dist.testing import run_ranks
from synpro_engine.influence import Direction, EstimatorConfig, save_direction
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf import export_hf
from synpro_engine.model.model import Model
from synpro_engine.model.pretrained import import_model
from synpro_engine.rl.trainer import POLICY
from synpro_engine.synth import Slice, SliceConfig, operation_named
from synpro_engine.train.checkpoint import save_checkpoint
from synpro_engine.train.checkpoint_directory import CHECKPOINTS, step_path

GGUF: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "model" / "test_gguf_files.py"))
GENERATION = Path(__file__).parents[1] / "synth" / "generation_job.py"
WORDS = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": ["<end>", "a", "b", "ab"],
    "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.token_type": [3, 1, 1, 1], "tokenizer.ggml.eos_token_id": 0,
}  # fmt: skip
SHAPE = ModelConfig(layers=1, d_model=16, heads=2, kv_heads=2, ffn=16, vocab_size=300, seq_len=16)
TOKENS, THETA, PROBE, WALKED = Path("tokenize"), Path("pretrain"), Path("round-1/probe"), Path("walked")
ONE_A_ROW = EstimatorConfig(micro_batch=1)


def _stage(place: Path, stage: Path, fill: Callable[[Path], object], *parents: Path) -> None:
    with new_artifact(place / stage, str(stage), {}, {str(name): place / name for name in parents}) as inside:
        fill(inside)


def _documents(place: Path, texts: Mapping[str, str]) -> None:
    lines = (json.dumps({"id": id, "text": text}) + "\n" for id, text in texts.items())
    (place / "docs.jsonl").write_text("".join(lines))


def _make(place: Path, model: Model, word: str, documents: int) -> None:
    """A run with its probe, a stage whose probe is a model, and documents to score."""
    vectors = Direction({name: torch.ones_like(weight) for name, weight in model.named_parameters()}, tangent=True)
    _documents(place, {f"d{n}": f"{word} " * (n + 1) for n in range(documents)})
    (place / "recipe.yaml").write_text(to_yaml(load_recipe("smoke", [f"name={word}"])))
    shape = model.config.model_copy(update={"family": "llama"})
    GGUF["write"](place / "model.gguf", shape, GGUF["random_state"](shape), WORDS)
    texts = (f"the {word} burned down {n} times" for n in range(2000))
    _stage(place, TOKENS, lambda inside: train_sentencepiece(texts, 300, inside / "tokenizer" / "tokenizer.model"))
    _stage(place, THETA, lambda inside: save_checkpoint(step_path(inside / CHECKPOINTS, 2), model), TOKENS)
    _stage(place, PROBE, lambda inside: save_direction(inside / DIRECTION, model, vectors), TOKENS, THETA)
    _stage(place, WALKED, lambda inside: save_checkpoint(inside / CHECKPOINT, model))


def _make_more(place: Path, model: Model, topology: Topology) -> None:
    """What leads a rank that goes by it another way than the one that does not see it."""
    vectors = Direction({}, tangent=True)
    (place / THETA / POLICY).mkdir()
    (place / PROBE / DIRECTION / MANIFEST).unlink()
    save_direction(place / WALKED / DIRECTION, model, vectors)
    _stage(place, Path("round-1/continue"), lambda inside: save_checkpoint(inside / CHECKPOINT, model))
    _stage(place, Path("round-2/probe"), lambda inside: None, Path("round-1/continue"))
    export_hf(model, place / "model", open_tokenizer(place / TOKENS, topology))
    (place / "out").mkdir()
    (place / "out" / "thesis.tex").write_text("years of work")


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories of ranks 0 and 1, each called by the rank's number."""
    root = tmp_path_factory.mktemp("nodes")
    longer = SHAPE.model_copy(update={"seq_len": 32})
    with launched(ParallelConfig()) as topology:
        for rank, shape, dtype in ((0, SHAPE, torch.float32), (1, longer, torch.bfloat16)):
            place, model = root / str(rank), build_model(shape, topology, dtype=dtype, seed=rank)
            place.mkdir()
            _make(place, model, ("mill", "barn")[rank], documents=(30, 3)[rank])
            if rank:
                _make_more(place, model, topology)
    (root / "0" / "late.jsonl").write_text((root / "0" / "docs.jsonl").read_text())
    (root / "0" / "taken").mkdir()
    (root / "0" / "taken" / "thesis.tex").write_text("years of work")
    return root


def _theta(topology: Topology) -> Model:
    return build_model(SHAPE, topology)


def _pair(topology: Topology) -> ModelPair:
    return ModelPair.of_paths(THETA, PROBE, None, topology)


def _of_paths(topology: Topology) -> object:
    pair = _pair(topology)
    return pair.dtype, pair.tokenizer.fingerprint, pair.hashes(topology)


def _of_run(topology: Topology) -> object:
    pair = ModelPair.of_run(Cycle(load_recipe("smoke", ["rounds=2"]), Path(), topology))
    return pair.theta, pair.probe, pair.tokenizer.fingerprint


def _outside(topology: Topology) -> object:
    recipe = load_recipe("smoke", ["corpus.source=docs.jsonl"])
    return next(Plan(recipe, Path(), topology).stages()).config


def _export(output: str, topology: Topology) -> object:
    return export_stage(Path(), str(THETA), Path(output), load_recipe("smoke", []), topology)


def _scored(documents: str, topology: Topology) -> list[str]:
    output = Path(f"scores-{topology.world_size}-{documents}")
    score_documents(_pair(topology), ONE_A_ROW, documents, output, topology)
    return on_main(topology, lambda: [json.loads(line)["id"] for line in output.read_text().splitlines()])


def _explained(topology: Topology) -> str:
    found = explain_document(_pair(topology), ONE_A_ROW, "docs.jsonl", "d2", topology)
    return "".join(text for text, _ in found.pieces)


def _to_tune_on(topology: Topology) -> object:
    config, tokenizer = SliceConfig(max_slices=4, min_source_chars=1), open_tokenizer(TOKENS, topology)
    kept = Path("slices") / f"{topology.world_size}.json"
    return chosen_to_tune(kept, Path("docs.jsonl"), config, 0, tokenizer, operation_named("rephrase"), topology)


ASKED: dict[str, Callable[[Topology], object]] = {
    "the checkpoint of a stage": lambda topology: stage_checkpoint(THETA, topology),
    "a stage that is not there": lambda topology: stage_checkpoint(Path("round-2/probe"), topology),
    "the shape of a model": lambda topology: load_model(THETA, topology, torch.float32).config,
    "a probe that is a direction": lambda topology: type(load_probe(PROBE, _theta(topology), torch.float32)),
    "a probe that is a model": lambda topology: type(load_probe(WALKED, _theta(topology), torch.float32)),
    "the estimator for a probe": lambda topology: _pair(topology).resolved(EstimatorConfig(), topology),
    "a pair by its paths": _of_paths,
    "a pair of a run": _of_run,
    "theta and probe of a run": lambda topology: Cycle(load_recipe("smoke", ["rounds=2"]), Path(), topology).probe_pair,
    "the tokenizer of a stage": lambda topology: open_tokenizer(TOKENS, topology).fingerprint,
    "what a run reads from outside": _outside,
    "a model to import": lambda topology: import_model("model", topology, tokenizer_dir=Path("words")),
    "a GGUF file": lambda topology: import_model("model.gguf", topology, tokenizer_dir=Path("words")).model.config,
    "a place to export to": lambda topology: _export("out", topology),
    "a place that is taken": lambda topology: _export("taken", topology),
    "documents to score": lambda topology: _scored("docs.jsonl", topology),
    "documents that rank 0 alone has": lambda topology: _scored("late.jsonl", topology),
    "a document to explain": _explained,
    "slices to tune on": _to_tune_on,
}


def _answers(nodes: Path) -> dict[str, object]:
    os.chdir(nodes / os.environ.get("RANK", "0"))
    found: dict[str, object] = {}
    with launched(ParallelConfig()) as topology:
        for asked, answer in ASKED.items():
            try:
                found[asked] = answer(topology)
            except SharedError as error:
                found[asked] = f"refused: {error}"
    return found


def test_every_rank_goes_by_what_rank_0_sees(nodes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(nodes)  # and back, for `_answers` changes it
    alone = _answers(nodes)
    assert sum(str(answer).startswith("refused") for answer in alone.values()) == 3
    for answers in run_ranks(_answers, 2, timeout_s=120.0, nodes=nodes):
        for asked, answer in answers.items():
            assert answer == alone[asked], asked


def test_a_tuning_that_goes_on_has_its_slices_without_choosing_again_and_others_where_it_asks_for_others(
    tmp_path: Path,
) -> None:
    tokenizer, operation = runpy.run_path(str(GENERATION))["make_tokenizer"](), operation_named("rephrase")
    _documents(tmp_path, {f"d{n}": f"mill {n} " * 20 for n in range(30)})
    config = SliceConfig(max_tokens=90, max_slices=4)
    with launched(ParallelConfig()) as topology:

        def chosen(documents: str, config: SliceConfig) -> list[Slice]:
            kept = tmp_path / "slices" / "train.json"
            return chosen_to_tune(kept, tmp_path / documents, config, 0, tokenizer, operation, topology)

        first = chosen("docs.jsonl", config)
        assert len(first) == 4 and chosen("gone.jsonl", config) == first
        assert len(chosen("docs.jsonl", config.model_copy(update={"max_slices": 5}))) == 5


def _recipe_name(nodes: Path) -> str:
    os.chdir(nodes / os.environ["RANK"])
    with opened_cycle("recipe.yaml", [], None) as cycle:
        return cycle.directory.name


def test_every_rank_has_the_recipe_that_rank_0_read(nodes: Path) -> None:
    assert run_ranks(_recipe_name, 2, timeout_s=60.0, nodes=nodes) == ["mill", "mill"]
