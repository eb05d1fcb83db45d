"""What the engine writes as JSON can be read by any reader of JSON."""

import ast
import json
import math
from pathlib import Path

import pytest

from synpro_engine.config import json_text

ROOT = Path(__file__).resolve().parents[2] / "synpro_engine"


def strict(text: str) -> object:
    """As other readers take it: a bare NaN or Infinity is no JSON."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_numbers_that_are_not_finite_become_null_at_any_depth() -> None:
    data = {"a": math.nan, "b": [1.5, -math.inf, ("x", math.inf)], "c": {"d": [{"e": math.nan}]}}
    assert strict(json_text(data)) == {"a": None, "b": [1.5, None, ["x", None]], "c": {"d": [{"e": None}]}}


def test_finite_data_is_written_as_python_writes_it() -> None:
    data = {"z": [1, 2.5e-300, True, None], "a": "é\n"}
    assert json_text(data) == json.dumps(data)
    assert json_text(data, indent=2, ensure_ascii=False) == json.dumps(data, indent=2, ensure_ascii=False)
    assert json_text(data, sort_keys=True) == json.dumps(data, sort_keys=True)


def test_what_cannot_be_json_is_still_an_error() -> None:
    with pytest.raises(TypeError):
        json_text({"path": Path("x")})


def test_nothing_else_in_the_engine_makes_json() -> None:
    found = []
    for file in sorted(ROOT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "json":
                found += [str(file.relative_to(ROOT))] if node.attr in ("dump", "dumps", "JSONEncoder") else []
    # The renderer of templates is a process of its own that loads nothing of the engine.
    assert found == ["config/json_text.py", "synth/chat_renderer.py"]
