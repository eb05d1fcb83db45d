"""What the documentation names is there: files, settings, and the form of every file that a run writes."""

import re
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from docs.site import api, pictures
from docs.site.graph import layout, without_implied
from docs.site.pages import LINK, address_of, documents, is_outside, path_of, target_of, with_site_links
from docs.site.schemas import VERSIONS, markdown, schemas
from docs.site.source_tree import ROOT, engine_sources, kernel_sources, package_imports
from synpro_engine.config.schemas import OUTSIDE, SCHEMAS, schema_of, schemas_of
from synpro_engine.cycle import Recipe

FOLDERS = ("synpro_engine", "kernels", "csrc", "tests", "benchmarks", "examples", "docs", ".github")
FILES = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
FILES += [path.name for path in ROOT.iterdir()]
FILE = re.compile(r"[\w.<>*/-]*\w\.(?:py|md|ya?ml|toml|cpp|txt)\b(?![.\w])")
"""A name of a file of ours, by its end."""
INSIDE = re.compile(rf"(?<![\w./-])(?:{'|'.join(map(re.escape, FOLDERS))})/[\w./<>*-]+")
"""A path that begins in one of our folders."""
CODE = re.compile(r"```.*?```|`[^`\n]+`|^    [^\n]+$", re.DOTALL | re.MULTILINE)
KEY = re.compile(r"(?<![\w./-])[a-z_]+(?:\.[a-z_0-9]+)+(?=[=\s,)`]|$)")
THEIRS = {"path/to/file.py", "my.yaml", "paper.yaml", "config.yaml", "corpus.json", "tokenizer.json", "tokenizer.model"}
THEIRS |= {"best.yaml", "runs/smoke-sweep/best.yaml", "table.txt"}
"""Names of a user's or a run's files, which look like ours or like settings."""


def read() -> Iterator[tuple[str, str]]:
    """Path and text of each document."""
    for path in documents():
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


def is_there(name: str, document: str) -> bool:
    """Whether a file or folder of that name, or one that fits its placeholders, is in the repository."""
    pattern = re.sub(r"<[^>]*>", "*", name.removeprefix("./").rstrip("/"))
    if not any(fnmatch(file, pattern) for file in FILES):
        pattern = re.sub(r"\b[A-Z]{4,}\b", "*", pattern)  # as in results/DEVICE-bench.jsonl
    beside = f"{Path(document).parent.as_posix()}/{pattern}"
    return any(fnmatch(file, wanted) for file in FILES for wanted in (pattern, f"*/{pattern}", beside))


def named_files(text: str) -> Iterator[str]:
    for code in CODE.findall(text):
        yield from (match[0] for match in FILE.finditer(code))
        yield from (match[0].rstrip(".") for match in INSIDE.finditer(code))


def test_every_link_of_the_documents_leads_to_something():
    links = [(path, link) for path, text in read() for link in LINK.findall(text) if not is_outside(link)]
    assert len(links) > 50
    assert [f"{path}: {link}" for path, link in links if not (ROOT / target_of(link, path)).exists()] == []


def test_every_file_that_the_documents_name_is_there():
    lost = {f"{path}: {name}" for path, text in read() for name in named_files(text) if name not in THEIRS}
    assert {line for line in lost if not is_there(line.partition(": ")[2], line.partition(": ")[0])} == set()


def fault_of(key: str) -> str | None:
    """What is wrong with a dotted key of a recipe; None where it is a setting or a section."""
    current: list[Any] = [Recipe]
    for part in key.split("."):
        models = [found for one in current for found in classes(one)]
        mappings = [get_args(one)[1] for one in current if getattr(one, "__origin__", None) is dict]
        current = [model.model_fields[part].annotation for model in models if part in model.model_fields] + mappings
        if not current:
            return part
    return None


def classes(annotation: Any) -> list[type[BaseModel]]:
    """The settings classes in an annotation such as `A | None`."""
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation] if issubclass(annotation, BaseModel) else []
    if getattr(annotation, "__origin__", None) is dict:
        return []
    return [found for inner in get_args(annotation) for found in classes(inner)]


def named_keys(text: str) -> Iterator[str]:
    """What looks like a setting: a dotted name in code whose first part is a section of a recipe."""
    for code in CODE.findall(text):
        for match in KEY.finditer(code):
            if match[0].partition(".")[0] in Recipe.model_fields and not FILE.fullmatch(match[0]):
                yield match[0]


def test_every_setting_that_the_documents_name_exists():
    now = [(path, text) for path, text in read() if path != "CHANGELOG.md"]  # it names those that are gone, too
    keys = {(path, key) for path, text in now for key in named_keys(text) if key not in THEIRS}
    assert len(keys) > 30
    assert [f"{path}: {key}" for path, key in sorted(keys) if fault_of(key) is not None] == []


@pytest.mark.parametrize(
    ("key", "fault"),
    [
        ("pretrain.plateau.window", None),
        ("tune.rephrase.optimizer.lr", None),
        ("pretrain.in_run", None),
        ("pretrain.microbatch", "microbatch"),
        ("tune.rephrase.lr", "lr"),
        ("seed.x", "x"),
    ],
)
def test_a_setting_is_told_from_what_is_none(key: str, fault: str | None):
    assert fault_of(key) == fault


def test_what_looks_like_a_path_or_a_setting_is_found():
    text = "see `a/b.py --x`, `pretrain.micro_batch=4` and\n```\npython tests/nothing.py corpus.source=x.jsonl\n```"
    assert {"a/b.py", "tests/nothing.py"} == set(named_files(text))
    assert set(named_keys(text)) == {"pretrain.micro_batch", "corpus.source"}
    assert not is_there("tests/nothing.py", "README.md") and is_there("rl/trainer.py", "docs/design.md")
    assert is_there("tests/kernels/test_<op>*.py", "CONTRIBUTING.md")


def test_links_lead_to_the_same_file_on_the_site():
    lost: list[str] = []
    text = "[a](docs/design.md#layouts) [b](CHANGELOG.md) [c](https://x.org/a.md) [d](docs/none.py)\n[e]: Makefile"
    moved = with_site_links(text, "README.md", "index.md", lost.append)
    assert moved.startswith("[a](design.md#layouts) [b](changelog.md) [c](https://x.org/a.md) [d](docs/none.py)")
    assert moved.endswith("\n[e]: source/Makefile")
    assert lost == ["README.md: docs/none.py is not on the site"]
    kernels = "kernels/synpro_kernels/ops/grad_dot/README.md"
    moved = with_site_links(f"[k](../{kernels})", "docs/kernels.md", "kernels.md", lost.append)
    assert moved == "[k](kernels/grad_dot.md)"
    assert path_of("kernels/grad_dot.md") == kernels and path_of("log.md") == "docs/log.md"
    assert address_of("synpro_engine/rl/trainer.py") == "api/synpro_engine.rl.md#synpro_engine.rl.trainer"
    assert address_of("synpro_engine/rl") == "api/synpro_engine.rl.md"


def test_every_module_that_is_not_private_has_its_place_in_the_reference():
    placed = [name for package in api.packages() for name in (package, *api.modules(package))]
    modules = {source.name for source in (*engine_sources(), *kernel_sources())}
    assert len(placed) == len(set(placed))
    assert set(placed) == {name for name in modules if not name.rpartition(".")[2].startswith("_")}


def test_the_picture_of_the_packages_has_them_all_and_is_the_same_each_time():
    picture = pictures.packages()
    titles = re.findall(r'class="title"[^>]*>([^<]+)<', picture)
    assert sorted(titles) == sorted(package_imports(engine_sources()))
    assert picture == pictures.packages()


def test_an_arrow_that_others_imply_is_left_out_and_no_other():
    edges = {"a": ["b", "c", "d"], "b": ["d"], "c": ["d", "e"], "d": ["e"], "e": []}
    assert without_implied(edges) == {"a": ["b", "c"], "b": ["d"], "c": ["d"], "d": ["e"], "e": []}


def test_arrows_lead_down_and_boxes_of_a_layer_do_not_meet():
    edges = {"a": ["b", "c", "e"], "b": ["d"], "c": ["d"], "d": ["e"], "e": []}
    found = layout(edges, dict.fromkeys(edges, 50.0), gap=10.0, step_width=4.0)
    depth = {name: at for at, layer in enumerate(found.layers) for name in layer}
    assert all(depth[one] + 1 == depth[other] for chain in found.chains for one, other in pairwise(chain))
    for layer in found.layers:
        for one, other in pairwise(layer):
            width = sum(25.0 if name in edges else 2.0 for name in (one, other))
            assert found.center[other] - found.center[one] >= width + 10.0 - 1e-9


def test_every_kind_of_file_is_described_and_has_a_version():
    assert set(schemas()) == set(VERSIONS) == SCHEMAS.keys() | OUTSIDE.keys()
    assert all(f"## `{name}`" in markdown() for name in VERSIONS)


def test_a_file_has_the_schema_that_its_path_ends_in():
    assert schema_of("samples/metrics.jsonl") == "samples/metrics.jsonl"
    assert schema_of("metrics.jsonl") == "metrics.jsonl" and schema_of("documents/train.jsonl.zst") is not None
    assert schema_of("corpus/docs-000001.jsonl.zst") == "docs-*.jsonl.zst" and schema_of("tokens.bin") is None
    assert schemas_of(["shards/train/ids.jsonl", "x.bin"]) == {"manifest.json": 1, "ids.jsonl": 1}


def test_a_record_that_differs_from_its_description_is_noticed():
    line = {"kind": "eval", "step": 1, "time": 2.0, "tokens": 3}
    schema = schemas()["metrics.jsonl"]
    assert schema.faults(line) == []
    assert schema.faults({**line, "odd": 1}) == ["metrics.jsonl: odd is not documented"]
    assert schema.faults({"kind": "eval", "step": 1, "time": 2.0}) == ["metrics.jsonl: tokens is missing"]
    assert schema.faults({**line, "kind": "odd"}) == ["lines of kind odd are not documented"]
