"""What the engine's files hold, field by field, as tables and checks: `schemas.yaml` and the classes that it names."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
import zstandard

from docs.site.source_tree import engine_sources
from synpro_engine.config.schemas import OUTSIDE, SCHEMAS, schema_of

_FILE = Path(__file__).with_suffix(".yaml")
_JSON_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "true or false", "None": "null"}
_JSON_TYPES |= {"Any": "any", "Split": "string"}
VERSIONS = SCHEMAS | OUTSIDE


class Field(NamedTuple):
    """One field of a record. A name that ends in `/*`, or is `*`, stands for any such name."""

    name: str
    type: str
    unit: str
    meaning: str
    optional: bool = False


@dataclass(frozen=True)
class Table:
    """Some of a file's fields: those of lines of one `kind`, or `at` one place within a record, or all."""

    kind: str
    at: str
    about: str
    fields: tuple[Field, ...]

    def faults(self, record: Mapping[str, Any]) -> list[str]:
        """Names that a part of a record has and the table has not, or the other way."""
        names = [field.name for field in self.fields]
        unknown = [f"{key} is not documented" for key in record if not any(fnmatch(key, name) for name in names)]
        needed = [field.name for field in self.fields if not field.optional and "*" not in field.name]
        return unknown + [f"{name} is missing" for name in needed if name not in record]


@dataclass(frozen=True)
class Schema:
    """A kind of file."""

    name: str
    where: str
    about: str
    tables: tuple[Table, ...]

    def faults(self, record: Mapping[str, Any]) -> list[str]:
        """What a record has that is not documented, and the other way."""
        found, kinds = [], [table for table in self.tables if table.kind]
        mine = [table for table in kinds if table.kind == record.get("kind")]
        if kinds and not mine:
            return [f"lines of kind {record.get('kind')} are not documented"]
        common = next(table.fields for table in schemas()["metrics.jsonl"].tables) if kinds else ()
        for table in [*mine, *(table for table in self.tables if not table.kind and not kinds)]:
            whole = Table(table.kind, table.at, table.about, (*common, *table.fields))
            for part in _at(record, table.at):
                found += [f"{table.at or self.name}: {fault}" for fault in whole.faults(part)]
        return found


def _at(record: Any, path: str) -> Iterator[Mapping[str, Any]]:
    if not path:
        yield record
        return
    step, _, rest = path.partition(".")
    if step != "*":
        yield from _at(record[step], rest)
        return
    for part in record.values() if isinstance(record, Mapping) else record:
        yield from _at(part, rest)


@cache
def schemas() -> dict[str, Schema]:
    """All kinds of files, by the names that their versions stand under."""
    read = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return {
        name: Schema(name, one["where"], one["about"], tuple(map(_table, one.get("tables", ()))))
        for name, one in read.items()
    }


def _table(given: Mapping[str, Any]) -> Table:
    by_hand = tuple(_field(name, text) for name, text in given.get("fields", {}).items())
    of_class = tuple(_class_fields(given)) if "from" in given else ()
    return Table(given.get("kind", ""), given.get("at", ""), given.get("about", ""), (*of_class, *by_hand))


def _field(name: str, text: str) -> Field:
    kind, unit, meaning = text.split("; ", 2)
    return Field(name.removesuffix("?"), kind, unit, meaning, optional=name.endswith("?"))


def _class_fields(given: Mapping[str, Any]) -> Iterator[Field]:
    """The fields of a class. Each must have its meaning in one place: its docstring, or here."""
    meanings, units = dict(given.get("meanings") or {}), dict(given.get("units") or {})
    for name, annotation, docstring in attributes(given["from"]):
        if name in given.get("without", ()):
            continue
        meaning = docstring or meanings.pop(name, "")
        assert meaning, f"{given['from']}.{name} has no docstring, and no meaning in {_FILE.name}"
        yield Field(name, json_type(ast.parse(annotation, mode="eval").body), units.pop(name, "-"), meaning)
    assert not meanings and not units, f"{given['from']}: not fields without a docstring: {meanings} {units}"


def attributes(class_name: str) -> list[tuple[str, str, str]]:
    """Names, annotations and docstrings of the fields of a class of the engine, wherever it is."""
    found = _classes().get(class_name, [])
    assert len(found) == 1, f"{len(found)} classes are called {class_name}"
    body = found[0].body
    fields = []
    for node, behind in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            annotation = ast.unparse(node.annotation)
            if annotation.startswith("ClassVar"):
                continue
            value = behind.value if isinstance(behind, ast.Expr) else None
            text = value.value if isinstance(value, ast.Constant) and isinstance(value.value, str) else ""
            fields.append((node.target.id, annotation, " ".join(text.split())))
    return fields


@cache
def _classes() -> dict[str, list[ast.ClassDef]]:
    """The engine's classes by name."""
    found: dict[str, list[ast.ClassDef]] = {}
    for source in engine_sources():
        for node in ast.walk(source.tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def json_type(node: ast.expr) -> str:
    """What a Python type is in JSON, in words."""
    if isinstance(node, ast.BinOp):
        return f"{json_type(node.left)} or {json_type(node.right)}"
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        outer = ast.unparse(node.value)
        if outer in ("dict", "Mapping"):
            return f"object of {json_type(inner[1])}"
        return f"list of {json_type(inner[0])}"
    name = ast.unparse(node)
    return _JSON_TYPES.get(name, name)


def faults_in(run: Path) -> list[str]:
    """What the files of a run's directory hold that is not documented, and the other way; each once, with its file."""
    found: dict[tuple[str, str], str] = {}
    for path in sorted(path for path in run.rglob("*") if path.is_file()):
        below = path.relative_to(run).as_posix()
        name = below if below in OUTSIDE else schema_of(below)
        for record in () if name is None else _records(path):
            for fault in schemas()[str(name)].faults(record) if isinstance(record, Mapping) else ():
                found.setdefault((str(name), fault), f"{below}: {fault}")
    return list(found.values())


def _records(path: Path) -> Iterator[Any]:
    text = zstandard.open(path, "rt", encoding="utf-8").read() if path.suffix == ".zst" else path.read_text("utf-8")
    lines = [text] if path.suffix == ".json" else text.removesuffix("\n").split("\n")
    yield from (json.loads(line) for line in lines if line)


def markdown() -> str:
    """All kinds of files, each under a heading of its own, with its version and its fields."""
    return "\n\n".join(_section(schema) for schema in schemas().values())


def _section(schema: Schema) -> str:
    parts = [f"## `{schema.name}`", f"*{schema.where[0].upper()}{schema.where[1:]}; version {VERSIONS[schema.name]}.*"]
    parts.append(schema.about.strip())
    for table in schema.tables:
        if table.kind:
            parts.append(f"Lines of kind **`{table.kind}`**. {table.about}".strip())
        elif table.at:
            parts.append(f"Of `{table.at}`:")
        rows = [
            f"| `{field.name}`{' (not always)' if field.optional else ''} | {_cell(field.type)} |"
            f" {'' if field.unit == '-' else _cell(field.unit)} | {_cell(field.meaning)} |"
            for field in table.fields
        ]
        parts.append("\n".join(["| field | type | unit | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return re.sub(r"\|", r"\\|", text)
