"""A report of an imagined run: plausible numbers, made up here and used nowhere else."""

import dataclasses
import math
import random

import pytest

from synpro_engine.evaluate import Overlap, measure_diversity
from synpro_engine.report import (
    Arms,
    ArmTokens,
    CorpusInfo,
    Curve,
    CurveKind,
    Downstream,
    EffectiveCurve,
    EffectiveTokens,
    Environment,
    HeldOutLoss,
    Influence,
    InRunInfluence,
    MadeTokens,
    Measured,
    ModelInfo,
    OperationInfluence,
    Plateau,
    Pretraining,
    Provenance,
    QuestionsAsked,
    ReportData,
    RewardCurves,
    Sample,
    ScoredDocument,
    SourceText,
    SplitSize,
    StageTiming,
    TaskCurve,
    TaskResult,
    Timeline,
    TokenAccount,
    TrainedDocument,
    TrainedWindow,
    UniquePoint,
    over_seeds,
    render_report,
)
from synpro_engine.synth import OperationYield

SOURCE = (
    "The finances of the country are in a sound condition. The receipts of the Treasury during the year ending on the "
    "30th of September last amounted to nearly $31,000,000, and the expenditures to $24,700,000; the balance has been "
    "applied to the public debt, of which no part will remain after the first day of January next.\n\n"
    "Our relations with the powers of Europe are friendly. The commissioners appointed under the convention with Spain "
    "have entered upon their duties, and it is believed that the claims of our citizens will be settled before spring. "
    "The navigation of the northern lakes, so long a subject of complaint, has been opened to the vessels of both "
    "nations upon equal terms, and the trade of the upper country has already felt the benefit of that measure."
)
REPHRASED = (
    "The country's finances are sound. In the year that ended on 30 September the Treasury took in close to "
    "$31,000,000 and spent $24,700,000. What was left over went to the public debt, and none of it will be "
    "outstanding after 1 January.\n\nRelations with the European powers are friendly; the commissioners named under "
    "the convention with Spain have begun their work."
)
INVENTED = "- Topic: Spain. Content: A convention appointed commissioners, and Adams signed it on 14 March 1835."
HOSTILE = "Here is <script>alert('x')</script> & </div><img src=x onerror=alert(1)> \x00 \ud800 end"


def _curve(name: str, kind: CurveKind, steps: range, start: float, floor: float, pace: float, noise: float) -> Curve:
    rng = random.Random(name + kind)
    loss = tuple(floor + (start - floor) * math.exp(-s / pace) + rng.gauss(0, noise) for s in steps)
    return Curve(name=name, kind=kind, steps=tuple(steps), loss=loss)


def _over_seeds(name: str, kind: CurveKind, floor: float) -> Curve:
    curves = (_curve(f"{name} {seed}", kind, range(300, 601, 20), 5.1, floor, 90, 0.008) for seed in range(3))
    return over_seeds([dataclasses.replace(curve, name=name) for curve in curves])


def _rewards(operation: str, steps: int) -> RewardCurves:
    rng = random.Random(operation)

    def rise(start: float, end: float, noise: float) -> tuple[float, ...]:
        return tuple(start + (end - start) * s / (steps - 1) + rng.gauss(0, noise) for s in range(steps))

    parts = {
        "influence": rise(-0.02, 0.06, 0.03),
        "quality": rise(0.1, 0.3, 0.1),
        "similarity": rise(0.7, 0.8, 0.05),
        "structure": rise(0.4, 0.6, 0.05),
        "length": rise(0.85, 0.95, 0.04),
        "format": rise(0.6, 0.95, 0.05),
        "anti_copy": rise(-0.1, -0.08, 0.02),
    }
    weights = {name: 3.0 if name == "influence" else 1.0 for name in parts}
    return RewardCurves(
        operation=operation,
        steps=tuple(range(1, steps + 1)),
        total=rise(1.3, 1.95, 0.1),
        parts=parts,
        weights=weights,
        kl=rise(0.0, 0.04, 0.003),
        lengths=rise(96, 118, 6),
        held_out={
            "": [
                Measured(step=n, value=1.3 + n / 50, band=(1.3 + n / 90, 1.3 + n / 35)) for n in range(0, steps + 1, 4)
            ],
            "quality": [Measured(step=0, value=0.1, band=None), Measured(step=steps, value=0.3, band=None)],
        },
        facts=((0, 0.75), (steps, 0.5)),
        canaries={"quality": [(1, 0.97), (11, 0.9), (21, 0.62)], "similarity": [(1, 0.8), (11, 0.82), (21, 0.81)]},
        canary_least={"quality": 0.7},
    )


def _sample(operation: str, index: int, accepted: bool, text: str) -> Sample:
    return Sample(
        operation=operation,
        source_id=f"sotu/1834-Jackson.txt#{1200 * index}-{1200 * index + 900}",
        source=SOURCE,
        text=text,
        accepted=accepted,
        reason="" if accepted else "heading missing",
        total=1.84 if accepted else 0.0,
        rewards={"influence": 0.031, "quality": 0.2, "similarity": 1.0, "length": 1.0, "anti_copy": -0.04}
        if accepted
        else {},
    )


def operation_yield(accepted: int, rejected: dict[str, int], cut_chars: dict[str, int] | None = None) -> OperationYield:
    """What the page shows of a yield; its sums of characters and tokens stay 0."""
    sums = dict.fromkeys(("source_chars", "prompt_tokens", "completion_tokens", "text_tokens", "text_chars"), 0)
    return OperationYield(accepted=accepted, rejected=rejected, cut_chars=cut_chars or {}, mean_rewards={}, **sums)


def _scored(index: int, value: float) -> ScoredDocument:
    words = "Fellow-citizens of the Senate and <b>not markup</b> of the House"
    return ScoredDocument(id=f"sotu/18{index:02d}-Jackson-1#{index}", words=words, value=value, tokens=700 + index)


STAGES = (
    ("tokenize", 6.4, None),
    ("pretrain", 142.8, 8120.0),
    ("probe", 11.9, 7900.0),
    ("tune rephrase", 171.3, 24.0),
    ("tune reformat", 158.7, 22.0),
    ("generate", 64.2, 190.0),
    ("pretrain arms", 151.0, 8080.0),
    ("evaluate", 9.7, None),
    ("report", 3.1, None),
)


ARMS = ("organic + synthetic", "repeat organic only")


def _timeline() -> Timeline:
    rng = random.Random(0)
    stages = (
        StageTiming(
            name=name,
            status="done",
            seconds=seconds,
            artifact=f"runs/quickstart/{index:02d}-{name.replace(' ', '-')}",
            content_hash=f"{rng.getrandbits(256):064x}",
            tokens_per_second=speed,
        )
        for index, (name, seconds, speed) in enumerate(STAGES)
    )
    return Timeline(stages=tuple(stages))


def _corpus() -> CorpusInfo:
    return CorpusInfo(
        source="/data/<messages>",
        files=3,
        splits=(
            SplitSize(name="train", documents=201, pieces=240, tokens=150_016, utf8_bytes=610_200),
            SplitSize(name="validation", documents=23, pieces=31, tokens=49_152, utf8_bytes=188_200),
        ),
        left_out={"repeated text": 17, "half a surrogate pair": 2},
        listed_in="tokenize/left_out.jsonl",
        files_not_read=(".git/", "notes<1>.csv"),
        overlap={
            "validation": Overlap(documents=31, copied_documents=4, ngrams=30_000, found=2_220, sampled=8),
        },
    )


def _pretraining() -> Pretraining:
    return Pretraining(
        curves=(
            _curve("training loss", "train", range(0, 300, 2), 8.3, 4.4, 55, 0.06),
            _curve("reference loss", "reference", range(0, 301, 20), 8.3, 4.9, 45, 0.01),
        ),
        plateau=Plateau(
            step=300,
            stopped=True,
            reason="best reference loss 4.9012 improved by 0.08 % over 4 evaluations; at least 0.50 % was required",
            window_steps=(220, 240, 260, 280, 300),
            window_losses=(4.9231, 4.9104, 4.9047, 4.9012, 4.9026),
        ),
    )


def _influence() -> Influence:
    rng = random.Random(0)
    return Influence(
        in_run=InRunInfluence(
            per_nat=True,
            steps=tuple(range(8, 301, 8)),
            trained_steps=300,
            low=tuple(-0.01 - 0.03 * math.exp(-step / 90) for step in range(8, 301, 8)),
            median=tuple(0.02 * math.exp(-step / 90) + rng.gauss(0, 0.002) for step in range(8, 301, 8)),
            high=tuple(0.02 + 0.04 * math.exp(-step / 90) for step in range(8, 301, 8)),
            documents=tuple(rng.gauss(0.01, 0.02) for _ in range(140)),
            least_tokens=256,
            best=tuple(_scored(index, 0.07 - 0.01 * index) for index in range(5)),
            worst=tuple(_scored(index + 5, -0.05 + 0.01 * index) for index in range(5)),
            agreement=0.31,
            agreeing_documents=97,
            unscored_seconds=0.48,
            scored_seconds=0.66,
            renewals=5,
            renewal_seconds=2.4,
        ),
        operations=tuple(
            OperationInfluence(
                per_nat=True,
                operation=name,
                sources=tuple(rng.gauss(0.02, 0.03) for _ in range(96)),
                generated=(*(rng.gauss(mean, 0.04) for _ in range(90)), math.nan),
                references={"reference": (0.01, 0.02), "reference-<i>sums</i>": (None, -0.3)},
            )
            for name, mean in (("rephrase", 0.05), ("reformat", 0.035))
        ),
    )


def _tokens() -> TokenAccount:
    return TokenAccount(
        organic_unique=150_016,
        pretrain_seen=1_228_800,
        synthetic={"rephrase": 31_204, "reformat": 12_877},
        made=(
            MadeTokens(round=1, operation="rephrase", tokens=31_204, trained=249_332),
            MadeTokens(round=1, operation="reformat", tokens=12_877, trained=102_924),
        ),
        arms=(
            ArmTokens(name=ARMS[0], organic=876_544, synthetic=352_256),
            ArmTokens(name=ARMS[1], organic=1_228_800, synthetic=0),
        ),
    )


def _arms() -> Arms:
    return Arms(
        curves=(
            *(_curve(name, "train", range(300, 600, 2), 5.6, 4.1 + 0.2 * i, 260, 0.06) for i, name in enumerate(ARMS)),
            *(_over_seeds(name, "reference", 4.86 + 0.03 * i) for i, name in enumerate(ARMS)),
            *(_over_seeds(name, "validation", 4.84 + 0.03 * i) for i, name in enumerate(ARMS)),
        ),
        held_out=(
            HeldOutLoss(name="model at the plateau", nats=241_880.0, tokens=49_152, utf8_bytes=188_200, documents=12),
            HeldOutLoss(name=ARMS[0], nats=239_310.0, tokens=49_152, utf8_bytes=188_200, documents=12),
            HeldOutLoss(name=ARMS[1], nats=240_120.0, tokens=49_152, utf8_bytes=188_200, documents=12),
        ),
    )


def _downstream() -> Downstream:
    def curve(name: str | None, steps: range, start: float) -> TaskCurve:
        falling = tuple(start - step / 4000 for step in steps)
        rising = tuple(0.2 + step / 4000 for step in steps)
        return TaskCurve(
            task="arc", name=name, steps=tuple(steps), accuracy=rising, accuracy_per_byte=rising, bits_per_byte=falling
        )

    return Downstream(
        asked=(QuestionsAsked(task="arc", questions=570, chance=0.25),),
        curves=(curve(None, range(0, 301, 50), 1.4), *(curve(name, range(300, 601, 50), 1.3) for name in ARMS)),
        ends=tuple(
            TaskResult(task="arc", name=name, seed=seed, accuracy=0.31, accuracy_per_byte=0.33, bits_per_byte=1.1234)
            for name in ARMS
            for seed in (None, 8)
        ),
    )


def _effective_tokens() -> EffectiveTokens:
    points = tuple(
        UniquePoint(arms=(name,), tokens=150_016.0 * times, losses=(loss, loss + 0.02, loss - 0.01))
        for name, times, loss in (("repetition", 1, 4.9), ("oracle-2", 2, 4.7), ("oracle-4", 4, 4.6))
    )
    arms = {"repetition": points[0].losses, "tuned": (4.65, 4.66, 4.7), "far": (4.1, 4.2, 4.15)}
    curve = EffectiveCurve(base="repetition", settings="", points=points, arms=arms)
    return EffectiveTokens(curves=(curve,), missing=("no arm of `text: unique` trains as <b>that</b> one does",))


def _environment() -> Environment:
    return Environment(
        device="CPU, 2 threads",
        layout="1 process (TP 1 × PP 1 × DP 1)",
        versions={"python": "3.11.15", "torch": "2.13.0", "megatron-core": "0.16.1", "synpro_engine": "0.1.0"},
        implementations={
            "attention": "torch SDPA: flash-attn is not installed",
            "log-probabilities": "C++ op: built at install",
            "collectives": "gloo: no CUDA device",
        },
        seeds={"run": 7, "split": 11},
        git_commit="0f3c9d1",
    )


def _samples() -> tuple[Sample, ...]:
    return (
        _sample("rephrase", 1, True, REPHRASED),
        _sample("reformat", 2, True, "- Topic: Treasury receipts. Content: They came to nearly $31,000,000.\n" * 3),
        _sample("rephrase", 3, False, HOSTILE),
        _sample("reformat", 4, True, INVENTED),
    )


def _provenance() -> Provenance:
    source = SourceText(document="sotu/1834-Jackson.txt#2", start=1200, end=2100, text=SOURCE)
    made = TrainedDocument(
        id="sotu/1834-Jackson.txt#2:1200-2100:rephrase:0",
        organic=False,
        tokens=48,
        text=HOSTILE,
        operation="rephrase",
        stage="round-2/generate-rephrase",
        sources=(source,),
    )
    behind = TrainedDocument(id="sotu/1999-Clinton.txt#2:0-90:reformat:0", organic=False, tokens=9, text=INVENTED)
    organic = TrainedDocument(id="sotu/1834-Jackson.txt#3", organic=True, tokens=1, text="their duties")
    window = TrainedWindow(
        stage="round-2/continue", step=301, row=3, source="round-2", documents=(made, behind), more=12
    )
    plain = dataclasses.replace(window, row=0, source="organic", documents=(organic,), more=0)
    return Provenance(windows=(window, plain), most_texts=100_000)


def _models() -> tuple[ModelInfo, ...]:
    return (
        ModelInfo(
            role="pretrained", description="OLMo-2 shape, 4 layers, width 128, from scratch", parameters=1_312_896
        ),
        ModelInfo(role="generator", description="SmolLM2-135M-Instruct, last 8 blocks tuned", parameters=134_515_008),
    )


@pytest.fixture(scope="session")
def full_report() -> ReportData:
    """Every part filled in; one sample holds markup, a control character and a lone surrogate."""
    return ReportData(
        title="One cycle of model-aware synthesis",
        recipe="quickstart",
        created="21 November 2026, 14:05 UTC",
        config={"train": {"lr": 3e-3, "max_steps": 600}, "seed": 7, "note": "<b>not markup</b>"},
        models=_models(),
        timeline=_timeline(),
        corpus=_corpus(),
        pretraining=_pretraining(),
        influence=_influence(),
        tuning=(_rewards("rephrase", 8), _rewards("reformat", 8)),
        yields={
            "rephrase": operation_yield(88, {"heading missing": 5, "too long": 3}, {"<b>": 1200}),
            "reformat": operation_yield(52, {"no entry": 31, "brackets left in": 8, "cut off": 5}),
        },
        samples=_samples(),
        diversity={
            "organic": measure_diversity([SOURCE] * 3),
            "rephrase": dataclasses.replace(
                measure_diversity([REPHRASED] * 2, organic=[SOURCE]),
                kl_to_organic=0.412,
                kl_from_organic=1.207,
                perplexity=31.5,
                organic_perplexity=52.8,
            ),
        },
        tokens=_tokens(),
        provenance=_provenance(),
        arms=_arms(),
        downstream=_downstream(),
        effective_tokens=_effective_tokens(),
        environment=_environment(),
    )


@pytest.fixture(scope="session")
def degenerate_report() -> ReportData:
    """What a run can leave at worst: empty curves, one step, numbers that are not finite."""
    nan = float("nan")
    stages = (StageTiming(name="probe", status="begun", seconds=0.0), StageTiming(name="tune", status="waiting"))
    in_run = InRunInfluence(
        per_nat=False,
        steps=(1,),
        trained_steps=1,
        low=(nan,),
        median=(nan,),
        high=(nan,),
        documents=(),
        least_tokens=1,
        best=(),
        worst=(),
        agreement=None,
        agreeing_documents=0,
        unscored_seconds=None,
        scored_seconds=0.1,
        renewals=1,
        renewal_seconds=0.1,
    )
    plateau = Plateau(step=0, stopped=False, reason="budget", window_steps=(0,), window_losses=(4.0,))
    return ReportData(
        title="Odd numbers",
        timeline=Timeline(stages=stages),
        pretraining=Pretraining(
            curves=(Curve(name="training loss", kind="train", steps=(1,), loss=(nan,)),), plateau=plateau
        ),
        influence=Influence(
            in_run=in_run,
            operations=(
                OperationInfluence(operation="rephrase", per_nat=True, sources=(), generated=()),
                OperationInfluence(operation="reformat", per_nat=False, sources=(0.5, 0.5), generated=(nan,)),
            ),
        ),
        tuning=(RewardCurves(operation="rephrase", steps=(), total=(), parts={"format": ()}),),
        yields={"rephrase": operation_yield(0, {})},
        tokens=TokenAccount(organic_unique=0, pretrain_seen=0, synthetic={"rephrase": 0}),
        arms=Arms(
            curves=(Curve(name="lonely", kind="validation", steps=(), loss=()),),
            held_out=(HeldOutLoss(name="none", nats=0.0, tokens=0, utf8_bytes=0),),
        ),
    )


@pytest.fixture(scope="session")
def full_page(full_report: ReportData) -> str:
    return render_report(full_report)
