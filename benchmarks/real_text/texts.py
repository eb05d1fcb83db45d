"""Tables of what was generated and what it cost, by arm."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.common.multiples import mean
from benchmarks.common.tables import markdown

Record = Mapping[str, Any]


def of_arm(records: Iterable[Record], arm: str | None = None) -> list[Record]:
    """The trainings of an arm, or of all."""
    return [one for one in records if one["bench"] == "real_text" and arm in (None, one["arm"])]


def arm_names(records: Iterable[Record]) -> list[str]:
    """The arms that there are records of, in their order."""
    return list(dict.fromkeys(one["arm"] for one in of_arm(records)))


def _first(records: Sequence[Record], key: str) -> dict[str, Record]:
    """By arm: the first seed's record that has something under a key, for texts are one for all seeds."""
    return {name: one for name in arm_names(records) for one in of_arm(records, name)[:1] if one.get(key)}


def texts(records: Sequence[Record]) -> str:
    """What was generated for each arm, before its filters."""
    rows, organic = list[tuple[str, ...]](), None
    for name, record in _first(records, "generated").items():
        organic = record["diversity"].get("organic", organic)
        pool = _pool(record)
        for operation, made in record["generated"].items():
            influence = record["influence"][operation]
            measured = [f"{pool:,}", *(_signed(influence[kind]) for kind in ("generated", "sources"))]
            rows.append((name, f"{made['accepted']:,}", *measured, *_varied(record["diversity"].get(operation, {}))))
    if organic is not None:
        rows.insert(0, ("organic", f"{organic['texts']:,}", "", "", "", *_varied(organic)))
    headings = (
        "arm", "texts", "tokens trained on", "influence", "of their sources", "words a text",
        "distinct 2-grams", "8-grams of the corpus", "rare words",
    )  # fmt: skip
    return "\n\n".join([markdown(headings, rows), *_small_pools(records)]) if rows else ""


def _small_pools(records: Sequence[Record]) -> list[str]:
    """Arms with less synthetic text than organic: of a pool that is read again, less can be expected."""
    pools = {name: (_pool(one), one["unique_tokens"]) for name, one in _first(records, "generated").items()}
    told = [f"`{name}` ({pool:,} tokens)" for name, (pool, organic) in pools.items() if pool < organic]
    return [f"Less synthetic text than organic: {', '.join(told)}."] if told else []


def _pool(record: Record) -> int:
    return sum(sum(of.values()) for of in record["pool"].values())


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.4f}"


def _varied(diversity: Mapping[str, Any]) -> list[str]:
    shown = {"mean_words": ".0f", "distinct_2": ".3f", "overlap_8": ".3f", "rare_words": ".3f"}
    return ["" if diversity.get(key) is None else f"{diversity[key]:{form}}" for key, form in shown.items()]


def tuning(records: Sequence[Record]) -> str:
    """What tuning did to the rewards of slices that it never saw."""
    rows = []
    for name, record in _first(records, "tuning").items():
        for operation, tuned in record["tuning"].items():
            held = tuned["held_out"]
            parts = [key.removeprefix("difference/") for key in held if key.startswith("difference/")]
            for part in sorted(parts, key=lambda part: part != "influence"):
                low, high = (held.get(f"{side}/{part}") for side in ("low", "high"))
                within = "" if low is None or high is None else f"{low:+.4f} to {high:+.4f}"
                rows.append((name, operation, str(tuned["steps"]), part, f"{held[f'difference/{part}']:+.4f}", within))
    return markdown(("arm", "operation", "steps", "reward", "change", "95 %, over slices"), rows) if rows else ""


def cost(records: Sequence[Record]) -> str:
    """What each arm took to make."""
    rows = []
    for name in arm_names(records):
        mine = of_arm(records, name)
        made, tuned = ([mine[0].get(key) or {}] for key in ("generated", "tuning"))
        drawn = sum(one["completion_tokens"] for of in made for one in of.values())
        drawn += sum(one["sampled_tokens"] for of in tuned for one in of.values())
        seconds = sum(one["stage_seconds"] or 0 for of in made for one in of.values())
        steps = sum(one["seconds"] for of in tuned for one in of.values())
        training = mean([one["training_seconds"] for one in mine]).value
        rows.append((name, f"{drawn:,.0f}" if drawn else "", _minutes(seconds), _minutes(steps), _minutes(training)))
    headings = ("arm", "tokens drawn", "minutes of generation", "of tuning", "of training, a seed")
    return markdown(headings, rows) if rows else ""


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}" if seconds else ""
