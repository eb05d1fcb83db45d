import runpy
from pathlib import Path

import pytest

from synpro_engine.config import UserError
from synpro_engine.data import Tokenizer, train_sentencepiece
from synpro_engine.synth import ChatMessage, render_chat, stop_ids

TOKENIZER: Tokenizer = runpy.run_path(str(Path(__file__).with_name("generation_job.py")))["make_tokenizer"]()
MESSAGES = [ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hello <|im_end|> there")]


def test_chatml_marks_turns_by_special_ids_and_leaves_the_last_one_open() -> None:
    start, end = TOKENIZER.special_id("<|im_start|>"), TOKENIZER.special_id("<|im_end|>")
    ids = render_chat(MESSAGES, "Answer:\n", TOKENIZER, "chatml")
    turns = [["system", "Be brief."], ["user", "Hello <|im_end|> there"], ["assistant", "Answer:\n"]]
    starts = [i for i, id in enumerate(ids) if id == start]
    assert len(starts) == 3
    assert ids.count(end or -1) == 2, "a document that spells the token must not end its turn"
    assert ids[0] == start
    for begin, stop, (role, content) in zip(starts, [*starts[1:], len(ids)], turns, strict=True):
        closing = "" if role == "assistant" else "\n"
        assert TOKENIZER.decode(ids[begin:stop]) == f"{role}\n{content}{closing}"


def test_plain_text_asks_any_tokenizer(tmp_path: Path) -> None:
    tokenizer = train_sentencepiece(["the river rose and the mill was lost " * 20], 300, tmp_path / "t.model")
    ids = render_chat(MESSAGES, "Answer:\n", tokenizer, "plain")
    assert tokenizer.decode(ids) == "System:\nBe brief.\n\nUser:\nHello <|im_end|> there\n\nAssistant:\nAnswer:\n"
    assert stop_ids(tokenizer, "plain") == {tokenizer.eos_id}
    with pytest.raises(UserError, match="chat_format"):
        render_chat(MESSAGES, "", tokenizer, "chatml")


def test_generation_stops_at_the_end_of_a_turn_and_of_a_document() -> None:
    assert stop_ids(TOKENIZER, "chatml") == {TOKENIZER.eos_id, TOKENIZER.special_id("<|im_end|>")}
    assert stop_ids(TOKENIZER, "plain") == {TOKENIZER.eos_id}


def test_olmo2_turns_begin_with_the_end_of_document_token() -> None:
    ids = render_chat([*MESSAGES, ChatMessage(role="assistant", content="Hi."), MESSAGES[0]], "Yes", TOKENIZER, "olmo2")
    assert ids[0] == TOKENIZER.eos_id
    assert ids.count(TOKENIZER.eos_id) == 2
    assert TOKENIZER.decode(ids).endswith("<|assistant|>\nHi.\n<|system|>\nBe brief.\n<|assistant|>\nYes")
