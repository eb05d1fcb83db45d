"""A generator that cannot be prompted or sampled is refused when it is imported, before anything is trained."""

import json
import runpy
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from synpro_engine.config import UserError, write_manifest
from synpro_engine.cycle import Recipe, load_recipe
from synpro_engine.cycle.scoring.model_pair import ModelPair
from synpro_engine.cycle.settings import SettingsOf
from synpro_engine.cycle.steps.corpus import open_tokenizer
from synpro_engine.cycle.steps.importing import import_stage
from synpro_engine.cycle.steps.weights import export_stage
from synpro_engine.data import load_tokenizer
from synpro_engine.dist import ParallelConfig, Topology, launched
from synpro_engine.influence import EstimatorConfig
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf import export_hf
from synpro_engine.synth import REFORMAT, render_chat

PUBLISHED: dict[str, Any] = runpy.run_path(str(Path(__file__).parents[1] / "synth" / "published.py"))


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


def _published(directory: Path, rows_more: int, topology: Topology) -> Path:
    """A Llama 3 shaped model whose embedding has so many rows more than its tokenizer has ids."""
    tokenizer = load_tokenizer(PUBLISHED["write"](directory / "tokenizer", "llama3"))
    shape = ModelConfig(
        family="llama", layers=1, d_model=16, heads=2, kv_heads=2, ffn=16, seq_len=64,
        vocab_size=tokenizer.vocab_size + rows_more,
    )  # fmt: skip
    export_hf(build_model(shape, topology), directory / "model", tokenizer)
    return directory / "model"


def _recipe(source: Path, chat_format: str = "auto", *more: str) -> Recipe:
    overrides = [f"generator.source={source}", "generator.model=null", f"prompt.chat_format={chat_format}"]
    return load_recipe("smoke", [*overrides, *more])


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused_with_both_sizes(
    topology: Topology, tmp_path: Path
) -> None:
    source = _published(tmp_path, -1, topology)
    ids = load_tokenizer(source).vocab_size
    (tmp_path / "stage").mkdir()
    with pytest.raises(UserError, match=f"{source}: {ids - 1} rows .* too few for a tokenizer of {ids} ids"):
        import_stage(tmp_path / "stage", SettingsOf(_recipe(source)).generator, tmp_path, topology)


def test_a_generator_that_auto_cannot_prompt_is_refused_at_import(topology: Topology, tmp_path: Path) -> None:
    source = _published(tmp_path, 3, topology)
    (source / "chat_template.jinja").unlink()
    for name, chat_format in (("auto", "auto"), ("chatml", "chatml")):
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match="`chat_format`"):
            import_stage(tmp_path / name, SettingsOf(_recipe(source, chat_format)).generator, tmp_path, topology)
    (tmp_path / "plain").mkdir()
    import_stage(tmp_path / "plain", SettingsOf(_recipe(source, "plain")).generator, tmp_path, topology)
    # What an arm asks counts as well, and where arms are named no other prompt does.
    for own, asks in (("plain", "auto"), ("auto", "plain")):
        settings = SettingsOf(_recipe(source, own, f"arms.own={{text: tuned, prompt: {{chat_format: {asks}}}}}"))
        (tmp_path / f"arm-{asks}").mkdir()
        refused = pytest.raises(UserError, match=r"^arms\.own: `chat_format`") if asks == "auto" else nullcontext()
        with refused:
            import_stage(tmp_path / f"arm-{asks}", settings.generator, tmp_path, topology)


def test_a_generator_leaves_the_run_with_the_prompts_it_came_with(topology: Topology, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = _published(tmp_path, 3, topology)
    recipe = _recipe(source)
    (tmp_path / "run" / "import").mkdir(parents=True)
    import_stage(tmp_path / "run" / "import", SettingsOf(recipe).generator, tmp_path, topology)
    write_manifest(tmp_path / "run" / "import", "stage", {}, {}, None)
    export_stage(tmp_path / "run", "import", tmp_path / "out", recipe, topology)
    messages = REFORMAT.messages("The mill burned down.")
    asked = render_chat(messages, "", open_tokenizer(tmp_path / "run" / "import", topology))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "out", local_files_only=True)
    turns = [{"role": message.role, "content": message.content} for message in messages]
    assert theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False) == asked
    settings = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == [1, 4] and settings["temperature"] == 0.6
    pair = ModelPair(theta=tmp_path / "run" / "import", probe=tmp_path, tokenizer=_Larger(), dtype=torch.float32)
    with pytest.raises(UserError, match=r"rows of the embedding are too few for a tokenizer of 9999 ids; see --tok"):
        pair.estimator(EstimatorConfig(), topology)


class _Larger:
    vocab_size = 9999
