"""Turning chat messages into the token ids of a prompt.

Knows the layouts that instruct models were trained on; knows no prompt's words. The texts of messages are
encoded without special tokens, so a document that spells `<|im_end|>` cannot end its own message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from synpro_engine.config import UserError
from synpro_engine.data import Tokenizer

ChatFormat = Literal["auto", "chatml", "olmo2", "plain"]
_START, _END = "<|im_start|>", "<|im_end|>"


@dataclass(frozen=True, kw_only=True)
class ChatMessage:
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


def render_chat(
    messages: Sequence[ChatMessage], prefill: str, tokenizer: Tokenizer, chat_format: ChatFormat = "auto"
) -> list[int]:
    """The ids of `messages` followed by an assistant turn that begins with `prefill` and is left open.

    `auto` is ChatML where the tokenizer has its tokens, else plain text with headed turns, which any
    tokenizer can spell. Raises UserError for `chatml` with a tokenizer that lacks the tokens.
    """
    return _LAYOUTS[_resolve(chat_format, tokenizer)](messages, prefill, tokenizer)


def stop_ids(tokenizer: Tokenizer, chat_format: ChatFormat = "auto") -> frozenset[int]:
    """The ids that end an assistant's turn: the end of document, and of the message where there is such a token."""
    ids = {tokenizer.eos_id}
    if _resolve(chat_format, tokenizer) == "chatml":
        ids.add(_chat_ids(tokenizer)[1])
    return frozenset(ids)


def _resolve(chat_format: ChatFormat, tokenizer: Tokenizer) -> ChatFormat:
    if chat_format != "auto":
        return chat_format
    has_tokens = all(tokenizer.special_id(literal) is not None for literal in (_START, _END))
    return "chatml" if has_tokens else "plain"


def _chat_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    start, end = tokenizer.special_id(_START), tokenizer.special_id(_END)
    if start is None or end is None:
        raise UserError(f"`chat_format`: chatml needs the tokens {_START} and {_END}, which this tokenizer lacks")
    return start, end


def _chatml(messages: Sequence[ChatMessage], prefill: str, tokenizer: Tokenizer) -> list[int]:
    start, end = _chat_ids(tokenizer)
    newline = tokenizer.encode("\n")
    ids = []
    for message in messages:
        ids += [start, *tokenizer.encode(f"{message.role}\n{message.content}"), end, *newline]
    return [*ids, start, *tokenizer.encode(f"assistant\n{prefill}")]


def _olmo2(messages: Sequence[ChatMessage], prefill: str, tokenizer: Tokenizer) -> list[int]:
    """OLMo-2-Instruct's layout: the markers are ordinary text there, only `<|endoftext|>` is a token."""
    ids = [tokenizer.eos_id]
    for message in messages:
        closing = [tokenizer.eos_id, *tokenizer.encode("\n")] if message.role == "assistant" else []
        ending = "" if message.role == "assistant" else "\n"
        ids += [*tokenizer.encode(f"<|{message.role}|>\n{message.content}{ending}"), *closing]
    return [*ids, *tokenizer.encode(f"<|assistant|>\n{prefill}")]


def _plain(messages: Sequence[ChatMessage], prefill: str, tokenizer: Tokenizer) -> list[int]:
    turns = [f"{message.role.capitalize()}:\n{message.content}\n\n" for message in messages]
    return tokenizer.encode("".join(turns) + f"Assistant:\n{prefill}")


_LAYOUTS: dict[ChatFormat, Callable[[Sequence[ChatMessage], str, Tokenizer], list[int]]] = {
    "chatml": _chatml,
    "olmo2": _olmo2,
    "plain": _plain,
}
