"""A run as the page of several shows it: what tells it apart, and what the cells of its column say."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from synpro_engine.evaluate import bits_per_byte
from synpro_engine.report.data import ReportData
from synpro_engine.report.numbers import MISSING, compact, count
from synpro_engine.report.sections.pretraining import CurveKind


@dataclass(frozen=True, kw_only=True)
class ComparedRun:
    """A run, and what its losses are of."""

    label: str
    """Unlike those of the others."""
    place: str
    data: ReportData
    tokenizer: str | None
    """Its fingerprint; None while nothing is tokenised."""
    texts: Mapping[CurveKind, str | None]
    """What tells apart the texts that losses are measured on, by kind; None while they are not there."""
    tasks: Mapping[str, str] = field(default_factory=dict)
    """The same of held-out tasks, by name."""
    split_alone: bool = True
    """Whether the reference loss is that of the split, not of tasks from files or of both by weight."""

    @property
    def tokens_per_step(self) -> int:
        """Trained on in an optimizer step."""
        config: Any = self.data.config
        return config["pretrain"]["global_batch"] * config["model"]["seq_len"]

    @property
    def reads_apart(self) -> bool:
        """Whether it trains and measures on documents that do not see each other."""
        config: Any = self.data.config
        return bool(config["pretrain"].get("separate_documents", False))

    def per_byte(self, kind: CurveKind) -> float | None:
        """Bits per byte for each nat per token of a split; None of a reference loss that is not the split's."""
        if kind == "reference" and not self.split_alone:
            return None
        splits = () if self.data.corpus is None else self.data.corpus.splits
        found = next((split for split in splits if split.name == kind), None)
        return None if found is None or not found.utf8_bytes else bits_per_byte(found.tokens, found.utf8_bytes)

    # Cells of its column; `MISSING` where the run has none.

    @property
    def model(self) -> str:
        """How large the pretrained model is, and what."""
        models = [model for model in self.data.models if model.role == "pretrained"]
        return f"{compact(models[0].parameters)} parameters; {models[0].description}" if models else MISSING

    @property
    def stages(self) -> str:
        """How many of its stages are done."""
        known, left = len(self.data.timeline.stages), len(self.data.timeline.unfinished)
        return f"{known - left} of {known} done"

    @property
    def plateau(self) -> str:
        """Where pretraining ended."""
        plateau = self.data.pretraining.plateau
        if plateau is None:
            return MISSING
        tokens = compact(plateau.step * self.tokens_per_step)
        return f"step {count(plateau.step)}, {tokens} tokens" + ("" if plateau.stopped else "; the budget ended first")

    @property
    def settings(self) -> dict[str, object]:
        """Every setting by its dotted key; a list is one."""
        return dict(_leaves(self.data.config))

    def kept(self, texts: str) -> str:
        """Completions of an operation in a round that were kept, of those generated."""
        found = self.data.yields.get(texts)
        return MISSING if found is None else f"{count(found.accepted)} of {count(found.completions)}"


def _leaves(config: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, object]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value
