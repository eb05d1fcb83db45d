"""What a recipe's judges see, measured on faults planted in its own corpus: `synpro judge-check`."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import UserError
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.steps.judging import check_all, open_judges
from synpro_engine.data import Document, load_tokenizer, read_documents, start_id
from synpro_engine.dist import Topology, on_main
from synpro_engine.influence import text_likelihood
from synpro_engine.model.pretrained import import_model
from synpro_engine.reward import build_composer
from synpro_engine.reward.agreement import JUDGED, Standing, planted_pairs, standings
from synpro_engine.synth import SliceConfig, choose_slices

CHECKED = ("quality", "faithfulness", "similarity", "structure", "anti_copy")
"""Rewards that judge a text by itself or by its source."""
_DOCUMENTS = 20  # looked at for each slice that is wanted
_SLICE = SliceConfig(max_chars=800, min_source_chars=400)


def check_judges_of(recipe: Recipe, texts: int, topology: Topology) -> list[Standing]:
    """Standings of the recipe's judges, embedded or behind endpoints, on `texts` slices of its corpus. Collective.

    UserError for a corpus without so much prose, and for judges that cannot be had.
    """
    # All of them, whatever the recipe weighs: what a judge sees is asked before it is used.
    reward = recipe.reward.weighing({JUDGED: dict.fromkeys(CHECKED, 1.0)})
    on_main(topology, lambda: check_all(reward))
    slices = on_main(topology, lambda: _slices(recipe, texts))
    with tempfile.TemporaryDirectory() as folder:
        likelihood_of = None
        if reward.measures("quality"):
            imported = import_model(
                recipe.generator.source, topology, tokenizer_dir=Path(folder),
                dtype=platform.resolve_dtype(recipe.dtype), seq_len=recipe.generator.seq_len,
            )  # fmt: skip
            tokenizer = load_tokenizer(imported.tokenizer)
            likelihood_of = text_likelihood(imported.model, tokenizer.encode, start_id=start_id(tokenizer))
        judges = open_judges(reward, Path(folder), topology)
        composer = build_composer(
            reward, influence_of=None, likelihood_of=likelihood_of, judges=judges, device=topology.device
        )
        return standings(composer, planted_pairs(slices, recipe.seed))


def _slices(recipe: Recipe, texts: int) -> list[str]:
    config = recipe.corpus

    def documents() -> Iterator[Document]:
        # From the beginning of the corpus, which may be too large to be read for this.
        found = read_documents(config.source, config, lambda bad: None) if config.shards is None else ()
        return islice(found, _DOCUMENTS * texts)

    slices = list(choose_slices(documents, _SLICE.model_copy(update={"max_slices": texts}), recipe.seed))
    if len(slices) < 2:
        raise UserError(
            "`corpus.source`: judge-check needs two slices of prose of 400 characters, from text and not ids"
        )
    return [piece.text.strip() for piece in slices]
