"""The one table of operations: those that are built in, and those of the user's own that a recipe names.

An operation of one's own is named as `path/to/file.py:NAME`: an `Operation` of that name in that file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from synpro_engine.config import UserError, nearest
from synpro_engine.config.own_code import Own, calling, load_own, own_reference
from synpro_engine.data import Document
from synpro_engine.synth.builtin import FAQ, PROBLEMS, REFORMAT, REPHRASE, TABLE, TUTORIAL
from synpro_engine.synth.operation import Operation
from synpro_engine.synth.slices import SliceConfig, slices_of

OPERATIONS = {operation.name: operation for operation in (REPHRASE, REFORMAT, FAQ, TABLE, TUTORIAL, PROBLEMS)}
"""By name; `load_operations` adds the user's own."""
BUILT_IN = tuple(OPERATIONS)
PAPER = (REPHRASE.name, REFORMAT.name)
"""Those of the method, which a recipe has where it names none."""
_KEY = "generate.operations"
_LONGEST_S = 60.0
"""For one answer to be read or one document to be cut by a file of the user's own."""
_TEXT = "A tide is the rise and fall of the sea, by pull of the moon.\n\nOf these there are two a day, so they say."
_Result = TypeVar("_Result")


def operation_named(name: str) -> Operation:
    """Find an operation; UserError (with the nearest name) when there is none."""
    if name not in OPERATIONS:
        raise UserError(f"`operations`: no operation `{name}`{nearest(name, OPERATIONS)}")
    return OPERATIONS[name]


def split_reference(reference: str) -> tuple[str, Path | None]:
    """What an operation goes by, and the file that it is in (None: built in); ValueError for what names none."""
    if reference in BUILT_IN:
        return reference, None
    own = own_reference(reference)
    if own is None and ".py" in reference:
        raise ValueError(f"`{reference}`: an operation of your own is named as path/to/file.py:NAME")
    if own is None:
        raise ValueError(f"no operation `{reference}`{nearest(reference, BUILT_IN)}")
    if own.name in BUILT_IN:
        raise ValueError(f"`{reference}`: `{own.name}` is built in; give yours another name")
    return own.name, own.file


def load_operations(references: Sequence[str]) -> None:
    """Run the files that references name and put their operations into the table; UserError says what is wrong."""
    for reference in references:
        name, file = split_reference(reference)
        if file is not None:
            OPERATIONS[name] = _load(Own(file, name))


def _load(own: Own) -> Operation:
    found, digest = load_own(own, _KEY, Operation, "synpro_engine.synth.Operation")
    operation = dataclasses.replace(
        found, name=own.name, source_sha256=digest, file=str(own.file), parser=_named(own, found.parser),
        cut=None if found.cut is None else _named(own, lambda text: list(found.cut(text))),
    )  # fmt: skip
    _try(operation)
    return operation


def _named(own: Own, function: Callable[..., _Result]) -> Callable[..., _Result]:
    """The user's function, which ends the job with a line that names file and line where it raises or hangs."""
    return lambda *given, **named: calling(own, _KEY, lambda: function(*given, **named), _LONGEST_S)


def _try(operation: Operation) -> None:
    """Cut a text and read an answer or two: what an operation cannot do must not come out after pretraining."""
    for text in (_TEXT, _TEXT.replace("\n\n", " ")) if operation.cut is not None else ():
        list(slices_of(Document("a text to try it on", text), SliceConfig(), cut=operation.cut))
    example = None if operation.example is None else operation.example[1]
    for answer in ("", operation.prefill, f"{operation.heading}\nA text of one line.\n- And another.", example):
        parsed = [operation.parse(answer or "", finished=finished) for finished in (False, True)][-1]
        if answer is not None and answer == example and not parsed.ok:
            where = f"`{_KEY}`: {operation.file}"
            raise UserError(f"{where}: the parser of `{operation.name}` refuses its own example ({parsed.reason})")
