"""What lies beside a tokenizer.json and what it says itself: both are followed, or refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from synpro_engine.config import UserError
from synpro_engine.data import document_ids, load_tokenizer
from tests.synth.published import write


def _change(directory: Path, file: str, changes: dict[str, Any]) -> Path:
    path = directory / file
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(data | changes))
    return directory


@pytest.fixture
def published(tmp_path: Path) -> Path:
    return write(tmp_path / "published", "smollm2")


def test_a_begin_of_text_is_put_as_the_post_processor_does_whatever_the_settings_say(published: Path) -> None:
    from transformers import AutoTokenizer

    library = tokenizers.Tokenizer.from_file(str(published / "tokenizer.json"))
    begin = processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)])
    for processor, adds in ((begin, False), (processors.ByteLevel(), True), (begin, True)):
        library.post_processor = processor
        library.save(str(published / "tokenizer.json"))
        _change(published, "tokenizer_config.json", {"add_bos_token": adds})
        tokenizer, theirs = load_tokenizer(published), AutoTokenizer.from_pretrained(published, local_files_only=True)
        assert document_ids(tokenizer, "The mill")[:-1] == theirs("The mill")["input_ids"]


@pytest.mark.parametrize("beside", [None, {}, {"bos_token": None, "add_bos_token": False}])
@pytest.mark.parametrize(
    ("single", "begins"),
    [("<|begin|> $A", True), ("<|begin|> $A <|endoftext|>", True), ("$A <|endoftext|>", False), ("$A", False)],
)
def test_a_begin_of_text_that_only_the_post_processor_names_is_put_before_texts_and_exported(
    tmp_path: Path, single: str, begins: bool, beside: dict[str, Any] | None
) -> None:
    from transformers import AutoTokenizer

    library = tokenizers.Tokenizer(models.BPE({char: at for at, char in enumerate("ab")}, []))
    library.add_special_tokens(["<|begin|>", "<|endoftext|>"])
    specials = [(token, id) for token in ("<|begin|>", "<|endoftext|>") if (id := library.token_to_id(token))]
    template = processors.TemplateProcessing(single=single, special_tokens=specials)
    library.post_processor = processors.Sequence([processors.ByteLevel(), template])  # as Llama 3 has it
    library.save(str(tmp_path / "tokenizer.json"))
    if beside is not None:
        _change(tmp_path, "tokenizer_config.json", beside)
    tokenizer = load_tokenizer(tmp_path)
    assert document_ids(tokenizer, "ab") == [*([2] if begins else []), 0, 1, 3]
    assert tokenizer.model_ids["bos_token_id"] == tokenizer.bos_id == (2 if begins else None)
    tokenizer.save(tmp_path / "export")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "export", local_files_only=True)
    assert theirs("ab")["input_ids"] == library.encode("ab").ids and theirs.bos_token_id == tokenizer.bos_id
    assert load_tokenizer(tmp_path / "export").fingerprint == tokenizer.fingerprint


def test_an_end_of_text_that_also_begins_texts_is_put_where_the_post_processor_has_it(published: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(published / "tokenizer.json"))
    library.post_processor = processors.TemplateProcessing(
        single="$A <|endoftext|>", special_tokens=[("<|endoftext|>", 0)]
    )
    library.save(str(published / "tokenizer.json"))
    _change(published, "tokenizer_config.json", {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"})
    assert load_tokenizer(published).bos_id is None


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("tokenizer_config.json", {"bos_token": "<s>"}, "tokenizer_config.json: `bos_token`: '<s>' is not in"),
        ("tokenizer_config.json", {"eos_token": "</s>"}, "tokenizer_config.json: `eos_token`: '</s>' is not in"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"900": {"content": "<t>"}}}, "added_tokens_decoder.900`"),
        ("tokenizer_config.json", {"added_tokens_decoder": ["<t>"]}, "`added_tokens_decoder` must be an object"),
        ("tokenizer_config.json", {"extra_special_tokens": {"t": "<t>"}}, "config.json: `extra_special_tokens`: '<t>'"),
        ("special_tokens_map.json", {"additional_special_tokens": ["<t>"]}, "map.json: `additional_special_tokens`: '"),
        ("added_tokens.json", {"<t>": 900}, "added_tokens.json: `<t>`: '<t>' is not in the vocabulary"),
        ("generation_config.json", {"eos_token_id": [2, 4000]}, "`eos_token_id` 4000 of the generation settings is"),
    ],
)
def test_a_token_or_an_end_that_the_vocabulary_lacks_is_refused_by_name(
    published: Path, file: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_tokenizer(_change(published, file, changes))
    assert str(published) in str(caught.value) and "\n" not in str(caught.value)


def test_an_end_that_is_chosen_is_among_the_ends_that_an_export_states(published: Path, tmp_path: Path) -> None:
    assert load_tokenizer(published, eos="<|im_end|>").model_ids == load_tokenizer(published).model_ids
    tokenizer = load_tokenizer(published, eos="<|endoftext|>")
    assert tokenizer.model_ids["eos_token_id"] == [0, 2] and tokenizer.end_ids == {0, 2}
    tokenizer.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "generation_config.json").read_text())["eos_token_id"] == [0, 2]
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("prepends", ["always", "first", "by the normalizer"])
def test_a_text_that_spells_a_special_token_gets_no_spaces_where_it_is_cut(tmp_path: Path, prepends: str) -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((character, -4.0) for character in "\u2581ab</s>")]
    library: Any = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    if prepends == "by the normalizer":
        library.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        spaces = [decoders.Replace("\u2581", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        library.decoder = decoders.Sequence(spaces)
    else:
        library.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepends)
        library.decoder = decoders.Metaspace(prepend_scheme=prepends)
    library.add_special_tokens(["</s>", "<unk>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    for text in ("a</s>b", "</s>", "</s></s> a", "a b</s> </s>"):
        ids = tokenizer.encode(text)
        assert tokenizer.eos_id not in ids and tokenizer.decode(ids) == text


@pytest.mark.parametrize("listed", [False, True], ids=["named", "named and listed"])
def test_padding_that_is_a_letter_leaves_texts_the_letter(published: Path, tmp_path: Path, listed: bool) -> None:
    before = load_tokenizer(published)
    texts = ["Burn!", "!", "!! no!", "a <|im_end|> !"]
    wanted = [before.encode(text) for text in texts]
    _change(published, "tokenizer_config.json", {"pad_token": "!"})
    if listed:
        library = tokenizers.Tokenizer.from_file(str(published / "tokenizer.json"))
        library.add_special_tokens(["!"])
        library.save(str(published / "tokenizer.json"))
    tokenizer = load_tokenizer(published)
    [letter] = before.encode("!")
    assert tokenizer.pad_id == letter and [tokenizer.encode(text) for text in texts] == wanted
    assert [tokenizer.decode(ids) for ids in wanted] == texts
    tokenizer.save(tmp_path / "saved")
    assert load_tokenizer(tmp_path / "saved").fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize("key", ["eos_token", "bos_token", "additional_special_tokens"])
def test_a_letter_that_is_called_special_otherwise_is_refused(published: Path, key: str) -> None:
    _change(published, "tokenizer_config.json", {key: ["!"] if key.endswith("s") else "!"})
    with pytest.raises(UserError, match=r"`(eos_token|bos_token|added_tokens)`: '!' is a letter of the vocabulary"):
        load_tokenizer(published)


def test_text_that_spells_a_special_token_once_it_is_normalised_does_not_become_it(tmp_path: Path) -> None:
    pieces = [("<unk>", 0.0), ("</s>", 0.0), *((character, -4.0) for character in "ab</s> ")]
    library: Any = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    library.normalizer, library.decoder = normalizers.NFKC(), decoders.Fuse()
    library.add_special_tokens(["</s>", "<unk>"])
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("a \uff1c/s> b")
    assert tokenizer.eos_id not in ids and tokenizer.decode(ids) == "a </s> b"


def test_ids_that_the_vocabulary_lacks_are_not_stated_by_an_export(published: Path) -> None:
    told = load_tokenizer(_change(published, "generation_config.json", {"pad_token_id": 4000, "bos_token_id": -1}))
    assert not {4000, -1} & set(told.model_ids.values())
