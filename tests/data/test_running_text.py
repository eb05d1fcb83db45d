"""Parts of a text as token ids: those of running text, whichever tokenizer it is."""

from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from synpro_engine.data import Tokenizer, load_tokenizer, train_sentencepiece
from synpro_engine.data.prompted import Part, Task
from synpro_engine.data.running_text import encode_answers, encode_parts
from tests.data.test_prompted import Bytes
from tests.data.test_sentencepiece import _published

TEXT = ["Question: who was it?\nAnswer: darwin and the dog\n", "the 42 answers: the dog was darwin.\n\n"] * 40
LINE_ENDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # as Llama 3's


def _byte_bpe(path: Path, rule: str | None) -> Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=rule is None)
    split: Any = None if rule is None else pre_tokenizers.Split(Regex(rule), "isolated")
    made.pre_tokenizer = level if split is None else pre_tokenizers.Sequence([split, level])
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], initial_alphabet=level.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXT, trainer)
    path.mkdir()
    made.save(str(path / "tokenizer.json"))
    return load_tokenizer(path / "tokenizer.json")


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    place = tmp_path_factory.mktemp("tokenizers")
    return {
        "SentencePiece": train_sentencepiece(TEXT, 310, place / "t.model"),
        "SentencePiece, a space first": _published(place),
        "bytes as GPT-2": _byte_bpe(place / "gpt2", None),
        "bytes as Llama 3": _byte_bpe(place / "llama3", LINE_ENDS),
    }


@pytest.mark.parametrize("joiner", [" ", "\n", "\n\n", "  ", "\n ", ": "])
@pytest.mark.parametrize(
    "kind", ["SentencePiece", "SentencePiece, a space first", "bytes as GPT-2", "bytes as Llama 3"]
)
def test_prompt_and_response_have_the_tokens_of_running_text(
    kinds: dict[str, Tokenizer], kind: str, joiner: str
) -> None:
    tokenizer, texts = kinds[kind], [f"Question: who was it?{joiner}", f"darwin{joiner}", f"the dog?{joiner}", "42 dog"]
    found = encode_parts(tokenizer, texts)
    assert list(chain(*found)) == tokenizer.encode("".join(texts))
    assert [tokenizer.decode(ids).strip() for ids in found] == [text.strip() for text in texts]


def test_an_answer_behind_a_blank_has_its_token_and_one_behind_a_line_break_none_of_it(
    kinds: dict[str, Tokenizer],
) -> None:
    spelt = {
        kind: [
            [[tokenizer.decode([id]) for id in ids] for ids in encode_parts(tokenizer, [prompt, "darwin"])]
            for prompt in ("Answer: ", "Answer:\n")
        ]
        for kind, tokenizer in kinds.items()
    }
    for kind in ("SentencePiece", "bytes as GPT-2", "bytes as Llama 3"):
        (before, answer), (line, behind_line) = spelt[kind]
        assert before[-1] == ":" and answer[0].startswith(" d") and "".join(answer) == " darwin", kind
        assert line[-1].endswith("\n") and "".join(behind_line) == "darwin", kind


def test_all_answers_of_a_question_have_the_same_of_the_blanks_before_them(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["bytes as Llama 3"]  # which never joins a blank and a number
    assert tokenizer.decode(encode_parts(tokenizer, ["Answer: ", "42"])[1]) == "42"

    def spelt(*asked: tuple[str, str]) -> list[tuple[str, str]]:
        encoded = encode_answers(tokenizer, asked)
        for (prompt, answer), (before, ids) in zip(asked, encoded, strict=True):
            assert tokenizer.encode(prompt + answer) == before + ids
        return [(tokenizer.decode(before), tokenizer.decode(ids)) for before, ids in encoded]

    assert spelt(("Answer: ", "darwin"), ("Answer: ", "42")) == [("Answer:", " darwin"), ("Answer:", " 42")]
    assert spelt(("Answer: ", "7"), ("Answer: ", "42")) == [("Answer: ", "7"), ("Answer: ", "42")]
    # Behind prompts of their own too.
    assert spelt(("so Ann ", "darwin"), ("so Bo ", "42")) == [("so Ann", " darwin"), ("so Bo", " 42")]
    assert spelt(("so Ann ", "7"), ("so Bo  ", "42")) == [("so Ann ", "7"), ("so Bo  ", "42")]


def test_a_token_of_both_parts_is_cut_and_every_part_keeps_its_text(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["bytes as GPT-2"]
    assert len(tokenizer.encode(" the")) == 1
    assert encode_parts(tokenizer, ["who ate", " t", "he"]) == [
        tokenizer.encode(one) for one in ("who ate", " t", "he")
    ]
    assert encode_answers(tokenizer, [(" t", "he"), (" t", " dog")]) == [
        (tokenizer.encode(" t"), tokenizer.encode("he")), (tokenizer.encode(" t"), tokenizer.encode(" dog")),
    ]  # fmt: skip


def test_what_is_learnt_of_a_task_is_its_response_with_the_blank_that_joins_it(kinds: dict[str, Tokenizer]) -> None:
    tokenizer = kinds["bytes as GPT-2"]
    task = Task("t", (Part("Answer: ", False), Part("darwin", True)))
    ids, learnt, _ = task.encode(tokenizer, 100)
    assert ids == [*tokenizer.encode("Answer: darwin"), tokenizer.eos_id] and task.count(tokenizer) == len(ids)
    assert tokenizer.decode([id for id, one in zip(ids, learnt, strict=True) if one]) == " darwin"


def test_a_long_conversation_is_encoded_turn_by_turn() -> None:
    read = 0

    class Counting(Bytes):
        def encode(self, text: str) -> list[int]:
            nonlocal read
            read += len(text)
            return super().encode(text)

    encode_parts(Counting(), ["what?\n", "that\n"] * 1000)
    assert read == 2 * 11_000 - len("that\n"), "all once, and once again by turns"
