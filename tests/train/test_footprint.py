"""What a model is said to take is what a real engine holds and a real checkpoint weighs."""

import ctypes
import gc
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.common.harness import status_bytes
from synpro_engine.data import Batch
from synpro_engine.dist import Layout, ParallelConfig, Topology, launched
from synpro_engine.dist.testing import run_ranks
from synpro_engine.model import layers
from synpro_engine.model.build import build_model, freeze_but_last
from synpro_engine.model.config import ModelConfig, Recompute
from synpro_engine.model.lora import add_adapters
from synpro_engine.model.shared_rows import SharedRows
from synpro_engine.train.checkpoint import save_checkpoint
from synpro_engine.train.config import AverageConfig, EmaConfig
from synpro_engine.train.engine import Engine
from synpro_engine.train.footprint import Footprint
from synpro_engine.train.losses import LanguageModelLoss
from synpro_engine.train.optimizer_config import OptimizerConfig, OptimizerName
from synpro_kernels.common.extension import csrc_status

SHAPE = ModelConfig(layers=3, d_model=64, heads=4, kv_heads=2, ffn=160, vocab_size=256, seq_len=32)
DTYPES = (torch.float32, torch.bfloat16)
FUSED, WITHOUT = csrc_status()
fused = pytest.mark.skipif(not FUSED, reason=f"plain operations keep more than is said: {WITHOUT}")
OPTIMIZERS: tuple[OptimizerName, ...] = ("adamw", "muon")


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    with launched(ParallelConfig()) as here:
        yield here


def trained(
    topology: Topology, dtype: torch.dtype, name: OptimizerName = "adamw", blocks: int | None = None,
    lora: int | None = None,
) -> Engine:  # fmt: skip
    model = build_model(SHAPE, topology, dtype=dtype)
    if blocks is not None:
        freeze_but_last(model, blocks)
    if lora is not None:
        add_adapters(model, rank=lora, alpha=1.0, seed=0)
    engine = Engine(model, OptimizerConfig(name=name))
    tokens = torch.randint(0, SHAPE.vocab_size, (2, SHAPE.seq_len))
    batch = Batch(tokens, tokens.roll(-1, 1))
    engine.step([batch], LanguageModelLoss(), denominator=float(tokens.numel()))
    return engine


def held(engine: Engine) -> int:
    """Bytes of weights, gradient buffers, and all tensors of the optimizer."""
    weights = [parameter.data for parameter in engine.model.parameters()]
    buffers = [buffer.grad_data for chunk in engine.wrapped for buffer in chunk.buffers]
    kept = set[int]()
    total = sum(tensor.numel() * tensor.element_size() for tensor in (*weights, *buffers))
    for part in engine.optimizer.chained_optimizers:
        owned = [group["params"] for group in part.optimizer.param_groups]
        for parameter in itertools.chain(*owned):
            state = [value for value in part.optimizer.state[parameter].values() if torch.is_tensor(value)]
            copies = [parameter.data] if engine.model.dtype != torch.float32 else []
            for tensor in (*state, *copies):
                if tensor.numel() > 1 and tensor.data_ptr() not in kept:
                    kept.add(tensor.data_ptr())
                    total += tensor.numel() * tensor.element_size()
    return total


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_training_holds_what_the_footprint_says(topology: Topology, dtype: torch.dtype, name: OptimizerName) -> None:
    said = Footprint(SHAPE, Layout.of(ParallelConfig(), 1), dtype, name).training
    assert held(trained(topology, dtype, name)) == pytest.approx(said, rel=0.01)


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_take_what_the_footprint_says_in_memory_and_on_disk(
    topology: Topology, dtype: torch.dtype, tmp_path: Path
) -> None:
    plain, both = (Footprint(SHAPE, Layout.of(ParallelConfig(), 1), dtype, averages=kept) for kept in (0, 2))
    model = build_model(SHAPE, topology, dtype=dtype)
    engine = Engine(model, OptimizerConfig(), averages={"ema": EmaConfig(), "average": AverageConfig()})
    tokens = torch.randint(0, SHAPE.vocab_size, (2, SHAPE.seq_len))
    engine.step([Batch(tokens, tokens.roll(-1, 1))], LanguageModelLoss(), denominator=float(tokens.numel()))
    kept = sum(average.memory.untyped_storage().nbytes() for average in engine.averages.values())
    assert kept == pytest.approx(both.training - plain.training, rel=0.01)
    save_checkpoint(tmp_path / "all", engine)
    size = sum(file.stat().st_size for file in (tmp_path / "all").rglob("*") if file.is_file())
    said = both.saved(optimizer=True)
    assert said == plain.saved(optimizer=True) + kept and said <= size < 1.25 * said + 100_000


@pytest.mark.parametrize("dtype", DTYPES)
def test_training_some_blocks_or_their_adapters_holds_what_the_footprint_says(
    topology: Topology, dtype: torch.dtype
) -> None:
    said = Footprint(SHAPE, Layout.of(ParallelConfig(), 1), dtype)
    assert held(trained(topology, dtype, blocks=2)) == pytest.approx(said.partly(2), rel=0.01)
    assert held(trained(topology, dtype, blocks=2, lora=4)) == pytest.approx(said.adapting(4, 2), rel=0.01)
    assert said.adapting(4, 2) < said.partly(2) < said.training


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checkpoint_weighs_what_the_footprint_says(
    topology: Topology, dtype: torch.dtype, name: OptimizerName, tmp_path: Path
) -> None:
    print_of = Footprint(SHAPE, Layout.of(ParallelConfig(), 1), dtype, name)
    engine = trained(topology, dtype, name)
    save_checkpoint(tmp_path / "weights", engine.model)
    save_checkpoint(tmp_path / "all", engine)
    for part, said in (("weights", print_of.saved()), ("all", print_of.saved(optimizer=True))):
        size = sum(file.stat().st_size for file in (tmp_path / part).rglob("*") if file.is_file())
        assert said <= size < 1.25 * said + 100_000, part  # the index, and names


def _kept(cp: int, apart: bool = False) -> tuple[int, float, list[int]]:
    """Bytes that the forward pass of four sequences keeps on a rank, what is said of them, and those of each mask."""
    with launched(ParallelConfig(cp=cp)) as topology:
        model = build_model(SHAPE, topology)
        tokens, kept = torch.randint(0, SHAPE.vocab_size, (4, SHAPE.seq_len)), dict[int, int]()
        masks = dict[int, int]()
        weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                kept[storage.data_ptr()] = storage.nbytes()
                if tensor.shape[0] == 4 and tensor.shape[2:] == (SHAPE.seq_len // cp, SHAPE.seq_len):
                    masks[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            hidden = model.hidden(tokens, SharedRows.of_documents(tokens) if apart else None)
        assert hidden.requires_grad
        said = Footprint(SHAPE, topology.layout, torch.float32, apart=apart).activations(4, SHAPE.seq_len)
        return sum(kept.values()), said, list(masks.values())


@fused
def test_what_backward_keeps_is_near_what_the_footprint_says() -> None:
    found = {cp: run_ranks(_kept, cp, cp=cp)[0] for cp in (1, 2, 4)}
    assert found[1][0] == pytest.approx(found[1][1], rel=0.02)
    for cp in (2, 4):
        assert found[cp][0] == pytest.approx(found[cp][1], rel=0.1)


SHAPES: tuple[tuple[ModelConfig, int, Recompute], ...] = (
    (ModelConfig(layers=4, d_model=128, heads=4, kv_heads=4, ffn=384, vocab_size=4096, seq_len=256), 24, "none"),
    (ModelConfig(layers=6, d_model=512, heads=8, kv_heads=2, ffn=1408, vocab_size=8192, seq_len=512, family="llama"),
     2, "mlp"),
    (ModelConfig(layers=12, d_model=256, heads=4, kv_heads=2, ffn=704, vocab_size=32768, seq_len=512, family="qwen3"),
     4, "full"),
)  # fmt: skip


def _high_waters() -> list[tuple[float, float]]:
    """Bytes that two steps of each shape take this process to, and those that are said."""
    # So that what is freed is the system's again: glibc keeps up to a quarter of the most that there ever was.
    ctypes.CDLL(None).mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD
    found = []
    with launched(ParallelConfig()) as topology:
        for shape, rows, recompute in SHAPES[:1] + SHAPES:  # the first takes libraries into memory too
            gc.collect()
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            before = status_bytes("VmRSS")
            engine = Engine(build_model(shape, topology, recompute=recompute), OptimizerConfig())
            ids = torch.randint(0, shape.vocab_size, (rows, shape.seq_len + 1))
            for _ in range(2):  # the second has the optimizer's state
                batch = Batch(ids[:, :-1], ids[:, 1:])
                engine.step([batch], LanguageModelLoss(1e-4), denominator=float(rows * shape.seq_len))
            said = Footprint(shape, topology.layout, torch.float32, recompute=recompute)
            whole = said.training + said.activations(rows, shape.seq_len) + said.logits(rows, shape.seq_len)
            found.append((float(status_bytes("VmHWM") - before), whole))
            del engine
    return found[1:]


@fused
def test_the_most_that_a_step_holds_is_within_a_tenth_of_what_is_said() -> None:
    [found] = run_ranks(_high_waters, 1)
    for held, said in found:
        assert held == pytest.approx(said, rel=0.1)


@pytest.mark.parametrize("cp", [1, 2])
def test_one_mask_for_all_layers_is_kept_where_documents_are_apart(cp: int) -> None:
    (_, said, none), (_, said_apart, masks) = (run_ranks(_kept, cp, cp=cp, apart=apart)[0] for apart in (False, True))
    assert none == [] and masks == [4 * SHAPE.seq_len**2 // cp * 4]  # of four sequences, fp32
    # In its place a share has the mask of its two chunks, which is the same for all sequences.
    chunks = SHAPE.seq_len**2 // (2 * cp) ** 2 * (2 * cp + 1) * 4 if cp > 1 else 0
    assert said_apart - said == masks[0] - chunks


def test_copied_keys_and_values_are_kept_for_each_query_head(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "_kernels_take_groups", lambda q, mask: False)  # as on a GPU
    found = []
    for key_heads in (SHAPE.kv_heads, SHAPE.heads):
        own = [torch.randn(8, 2, n, SHAPE.head_size).requires_grad_() for n in (SHAPE.heads, key_heads, key_heads)]
        kept = dict[int, int]()

        def pack(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = layers.scaled_dot_product(own[0], own[1], own[2], None, torch.zeros(2, 1, 8, 8))
        assert out.requires_grad
        found.append(sum(kept.values()))
    assert found[0] == found[1]
    layout = Layout.of(ParallelConfig(), 1)
    there, here = (
        Footprint(SHAPE, layout, torch.float32, apart=True, gpu=gpu).activations(4, 32) for gpu in (True, False)
    )
    # Of keys and values; what is copied needs not be kept, but for values, which lie among what was read anyway.
    copies = (2 * SHAPE.heads - SHAPE.kv_heads) * SHAPE.head_size * SHAPE.layers
    assert there - here == copies * 4 * 32 * 4  # of four sequences, fp32


def test_only_masks_and_fp32_take_copies_of_keys() -> None:
    layout, wide = Layout.of(ParallelConfig(), 1), SHAPE.model_copy(update={"kv_heads": SHAPE.heads})

    def kept(model: ModelConfig, dtype: torch.dtype, *, apart: bool, gpu: bool) -> float:
        return Footprint(model, layout, dtype, apart=apart, gpu=gpu).activations(2, SHAPE.seq_len)

    for dtype in DTYPES:
        for apart in (False, True):
            more = kept(SHAPE, dtype, apart=apart, gpu=True) > kept(SHAPE, dtype, apart=apart, gpu=False)
            assert more == (apart or dtype == torch.float32)
            assert kept(wide, dtype, apart=apart, gpu=True) == kept(wide, dtype, apart=apart, gpu=False)


@pytest.mark.parametrize(
    ("parallel", "world"), [({}, 8), ({"tp": 2}, 8), ({"cp": 2}, 8), ({"pp": 3}, 6), ({"tp": 2, "pp": 3}, 12)]
)
def test_more_ranks_hold_less_each_and_the_model_is_whole(parallel: dict[str, int], world: int) -> None:
    layout = Layout.of(ParallelConfig.model_validate(parallel), world)
    alone, shared = (Footprint(SHAPE, here, torch.bfloat16) for here in (Layout.of(ParallelConfig(), 1), layout))
    assert shared.training < alone.training
    assert shared.weights * layout.tp * layout.pp >= alone.weights, "no parameter is forgotten"
    assert shared.saved() == alone.saved()


def test_the_last_stage_has_its_logits_beside_fewer_micro_batches_than_the_first_has() -> None:
    def said(dtype: torch.dtype = torch.bfloat16, ranks: int = 1, **layout: int) -> tuple[float, float]:
        made = Footprint(SHAPE, Layout.of(ParallelConfig.model_validate(layout), ranks), dtype, gpu=True)
        return made.activations(1, SHAPE.seq_len), made.logits(1, SHAPE.seq_len)

    (kept, alone), (same, of_last) = said(), said(ranks=3, pp=3)
    assert kept == same and alone > of_last >= 0
    gradients = 4 * SHAPE.d_model * (SHAPE.seq_len + SHAPE.vocab_size)
    assert alone == gradients + SHAPE.seq_len * SHAPE.vocab_size * (4 + 2)  # slopes in bf16 beside fp32 logits
    assert said(torch.float32)[1] == gradients + SHAPE.seq_len * SHAPE.vocab_size * 4
    deep = SHAPE.model_copy(update={"layers": 8})
    plain, woven = (Footprint(deep, Layout.of(ParallelConfig(pp=2, vpp=vpp), 2), torch.float32) for vpp in (None, 2))
    last_norm = 4 * SHAPE.seq_len * SHAPE.d_model
    ratio = (woven.activations(1, 32) - last_norm) / (plain.activations(1, 32) - last_norm)
    assert ratio == pytest.approx((2 * 3 - 1) / (2 * 2))
    # Where layers wait on the host, the first stage has little more in hand than the last.
    wide, stages = deep.model_copy(update={"vocab_size": 8192}), Layout.of(ParallelConfig(pp=2), 2)
    here, away = (Footprint(wide, stages, torch.float32, offload_layers=layers).logits(4, 32) for layers in (0, 8))
    assert away > here


def test_the_documented_sizes_of_a_7b_model_are_those_that_are_counted() -> None:
    llama = ModelConfig(
        family="llama", layers=32, d_model=4096, heads=32, kv_heads=32, ffn=11008, vocab_size=32000, seq_len=4096
    )
    text = (Path(__file__).parents[2] / "docs" / "parallelism.md").read_text()
    rows = [line.strip("|").split("|") for line in text.split("FSDP would be |")[1].splitlines()[2:4]]
    for row in rows:
        gpus, *sizes, fsdp = (cell.strip() for cell in row)
        divided = [{}, {"tp": 2}, {"tp": 4}, {"tp": 8}, {"tp": 8, "pp": 2}]
        for parallel, size in zip(divided, sizes, strict=True):
            if size != "-":
                layout = Layout.of(ParallelConfig(**parallel), int(gpus))
                counted = Footprint(llama, layout, torch.bfloat16).training / 2**30
                assert float(size) == pytest.approx(counted, abs=0.06), (gpus, parallel)
        assert float(fsdp) == pytest.approx(18 * llama.parameter_count() / int(gpus) / 2**30, abs=0.06)
