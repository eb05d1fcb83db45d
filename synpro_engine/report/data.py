"""What a report is made of: `ReportData` holds all that a run can tell, and its fields are the sections of the page.

Whoever runs the cycle fills it. Every part but the title is optional, and a part left empty is shown as "not run yet",
so that a run can be looked at half-way. Times are in seconds, losses in nats per token, lengths in tokens unless a
field says otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from synpro_engine.evaluate import Diversity
from synpro_engine.report import svg
from synpro_engine.report.sections.arms import Arms, DataEfficiency
from synpro_engine.report.sections.corpus import CorpusInfo
from synpro_engine.report.sections.downstream import Downstream
from synpro_engine.report.sections.effective_tokens import EffectiveTokens
from synpro_engine.report.sections.environment import Environment
from synpro_engine.report.sections.influence import Influence
from synpro_engine.report.sections.pretraining import Pretraining
from synpro_engine.report.sections.provenance import Provenance
from synpro_engine.report.sections.samples import Sample
from synpro_engine.report.sections.timeline import Timeline
from synpro_engine.report.sections.tokens import TokenAccount
from synpro_engine.report.sections.tuning import RewardCurves
from synpro_engine.synth import OperationFiltering, OperationYield

_TITLE = "title"


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A model of the run: its role (`pretrained`, `generator`, ...), one line about it, its number of parameters."""

    role: str
    description: str
    parameters: int


@dataclass(frozen=True, kw_only=True)
class OperationShare:
    """The share of the slices that an operation worked on, and the mean influence it earned in the round before."""

    earned: float | None
    share: float


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that the page shows.

    The fields with a title are the sections, in the page's order: a field NAME has its records and figures in
    `sections/NAME.py` and is shown by `sections/NAME.html.j2`, where this record is `data`.
    """

    title: str
    recipe: str = ""
    created: str = ""  # when the run ended, as the reader should see it
    config: Mapping[str, object] = field(default_factory=dict)  # resolved, JSON-like
    models: tuple[ModelInfo, ...] = ()

    timeline: Timeline = field(default_factory=Timeline, metadata={_TITLE: "Timeline"})
    corpus: CorpusInfo | None = field(default=None, metadata={_TITLE: "The corpus"})
    pretraining: Pretraining = field(default_factory=Pretraining, metadata={_TITLE: "Pretraining and plateau"})
    influence: Influence = field(default_factory=Influence, metadata={_TITLE: "Data influence"})
    tuning: tuple[RewardCurves, ...] = field(default_factory=tuple, metadata={_TITLE: "Tuning the generator"})
    # By operation and round.
    yields: Mapping[str, OperationYield] = field(default_factory=dict, metadata={_TITLE: "Yield of generation"})
    # The same, of the texts that filters removed afterwards; only where any did.
    filtered: Mapping[str, OperationFiltering] = field(default_factory=dict)
    # The shares of the slices, where operations have them by influence.
    mixtures: Mapping[str, OperationShare] = field(default_factory=dict)
    samples: tuple[Sample, ...] = field(default_factory=tuple, metadata={_TITLE: "Samples"})
    # By set of texts: the organic one, and that of each operation.
    diversity: Mapping[str, Diversity] = field(default_factory=dict, metadata={_TITLE: "Diversity"})
    # Finished stages that measured less of them than this version does.
    with_fewer_gauges: tuple[str, ...] = ()
    tokens: TokenAccount | None = field(default=None, metadata={_TITLE: "Token accounting"})
    provenance: Provenance = field(default_factory=Provenance, metadata={_TITLE: "From training to sources"})
    arms: Arms = field(default_factory=Arms, metadata={_TITLE: "The arms"})
    downstream: Downstream = field(default_factory=Downstream, metadata={_TITLE: "Downstream tasks"})
    effective_tokens: EffectiveTokens = field(default_factory=EffectiveTokens, metadata={_TITLE: "Effective tokens"})
    # Where the recipe has a table to go by.
    data_efficiency: tuple[DataEfficiency, ...] = ()
    environment: Environment | None = field(default=None, metadata={_TITLE: "Environment"})

    @property
    def colours(self) -> dict[str, str]:
        """By operation: the same colour in every figure, so that a reader can follow one through the page."""
        names = [influence.operation for influence in self.influence.operations]
        names += [curves.operation for curves in self.tuning]
        return {name: svg.SERIES[number % len(svg.SERIES)] for number, name in enumerate(dict.fromkeys(names))}


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the page; `key` is its field of `ReportData`, its anchor and the stem of its template."""

    key: str
    title: str


SECTIONS = tuple(Section(key=f.name, title=f.metadata[_TITLE]) for f in fields(ReportData) if _TITLE in f.metadata)
