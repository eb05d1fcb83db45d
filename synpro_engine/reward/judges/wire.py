"""How a question goes to an endpoint, by each of its interfaces, and what its reply is worth.

Where the server gives probabilities that is their mean over the allowed answers (G-Eval, Liu et al. 2023), else what
the written answer is worth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from synpro_engine.reward.judges.config import JudgeConfig
from synpro_engine.reward.judges.written import Question

PATHS = {"chat": "chat/completions", "completions": "completions", "systemone": "systemone"}
_REMINDER = "\n\nGive the answer alone, and nothing else."


def request_body(
    config: JudgeConfig, question: Question, text: str, source: str, *, again: bool = False
) -> dict[str, Any]:
    """The request that asks about one text; again: its last answer could not be read."""
    asked = question.ask(text, source) + (_REMINDER if again else "")
    if config.api == "systemone":
        instructions = "Answer the question that the text ends with."
        choice = {"type": "choice", "instructions": instructions, "criteria": dict(question.meanings)}
        body: dict[str, Any] = {"state": asked, "questions": {"answer": choice}}
    else:
        body = {"max_tokens": config.max_tokens, "temperature": 0.0}
        if config.api == "chat":
            # One turn: some chat templates refuse a system's.
            body |= {"messages": [{"role": "user", "content": asked}]}
            body |= {"logprobs": True, "top_logprobs": config.top_logprobs} if config.top_logprobs else {}
        else:
            # Models of plain text go on behind their answer.
            body |= {"prompt": asked, "stop": ["\n"]} | (
                {"logprobs": config.top_logprobs} if config.top_logprobs else {}
            )
    body = {"model": config.model} | body | config.request
    return {name: value for name, value in body.items() if value is not None}


def value_of(question: Question, api: str, reply: Mapping[str, Any]) -> float | None:
    """What an endpoint's reply is worth; None where it is of another form, or unreadable. Never raises."""
    try:
        if api == "systemone":
            [answer] = reply["answers"].values()
            return question.weigh({str(name): float(p) for name, p in answer["probabilities"].items()})
        choice = reply["choices"][0]
        text = choice["message"]["content"] if api == "chat" else choice["text"]
        cut = choice.get("finish_reason") == "length"
        written = question.read(text, cut=cut) if isinstance(text, str) else None
        if written is None:
            return None
        tokens = _chat_tokens(choice) if api == "chat" else _completion_tokens(choice)
        for token, probabilities in _last_line(tokens):
            # The first token of the answer that was read; what stands before it are words such as "Score:".
            if question.weigh({token: 1.0}) == written:
                weighed = question.weigh(probabilities)
                return written if weighed is None else weighed
        return written
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        return None


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
        yield str(place["token"]), _probabilities((str(top["token"]), top["logprob"]) for top in place["top_logprobs"])


def _completion_tokens(choice: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, float]]]:
    logprobs = choice.get("logprobs") or {}
    for token, top in zip(logprobs.get("tokens") or (), logprobs.get("top_logprobs") or (), strict=False):
        yield str(token), _probabilities((top or {}).items())


def _probabilities(pairs: Iterable[tuple[str, Any]]) -> dict[str, float]:
    return {token: math.exp(float(logprob)) for token, logprob in pairs}
