"""A server that answers rightly but in a share of its answers, each of which has another fault."""

import gzip
import math
import random
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from email.utils import formatdate
from typing import Any

from synpro_engine.synth import REFORMAT, REPHRASE, Candidate
from tests.reward.judges.server import FAULTS, SECRET, Server

FAULTY = 3
"""Of ten answers that follow each other."""
SOURCE = "The river rose in spring and the workers of the town left their homes."
Act = Callable[[Any, Any], None]


def rephrased(text: str, source: str = SOURCE) -> Candidate:
    """A paraphrase of the source."""
    return Candidate(
        operation="rephrase", source=source, raw=text, parsed=REPHRASE.parse(f"{REPHRASE.heading}\n{text}")
    )


def entries(count: int, number: int = 0, source: str = SOURCE) -> Candidate:
    """An answer of so many entries."""
    raw = REFORMAT.heading + "".join(
        f"\n- Topic: The flood number {n} of {number}. Content: In the year {1800 + n} it rose {number} times."
        for n in range(count)
    )
    return Candidate(operation="reformat", source=source, raw=raw, parsed=REFORMAT.parse(raw))


def share_of(body: Any) -> Any:
    """Probabilities that depend on what stands in a request beside the question, and on the question, alone."""

    def choose(instructions: str, names: Sequence[str]) -> list[float]:
        draw = random.Random((body.get("input") or body["state"]) + instructions)
        weights = [draw.random() + 0.01 for _ in names]
        return [weight / sum(weights) for weight in weights]

    return choose


def decide(handler: Any, body: Any) -> None:
    """Typed answers, as `share_of` has them."""
    handler.decide(body, share_of(body), input_tokens=100)


def write(handler: Any, body: Any) -> None:
    """A written answer with probabilities, which depend on what is asked alone."""
    content = body["messages"][0]["content"].removesuffix("\n\nGive the answer alone, and nothing else.")
    last = content.rpartition("\n\n")[2]
    names = "12345" if last == "Score:" else "ABC" if "letter alone" in content else ("yes", "no")
    draw = random.Random(content)
    weights = [draw.random() + 0.01 for _ in names]
    of_each = {name: math.log(weight / sum(weights)) for name, weight in zip(names, weights, strict=True)}
    handler.write(max(of_each, key=lambda name: of_each[name]), of_each)


def packed(handler: Any, body: Any, encoding: str, content: bytes) -> None:
    """A small reply that is large once it is unpacked."""
    handler.send(200, content, content_encoding=encoding)


def reset(handler: Any, body: Any) -> None:
    """The connection is refused in the middle of things."""
    handler.connection.setsockopt(1, 13, struct.pack("ii", 1, 0))  # SO_LINGER: closing sends RST
    handler.connection.close()


_ZEROS = b"0" * 2**23
PACKED = {
    "gzip": gzip.compress(_ZEROS, 9),
    "deflate": zlib.compress(_ZEROS, 9),
    "gzip, gzip": gzip.compress(gzip.compress(_ZEROS, 9), 9),
}
"""8 MiB of one byte, by the names of encodings."""


def _later(s: float, *, date: bool) -> Act:
    def act(handler: Any, body: Any) -> None:
        # A date has whole seconds: what is left of this one is the pause.
        after = formatdate(time.time() + s, usegmt=True) if date else f"{s:g}"
        handler.send(429, b"", retry_after=after)

    return act


def _elsewhere(status: int, other: Server) -> Act:
    return lambda handler, body: handler.send(status, b"", location=f"{other.endpoint}{handler.path}")


def _typed(choose: Any) -> Act:
    return lambda handler, body: handler.decide(body, choose)


def _reordered(handler: Any, body: Any) -> None:
    asked = body["questions"]
    turned = dict(reversed(asked.items())) if isinstance(asked, dict) else asked[::-1]
    handler.decide(body | {"questions": turned}, share_of(body))


def _half_missing(handler: Any, body: Any) -> None:
    right = share_of(body)
    handler.decide(body, lambda asked, names: right(asked, names) if len(asked) % 2 else None)


def _refusals(handler: Any, body: Any) -> None:
    asked = body["questions"]
    if isinstance(asked, dict):
        handler.send(200, {"answers": {name: {"type": "refusal"} for name in asked}})
    else:
        handler.send(200, {"answers": [{"name": one["name"], "type": "refusal"} for one in asked]})


_OF_TYPED: dict[str, Act] = {
    "reordered": _reordered,
    "NaN": _typed(lambda asked, names: [math.nan] * len(names)),
    "missing": _typed(lambda asked, names: None),
    "half missing": _half_missing,
    "refused": _refusals,
    "no sum": _typed(lambda asked, names: [1.4] * len(names)),
    "another form": lambda handler, body: handler.write("4"),
    "no answers": lambda handler, body: handler.send(200, {"answers": None}),
}


def _choice(**fields: Any) -> Act:
    return lambda handler, body: handler.send(200, {"choices": [{"index": 0, **fields}]})


def _turned(handler: Any, body: Any) -> None:
    """The right answer with its keys, its tokens and a second choice in another order."""
    sent: list[Any] = []
    send, handler.send = handler.send, lambda status, content: sent.append(content)
    write(handler, body)
    handler.send = send
    [choice] = sent[0]["choices"]
    choice["logprobs"]["content"][0]["top_logprobs"].reverse()
    other = {"message": {"content": "I say 4."}, "index": 1}
    send(200, {"choices": [dict(reversed(choice.items())), other], "later": [1]})


_OF_WRITTEN: dict[str, Act] = {
    "reordered": _turned,
    "NaN": lambda handler, body: handler.write("2", {"1": math.nan, "2": math.nan}),
    "written NaN": lambda handler, body: handler.write("nan"),
    "missing": lambda handler, body: handler.send(200, {"choices": []}),
    "no text": _choice(message={"content": None}),
    "empty text": lambda handler, body: handler.write(""),
    "refused": _choice(message={"content": None, "refusal": "I cannot help with that."}, finish_reason="stop"),
    "refused in words": lambda handler, body: handler.write("I'm sorry, but I can't help with that."),
    "half": _choice(message={"content": "4\nThe second"}, finish_reason="length"),
    "another form": lambda handler, body: handler.send(200, {"answers": {}}),
}


def kinds_of(api: str, other: Server) -> dict[str, Act]:
    """The faults, by name; other: where redirects lead, which must never be called."""
    right = write if api == "chat" else decide
    kinds: dict[str, Act] = {name: FAULTS[name] for name in FAULTS if name not in ("429", "a redirect", "byte by byte")}
    kinds |= {f"redirect {status}": _elsewhere(status, other) for status in (301, 307)}
    kinds |= {
        f"{encoding} of much": lambda handler, body, encoding=encoding, content=content: packed(
            handler, body, encoding, content
        )
        for encoding, content in PACKED.items()
    }
    return kinds | (_OF_WRITTEN if api == "chat" else _OF_TYPED) | {
        "slow": lambda handler, body: (time.sleep(0.7), right(handler, body))[1],
        "429 in a second": _later(1, date=False),
        "429 with a date": _later(1.5, date=True),
        "refused connection": reset,
        "error in JSON": lambda handler, body: handler.send(503, {"error": {"message": f"key {SECRET}"}}),
    }  # fmt: skip


class Misbehaving:
    """Answers as a server's `answer`; counts which fault was how often."""

    def __init__(self, api: str, other: Server, *, seed: int) -> None:
        self.right, self.kinds = write if api == "chat" else decide, kinds_of(api, other)
        self.told: dict[str, int] = {}
        self._draw, self._lock = random.Random(seed), threading.Lock()
        self._turns, self._left = list[bool](), list[str]()

    def __call__(self, handler: Any, body: Any) -> None:
        with self._lock:
            self._turns = self._turns or self._draw.sample([True] * FAULTY + [False] * (10 - FAULTY), 10)
            kind = self._next() if self._turns.pop() else "right"
            self.told[kind] = self.told.get(kind, 0) + 1
        self.right(handler, body) if kind == "right" else self.kinds[kind](handler, body)

    def _next(self) -> str:
        # All in a shuffled order, and again: none is left out by chance.
        if not self._left:
            self._left = self._draw.sample(sorted(self.kinds), len(self.kinds))
        return self._left.pop()

    @property
    def share(self) -> float:
        """Of answers that had a fault."""
        return 1.0 - self.told.get("right", 0) / sum(self.told.values())
