"""Hugging Face directories as strangers write them: equal ones are read alike, all others are refused in one line."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.data.tokenizer import load_tokenizer
from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf import export_hf, import_hf
from synpro_engine.model.hf_config import read_hf_config
from synpro_engine.model.rotary import inverse_frequencies
from synpro_engine.model.state import canonical_state

SHAPE = ModelConfig(family="llama", layers=2, d_model=16, heads=2, kv_heads=1, ffn=24, vocab_size=32, seq_len=16)
STRETCH = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
GONE = object()
OF: dict[str, dict[str, Any]] = {
    family: {"model_type": family, "architectures": GONE} for family in ("mistral", "qwen2", "qwen3")
}


@pytest.fixture(scope="module")
def exports(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One export of every family; tests take copies."""
    folder = tmp_path_factory.mktemp("exports")
    vocabulary = tokenizers.models.WordLevel({"<|endoftext|>": 0, "a": 1}, unk_token="a")
    tokenizers.Tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    for family in ("llama", "mistral", "olmo2", "qwen2", "qwen3"):
        model = build_model(SHAPE.model_copy(update={"family": family}), topology)
        export_hf(model, folder / family, load_tokenizer(folder / "tokenizer.json"))
    return {path.name: path for path in folder.iterdir() if path.is_dir()}


@pytest.fixture
def exported(exports: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(exports["llama"], tmp_path / "out")


def change(directory: Path, changes: dict[str, Any], file: str = "config.json") -> None:
    path = directory / file
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not GONE}))


REFUSED: list[tuple[dict[str, Any], str]] = [
    # Numbers that are none, or none that a model can have.
    ({"num_hidden_layers": None}, "`num_hidden_layers`: .*got None"),
    ({"num_hidden_layers": GONE}, "key `num_hidden_layers` is missing"),
    ({"num_hidden_layers": "2"}, "`num_hidden_layers`: .*got '2'"),
    ({"num_hidden_layers": True}, "`num_hidden_layers`: .*got True"),
    ({"num_hidden_layers": 2.5}, "`num_hidden_layers`: .*got 2.5"),
    ({"num_hidden_layers": [2]}, r"`num_hidden_layers`: .*got \[2\]"),
    ({"num_hidden_layers": 0}, "`num_hidden_layers`: .*got 0"),
    ({"num_hidden_layers": -1}, "`num_hidden_layers`: .*got -1"),
    ({"num_hidden_layers": 10**7}, "`num_hidden_layers`: .*got 10000000"),
    ({"num_hidden_layers": 9_999}, "tensor `model.layers.2.self_attn.q_proj.weight` is missing"),
    ({"num_hidden_layers": 1}, "tensor `model.layers.1.* is not part of the model"),
    ({"hidden_size": 2**60}, "`hidden_size`: "),
    ({"hidden_size": {"a": 1}}, "`hidden_size`: "),
    ({"num_attention_heads": 0}, "`num_attention_heads`: .*got 0"),
    ({"num_attention_heads": 2**40}, "`num_attention_heads`: "),
    ({"num_key_value_heads": 0}, "`num_key_value_heads`: .*got 0"),
    ({"num_attention_heads": 3, "num_key_value_heads": 2, "head_dim": 8}, r"`num_key_value_heads`: must divide heads"),
    ({"head_dim": 7}, "`head_dim`: .*even"),
    ({"head_dim": "wide"}, "`head_dim`: .*got 'wide'"),
    ({"intermediate_size": -24}, "`intermediate_size`: .*got -24"),
    ({"intermediate_size": 32}, r"`model.layers.0.mlp.gate_proj.weight` has shape \(24, 16\), .*\(32, 16\)"),
    ({"vocab_size": 10**15}, "`vocab_size`: "),
    ({"vocab_size": 33}, "tensor `model.embed_tokens.weight` has shape"),
    ({"max_position_embeddings": 0}, "`max_position_embeddings`: .*got 0"),
    ({"max_position_embeddings": "many"}, "`max_position_embeddings`: .*got 'many'"),
    ({"rms_norm_eps": "1e-5"}, "`rms_norm_eps`: .*got '1e-5'"),
    ({"rms_norm_eps": 0}, "`rms_norm_eps`: .*got 0"),
    ({"rms_norm_eps": float("nan")}, "`rms_norm_eps`: .*got nan"),
    ({"initializer_range": [0.02]}, "`initializer_range`: "),
    ({"tie_word_embeddings": "false"}, "`tie_word_embeddings`: .*got 'false'"),
    ({"tie_word_embeddings": 0.5}, "`tie_word_embeddings`: "),
    ({"rope_theta": "abc", "rope_parameters": GONE}, "`rope_theta`: .*got 'abc'"),
    ({"rope_theta": [1e4], "rope_parameters": GONE}, "`rope_theta`: "),
    ({"rope_theta": -1.0, "rope_parameters": GONE}, "`rope_theta`: .*got -1"),
    ({"rope_theta": float("inf"), "rope_parameters": GONE}, "`rope_theta`: .*got inf"),
    ({"rope_theta": True, "rope_parameters": GONE}, "`rope_theta`: .*got True"),
    ({"rope_theta": 1e4}, "`rope_theta` is 10000.0 and 500000.0 in two places"),
    # Rotations.
    ({"rope_scaling": "linear"}, "`rope_scaling`: expected a mapping, got 'linear'"),
    ({"rope_parameters": [1]}, r"`rope_parameters`: expected a mapping, got \[1\]"),
    *(
        ({"rope_scaling": {"rope_type": kind, "factor": 2.0}}, f"`rope_scaling`: rope type '{kind}' is not supported")
        for kind in ("linear", "dynamic", "yarn", "longrope", "proportional", "su")
    ),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "`rope_scaling`: rope type 'yarn'"),
    ({"rope_scaling": {"rope_type": "default", "type": "yarn"}}, "rope type 'default' and 'yarn'"),
    ({"rope_scaling": {"rope_type": ["default"]}}, r"rope type \['default'\]"),
    ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e5}}, "`rope_parameters`: rope type 'yarn'"),
    ({"rope_scaling": {"rope_type": "default", "mrope_section": [2, 2]}}, "`rope_scaling.mrope_section`"),
    ({"rope_scaling": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "`rope_scaling.partial_rotary_factor`"),
    ({"rope_scaling": STRETCH}, "`rope_scaling` and `rope_parameters` disagree"),
    (
        {"rope_parameters": GONE, "rope_scaling": STRETCH, "original_max_position_embeddings": 7},
        "`original_max_position_embeddings` is 7 and .* in two places",
    ),
    *(
        ({"rope_parameters": GONE, "rope_scaling": STRETCH | changed}, f"`rope_scaling.*{message}")
        for changed, message in [
            ({"factor": "8"}, "factor`: .*got '8'"),
            ({"factor": 0.5}, "factor`: .*got 0.5"),
            ({"factor": float("nan")}, "factor`: .*got nan"),
            ({"low_freq_factor": 0.0}, "low_freq_factor`: "),
            ({"low_freq_factor": 4.0}, r"high_freq_factor \(4.0\) must be above low_freq_factor"),
            ({"original_max_position_embeddings": 8192.5}, "original_max_position_embeddings`: "),
            ({"beta_fast": 32}, "beta_fast` is not supported"),
        ]
    ),
    # What changes the arithmetic.
    ({"model_type": "gpt2"}, "`model_type` 'gpt2' is not one of llama, mistral, olmo2, qwen2, qwen3"),
    ({"model_type": ["llama"]}, "`model_type` "),
    ({"model_type": GONE}, "`model_type` None"),
    ({"attention_bias": True}, "`attention_bias` = True is not supported"),
    ({"mlp_bias": True}, "`mlp_bias` = True"),
    ({"mlp_bias": "false"}, "`mlp_bias` = 'false'"),
    ({"hidden_act": "gelu"}, "`hidden_act` = 'gelu'"),
    ({"hidden_act": ["silu"]}, "`hidden_act` = "),
    ({"partial_rotary_factor": 0.5}, "`partial_rotary_factor` = 0.5"),
    ({"attn_logit_softcapping": 50.0}, "`attn_logit_softcapping` = 50.0"),
    ({"final_logit_softcapping": 30.0}, "`final_logit_softcapping` = 30.0"),
    ({"clip_qkv": 8.0}, "`clip_qkv` = 8.0"),
    ({"residual_multiplier": 0.22}, "`residual_multiplier` = 0.22"),
    ({"is_causal": False}, "`is_causal` = False"),
    ({"num_local_experts": 8}, "`num_local_experts` = 8"),
    ({"quantization_config": {"quant_method": "fp8"}}, "`quantization_config` = "),
    ({"auto_map": {"AutoModelForCausalLM": "modeling.py--Mine"}}, "`auto_map`"),
    ({"architectures": ["LlamaEncoderModel"]}, r"`architectures` \['LlamaEncoderModel'\] has no LlamaForCausalLM"),
    ({"architectures": ["LlamaForSequenceClassification"]}, "`architectures` .* has no LlamaForCausalLM"),
    ({"architectures": "LlamaEncoderModel"}, "`architectures` 'LlamaEncoderModel' has no"),
    ({"model_type": "qwen3"}, r"`architectures` \['LlamaForCausalLM'\] has no Qwen3ForCausalLM"),
    ({"layer_types": ["full_attention", "linear_attention"]}, "`layer_types`: 'linear_attention'"),
    ({"sliding_window": 8}, "`sliding_window`: 8 is shorter than sequences of 16 tokens"),
    ({"sliding_window": "8"}, "`sliding_window`: .*got '8'"),
    (OF["mistral"] | {"sliding_window": GONE, "max_position_embeddings": 5000}, "`sliding_window`: 4096 is"),
    (OF["qwen2"] | {"sliding_window": 8, "use_sliding_window": True}, "`sliding_window`: 8 is shorter"),
    (OF["qwen2"] | {"use_sliding_window": "false"}, "`use_sliding_window`: .*got 'false'"),
    (OF["qwen2"], r"tensor `model.layers.0.self_attn.q_proj.bias` is missing"),
    (OF["qwen3"], r"tensor `model.layers.0.self_attn.q_norm.weight` is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_a_config_that_cannot_be_computed_as_it_says_is_refused_in_one_line_and_at_once(
    topology: Topology, exported: Path, changes: dict[str, Any], message: str
) -> None:
    change(exported, changes)
    start = time.process_time()
    with pytest.raises(UserError, match=message) as error:
        import_hf(exported, topology)
    assert time.process_time() - start < 2.0
    assert str(exported) in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


EQUAL: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_scaling": None}),
    ("llama", {"rope_scaling": {"rope_type": "default"}}),
    ("llama", {"rope_scaling": {"type": "default"}, "rope_parameters": GONE}),
    ("llama", {"rope_scaling": {}}),
    ("llama", {"rope_theta": GONE}),
    ("llama", {"rope_theta": 500_000, "rope_parameters": GONE}),
    ("llama", {"rope_parameters": {"rope_theta": 5e5, "partial_rotary_factor": 1.0}, "rope_theta": GONE}),
    ("llama", {"hidden_act": "swish"}),
    ("llama", {"hidden_act": GONE, "mlp_bias": None, "attention_bias": GONE}),
    ("llama", {"partial_rotary_factor": 1, "attn_logit_softcapping": None, "num_local_experts": 0}),
    ("llama", {"pretraining_tp": 1, "use_cache": True, "_name_or_path": "x", "attention_dropout": 0.0, "extra": [1]}),
    ("llama", {"layer_types": ["full_attention", "full_attention"], "sliding_window": 16}),
    ("llama", {"head_dim": None, "auto_map": {"AutoTokenizer": "tokenization.py--Mine"}}),
    ("llama", {"architectures": GONE}),
    ("llama", {"architectures": ["LlamaMedusa", "LLaMAForCausalLM"]}),
    ("mistral", {"sliding_window": 4096}),
    ("mistral", {"sliding_window": GONE}),
    ("olmo2", {"rms_norm_eps": 1e-6, "clip_qkv": None}),
    ("qwen2", {"sliding_window": 8, "max_window_layers": 1}),
    ("qwen3", {"use_sliding_window": True, "sliding_window": 32}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes"), EQUAL)
def test_a_config_that_says_the_same_in_other_words_is_read_as_the_same(
    exports: dict[str, Path], tmp_path: Path, family: str, changes: dict[str, Any]
) -> None:
    directory = shutil.copytree(exports[family], tmp_path / "out")
    change(directory, changes)
    assert read_hf_config(directory) == SHAPE.model_copy(update={"family": family})


def test_the_original_length_of_a_stretch_may_stand_beside_it(exported: Path) -> None:
    change(exported, {"rope_parameters": GONE, "rope_scaling": STRETCH})
    within = read_hf_config(exported)
    length = STRETCH["original_max_position_embeddings"]
    shorter = {key: value for key, value in STRETCH.items() if key != "original_max_position_embeddings"}
    for scaling in (STRETCH, shorter):
        change(exported, {"rope_scaling": scaling, "original_max_position_embeddings": length})
        assert read_hf_config(exported) == within and within.rope_scaling is not None


def test_a_window_is_no_matter_where_sequences_are_shorter(exported: Path) -> None:
    change(exported, {"sliding_window": 8})
    assert read_hf_config(exported, seq_len=8).seq_len == 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "expected a JSON object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('{"hidden_size": 16, "hidden_size": 17}', "key 'hidden_size' stands there twice"),
        ('{"model_type": ' + "9" * 5000 + "}", "not readable as JSON"),
        ("\xff", "not readable as JSON"),
    ],
    ids=["torn", "list", "deep list", "deep object", "twice", "long number", "no UTF-8"],
)
def test_text_that_is_no_config_is_named(topology: Topology, exported: Path, text: str, message: str) -> None:
    (exported / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=f"config.json: .*{message}"):
        import_hf(exported, topology)


def rewrite(directory: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


def put(name: str, value: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def edit(tensors: dict[str, Tensor]) -> None:
        tensors[name] = value(tensors[name])

    return edit


def with_value(value: float) -> Callable[[Tensor], Tensor]:
    def edit(tensor: Tensor) -> Tensor:
        tensor[-1, -1] = value
        return tensor

    return edit


Q, HEAD, EMBEDDING = "model.layers.1.self_attn.q_proj.weight", "lm_head.weight", "model.embed_tokens.weight"
BAD_TENSORS: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "nan": (put(Q, with_value(float("nan"))), f"tensor `{Q}` holds NaN or infinity"),
    "inf": (put(HEAD, with_value(float("-inf"))), f"tensor `{HEAD}` holds NaN or infinity"),
    "too large": (put(Q, lambda t: t.double() + 1e300), f"tensor `{Q}` holds numbers beyond what torch.float32"),
    "int8": (put(Q, lambda t: t.to(torch.int8)), f"tensor `{Q}` is of type I8"),
    "int64": (put(Q, lambda t: t.to(torch.int64)), f"tensor `{Q}` is of type I64"),
    "bool": (put(Q, lambda t: t > 0), f"tensor `{Q}` is of type BOOL"),
    "complex": (put(Q, lambda t: t.to(torch.complex64)), f"tensor `{Q}` is of type C64"),
    "float8": (put(Q, lambda t: t.to(torch.float8_e4m3fn)), f"tensor `{Q}` is of type F8_E4M3"),
    "float8 e5m2": (put(Q, lambda t: t.to(torch.float8_e5m2)), f"tensor `{Q}` is of type F8_E5M2"),
    "transposed": (put(Q, lambda t: t[:, :8].clone()), f"tensor `{Q}` has shape"),
    "scalar": (put(Q, lambda t: t.sum()), f"tensor `{Q}` has shape"),
    "empty": (put(Q, lambda t: t[:0].clone()), f"tensor `{Q}` has shape"),
    "missing": (lambda tensors: tensors.pop(Q), f"tensor `{Q}` is missing"),
    "no embedding": (lambda tensors: tensors.pop(EMBEDDING), f"tensor `{EMBEDDING}` is missing"),
    "extra": (lambda t: t.update({"model.layers.0.extra": torch.ones(1)}), "`model.layers.0.extra` is not part"),
    "a bias": (lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(16)}), "q_proj.bias` is not"),
    "other angles": (
        lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.rand(4)}),
        "`model.layers.0.self_attn.rotary_emb.inv_freq` is not what `rope_theta` and `rope_scaling` give",
    ),
    "angles of another width": (
        lambda t: t.update({"model.rotary_emb.inv_freq": inverse_frequencies(SHAPE)[:2].clone()}),
        "`model.rotary_emb.inv_freq` is not what",
    ),
    "other buffers": (lambda t: t.update({"model.layers.0.rotary_emb.cos": torch.ones(4)}), "rotary_emb.cos` is not"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_a_tensor_that_is_no_weight_of_the_model_is_named(topology: Topology, exported: Path, case: str) -> None:
    edit, message = BAD_TENSORS[case]
    rewrite(exported, edit)
    with pytest.raises(UserError, match=message) as error:
        import_hf(exported, topology)
    assert str(exported) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("files", [{}, {"pytorch_model.bin": b"\x80\x04."}, {"model.safetensors.index.json": None}])
def test_a_directory_without_safetensors_is_named(
    topology: Topology, exported: Path, files: dict[str, bytes | None]
) -> None:
    (exported / "model.safetensors").unlink()
    for name, content in files.items():
        (exported / name).mkdir() if content is None else (exported / name).write_bytes(content)
    with pytest.raises(UserError, match=r"out: neither .* is here \(pickled weights are not read"):
        import_hf(exported, topology)


def test_half_precision_and_fp64_weights_are_read(topology: Topology, exported: Path) -> None:
    before = load_file(exported / "model.safetensors")
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.float32)
    rewrite(exported, lambda t: t.update({n: x.to(kinds[i % 4]) for i, (n, x) in enumerate(sorted(t.items()))}))
    after = canonical_state(import_hf(exported, topology).model)
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0.01, atol=1e-4)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float16])
def test_stored_angles_are_dropped_where_they_are_the_config_s(
    topology: Topology, exported: Path, kind: torch.dtype
) -> None:
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    rewrite(exported, lambda tensors: tensors.update({name: inverse_frequencies(SHAPE).to(kind)}))
    assert name not in canonical_state(import_hf(exported, topology).model)


def test_a_tied_model_s_stored_head_is_dropped_where_it_is_the_embedding(
    topology: Topology, exported: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    change(exported, {"tie_word_embeddings": True})
    rewrite(exported, lambda tensors: tensors.update({HEAD: tensors[EMBEDDING].clone()}))
    assert import_hf(exported, topology).model.config.tie_embeddings
    assert "untied" not in capfd.readouterr().err


@torch.no_grad()
def test_a_head_of_its_own_is_used_whatever_the_config_says_and_the_user_is_told(
    topology: Topology, exported: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    untied = import_hf(exported, topology).model
    change(exported, {"tie_word_embeddings": True})
    model = import_hf(exported, topology).model
    told = [line for line in capfd.readouterr().err.splitlines() if "untied" in line]
    assert len(told) == 1 and str(exported) in told[0] and "lm_head.weight" in told[0]
    assert not model.config.tie_embeddings
    assert torch.equal(model.output_weight(), untied.output_weight())
    rewrite(exported, put(HEAD, lambda tensor: tensor[:-1].clone()))  # a head of another size is no head
    with pytest.raises(UserError, match=r"tensor `lm_head.weight` has shape"):
        import_hf(exported, topology)


def shard(directory: Path) -> dict[str, str]:
    """The single file as two and an index; returns the index's map."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for index, part in enumerate((names[:5], names[5:]), 1):
        file = f"model-{index:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, directory / file)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return weight_map


SECOND = "model-00002-of-00002.safetensors"
INDEX: dict[str, tuple[Callable[[Path, dict[str, str]], Any], str]] = {
    "parent": (lambda d, m: {Q: "../outside.safetensors"}, f"`weight_map.{Q}`: '../outside.safetensors' is"),
    "hidden parent": (lambda d, m: {Q: "sub/../../outside.safetensors"}, f"`weight_map.{Q}`: "),
    "absolute": (lambda d, m: {Q: str(d.parent / "outside.safetensors")}, f"`weight_map.{Q}`: .* is not a file of"),
    "no name": (lambda d, m: {Q: 7}, f"`weight_map.{Q}`: 7 is not a file"),
    "empty name": (lambda d, m: {Q: ""}, f"`weight_map.{Q}`: '' is not a file"),
    "nul": (lambda d, m: {Q: "a\0b"}, f"`weight_map.{Q}`: "),
    "a name too long": (lambda d, m: {Q: "a" * 5000}, "no such file, but .*json has tensors there"),
    "a name that is none": (lambda d, m: {Q: "\ud800"}, r"\\ud800: no such file, but .*json has tensors there"),
    "a key of many lines": (lambda d, m: {"a\nb\x1b[2J": "../x"}, r"`weight_map.a\\nb\\x1b\[2J`: '../x' is not a file"),
    "a directory": (lambda d, m: {Q: "."}, f"`weight_map.{Q}`: '.' is not a file"),
    "missing shard": (lambda d, m: (d / SECOND).unlink(), f"{SECOND}: no such file, but .*json has tensors"),
    "not in its file": (lambda d, m: {HEAD: SECOND}, f"`{HEAD}` is to be in {SECOND}, and is in model-00001"),
    "in no file": (lambda d, m: {"ghost": SECOND}, f"tensor `ghost` is to be in {SECOND}, and is in no file"),
    "unlisted": (lambda d, m: m.pop(Q), f"tensor `{Q}` is not in model.safetensors.index.json"),
    "in two": (
        lambda d, m: save_file(load_file(d / SECOND) | {"lm_head.weight": torch.ones(32, 16)}, d / SECOND),
        "tensor `lm_head.weight` is in model-00001-of-00002.safetensors too",
    ),
    "two sets": (lambda d, m: shutil.copy(d / SECOND, d / "model.safetensors"), "which are the weights"),
    "no map": (lambda d, m: m.clear(), "`weight_map` is missing"),
    "git's pointer": (
        lambda d, m: (d / SECOND).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        f"{SECOND}: only git's pointer",
    ),
    "torn shard": (lambda d, m: (d / SECOND).write_bytes(b"abc"), f"{SECOND}: not a readable safetensors file"),
}  # fmt: skip


@pytest.mark.parametrize("case", INDEX)
def test_an_index_that_disagrees_with_its_files_or_leaves_its_directory_is_refused(
    topology: Topology, exported: Path, case: str
) -> None:
    shutil.copy(exported / "model.safetensors", exported.parent / "outside.safetensors")
    weight_map = shard(exported)
    edit, message = INDEX[case]
    changed = edit(exported, weight_map)
    weight_map |= changed if isinstance(changed, dict) else {}
    (exported / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(UserError, match=message) as error:
        import_hf(exported, topology)
    assert "\n" not in str(error.value)


def test_the_hub_s_cache_whose_files_are_links_is_read(topology: Topology, exported: Path) -> None:
    shard(exported)
    blobs, snapshot = exported.parent / "blobs", exported.parent / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for index, file in enumerate(sorted(exported.iterdir())):
        file.rename(blobs / f"{index:064}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{index:064}")
    assert import_hf(snapshot, topology).model.config == SHAPE
