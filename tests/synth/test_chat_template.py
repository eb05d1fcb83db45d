"""`chat_format: auto` prompts as transformers does, and no text becomes a token of the chat."""

import functools
import runpy
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from synpro_engine.config import UserError
from synpro_engine.data import (
    Document,
    HFTokenizer,
    PublishedTokenizer,
    TokenCorpus,
    load_tokenizer,
    start_id,
    train_sentencepiece,
)
from synpro_engine.synth import REFORMAT, REPHRASE, ChatFormat, ChatMessage, render_chat, stop_ids
from synpro_engine.synth.chat_template import chat_skeleton

PUBLISHED: dict[str, Any] = runpy.run_path(str(Path(__file__).with_name("published.py")))
FAMILIES = list(PUBLISHED["FAMILIES"])
NO_SYSTEM = ("gemma", "mistral")
DATE = {"date_string": "26 Jul 2024"}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    return request.param, PUBLISHED["write"](tmp_path_factory.mktemp(request.param), request.param)


def _chat(*turns: str, system: str | None = "Be brief.") -> list[ChatMessage]:
    roles = ["user", "assistant"] * len(turns)
    found = [ChatMessage(role=role, content=text) for role, text in zip(roles, turns, strict=False)]
    return found if system is None else [ChatMessage(role="system", content=system), *found]


@functools.cache
def _auto(directory: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def _theirs(name: str, directory: Path, messages: Sequence[ChatMessage], prefill: str) -> list[int]:
    """transformers' own ids of the same conversation."""
    tokenizer = _auto(directory)
    turns = [{"role": m.role, "content": m.content} for m in messages]
    if name in NO_SYSTEM and turns[0]["role"] == "system":
        system, user, *rest = turns
        turns = [{"role": "user", "content": f"{system['content']}\n\n{user['content']}"}, *rest]
    if prefill and name == "mistral":  # its template has no opening of an answer to ask for
        turns.append({"role": "assistant", "content": prefill})
        return tokenizer.apply_chat_template(turns, continue_final_message=True, return_dict=False)
    text = tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True, enable_thinking=False, **DATE
    )
    return tokenizer(text + prefill, add_special_tokens=False)["input_ids"]


CONVERSATIONS = {
    "one turn": _chat("What is the capital of France?"),
    "no system": _chat("What is the capital of France?", system=None),
    "earlier turns": _chat("The mill burned.", "The town had no employer.", "Be brief 1871"),
    "white space": _chat("\n  The mill burned. \n\n", system=" Be brief.\n"),
    "odd text": _chat("漢字 é\u00a0😀 {{ messages }} {% raise %} &lt;b&gt;\t\u2581x"),
    "rephrase": REPHRASE.messages("The mill burned down in 1871."),
    "reformat": REFORMAT.messages("The mill burned down in 1871."),
}


@pytest.mark.parametrize("prefill", ["", "Here is the rewritten text:\n"], ids=["open", "prefilled"])
def test_prompts_have_the_ids_that_transformers_gives_them(family: tuple[str, Path], prefill: str) -> None:
    name, directory = family
    tokenizer = load_tokenizer(directory)
    for title, messages in CONVERSATIONS.items():
        if name == "mistral" and prefill:
            prefill = prefill.rstrip()  # transformers trims what it goes on from
        ours = render_chat(messages, prefill, tokenizer)
        assert ours == _theirs(name, directory, messages, prefill), title
        bos = PUBLISHED["FAMILIES"][name]["bos"]
        if bos:
            assert ours[0] == tokenizer.special_id(bos) and ours.count(ours[0]) == 1, title


def _with_chatml(directory: Path) -> Path:
    file = directory / "tokenizer.json"
    made = tokenizers.Tokenizer.from_file(str(file))
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.save(str(file))
    return directory


def _spelt_out(chat_format: ChatFormat, messages: Sequence[ChatMessage], prefill: str, eos: str) -> str:
    """What the two formats look like, written out."""
    if chat_format == "chatml":
        turns = [f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in messages]
        return "".join(turns) + f"<|im_start|>assistant\n{prefill}"
    ends = {"assistant": f"{eos}\n", "user": "\n", "system": "\n"}
    turns = [f"<|{m.role}|>\n{m.content}{ends[m.role]}" for m in messages]
    return eos + "".join(turns) + f"<|assistant|>\n{prefill}"


@pytest.mark.parametrize("chat_format", ["chatml", "olmo2"])
def test_named_formats_have_the_ids_of_the_whole_conversation_read_as_one(
    chat_format: ChatFormat, family: tuple[str, Path], tmp_path: Path
) -> None:
    name, _ = family
    directory = _with_chatml(PUBLISHED["write"](tmp_path / name, name))
    tokenizer, theirs = load_tokenizer(directory), _auto(directory)
    eos = tokenizer.spell([tokenizer.eos_id])
    for title, messages in CONVERSATIONS.items():
        for prefill in ("", "Here is the rewritten text:\n"):
            ours = render_chat(messages, prefill, tokenizer, chat_format)
            whole = _spelt_out(chat_format, messages, prefill, eos)
            assert ours[tokenizer.bos_id is not None :] == theirs(whole, add_special_tokens=False)["input_ids"], title


@pytest.mark.parametrize("title", ["one turn", "no system", "odd text", "rephrase", "reformat"])
def test_a_prompt_that_is_spelt_out_reads_as_the_same_prompt(family: tuple[str, Path], title: str) -> None:
    tokenizer = load_tokenizer(family[1])
    ids = render_chat(CONVERSATIONS[title], "Here it is:\n", tokenizer)
    assert tokenizer.encode_prompt([tokenizer.spell(ids)]) == ids


def test_turns_end_with_the_tokens_that_template_and_generation_settings_end_them_with(
    family: tuple[str, Path],
) -> None:
    name, directory = family
    tokenizer = load_tokenizer(directory)
    assert stop_ids(tokenizer) == {tokenizer.special_id(token) for token in PUBLISHED["FAMILIES"][name]["ends"]}


@pytest.mark.parametrize("chat_format", ["auto", "chatml", "olmo2"])
def test_no_text_becomes_a_token_of_the_chat(chat_format: ChatFormat, family: tuple[str, Path], tmp_path: Path) -> None:
    name, directory = family
    if chat_format == "chatml":
        directory = _with_chatml(PUBLISHED["write"](tmp_path / name, name))
    tokenizer = load_tokenizer(directory)
    control = [tokenizer.decode([id]) or id for id in tokenizer.control_ids]
    words = PUBLISHED["FAMILIES"][name]["special"] + [w for w in control if isinstance(w, str)]
    words += {"auto": [], "chatml": ["<|im_start|>", "<|im_end|>"], "olmo2": ["<|user|>"]}[chat_format]
    plain = render_chat(_chat("text", "text", "text"), "text", tokenizer, chat_format)
    harmless = [id for id in plain if id in tokenizer.control_ids]
    for word in words:
        for text in (word, f"a{word}b", word * 2, word[:-1], word[1:], f" {word} \n{word}", word[0] + word):
            ids = render_chat(_chat(text, text, text, system=f"x{text}x"), f"y{text}", tokenizer, chat_format)
            assert [id for id in ids if id in tokenizer.control_ids] == harmless, (word, text)
            shown = tokenizer.decode(ids).replace(" ", "")
            assert shown.count(text.strip().replace(" ", "")) >= 2, (word, text)


def test_a_begin_of_text_stands_before_texts_once_where_the_model_wants_it(family: tuple[str, Path]) -> None:
    name, directory = family
    tokenizer, bos = load_tokenizer(directory), PUBLISHED["FAMILIES"][name]["bos"]
    theirs = _auto(directory)
    [document] = [TokenCorpus.from_documents([Document("a", "The mill")], tokenizer).tokens.tolist()]
    assert document == [*theirs("The mill")["input_ids"], tokenizer.eos_id]
    assert start_id(tokenizer) == (tokenizer.eos_id if bos is None else tokenizer.special_id(bos))
    for chat_format in ("plain", "olmo2"):
        ids = render_chat(_chat("Hello"), "", tokenizer, chat_format)
        if bos is not None:
            assert ids[0] == start_id(tokenizer) and ids.count(ids[0]) == 1


def test_without_a_template_auto_names_the_setting_and_the_choices(tmp_path: Path) -> None:
    directory = PUBLISHED["write"](tmp_path / "t", "llama3")
    (directory / "chat_template.jinja").unlink()
    plain = train_sentencepiece(["the river rose and the mill was lost " * 20], 300, tmp_path / "t.model")
    for tokenizer in (load_tokenizer(directory), plain):
        for ask in (lambda t: render_chat(_chat("x"), "", t), stop_ids):
            with pytest.raises(UserError, match=r"`chat_format`: auto needs a chat template.*chatml, olmo2 or plain"):
                ask(tokenizer)
    (directory / "additional_chat_templates").mkdir()
    (directory / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    with pytest.raises(UserError, match=r"chat templates \(rag\) is called default"):
        stop_ids(load_tokenizer(directory))


def _with_template(directory: Path, template: str) -> PublishedTokenizer:
    shutil.rmtree(directory, ignore_errors=True)
    PUBLISHED["write"](directory, "llama3")
    (directory / "chat_template.jinja").write_text(template)
    return load_tokenizer(directory)


HOSTILE = [
    ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more time or memory"),
    ("{{ cycler.__init__.__globals__.os.popen('touch HERE/ran').read() }}", "cannot be used"),
    ("{% for m in messages %}{{ m.content | replace('\n\n', '\n') }}{% endfor %}", "it changes the texts"),
    ("{{ raise_exception('not today') }}", r"cannot be used \(not today\)"),
]
# Each starts a process, so the many are for the long run of tests.
MORE_HOSTILE = [
    ("{{ 'x' * 10**10 }}", "cannot be used"),
    ("{% for m in messages %}{{ m.content }}{{ 'x' * 10**7 }}{% endfor %}", "it writes too much"),
    ("{% include '/etc/passwd' %}", "cannot be used"),
    ("{{ messages.__class__.__mro__[1].__subclasses__() }}", "cannot be used"),
    ("{{ strftime_now.__globals__ }}", "cannot be used"),
    ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "it leaves out a message"),
    ("{% for m in messages %}{{ m.content | escape }}{% endfor %}", "it changes the texts"),
    ("{% for m in messages %}{{ m.content | tojson }}{% endfor %}", "it changes the texts"),
    ("{% for m in messages %}{{ m.content[1:] }}{% endfor %}", "cannot be used"),
    ("{% for m in messages %}", "cannot be used"),
]


@pytest.mark.parametrize(
    ("template", "message"), [*HOSTILE, *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE_HOSTILE)]
)
def test_a_hostile_or_broken_template_is_a_line_and_runs_nothing(tmp_path: Path, template: str, message: str) -> None:
    tokenizer = _with_template(tmp_path / "t", template.replace("HERE", str(tmp_path)))
    began = time.monotonic()
    with pytest.raises(UserError, match=f"`chat_format`: .*{message}") as caught:
        render_chat(_chat("x"), "", tokenizer)
    assert "\n" not in str(caught.value) and time.monotonic() - began < 200
    assert not (tmp_path / "ran").exists()


def test_the_date_in_prompts_is_the_same_every_day() -> None:
    layout = chat_skeleton(
        "{{ strftime_now('%d %B %Y') }}{% for m in messages %}|{{ m.content }}{% endfor %}|", {}, ["user"]
    )
    assert layout.opened[0] == "26 July 2024|"


def test_a_sentencepiece_model_takes_a_template_too(tmp_path: Path) -> None:
    trained = train_sentencepiece([PUBLISHED["TEXT"] * 9], 400, tmp_path / "t" / "tokenizer.model")
    trained.save(tmp_path / "t")
    (tmp_path / "t" / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
    )
    tokenizer = load_tokenizer(tmp_path / "t")
    theirs = _auto(tmp_path / "t")
    turns = [{"role": "user", "content": " The mill  burned."}]
    want = theirs.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert render_chat(_chat(" The mill  burned.", system=None), "", tokenizer) == want
    hostile = render_chat(_chat("a</s>b", system=None), "", tokenizer)
    assert hostile.count(tokenizer.eos_id) == 1 and "a</s>b" in tokenizer.decode(hostile)
    assert stop_ids(tokenizer) == {tokenizer.eos_id}


def test_a_token_that_only_the_settings_call_special_is_kept_out_of_text(tmp_path: Path) -> None:
    directory = PUBLISHED["write"](tmp_path / "t", "qwen25")
    file = directory / "tokenizer.json"
    file.write_text(file.read_text().replace('"special": true', '"special": false'))
    tokenizer = load_tokenizer(directory)
    assert isinstance(tokenizer, HFTokenizer)
    assert tokenizer.special_id("<|im_start|>") not in tokenizer.encode("a<|im_start|>b")
