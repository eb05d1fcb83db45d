"""YAML as its version 1.2 defines it (core schema), from files and strings that nobody has vouched for.

PyYAML parses; what a plain word means is decided here. It would follow YAML 1.1, where `060` is 48, `1:00` is 60, `no`
is false and `2024-01-01` is no text. Here numbers are decimal (`0o17` and `0x1f` are asked for), `true` and `false` are
the only truth values, and everything else is text. A key that is given twice, a document that grows without bound when
its aliases are written out, and one that contains itself are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

# PyYAML takes seconds for a megabyte, before anything in it can be checked.
MAX_BYTES = 2**18
_MAX_DEPTH = 50
_MAX_NODES = 20_000  # with all aliases written out
_CORE = "tag:yaml.org,2002:"
_INT, _FLOAT = r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
# In the order of the trial: what is an integer also looks like a float.
_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (_INT, list("-+0123456789")),
    "float": (rf"{_FLOAT}|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", list("-+.0123456789")),
    "merge": (r"<<", ["<"]),
}


class YAMLFault(ValueError):
    """What is wrong with a text, in words, and the line (from 1) that it stands on."""

    def __init__(self, line: int, problem: str) -> None:
        super().__init__(problem)
        self.line = line


def parse_yaml(text: str) -> Any:
    """The one document in `text` as plain Python data: dict (keys are str), list, str, int, float, bool, None.

    Nodes that aliases share are one object in the result. Raises YAMLFault for what is no YAML, or too long.
    """
    if len(text) > MAX_BYTES:
        raise YAMLFault(1, f"longer than {MAX_BYTES} characters, which no settings are")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        # Before anything is constructed: nine levels of ten aliases each are a billion nodes in a few hundred bytes.
        _expanded_size(node, {})
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        # Some of PyYAML's faults have only one of the two.
        mark = error.problem_mark or error.context_mark
        raise YAMLFault(mark.line + 1 if mark else 1, str(error.problem or error.context)) from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YAMLFault(line, f"character {error.character!r}: {error.reason}") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._flat: set[int] = set()  # mappings by their ids, which are theirs as long as the document is

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        # PyYAML composes by recursion, and would end in Python's own limit with a traceback.
        if self._depth == _MAX_DEPTH:
            raise _fault(self.peek_event(), f"more than {_MAX_DEPTH} levels of nesting")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """`<<` brings in the keys of another mapping; before that, the mapping's own keys must differ."""
        # In place: what is merged again holds keys that were brought in beside its own, of which the last counts.
        if id(node) in self._flat:
            return
        self._flat.add(id(node))
        # PyYAML lets the last of two equal keys win in silence, and a recipe would run with a
        # setting that its reader overlooks.
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag == f"{_CORE}merge":
                continue
            if not isinstance(key, yaml.ScalarNode) or key.tag != f"{_CORE}str":
                raise _fault(key, "a key must be text; put it in quotes")
            if key.value in lines:
                raise _fault(key, f"key `{key.value}` is given twice, first on line {lines[key.value]}")
            lines[key.value] = key.start_mark.line + 1
        super().flatten_mapping(node)

    def _number(self, node: yaml.ScalarNode) -> int | float:
        text = str(self.construct_scalar(node))
        try:
            if node.tag == f"{_CORE}int":
                # `int(text, 0)` for all would refuse 007, which is 7 in YAML 1.2.
                return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
            return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        except ValueError:
            raise _fault(node, f"`{text[:40]}` is no number that can be read") from None

    def _bool(self, node: yaml.ScalarNode) -> bool:
        text = str(self.construct_scalar(node)).lower()
        if text not in ("true", "false"):
            raise _fault(node, f"`{text[:40]}` is neither true nor false")
        return text == "true"

    def _unknown(self, node: yaml.Node) -> None:
        raise _fault(node, f"the tag {node.tag.replace(_CORE, '!!')[:80]} is not for settings")


# What YAML 1.1 knows is not inherited.
_Loader.yaml_implicit_resolvers, _Loader.yaml_constructors = {}, {}
for _name, (_pattern, _first) in _PLAIN.items():
    _Loader.add_implicit_resolver(_CORE + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
_Loader.add_constructor(f"{_CORE}null", lambda loader, node: None)
_Loader.add_constructor(f"{_CORE}bool", _Loader._bool)
_Loader.add_constructor(f"{_CORE}int", _Loader._number)
_Loader.add_constructor(f"{_CORE}float", _Loader._number)
_Loader.add_constructor(f"{_CORE}str", yaml.SafeLoader.construct_yaml_str)
_Loader.add_constructor(f"{_CORE}merge", yaml.SafeLoader.construct_yaml_str)  # `<<` as a value is text
_Loader.add_constructor(f"{_CORE}seq", yaml.SafeLoader.construct_yaml_seq)
_Loader.add_constructor(f"{_CORE}map", yaml.SafeLoader.construct_yaml_map)
# The constructor for every tag that is not listed, `!!python/object` among them.
_Loader.yaml_constructors[None] = _Loader._unknown


class _Dumper(yaml.SafeDumper):
    """Puts quotes around text that either version of YAML would read as something else (`no`, `1e-3`)."""


for _name, (_pattern, _first) in _PLAIN.items():
    _Dumper.add_implicit_resolver(_CORE + _name, re.compile(rf"(?:{_pattern})\Z"), _first)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """Plain data as YAML text that `parse_yaml` reads back as it is; keys stay in their order."""
    # In their own order: a resolved recipe is read by people, section by section.
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _fault(place: yaml.Node | yaml.Event, problem: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=place.start_mark)


def _expanded_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """Nodes below `node` with every alias written out; each is visited once, so that this itself is quick."""
    known = sizes.get(id(node))
    if known == 0:
        raise _fault(node, "the alias of a node stands inside that node")
    if known is not None:
        return known
    sizes[id(node)] = 0  # being counted
    children = node.value if isinstance(node, yaml.CollectionNode) else []
    parts = (part for child in children for part in (child if isinstance(child, tuple) else (child,)))
    size = 1 + sum(_expanded_size(part, sizes) for part in parts)
    if size > _MAX_NODES:
        raise _fault(node, f"more than {_MAX_NODES} values with its aliases written out")
    sizes[id(node)] = size
    return size
