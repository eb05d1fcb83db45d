"""Questions that are answered in writing, over `chat/completions` and `completions`, and what a reply is worth.

Where the server gives probabilities that is their mean over the allowed answers (G-Eval, Liu et al. 2023), else what
the written answer is worth. What is none of the answers is unreadable, and never a value: a reply is untrusted text,
and so are the texts that are asked about.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from synpro_engine.reward.judges.config import JudgeConfig
from synpro_engine.reward.judges.questions import QuestionConfig

PATHS = {"chat": "chat/completions", "completions": "completions"}
"""Below the endpoint's address."""
REMINDER = "\n\nGive the answer alone, and nothing else."
"""Behind a question whose last answer could not be read."""
_LEAST_MASS = 0.5
"""Of the probabilities, on allowed answers: with less, the judge was about to say something else."""
_LONGEST = 200
"""Characters of a line that may be an answer with a few words around it."""
_THOUGHT = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_MARKS = r"[\s*_`\"'()\[\]{}.]*"
# Written so that a run of blanks or marks divides in few ways: each way is tried before a reply is refused.
_WORDS = (
    r"(?:(?:the\s+)?(?:final\s+|overall\s+)*(?:answer|score|rating|label|verdict)(?:\s*is\b)?(?:\s*[:=])?"
    rf"{_MARKS})?"
)


@dataclass(frozen=True, kw_only=True)
class WrittenForm:
    """How a question is put in writing, and what the ways are in which it may be answered.

    words: stand behind the texts. labels: what an answer is worth, by what the judge is told to write for it. names:
    the same, by what it may write instead (both in any case). suffix: what may stand behind an answer, as a pattern.
    """

    words: str
    labels: Mapping[str, float]
    names: Mapping[str, float] = field(default_factory=dict)
    suffix: str = ""

    @cached_property
    def _written(self) -> re.Pattern[str]:
        names = "|".join(re.escape(way) for way in sorted([*self.labels, *self.names], key=len, reverse=True))
        # A letter with its meaning behind it ("B: Unfaithful_Topic") is one answer, as long as both say the same.
        return re.compile(
            rf"{_MARKS}{_WORDS}(?P<first>{names})(?:{_MARKS}(?:[:-]+|[.)]){_MARKS}(?P<second>{names}))?"
            rf"{self.suffix}{_MARKS}",
            re.IGNORECASE,
        )

    def read(self, reply: str, *, cut: bool = False) -> float | None:
        """What a written reply is worth: the whole of it, or its last line, must be an answer; else None.

        cut: it was ended by its longest length, so its last line is not the last that the judge wanted to write.
        """
        text, (by_label, by_name) = _THOUGHT.sub("", reply).strip(), self._worths
        for part in dict.fromkeys((text,) if cut else (text, text.rpartition("\n")[2])):
            if len(part) <= _LONGEST and (found := self._written.fullmatch(part)) is not None:
                values = {(by_label | by_name)[name.casefold()] for name in found.groups() if name is not None}
                return values.pop() if len(values) == 1 else None
        return None

    @cached_property
    def _worths(self) -> tuple[dict[str, float], dict[str, float]]:
        """Of labels and of names, without case."""
        by_label, by_name = ({way.casefold(): worth for way, worth in of.items()} for of in (self.labels, self.names))
        return by_label, by_name

    def weigh(self, probabilities: Mapping[str, float]) -> float | None:
        """The mean over allowed answers, by the probabilities of the tokens that begin them; None for too little."""
        worth, found = list[float](), list[float]()
        for token, probability in probabilities.items():
            values = self._begun(token)
            if len(values) == 1 and 0.0 <= probability <= 1.0 + 1e-6:
                worth.append(probability * values.pop())
                found.append(probability)
        # Exact sums: the same probabilities in another order are the same value to the last digit.
        mass = math.fsum(found)
        return math.fsum(worth) / mass if mass >= _LEAST_MASS else None

    def _begun(self, token: str) -> set[float]:
        """What the labels that a token begins are worth, or else the names; it counts where they are worth the same."""
        begun = token.strip().casefold()
        # Labels are what was asked for: "B" is the second answer, also where the third is called "bad".
        for worths in self._worths:
            if begun and (values := {worth for way, worth in worths.items() if way.startswith(begun)}):
                return values
        return set()

    def value_of(self, api: str, reply: Mapping[str, Any], *, hard: bool = False) -> float | None:
        """What an endpoint's reply is worth; None where it is of another form, or unreadable. Never raises.

        hard: by the written answer alone.
        """
        try:
            choice = reply["choices"][0]
            text = choice["message"]["content"] if api == "chat" else choice["text"]
            cut = choice.get("finish_reason") == "length"
            written = self.read(text, cut=cut) if isinstance(text, str) else None
            if written is None or hard:
                return written
            tokens = _chat_tokens(choice) if api == "chat" else _completion_tokens(choice)
            for token, probabilities in _last_line(tokens):
                # The first token of the answer that was read; what stands before it are words such as "Score:".
                if self.weigh({token: 1.0}) == written:
                    weighed = self.weigh(probabilities)
                    return written if weighed is None else weighed
            return written
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
            return None


def written_form(question: QuestionConfig) -> WrittenForm:
    """A declared question in writing: its answers are yes or no, letters, or the numbers of its levels."""
    names, worths = question.names, question.worths
    if question.type == "truth":
        words = f"{question.ask}\nAnswer with yes or no alone.\n\nAnswer:"
        return WrittenForm(words=words, labels=dict(zip(names, worths, strict=True)))
    if question.type == "choice":
        labels, kind, answer = list(string.ascii_uppercase[: len(names)]), "letter", "Answer"
    else:
        first = int(question.lowest) if question.lowest >= 0 and question.lowest.is_integer() else 1
        labels, kind, answer = [str(first + n) for n in range(len(names))], "number", "Score"
    words = "\n".join([question.ask, *question.told(labels), f"Answer with the {kind} alone.\n\n{answer}:"])
    by_label, by_name = (dict(zip(ways, worths, strict=True)) for ways in (labels, names))
    # A label that is another answer's name, as the level "2" that comes first, would be read as either.
    if {name.casefold() for name in names} & {label.casefold() for label in labels}:
        by_name = {}
    suffix = rf"(?:\s*(?:/|out\s+of)\s*{labels[-1]})?" if question.type == "score" else ""
    return WrittenForm(words=words, labels=by_label, names=by_name, suffix=suffix)


def fill(prompt: str, text: str, source: str) -> str:
    """A prompt of the user's own about a text. What the texts say is not looked at: a placeholder in them stays."""
    pieces = re.split(r"(\{text\}|\{source\})", prompt)
    return "".join({"{text}": text, "{source}": source}.get(piece, piece) for piece in pieces)


def written_request(config: JudgeConfig, api: str, asked: str) -> dict[str, Any]:
    """The fields of a request that is answered in writing."""
    body: dict[str, Any] = {"max_tokens": config.max_tokens, "temperature": 0.0}
    top = config.top_logprobs
    if api == "chat":
        # One turn: some chat templates refuse a system's.
        body |= {"messages": [{"role": "user", "content": asked}]}
        return body | ({"logprobs": True, "top_logprobs": top} if top else {})
    # Models of plain text go on behind their answer.
    return body | {"prompt": asked, "stop": ["\n"]} | ({"logprobs": top} if top else {})


def _last_line(places: Iterable[tuple[str, dict[str, float]]]) -> Iterator[tuple[str, dict[str, float]]]:
    """Those of the last line that is not empty: an answer stands there, and thoughts and other scores before it."""
    places = list(places)
    text = "".join(token for token, _ in places)
    begin, end = text.rstrip().rfind("\n") + 1, 0
    for token, probabilities in places:
        end += len(token)
        if end > begin:
            yield token, probabilities


def _chat_tokens(choice: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    """Each token that was written, and the probabilities of those that might have been."""
    for place in (choice.get("logprobs") or {}).get("content") or ():
        tops = place.get("top_logprobs") or ()  # some servers tell of the written token alone
        yield str(place["token"]), _probabilities((str(top["token"]), top["logprob"]) for top in tops)


def _completion_tokens(choice: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    logprobs = choice.get("logprobs") or {}
    for token, top in zip(logprobs.get("tokens") or (), logprobs.get("top_logprobs") or (), strict=False):
        yield str(token), _probabilities((top or {}).items())


def _probabilities(pairs: Iterable[tuple[str, Any]]) -> dict[str, float]:
    """ValueError where one is no probability: the reply is broken, and what it writes is not trusted either."""
    found = {token: math.exp(float(logprob)) for token, logprob in pairs}
    if not all(p <= 1.0 + 1e-6 for p in found.values()):  # nor is NaN
        raise ValueError("no probability")
    return found
