"""The one table of operations: those that are built in, and those of the user's own that a recipe names.

An operation of one's own is named as `path/to/file.py:NAME`: an `Operation` of that name in that file. Loading it runs
the file, as the user's own code that it is. So it is loaded for the recipe that a user gives, and never for what is
only read: a run's stored recipe, a manifest, a record.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from synpro_engine.config import UserError, nearest
from synpro_engine.synth.builtin import FAQ, PROBLEMS, REFORMAT, REPHRASE, TABLE, TUTORIAL
from synpro_engine.synth.operation import Operation

OPERATIONS = {operation.name: operation for operation in (REPHRASE, REFORMAT, FAQ, TABLE, TUTORIAL, PROBLEMS)}
"""By name; `load_operations` adds the user's own."""
BUILT_IN = tuple(OPERATIONS)
PAPER = (REPHRASE.name, REFORMAT.name)
"""Those of the method, which a recipe has where it names none."""
_REFERENCE = re.compile(r"(?P<file>.+\.py):(?P<name>[A-Za-z_][A-Za-z0-9_]{0,60})", re.DOTALL)


def operation_named(name: str) -> Operation:
    """Find an operation; UserError (with the nearest name) when there is none."""
    if name not in OPERATIONS:
        raise UserError(f"`operations`: no operation `{name}`{nearest(name, OPERATIONS)}")
    return OPERATIONS[name]


def split_reference(reference: str) -> tuple[str, Path | None]:
    """What an operation goes by, and the file that it is in (None: built in); ValueError for what names none."""
    if reference in BUILT_IN:
        return reference, None
    match = _REFERENCE.fullmatch(reference)
    if match is None and ".py" in reference:
        raise ValueError(f"`{reference}`: an operation of your own is named as path/to/file.py:NAME")
    if match is None:
        raise ValueError(f"no operation `{reference}`{nearest(reference, BUILT_IN)}")
    if match["name"] in BUILT_IN:
        raise ValueError(f"`{reference}`: `{match['name']}` is built in; give yours another name")
    return match["name"], Path(match["file"])


def load_operations(references: Sequence[str]) -> None:
    """Run the files that references name and put their operations into the table; UserError says what is wrong."""
    for reference in references:
        name, file = split_reference(reference)
        if file is not None:
            OPERATIONS[name] = _load(file, name)


def _load(file: Path, name: str) -> Operation:
    where = f"`generate.operations`: {file}"
    try:
        code = file.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    digest = hashlib.sha256(code).hexdigest()
    module = ModuleType(f"synpro_operation_{digest[:16]}")
    module.__file__ = str(file)
    sys.modules[module.__name__] = module  # where dataclasses and type hints look their own module up
    try:
        # Not by an import: its cache of byte code goes by time and size, and lies in the user's folder.
        exec(compile(code, str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        at = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
        told = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{where}{f':{at}' if at else ''}: raised {told}") from None
    found = module.__dict__.get(name)
    if found is None:
        named = [key for key, value in module.__dict__.items() if isinstance(value, Operation)]
        raise UserError(f"{where}: has no `{name}`{nearest(name, named)}")
    if not isinstance(found, Operation):
        raise UserError(f"{where}: `{name}` is no synpro_engine.synth.Operation but {type(found).__name__}")
    operation = dataclasses.replace(found, name=name, source_sha256=digest)
    _try_parser(operation, where)
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
