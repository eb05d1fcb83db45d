"""Typed, frozen configuration read from YAML and dotted overrides.

Knows how to read and validate; knows no setting. Each package keeps its own section beside the code that
uses it and derives it from `Config`.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from synpro_engine.config.errors import UserError, brief, nearest

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """A frozen, keyword-only section: unknown keys and wrong types are errors.

    Strict: `12.5` is no integer and `"12"` is no number. YAML lists are accepted for tuples.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `3e-4` as text; numbers are numbers here."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*)(?:\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file; UserError names file and line."""
    try:
        return _mapping(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None


def _mapping(text: str, where: str) -> dict[str, Any]:
    try:
        data = yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2001-99-99
        line, problem = _fault(error, text)
        raise UserError(f"{where}:{line}: not valid YAML ({problem})") from None
    if data is None:
        return {}
    if not isinstance(data, dict) or not all(isinstance(key, str) for key in data):
        raise UserError(f"{where}:1: expected a mapping of settings, found {type(data).__name__}")
    return data


def _fault(error: Exception, text: str) -> tuple[int, str]:
    """Line (from 1, and 1 where the parser does not say) and one-line description of what the parser refused."""
    if isinstance(error, yaml.MarkedYAMLError):
        return error.problem_mark.line + 1 if error.problem_mark else 1, str(error.problem)
    if isinstance(error, yaml.reader.ReaderError):
        return text.count("\n", 0, error.position) + 1, f"character {error.character!r}: {error.reason}"
    return 1, " ".join(str(error).split())


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Read `a.b=value` (the value is YAML) into its path and value."""
    key, separator, value = text.partition("=")
    path = tuple(key.strip().split("."))
    if not separator or not all(path):
        raise UserError(f"override `{text}`: expected key=value, as in pretrain.optimizer.lr=3e-4")
    try:
        return path, yaml.load(value, Loader=_Loader) if value.strip() else ""  # noqa: S506
    except (yaml.YAMLError, ValueError):
        raise UserError(f"override `{text}`: the value is not valid YAML") from None


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `data` with each `a.b=value` set; sections on the way are made."""
    result = _copy(data)
    for text in overrides:
        path, value = parse_override(text)
        section = result
        for key in path[:-1]:
            below = section.setdefault(key, {})
            if not isinstance(below, dict):
                raise UserError(f"override `{text}`: `{key}` is not a section")
            section = below
        section[path[-1]] = value
    return result


def _copy(data: Any) -> Any:
    return {key: _copy(value) for key, value in data.items()} if isinstance(data, Mapping) else data


def validate(cls: type[C], data: Mapping[str, Any], where: str, *, names: Mapping[str, str] | None = None) -> C:
    """Build `cls` from plain data; the first fault becomes a one-line UserError naming its key.

    names: what the user calls a key, where that is another name than ours.
    """
    try:
        return cls.model_validate(_tuples(cls, data))
    except ValidationError as error:
        first = error.errors()[0]
        top, *below = first["loc"] or ("",)
        path = ".".join(str(part) for part in ((names or {}).get(str(top), top), *below))
        if first["type"] == "extra_forbidden":
            known = _keys_beside(cls, first["loc"])
            raise UserError(f"{where}: unknown key `{path}`{nearest(str(first['loc'][-1]), known)}") from None
        if first["type"] == "missing":
            raise UserError(f"{where}: key `{path}` is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        given = "" if isinstance(first["input"], dict) else f", got {brief(first['input'])}"
        raise UserError(f"{where}: `{path}`: {message}{given}" if path else f"{where}: {message}") from None


def _sections(annotation: Any) -> list[type[Config]]:
    """The Config classes inside an annotation such as `A | None` or `dict[str, A]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [found for argument in typing.get_args(annotation) for found in _sections(argument)]


def _keys_beside(cls: type[Config], path: Sequence[int | str]) -> list[str]:
    current = [cls]
    for key in path[:-1]:
        current = [
            section
            for owner in current
            for section in (_sections(owner.model_fields[key].annotation) if key in owner.model_fields else [owner])
        ]
    return [name for owner in current for name in owner.model_fields]


def _tuples(annotation: Any, value: Any) -> Any:
    """Turn YAML lists into tuples where the annotation asks for one (strict mode would refuse them)."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Config) and isinstance(value, Mapping):
        fields = annotation.model_fields
        return {k: _tuples(fields[k].annotation, v) if k in fields else v for k, v in value.items()}
    if origin is tuple and isinstance(value, list):
        return tuple(_tuples(arguments[0], item) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return {key: _tuples(arguments[1], item) for key, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        for argument in arguments:
            value = _tuples(argument, value)
    return value


def load_config(cls: type[C], source: Path | Mapping[str, Any], overrides: Sequence[str] = ()) -> C:
    """Read `cls` from a YAML file (or plain data), set the dotted overrides, validate.

    Raises UserError that names the file and the key, and suggests the nearest known key.
    """
    data = read_yaml(source) if isinstance(source, Path) else source
    return validate(cls, apply_overrides(data, overrides), str(source) if isinstance(source, Path) else "config")


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML, in the order of its declaration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
