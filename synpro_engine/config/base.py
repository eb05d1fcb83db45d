"""Typed, frozen configuration read from YAML and dotted overrides.

Each package keeps its own section beside the code that uses it and derives it from `Config`.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from synpro_engine.config.errors import UserError, brief, nearest
from synpro_engine.config.yaml_core import MAX_BYTES, YAMLFault, dump_yaml, parse_yaml

C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """A frozen, keyword-only section: unknown keys and wrong types are errors.

    Strict: `12.5` is no integer and `"12"` is no number. YAML lists are accepted for tuples.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True, allow_inf_nan=False
    )
    EXECUTION: ClassVar[frozenset[str]] = frozenset()
    """Settings that say how work is done, guarded, saved and logged; what comes of it is the same, up to rounding."""
    LATER: ClassVar[frozenset[str]] = frozenset()
    """Settings that came after runs were recorded without them: at their default they are as if they were not there, so
    that what was made before stays as it is. A default of theirs never changes."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Hold both lists against the fields: a name that is no setting would leave the real one recorded."""
        super().__pydantic_init_subclass__(**kwargs)
        unknown = sorted((cls.EXECUTION | cls.LATER) - set(cls.model_fields))
        assert not unknown, f"{cls.__name__} lists what is no setting: {', '.join(unknown)}"
        needed = sorted(name for name in cls.LATER if cls.model_fields[name].is_required())
        assert not needed, f"{cls.__name__}.LATER names what has no default: {', '.join(needed)}"

    def recorded(self) -> dict[str, Any]:
        """The settings that a result depends on, as plain JSON: all but `EXECUTION`, in every section."""
        return {
            name: _recorded(getattr(self, name))
            for name, field in type(self).model_fields.items()
            if name not in self.EXECUTION
            and not (name in self.LATER and getattr(self, name) == field.get_default(call_default_factory=True))
        }

    def without_execution(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """What `model_dump` gives of such settings, but `EXECUTION`, in every section that is one of these too."""
        found = {name: value for name, value in stored.items() if name not in self.EXECUTION}
        for name, value in found.items():
            section = getattr(self, name, None)
            if isinstance(section, Config) and isinstance(value, Mapping):
                found[name] = section.without_execution(value)
        return found

    def completed(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """What `model_dump` stored of such settings before some were there, with these at their defaults."""
        found = dict(stored)
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in self.LATER and name not in found:
                default = field.get_default(call_default_factory=True)
                found[name] = default.model_dump(mode="json") if isinstance(default, Config) else default
            elif isinstance(value, Config) and isinstance(found.get(name), Mapping):
                found[name] = value.completed(found[name])
        return found


def _recorded(value: Any) -> Any:
    if isinstance(value, Config):
        return value.recorded()
    if isinstance(value, Mapping):
        return {key: _recorded(below) for key, below in value.items()}
    return [_recorded(below) for below in value] if isinstance(value, tuple | list) else value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a mapping from a YAML file; UserError names file and line."""
    try:
        # Before it is read: a recipe's name may be a slip for a corpus of many gigabytes.
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES} bytes, which no settings are")
        data = parse_yaml(path.read_text(encoding="utf-8"))
    except YAMLFault as fault:
        raise UserError(f"{path}:{fault.line}: not valid YAML ({fault})") from None
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: cannot be read (not UTF-8)") from None
    if not isinstance(data, dict | None):
        raise UserError(f"{path}:1: expected a mapping of settings, found {type(data).__name__}")
    return data or {}


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """Read `a.b=value` (the value is YAML, as in a file) into its path and value."""
    key, separator, value = text.partition("=")
    path, shown = tuple(key.strip().split(".")), " ".join(text.split())[:200]
    if not separator or not all(path):
        raise UserError(f"override `{shown}`: expected key=value, as in pretrain.optimizer.lr=3e-4")
    try:
        # An empty value is an empty text here; YAML would make it null, which `key=null` already says.
        return path, parse_yaml(value) if value.strip() else ""
    except YAMLFault as fault:
        raise UserError(f"override `{shown}`: the value is not valid YAML ({fault})") from None


def apply_overrides(data: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return a copy of `data` with each `a.b=value` set; sections on the way are made."""
    # Mappings only: a list is replaced as a whole, and never changed in place.
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
        # One fault at a time, for the message is a line and the others often follow from the first.
        first = error.errors()[0]
        place = _place(cls, data, first["loc"], missing=first["type"] == "missing")
        top, *below = place or ("",)
        path = ".".join(str(part) for part in ((names or {}).get(str(top), top), *below))
        if first["type"] == "extra_forbidden":
            known = _keys_beside(cls, place)
            raise UserError(f"{where}: unknown key `{path}`{nearest(str(place[-1]), known)}") from None
        if first["type"] == "missing":
            raise UserError(f"{where}: key `{path}` is missing") from None
        message = first["msg"].removeprefix("Value error, ")
        given = "" if isinstance(first["input"], dict) else f", got {brief(first['input'])}"
        raise UserError(f"{where}: `{path}`: {message}{given}" if path else f"{where}: {message}") from None


def _place(cls: type[Config], data: Any, loc: Sequence[int | str], *, missing: bool) -> tuple[int | str, ...]:
    """Where a fault is, in keys of the data: pydantic puts the kind that it took for a value among them.

    missing: the last one is the key that is not there. A default that does not fit the other keys has a place too.
    """
    place = list[int | str]()
    for number, key in enumerate(loc):
        below: Mapping[Any, Any] = dict(enumerate(data)) if isinstance(data, list | tuple) else data
        if isinstance(below, Mapping) and key in below:
            data = below[key]
        elif number < len(loc) - 1 or not (missing or key in _keys_beside(cls, (*place, key))):
            continue
        place.append(key)
    return tuple(place)


def _of_other_keys(cls: type[Config]) -> Any:
    """The annotation of what stands under keys of the user's choice; None where there are none."""
    if cls.model_config.get("extra") != "allow":
        return None
    return typing.get_args(typing.get_type_hints(cls)["__pydantic_extra__"])[1]


def _sections(annotation: Any) -> list[type[Config]]:
    """The Config classes inside an annotation such as `A | None` or `dict[str, A]`."""
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [section for argument in typing.get_args(annotation) for section in _sections(argument)]


def _keys_beside(cls: type[Config], path: Sequence[int | str]) -> list[str]:
    current = [cls]
    for key in path[:-1]:
        current = [
            section
            for owner in current
            for section in (
                _sections(owner.model_fields[key].annotation)
                if key in owner.model_fields
                else _sections(_of_other_keys(owner)) or [owner]
            )
        ]
    return [name for owner in current for name in owner.model_fields]


def _tuples(annotation: Any, value: Any) -> Any:
    """Turn YAML lists into tuples where the annotation asks for one (strict mode would refuse them)."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, Config) and isinstance(value, Mapping):
        fields, other = annotation.model_fields, _of_other_keys(annotation)
        return {k: _tuples(fields[k].annotation if k in fields else other, v) for k, v in value.items()}
    if origin is typing.Annotated:
        return _tuples(arguments[0], value)
    if origin is tuple and isinstance(value, list):
        return tuple(_tuples(arguments[0], item) for item in value)
    if origin is dict and isinstance(value, Mapping):
        return {key: _tuples(arguments[1], item) for key, item in value.items()}
    if origin in (typing.Union, types.UnionType):
        # Each may apply: `str | tuple[str, ...]` takes a list for its second, and leaves what fits
        # neither to pydantic's message.
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
    return dump_yaml(config.model_dump(mode="json"))
