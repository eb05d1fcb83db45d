"""A small head that turns a pair's evidence into the probability that the text is supported, kept as JSON with a hash.

One hidden layer on standardised features, then a calibration (Platt 1999). Shape suffixes: N pairs, F features, H
hidden units.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from synpro_engine.config import UserError, atomic_write_text, json_text
from synpro_engine.config.integrity import hash_json
from synpro_engine.reward.evidence import FEATURES

Array = NDArray[np.float64]
EMBEDDED = Path(__file__).parent / "heads" / "faithfulness.json"
"""Made by `synpro train-judge` as it is without options; its recipe stands in it."""
_DIGITS = 5
_CLIP = 4.0  # standard deviations: what is further off than anything learnt from says no more than that


def scaled(evidence_NF: Array, mean_F: Array, scale_F: Array) -> Array:
    """Features as a head sees them."""
    return np.clip((evidence_NF - mean_F) / scale_F, -_CLIP, _CLIP)


@dataclass(frozen=True, kw_only=True)
class Head:
    """Weights of a head, how it was made and what it was measured at."""

    FORM: ClassVar[int] = 1
    mean: list[float]
    scale: list[float]
    hidden: list[list[float]]
    """[H, F]."""
    hidden_bias: list[float]
    out: list[float]
    """[H], then the bias."""
    slope: float = 1.0
    offset: float = 0.0
    """Calibration: the logit times `slope` plus `offset` is that of the probability."""
    recipe: dict[str, Any]
    """What it was trained on."""
    measured: dict[str, Any]
    """Figures on documents that it was not trained on."""

    @property
    def version(self) -> str:
        """Hash of what it computes, hex SHA-256."""
        weights = {name: value for name, value in asdict(self).items() if name not in ("recipe", "measured")}
        return hash_json({**weights, "features": list(FEATURES)})

    def logits(self, evidence_NF: Array) -> Array:
        """Of support, [N], not yet calibrated; NaN where evidence is."""
        scaled_NF = scaled(evidence_NF, np.array(self.mean), np.array(self.scale))
        units_NH = np.tanh(scaled_NF @ np.array(self.hidden).T + np.array(self.hidden_bias))
        return units_NH @ np.array(self.out[:-1]) + self.out[-1]

    def probabilities(self, evidence_NF: Array) -> Array:
        """That each pair's text is supported, [N]."""
        # Not by exp alone, which overflows for what is surely unsupported.
        return 0.5 + 0.5 * np.tanh((self.slope * self.logits(evidence_NF) + self.offset) / 2)

    def rounded(self) -> Head:
        """As it is written, so that it computes the same before and after."""
        kept = {name: _rounded(value) for name, value in asdict(self).items() if name not in ("recipe", "measured")}
        return replace(self, **kept)

    def write(self, path: Path) -> None:
        """One JSON object with the hash of the rest."""
        data = {"form": self.FORM, "features": list(FEATURES), **asdict(self)}
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, json_text({**data, "sha256": hash_json(data)}) + "\n")


def _rounded(value: Any) -> Any:
    return [_rounded(each) for each in value] if isinstance(value, list) else round(value, _DIGITS)


def load_head(path: Path) -> Head:
    """A head from its file; UserError for one that is not there, damaged, or made for other features."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        hashed = data.pop("sha256")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError):
        raise UserError(f"{path}: is no judge that `synpro train-judge` wrote") from None
    if hash_json(data) != hashed:
        raise UserError(f"{path}: is damaged (it is not what its hash was taken of); make it again: synpro train-judge")
    if data.pop("form", None) != Head.FORM or data.pop("features", None) != list(FEATURES):
        raise UserError(f"{path}: is of another version, with other features; make it again: synpro train-judge")
    return Head(**data)


@cache
def embedded_head() -> Head:
    """The one that the package brings."""
    return load_head(EMBEDDED)
