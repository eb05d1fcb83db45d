"""What a recipe's judges see, on faults planted in its own corpus and on labelled sets: `synpro judge-check`."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from synpro_engine.backend import platform
from synpro_engine.config import UserError, nearest
from synpro_engine.cycle.recipe import Recipe
from synpro_engine.cycle.steps.judging import check_all, open_judges
from synpro_engine.data import Document, load_tokenizer, read_documents, start_id
from synpro_engine.dist import Topology, on_main, say
from synpro_engine.influence import text_likelihood
from synpro_engine.model.pretrained import import_model
from synpro_engine.reward import Composer, build_composer
from synpro_engine.reward.agreement import Standing, planted_pairs, standings
from synpro_engine.reward.calibrating import fit_calibration
from synpro_engine.reward.entries import JUDGED, PLANTED, Cost, EntryStanding, JudgedEntries, judged_entries
from synpro_engine.reward.examples import ENTRY_FAULTS, MEASURED, Example, part_of, planted_examples
from synpro_engine.reward.head import embedded_head, load_head
from synpro_engine.reward.judges import Calibration, Judge
from synpro_engine.reward.labelled import read_labelled
from synpro_engine.synth import SliceConfig, choose_slices

CHECKED = ("quality", "faithfulness", "similarity", "structure", "anti_copy")
"""Rewards that judge a text by itself or by its source."""
OF_ENTRIES = ("faithfulness",)
"""Those of them that judge each entry of a text by itself."""
LABELLED = ("embedded:sciq/pairs", "embedded:boolq/pairs", "embedded:rte/pairs")
"""Pairs that people labelled; no judge of ours is trained on them."""
_CALIBRATE = "--calibrate"
_SHARE = (0.0, 1.0)
_ENTRIES = 4  # of a slice
_DOCUMENTS = 20  # looked at for each slice that is wanted
_SLICE = SliceConfig(max_chars=800, min_source_chars=400)


@dataclass(frozen=True, kw_only=True)
class Checked:
    """What was found of a recipe's judges."""

    texts: list[Standing]
    """Of judges of whole texts, on each fault."""
    costs: dict[str, Cost]
    """Of those, by judge."""
    entries: list[EntryStanding]
    """Of judges of entries."""
    calibration: Calibration | None
    """Of the one judge of entries that was to be calibrated."""


def check_judges_of(
    recipe: Recipe, judges: Sequence[str], texts: int, pairs: int, topology: Topology, *, calibrate: bool = False
) -> Checked:
    """Standings of `judges`, embedded or not, on `texts` slices of the recipe's corpus. Collective.

    pairs: at most so many of each labelled set, for judges of entries. calibrate: fit a map to the answers of the one
    judge that is named, and leave aside those that the recipe names. UserError for a corpus without so much prose, for
    judges that cannot be had or calibrated, and for a name that is none.
    """
    own = recipe.reward.judges.own
    known = (*CHECKED, *own)
    for judge in judges:
        if judge not in known:
            raise UserError(f"--judge: no judge `{judge}`{nearest(judge, known)}; there are {', '.join(known)}")
    wanted = [judge for judge in known if judge in (judges or known)]
    by_entry = (*OF_ENTRIES, *(name for name in own if recipe.reward.judges.question_of(name).each == "entry"))
    if calibrate:
        recipe = _to_calibrate(recipe, judges, by_entry)
    # All of them, whatever the recipe weighs: what a judge sees is asked before it is used.
    reward = recipe.reward.weighing({JUDGED: dict.fromkeys(wanted, 1.0)})
    for line in on_main(topology, lambda: check_all(reward, topology.layout)):
        say(topology, line)
    of_texts = [judge for judge in wanted if judge not in by_entry]
    of_entries = [judge for judge in wanted if judge in by_entry]
    # What may not be there is read before anything is judged.
    slices = on_main(topology, lambda: _slices(recipe, texts, lambda document: True)) if of_texts else []
    sets = on_main(topology, lambda: _entry_sets(recipe, texts, pairs)) if of_entries else {}
    with tempfile.TemporaryDirectory() as folder:
        opened = open_judges(reward, Path(folder), topology, platform.resolve_dtype(recipe.dtype))

        def composer(*names: str) -> Composer:
            likelihood = _likelihood(recipe, Path(folder), topology) if "quality" in names else None
            chosen = reward.weighing({JUDGED: dict.fromkeys(names, 1.0)})
            of_names = [judge for judge in opened if judge.name in names]
            return build_composer(
                chosen, influence_of=None, likelihood_of=likelihood, judges=of_names, device=topology.device
            )

        found, costs = standings(composer(*of_texts), planted_pairs(slices, recipe.seed)) if of_texts else ([], {})
        asked = recipe.reward.judges.asked
        scales = {name: recipe.reward.judges.question_of(name).range if name in asked else _SHARE for name in by_entry}
        judged = [judged_entries(composer(judge), judge, sets, scales[judge]) for judge in of_entries]
        calibration = _calibration(judged[0], opened[0]) if calibrate else None
    entries = [each.standing for each in judged]
    return Checked(texts=found, costs=costs, entries=entries, calibration=calibration)


def _to_calibrate(recipe: Recipe, judges: Sequence[str], by_entry: Sequence[str]) -> Recipe:
    """The recipe with the answers as they come; UserError unless one judge is named that can be calibrated."""
    fit = [name for name in by_entry if name in recipe.reward.judges.asked]
    if len(set(judges)) != 1 or judges[0] not in fit:
        one = f"; here --judge {' or '.join(fit)}" if fit else ", and this recipe has none"
        raise UserError(f"{_CALIBRATE}: one judge of entries that is a model is calibrated at a time{one}")
    uncalibrated = recipe.reward.model_copy(update={"judges": recipe.reward.judges.uncalibrated()})
    return recipe.model_copy(update={"reward": uncalibrated})


def _calibration(judged: JudgedEntries, judge: Judge) -> Calibration:
    return fit_calibration(judged.labelled, **judge.client.belongs_to(judge.name), option=_CALIBRATE)


def _likelihood(recipe: Recipe, folder: Path, topology: Topology) -> Callable[[Sequence[str]], Sequence[float]] | None:
    """Under the recipe's generator; None where a judge is asked for quality."""
    if "quality" in recipe.reward.judges.asked:
        return None
    imported = import_model(
        recipe.generator.source, topology, tokenizer_dir=folder,
        dtype=platform.resolve_dtype(recipe.dtype), seq_len=recipe.generator.seq_len,
    )  # fmt: skip
    tokenizer = load_tokenizer(imported.tokenizer)
    return text_likelihood(imported.model, tokenizer.encode, start_id=start_id(tokenizer))


def _entry_sets(recipe: Recipe, texts: int, pairs: int) -> dict[str, list[Example]]:
    """Faults planted in documents that no judge of ours was trained on, and the labelled sets."""
    own = recipe.reward.faithfulness_judge
    trained_on = (load_head(Path(own)) if own else embedded_head()).recipe.get("texts", ())

    def unseen(document: Document) -> bool:
        return recipe.corpus.source not in trained_on or part_of(document.text) == MEASURED

    slices = _slices(recipe, texts, unseen)
    found = {PLANTED: list(planted_examples(slices, recipe.seed, entries=_ENTRIES, faults=len(ENTRY_FAULTS)))}
    for source in LABELLED:
        of_source = list(islice(read_labelled(source), pairs))
        found[of_source[0].kind] = of_source
    return found


def _slices(recipe: Recipe, texts: int, wanted: Callable[[Document], bool]) -> list[str]:
    config = recipe.corpus

    def documents() -> Iterator[Document]:
        # From the beginning of the corpus, which may be too large to be read for this.
        found = read_documents(config.source, config, lambda bad: None) if config.shards is None else ()
        return (document for document in islice(found, _DOCUMENTS * texts) if wanted(document))

    slices = list(choose_slices(documents, _SLICE.model_copy(update={"max_slices": texts}), recipe.seed))
    if len(slices) < 2:
        raise UserError(
            "`corpus.source`: judge-check needs two slices of prose of 400 characters, from text and not ids"
        )
    return [piece.text.strip() for piece in slices]
