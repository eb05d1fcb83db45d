"""A tokenizer's own chat template, as a skeleton: markup and slots for texts.

Conversations of stand-ins are rendered and the skeleton is read off them. So a template runs once for each shape of a
conversation, in a process of its own (`chat_renderer`), and never sees a document.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from synpro_engine.config import UserError, json_text

_RENDERER = Path(__file__).with_name("chat_renderer.py")
_SECONDS = 300  # of wall time, far beyond what the renderer may use: starting Python on a busy machine takes long
# What is set around a stand-in to learn how a template trims texts: stripping newlines leaves the space.
_SPACES = "\n \n"
_TRIMMED: dict[str, str | None] = {_SPACES: "", " \n": "\n", "\n ": "\n", "": None}
# What is set behind a stand-in to learn whether a template changes texts inside: escapes them or merges white space.
_INSIDE = "A\r\n\n  b\t<i> & 'c' \"D\" {e} \u00e9."


@dataclass(frozen=True)
class Slot:
    """A place for a message's text. `left` and `right`: the characters trimmed there (None: white space, "": none)."""

    message: int
    left: str | None
    right: str | None

    def fill(self, texts: Sequence[str]) -> str:
        """The text as the template shows it."""
        return texts[self.message].lstrip(self.left).rstrip(self.right)


@dataclass(frozen=True, kw_only=True)
class ChatSkeleton:
    """How a conversation of certain roles is laid out: markup, slot, markup, ..., slot, markup."""

    opened: tuple[str | Slot, ...]
    """Up to where the assistant's answer begins."""
    continued: tuple[str | Slot, ...]
    """The same where the answer's beginning is given."""
    endings: tuple[str, ...]
    """Markup that may follow an answer: at the end of a conversation, and before the user's next turn."""


def chat_skeleton(template: str, variables: dict[str, str], roles: Sequence[str]) -> ChatSkeleton:
    """The skeleton of a conversation of `roles` that waits for an answer.

    variables: the named special tokens. A template that refuses or leaves out a system message gets its text at the
    head of the first user message, a blank line between. Raises UserError for a template that fails or changes texts.
    """
    return _read_skeleton(template, tuple(sorted(variables.items())), tuple(roles))


# Starting Python and transformers takes seconds, and one skeleton serves every prompt of a run.
@functools.lru_cache(maxsize=256)
def _read_skeleton(template: str, variables: tuple[tuple[str, str], ...], roles: tuple[str, ...]) -> ChatSkeleton:
    names = _StandIns(template, len(roles) + 1)
    forms = [_as_they_are(roles)] + ([_merged(roles)] if roles[:1] == ("system",) and "user" in roles else [])
    requests = [request for form in forms for request in names.requests(form)]
    rendered = _render(template, dict(variables), requests)
    per_form = len(rendered) // len(forms)
    faults = []
    for at in range(0, len(rendered), per_form):
        try:
            return names.read(rendered[at : at + per_form])
        except _Unreadable as fault:
            faults.append(str(fault))
    raise UserError(
        f"`chat_format`: the tokenizer's chat template cannot be used ({faults[0]}); choose chatml, olmo2 or plain"
    )


_Form = list[tuple[str, tuple[int, ...]]]
"""Roles in turn, each with the numbers of the texts that its message consists of."""


def _as_they_are(roles: Sequence[str]) -> _Form:
    return [(role, (number,)) for number, role in enumerate(roles)]


def _merged(roles: Sequence[str]) -> _Form:
    form = _as_they_are(roles)[1:]
    first = next(at for at, (role, _) in enumerate(form) if role == "user")
    form[first] = ("user", (0, *form[first][1]))
    return form


class _Unreadable(Exception):
    """Why no skeleton can be read off what a template rendered."""


class _StandIns:
    """Names that stand for texts while a template is rendered; the last one stands for the answer."""

    def __init__(self, template: str, count: int) -> None:
        # Made from the template, so that they cannot be found in it.
        # A hash and no random number, so that equal templates give equal skeletons and a run can be repeated. Letters
        # and digits alone: nothing escapes them.
        nonce = hashlib.sha256(template.encode("utf-8", "surrogatepass")).hexdigest()[:20]
        self._names = [f"x{nonce}n{number}x" for number in range(count)]
        self._pattern = re.compile(f"x{nonce}n([0-9]+)x")

    def requests(self, form: _Form) -> list[dict[str, Any]]:
        """The conversations to render, in the order in which `read` takes them."""
        # An answer in the conversation shows what the template puts behind one, and before it where it cannot open one.
        answer = ("assistant", (len(self._names) - 1,))

        def request(turns: _Form, opened: bool, left: str = "", right: str = "") -> dict[str, Any]:
            messages = [
                {"role": role, "content": "\n\n".join(f"{left}{self._names[number]}{right}" for number in numbers)}
                for role, numbers in turns
            ]
            return {"messages": messages, "add_generation_prompt": opened}

        return [
            request(form, True),
            request(form, True, left=_SPACES),
            request(form, True, right=_SPACES),
            request(form, True, right=_INSIDE),
            request(form, False),
            request([*form, answer], False),
            request([*form, answer, ("user", (0,))], False),
        ]

    def read(self, rendered: Sequence[dict[str, str]]) -> ChatSkeleton:
        """The skeleton; _Unreadable where the template failed, left a text out or changed one."""
        for each in rendered[:6]:
            if "error" in each:
                raise _Unreadable(each["error"])
        plain, left, right, inside, closed, answered = (self._pattern.split(each["text"]) for each in rendered[:6])
        missing = {*map(str, range(len(self._names) - 1))} - {*plain[1::2]}
        if missing:
            raise _Unreadable("it leaves out a message")
        # White space alone must not change the order or number of texts: such a template reads what it lays out.
        if not plain[1::2] == left[1::2] == right[1::2]:
            raise _Unreadable("it changes with the texts")
        # Character for character: a template that escapes or merges would show the generator
        # another text than influence scores.
        if inside != [f"{_INSIDE}{piece}" if at and at % 2 == 0 else piece for at, piece in enumerate(plain)]:
            raise _Unreadable("it changes the texts")
        slots = []
        for at in range(1, len(plain), 2):
            before, after = left[at - 1].removeprefix(plain[at - 1]), right[at + 1].removesuffix(plain[at + 1])
            slots.append(Slot(int(plain[at]), _trimmed(before), _trimmed(after)))
        opened = _alternating(plain, slots)
        answer = str(len(self._names) - 1)
        if answer not in answered[1::2]:
            raise _Unreadable("it leaves out the assistant's message")
        at = len(answered) - 1 - answered[::-1].index(answer)
        # A template without a way to open an answer (Mistral's) still shows what stands before one.
        continued = opened if plain != closed or answered[1:at:2] != plain[1::2] else _alternating(answered[:at], slots)
        endings = [answered[at + 1]]
        # Not needed to succeed: some templates refuse a user's turn here, and the end of a conversation
        # shows the end of an answer as well.
        if "text" in rendered[6]:
            further = self._pattern.split(rendered[6]["text"])
            endings += [further[i + 1] for i, number in enumerate(further) if i % 2 and number == answer]
        return ChatSkeleton(opened=opened, continued=continued, endings=tuple(endings))


def _trimmed(kept: str) -> str | None:
    if kept not in _TRIMMED:
        raise _Unreadable("it changes the texts")
    return _TRIMMED[kept]


def _alternating(pieces: Sequence[str], slots: Sequence[Slot]) -> tuple[str | Slot, ...]:
    return tuple(slots[at // 2] if at % 2 else piece for at, piece in enumerate(pieces))


def _render(template: str, variables: dict[str, str], conversations: list[dict[str, Any]]) -> list[dict[str, str]]:
    """`{"text": ...}` or `{"error": ...}` for each conversation. UserError where the template used its limits up."""
    request = json_text({"template": template, "variables": variables, "conversations": conversations})
    try:
        # -P: no directory of ours on the path, for a module there may bear the name of somebody else's.
        done = subprocess.run(
            [sys.executable, "-P", str(_RENDERER)], input=request.encode(), capture_output=True, timeout=_SECONDS
        )
    # A template that sleeps uses no CPU time, which is all that the renderer's own limit counts.
    except subprocess.TimeoutExpired:
        raise UserError("`chat_format`: the tokenizer's chat template does not come to an end") from None
    # A limit ends the process by a signal, where it is no exception yet; an exit code is a
    # fault of the renderer, and a bug.
    if done.returncode < 0:
        raise UserError("`chat_format`: the tokenizer's chat template uses more time or memory than a template may")
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"chat_renderer ended with {done.returncode}: {said[-1] if said else ''}")
    return json.loads(done.stdout)
