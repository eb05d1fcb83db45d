"""Small tokenizers with the files and chat templates of published families, in our own words: `write(directory, name)`.

What matters is kept: where special tokens stand, what begins and ends a turn, which files say so, what is trimmed,
refused or put in by default, and how the vocabulary reads spaces.
"""

import json
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = (
    "The mill burned down in 1871, and the town had no other employer. What is the capital of France? Be brief.\n\n"
    "system user assistant model Here is the rewritten text: Cutting Knowledge Date. Today Date: 26 Jul 2024\n"
)
_CHATML = (
    "{% for message in messages %}{% if loop.first and message.role != 'system' %}"
    "{{ '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_OLMO2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + eos_token }}{% if not loop.last %}{{ '\\n' }}{% endif %}"
    "{% else %}{{ '<|' + message['role'] + '|>\\n' + message['content'] + '\\n' }}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}{% endfor %}"
)
_LLAMA3 = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'"
    " + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}"
    "{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
_LLAMA31 = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}{% set system = "" %}{% endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: 2023\\nToday Date: " + date_string + "\\n\\n" + system + "<|eot_id|>" }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""
_QWEN3 = """{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == 'assistant' %}
        {%- set thoughts = '' %}
        {%- if '</think>' in content %}
            {%- set thoughts = content.split('</think>')[0] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.last %}{{- '<think>\\n' + thoughts.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}{{- content }}{% endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""
_GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role here') }}{% endif %}"
    "{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
    "{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
)

_LLAMA3_TOKENS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
_QWEN_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}
FAMILIES: dict[str, dict[str, Any]] = {
    "smollm2": {
        "special": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        "settings": {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>",
                     "unk_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer", "chat_template": _CHATML},
        "generation": {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2},
        "ends": ["<|im_end|>"], "bos": None,
    },
    "olmo2": {
        "special": ["<|endoftext|>", "<|pad|>"],
        "settings": {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>", "pad_token": "<|pad|>",
                     "unk_token": "<|endoftext|>", "tokenizer_class": "GPT2Tokenizer", "chat_template": _OLMO2},
        "generation": {"eos_token_id": 0, "pad_token_id": 1},
        "ends": ["<|endoftext|>"], "bos": None,
    },
    "llama3": {
        "special": _LLAMA3_TOKENS,
        "settings": {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", **_CLASS},
        "files": {"chat_template.jinja": _LLAMA3},
        "generation": {"bos_token_id": 0, "eos_token_id": [1, 4], "temperature": 0.6, "do_sample": True},
        "ends": ["<|eot_id|>", "<|end_of_text|>"], "bos": "<|begin_of_text|>",
    },
    "llama31": {
        "special": _LLAMA3_TOKENS,
        "settings": {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": _LLAMA31, **_CLASS},
        "ends": ["<|eot_id|>"], "bos": "<|begin_of_text|>",
    },
    "qwen25": {
        "special": _QWEN_TOKENS,
        "settings": {
            "bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "add_bos_token": False,
            "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "tokenizer_class": "Qwen2Tokenizer",
            "chat_template": [
                {"name": "tool_use", "template": "{{ tools }}"}, {"name": "default", "template": _CHATML}
            ],
        },
        "generation": {"eos_token_id": [2, 0], "pad_token_id": 0},
        "ends": ["<|im_end|>", "<|endoftext|>"], "bos": None,
    },
    "qwen3": {
        "special": _QWEN_TOKENS, "plain": ["<think>", "</think>"],
        "settings": {"bos_token": None, "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>",
                     "tokenizer_class": "Qwen2Tokenizer"},
        "files": {"chat_template.jinja": _QWEN3, "additional_chat_templates/tool_use.jinja": "{{ tools }}"},
        "ends": ["<|im_end|>"], "bos": None,
    },
    "gemma": {
        "special": ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"], "plain": ["\n\n"],
        "settings": {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>",
                     "add_bos_token": True, "chat_template": _GEMMA, **_CLASS},
        "ends": ["<eos>", "<end_of_turn>"], "bos": "<bos>",
    },
    "mistral": {
        "special": ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"],
        "settings": {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True,
                     "chat_template": _MISTRAL, **_CLASS},
        "ends": ["</s>"], "bos": "<s>",
    },
}  # fmt: skip


def write(directory: Path, name: str) -> Path:
    """Write a family's files into `directory`, as they come from a hub."""
    family = FAMILIES[name]
    directory.mkdir(parents=True, exist_ok=True)
    make = _spaced if name in ("gemma", "mistral") else _byte_level
    made = make(family["special"], name)
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.get("plain", [])])
    if family["bos"]:
        bos = (family["bos"], made.token_to_id(family["bos"]))
        begin = processors.TemplateProcessing(single=f"{bos[0]} $A", special_tokens=[bos])
        made.post_processor = begin
    made.save(str(directory / "tokenizer.json"))
    named = {key: token for key, token in family["settings"].items() if key.endswith("_token") and token}
    objects = {
        "tokenizer_config": family["settings"] | {"model_max_length": 2048, "clean_up_tokenization_spaces": False},
        "special_tokens_map": {key: token for key, token in named.items() if isinstance(token, str)},
        "generation_config": family.get("generation"),
    }
    for file, content in objects.items():
        if content:
            (directory / f"{file}.json").write_text(json.dumps(content, indent=2))
    for file, text in family.get("files", {}).items():
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_text(text)
    return directory


_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _byte_level(special: list[str], name: str) -> tokenizers.Tokenizer:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name.startswith("qwen"):  # transformers' class for these splits in this way, whatever the file says
        words = pre_tokenizers.Split(tokenizers.Regex(_QWEN_WORDS), "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        made.normalizer = normalizers.NFC()
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT] * 4, trainer)
    return made


def _spaced(special: list[str], name: str) -> tokenizers.Tokenizer:
    """Spaces as letters, unknown letters as bytes; Mistral's puts a space before the text."""
    first = name == "mistral"
    made = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "\u2581")
    made.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_next")
    spaces = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*spaces, decoders.Strip(" ", 1, 0)] if first else spaces)
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=450, special_tokens=[*special, *bytes_], show_progress=False)
    made.train_from_iterator([TEXT] * 4, trainer)
    data = json.loads(made.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in special]
    data["pre_tokenizer"] = None
    if first:
        metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": False}
        data |= {"pre_tokenizer": metaspace, "normalizer": None}
    return tokenizers.Tokenizer.from_str(json.dumps(data))
