"""The one table of operations: those that are built in, and those of the user's own that a recipe names.

An operation of one's own is named as `path/to/file.py:NAME`: an `Operation` of that name in that file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from synpro_engine.config import UserError, nearest
from synpro_engine.config.own_code import Own, load_own, own_reference
from synpro_engine.synth.builtin import FAQ, PROBLEMS, REFORMAT, REPHRASE, TABLE, TUTORIAL
from synpro_engine.synth.operation import Operation

OPERATIONS = {operation.name: operation for operation in (REPHRASE, REFORMAT, FAQ, TABLE, TUTORIAL, PROBLEMS)}
"""By name; `load_operations` adds the user's own."""
BUILT_IN = tuple(OPERATIONS)
PAPER = (REPHRASE.name, REFORMAT.name)
"""Those of the method, which a recipe has where it names none."""
_KEY = "generate.operations"


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
    operation = dataclasses.replace(found, name=own.name, source_sha256=digest)
    _try_parser(operation, f"`{_KEY}`: {own.file}")
    return operation


def _try_parser(operation: Operation, where: str) -> None:
    """Read an answer or two: what a parser cannot do must not come out after pretraining."""
    example = None if operation.example is None else operation.example[1]
    for answer in ("", operation.prefill, f"{operation.heading}\nA text of one line.\n- And another.", example):
        try:
            parsed = [operation.parse(answer or "", finished=finished) for finished in (False, True)][-1]
        except UserError as error:
            raise UserError(f"{where}: {str(error).removeprefix('`generate.operations`: ')}") from None
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{where}: the parser of `{operation.name}` raised {told}") from None
        if answer is not None and answer == example and not parsed.ok:
            raise UserError(f"{where}: the parser of `{operation.name}` refuses its own example ({parsed.reason})")
