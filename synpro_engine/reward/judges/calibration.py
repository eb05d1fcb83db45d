"""A monotone map that makes a judge's probabilities mean what they say, kept as JSON with a hash.

The log-odds of a value's place on its question's scale are divided by a temperature and moved by an offset (Platt 1999;
Guo et al. 2017). For a truth, and for a choice of which one answer counts, the place is the probability itself; of a
score it is how far up the scale the mean lies. A map belongs to one model, asked one question by one interface.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from synpro_engine.config import Config, UserError, atomic_write_text, hash_json, json_text, validate

FORM = 1
_LEAST = 1e-9
"""Nearer to an end of the scale a place is taken for this: the log-odds of 0 and of 1 are no numbers."""


def log_odds(place: float) -> float:
    """Of a place between 0 and 1, whose ends count as `_LEAST` from them."""
    place = min(max(place, _LEAST), 1.0 - _LEAST)
    return math.log(place) - math.log1p(-place)


def place_of(log_odds: float) -> float:
    """The place with these log-odds, in [0, 1]."""
    return 0.5 + 0.5 * math.tanh(log_odds / 2)  # not by exp, which overflows


class Calibration(Config):
    """What is done to a judge's values, and whose they are."""

    judge: str = Field(min_length=1)
    """The reward's name."""
    model: str = Field(min_length=1)
    """The model's name at its endpoint, or of its file with digits of its hash."""
    api: str = Field(min_length=1)
    """The interface by which it was asked, or that it was in the job."""
    question: str = Field(pattern=r"^[0-9a-f]{16}$")
    """Version of what it was asked."""
    temperature: float = Field(gt=0)
    """Above 1 it takes back what is too sure, below it says more surely what is in doubt."""
    offset: float
    """Added to the log-odds after that; above 0 for a judge that says yes too seldom."""
    pairs: dict[str, int] = Field(default={})
    """It was fitted to so many, by set."""
    measured: dict[str, dict[str, float]] = Field(default={})
    """By set the expected calibration error `before`, and `after` by maps that were fitted to other sources."""

    @property
    def version(self) -> str:
        """16 hex digits of SHA-256 over the map and what it belongs to."""
        return hash_json(self.model_dump(mode="json", exclude={"pairs", "measured"}))[:16]

    def __call__(self, value: float, scale: tuple[float, float]) -> float:
        """The value in place of one on a scale from least to greatest; NaN stays NaN. Strictly rising, onto the scale.

        Values within 1e-9 of the scale's length from its ends count as that far from them.
        """
        low, high = scale
        if math.isnan(value):
            return value
        place = place_of(log_odds((value - low) / (high - low)) / self.temperature + self.offset)
        return low + (high - low) * place

    def difference(self, **belongs_to: str) -> str:
        """What it was fitted to that is not so here, in words; "" where it may be used. Keywords as the fields."""
        for field, here in belongs_to.items():
            fitted = getattr(self, field)
            if fitted != here:
                return f"was fitted to the {field} `{fitted}`, and here it is `{here}`"
        return ""

    def write(self, path: Path) -> None:
        """One JSON object with the hash of the rest."""
        data = {"form": FORM, **self.model_dump(mode="json")}
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json_text({**data, "sha256": hash_json(data)}, indent=2) + "\n")


def calibration_for(file: str, judge: str, **belongs_to: str) -> Calibration:
    """The map that a judge's settings name; UserError, naming the key, for none, and for one of another judge.

    belongs_to: as far as it is known, by the fields.
    """
    key = f"reward.judges.{judge}.calibration"
    calibration = load_calibration(Path(file), key)
    if difference := calibration.difference(judge=judge, **belongs_to):
        raise UserError(f"`{key}`: {file}: {difference}; fit one: synpro judge-check --calibrate")
    return calibration


def load_calibration(path: Path, key: str) -> Calibration:
    """A map from its file; UserError, naming `key`, for one that is not there, damaged, or none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"`{key}`: {path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, Mapping) or not {"form", "sha256"} <= data.keys():
        raise UserError(f"`{key}`: {path}: is no calibration that `synpro judge-check --calibrate` wrote")
    fields: dict[str, Any] = dict(data)
    if hash_json({name: value for name, value in data.items() if name != "sha256"}) != fields.pop("sha256"):
        raise UserError(f"`{key}`: {path}: is damaged (it is not what its hash was taken of); fit it again")
    if fields.pop("form") != FORM:
        raise UserError(f"`{key}`: {path}: is of another version; fit it again: synpro judge-check --calibrate")
    return validate(Calibration, fields, f"`{key}`: {path}")
