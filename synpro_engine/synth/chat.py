"""Turning chat messages into the token ids of a prompt.

The formats are those that instruct models were trained on. Markup and texts are encoded as one, as models were trained;
no text of a message becomes a special token, so a document that spells `<|im_end|>` cannot end its own message.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

from synpro_engine.config import UserError
from synpro_engine.data import PublishedTokenizer, Tokenizer
from synpro_engine.synth.chat_template import ChatSkeleton, Slot, chat_skeleton

ChatFormat = Literal["auto", "chatml", "olmo2", "plain"]
LAYOUT = {"chatml": 2, "olmo2": 2}
"""Raised when a format's messages get other ids, so that what was measured of the former ones is told apart."""
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

    `auto` is the tokenizer's own chat template, as transformers renders it; the other formats need none, and put the
    tokenizer's begin-of-text token first where it has one. Raises UserError for `auto` without a (usable) template and
    for `chatml` with a tokenizer that lacks its tokens.
    """
    if chat_format == "auto":
        published, skeleton = _template_skeleton(tokenizer, [message.role for message in messages])
        texts = [message.content for message in messages]
        pieces = skeleton.continued if prefill else skeleton.opened
        return _encoded(
            [piece.fill(texts) if isinstance(piece, Slot) else piece for piece in pieces], prefill, published
        )
    if chat_format == "plain":
        ids = tokenizer.encode(_plain(messages, prefill))
    else:
        published = cast(PublishedTokenizer, tokenizer)
        lay_out = {"chatml": _chatml, "olmo2": _olmo2}[chat_format]
        ids = _encoded(lay_out(messages, published), prefill, published)
    # OLMo-2's format begins with a token that is also its begin-of-text, and one is enough.
    return ids if tokenizer.bos_id in (None, ids[0]) else [tokenizer.bos_id, *ids]


def stop_ids(tokenizer: Tokenizer, chat_format: ChatFormat = "auto") -> frozenset[int]:
    """The ids that end an assistant's turn: end of document, those of the generation settings and the chat format's."""
    ids = {tokenizer.eos_id, *tokenizer.end_ids}
    if chat_format == "auto":
        published, skeleton = _template_skeleton(tokenizer, ["user"])
        # Read off the template, since the token that ends a turn often differs from the one that ends a document.
        for markup in skeleton.endings:
            # The first token after an answer ends it: where a template has no end, the next turn's begin.
            ids.update([id for id in published.encode_prompt([markup]) if id in published.control_ids][:1])
    if chat_format == "chatml":
        ids.add(_chatml_ids(tokenizer)[1])
    return frozenset(ids)


def _encoded(parts: Sequence[str], prefill: str, tokenizer: PublishedTokenizer) -> list[int]:
    """The ids of markup and texts in turn, read as one: a text encoded apart would begin and end with other tokens."""
    # The prefill is text too, though ours, and an empty piece of markup closes the row.
    return tokenizer.encode_prompt([*parts, prefill, ""])


def _template_skeleton(tokenizer: Tokenizer, roles: Sequence[str]) -> tuple[PublishedTokenizer, ChatSkeleton]:
    files = getattr(tokenizer, "files", None)
    if files is None or not files.chat_templates:
        raise UserError(
            "`chat_format`: auto needs a chat template, and this tokenizer has none; choose chatml, olmo2 or plain"
        )
    # Tokenizers may publish several, for tools or for retrieval: none of those is for a plain conversation.
    if "default" not in files.chat_templates:
        names = ", ".join(sorted(files.chat_templates))
        raise UserError(f"`chat_format`: none of the tokenizer's chat templates ({names}) is called default")
    published = cast(PublishedTokenizer, tokenizer)
    return published, chat_skeleton(files.chat_templates["default"], files.template_variables, roles)


def _chatml_ids(tokenizer: Tokenizer) -> tuple[int, int]:
    start, end = tokenizer.special_id(_START), tokenizer.special_id(_END)
    if start is None or end is None:
        raise UserError(f"`chat_format`: chatml needs the tokens {_START} and {_END}, which this tokenizer lacks")
    return start, end


def _chatml(messages: Sequence[ChatMessage], tokenizer: PublishedTokenizer) -> list[str]:
    _chatml_ids(tokenizer)
    parts = [f"{_START}{messages[0].role}\n"]
    for message, role in zip(messages, _following(messages), strict=True):
        parts += [message.content, f"{_END}\n{_START}{role}\n"]
    return parts


def _olmo2(messages: Sequence[ChatMessage], tokenizer: PublishedTokenizer) -> list[str]:
    """OLMo-2-Instruct's format: its markers are text, and only `<|endoftext|>` is a token.

    To OLMo-2's tokenizers, that is: of one that has a marker among its tokens the marker becomes that token.
    """
    # `<|endoftext|>` is begin and end of text at once in OLMo-2.
    end = tokenizer.spell([tokenizer.eos_id])
    parts = [f"{end}<|{messages[0].role}|>\n"]
    for message, role in zip(messages, _following(messages), strict=True):
        parts += [message.content, f"{end if message.role == 'assistant' else ''}\n<|{role}|>\n"]
    return parts


def _following(messages: Sequence[ChatMessage]) -> list[str]:
    """The role whose turn comes after each message."""
    return [*(message.role for message in messages[1:]), "assistant"]


def _plain(messages: Sequence[ChatMessage], prefill: str) -> str:
    turns = [f"{message.role.capitalize()}:\n{message.content}\n\n" for message in messages]
    return "".join(turns) + f"Assistant:\n{prefill}"
