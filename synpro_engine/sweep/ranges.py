"""What a sweep varies, held to the recipe's own settings before the first trial. A range is one of

    KEY=LOW..HIGH         a number between the two, which both count; a whole one where the setting is whole
    KEY=LOW..HIGH:log     the same, evenly over orders of magnitude
    KEY=LOW..HIGH:STEP    LOW, LOW + STEP, ... up to HIGH
    KEY=A,B,...           one of these, written as in a recipe

KEY is a setting by its dotted path.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from synpro_engine.config import UserError, validate
from synpro_engine.config.yaml_core import YAMLFault, parse_yaml
from synpro_engine.cycle import Recipe
from synpro_engine.cycle.settings import SettingsOf

Value = str | int | float | bool | None
"""Of a setting that is swept."""

_NUMBER = r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?"
_SPAN = re.compile(rf"({_NUMBER})\.\.({_NUMBER})(?::(\w[\w.+-]*))?")
_FORMS = "LOW..HIGH, LOW..HIGH:log, LOW..HIGH:STEP or A,B,..."


@dataclass(frozen=True, kw_only=True)
class Numbers:
    """Numbers from `low` to `high`, which both count."""

    key: str
    low: int | float
    high: int | float
    log: bool = False
    """Evenly over orders of magnitude."""
    step: int | float | None = None
    """Between neighbours, from `low` on; None: any number between, or any whole one where both ends are."""

    @property
    def whole(self) -> bool:
        """Whether they are integers."""
        return isinstance(self.low, int)

    @property
    def values(self) -> tuple[Value, ...] | None:
        """All of them in order; None where they are not countable, or not evenly spread."""
        if self.log or (self.step is None and not self.whole):
            return None
        low, high, step = map(_exact, (self.low, self.high, self.step or 1))
        return tuple(type(self.low)(low + step * n) for n in range(int((high - low) / step) + 1))

    @property
    def edges(self) -> tuple[Value, ...]:
        """What the setting must take for the range to be one."""
        return (self.low, self.high)

    def __str__(self) -> str:
        """As it was typed."""
        scale = ":log" if self.log else "" if self.step is None else f":{self.step}"
        return f"{self.key}={self.low}..{self.high}{scale}"


@dataclass(frozen=True, kw_only=True)
class Choices:
    """One of several values."""

    key: str
    values: tuple[Value, ...]

    @property
    def edges(self) -> tuple[Value, ...]:
        """What the setting must take for the range to be one."""
        return self.values

    def __str__(self) -> str:
        """As it was typed."""
        return f"{self.key}={','.join('null' if value is None else str(value) for value in self.values)}"


Range = Numbers | Choices


def ranges_of(texts: Sequence[str], recipe: Recipe) -> tuple[Range, ...]:
    """Read ranges and hold them to a recipe.

    Raises UserError, which names the key, for what is no range, a key that the recipe has not or that pretraining does
    not depend on, values that the setting refuses, and a key that changes the text: its losses would not compare.
    """
    found: dict[str, Range] = {}
    for text in texts:
        one = _parse(text)
        if one.key in found:
            raise UserError(f"--over {text}: `{one.key}` has a range already")
        found[one.key] = _held_to(one, recipe, f"--over {text}")
    return tuple(found.values())


def with_settings(recipe: Recipe, settings: Mapping[str, Value], where: str) -> Recipe:
    """The recipe with other values of some settings, by dotted key; UserError where it refuses them."""
    # Without the note of an earlier sweep, which vouches for other settings.
    data = recipe.model_dump(mode="json") | {"tuned": None}
    for key, value in settings.items():
        data = _set(data, key.split("."), value)
    return validate(Recipe, data, where)


def _set(data: Mapping[str, Any], path: Sequence[str], value: Value) -> dict[str, Any]:
    name, *below = path
    if not below:
        return {**data, name: value}
    inner = data.get(name)
    return {**data, name: _set(inner if isinstance(inner, Mapping) else {}, below, value)}


def _parse(text: str) -> Range:
    key, separator, value = (part.strip() for part in text.partition("="))
    if not separator or not all(key.split(".")):
        raise UserError(f"--over {text}: expected KEY=RANGE, as in pretrain.optimizer.lr=1e-4..1e-2:log")
    if span := _SPAN.fullmatch(value):
        return _numbers(key, *span.groups(), where=f"--over {text}")
    if ".." in value and "," not in value:
        raise UserError(f"--over {text}: `{key}`: {value!r} is no range; those are {_FORMS}")
    try:
        values = parse_yaml(f"[{value}]")
    except YAMLFault as fault:
        raise UserError(f"--over {text}: `{key}`: not valid YAML ({fault})") from None
    if not all(isinstance(one, Value) for one in values):
        raise UserError(f"--over {text}: `{key}`: choices are texts, numbers, true, false or null")
    # By type too, for True == 1.
    if len({(type(one), one) for one in values}) < len(values):
        raise UserError(f"--over {text}: `{key}`: a choice is given twice")
    if len(values) < 2:
        raise UserError(f"--over {text}: `{key}`: one value is no range; {_FORMS}")
    return Choices(key=key, values=tuple(values))


def _numbers(key: str, low: str, high: str, scale: str | None, *, where: str) -> Numbers:
    ends = _number(low), _number(high)
    if not all(map(math.isfinite, ends)):
        raise UserError(f"{where}: `{key}`: {low}..{high} has no end")
    if ends[0] >= ends[1]:
        raise UserError(f"{where}: `{key}`: {low} is not below {high}")
    if scale is None or scale == "log":
        if scale and ends[0] <= 0:
            raise UserError(f"{where}: `{key}`: a range with :log begins above 0, not at {low}")
        return Numbers(key=key, low=ends[0], high=ends[1], log=scale is not None)
    first, span = _exact(ends[0]), _exact(ends[1]) - _exact(ends[0])
    if not re.fullmatch(_NUMBER, scale) or not 0 < float(scale) < math.inf or (by := _exact(_number(scale))) > span:
        raise UserError(f"{where}: `{key}`: `:{scale}` is neither :log nor a step above 0 that fits the range")
    last = first + by * (span // by)  # the last one that is reached
    reached = int(last) if last.denominator == 1 else float(last)
    return Numbers(key=key, low=ends[0], high=reached, step=_number(scale))


def _exact(value: float) -> Fraction:
    """A number as it is written in decimals: in those, 0.1 + 2 * 0.1 is 0.3."""
    return Fraction(repr(value))


def _number(text: str) -> int | float:
    """Whole where it is one, however it is written: 1e3 is 1000."""
    value = float(text)
    if not math.isfinite(value):
        return value
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else int(value) if value.is_integer() else value


def _held_to(one: Range, recipe: Recipe, where: str) -> Range:
    try:
        recipes = [with_settings(recipe, {one.key: value}, where) for value in one.edges]
    except UserError as fault:
        raise UserError(f"{fault}{_meant(one.key, recipe)}") from None
    _check_effect(one.key, recipe, recipes, where)
    if isinstance(one, Choices):
        return one
    taken = [found.at(one.key) for found in recipes]
    if any(isinstance(value, float) for value in taken):
        step = None if one.step is None else float(one.step)
        return replace(one, low=float(one.low), high=float(one.high), step=step)
    if not (one.whole and isinstance(one.high, int) and isinstance(one.step, int | None)):
        raise UserError(f"{where}: `{one.key}`: takes whole numbers")
    return one


def _check_effect(key: str, recipe: Recipe, recipes: Sequence[Recipe], where: str) -> None:
    """Trials differ in what they train, and not in what they are measured on."""
    of, swept = SettingsOf(recipe), [SettingsOf(one) for one in recipes]
    if any(_text(one) != _text(of) for one in swept):
        raise UserError(f"{where}: `{key}` changes what is trained or measured on, and such losses do not compare")
    first, *others = (one.pretrain.recorded() for one in swept)
    if all(other == first for other in others):
        raise UserError(f"{where}: `{key}` changes nothing of what pretraining comes to")


def _text(of: SettingsOf) -> tuple[dict[str, Any], dict[str, Any] | None, dict[str, float]]:
    references = of.references
    return of.tokenize.recorded(), None if references is None else references.recorded(), of.pretrain.references


def _meant(key: str, recipe: Recipe) -> str:
    """The full key, for one that is known by its last part: `pretrain.lr` is meant for `pretrain.optimizer.lr`."""
    known = list(_keys(recipe.model_dump(), ""))
    last, section = key.rpartition(".")[2], key.partition(".")[0]
    near = [one for one in known if one.rpartition(".")[2] == last]
    near = [one for one in near if one.startswith(f"{section}.")] or near
    return f"; is `{near[0]}` meant?" if near and key not in known else ""


def _keys(data: Mapping[str, Any], prefix: str) -> Iterator[str]:
    for name, value in data.items():
        yield prefix + name
        if isinstance(value, Mapping):
            yield from _keys(value, f"{prefix}{name}.")
