"""How many operations a decoding step is, and how often the host waits.

On a GPU each operation is a launch, which takes as long as a small product, and at each wait the device stands still.
"""

from collections import Counter
from typing import Any

import pytest
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.sampler import Sampler, SamplerConfig, SamplingConfig
from synpro_kernels.common.extension import csrc_loaded

pytestmark = pytest.mark.skipif(not csrc_loaded(), reason="counted with compiled ops; their definitions are many")
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
READS = (Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__)
"""What brings numbers to the host; on a CPU, where the first three bring nothing, operations do not show it."""


class Counted(TorchDispatchMode):
    """Counts operations by name, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [value.alias_info for value in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            self.made[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


class Waited(TorchFunctionMode):
    """Counts reads by the host of what is computed; the numbers of a tensor that was brought over count once."""

    def __init__(self) -> None:
        super().__init__()
        self.times, self._brought = 0, None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func in READS and not (func is Tensor.numpy and args[0] is self._brought)
        found = func(*args, **(kwargs or {}))
        if func is Tensor.cpu:
            self._brought = found
        return found


def operations(topology: Topology, family: str, layers: int, tokens: int, stride: int = 1) -> tuple[Counter[str], int]:
    config = ModelConfig(
        family=family, layers=layers, d_model=64, heads=4, kv_heads=2, ffn=96, vocab_size=96, seq_len=64,
    )  # fmt: skip
    sampler = Sampler(build_model(config, topology, seed=1), SamplerConfig(stride=stride))
    sampling = SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=tokens)
    with Counted() as counted, Waited() as waited:
        sampler.generate([[1, 2, 3], [4, 5]], group_size=4, sampling=sampling, stop_ids=frozenset(), seeds=[1, 2])
    return counted.made, waited.times + sum(counted.made[name] for name in WAITS)


@pytest.mark.parametrize("family", ["llama", "mistral", "olmo2", "qwen2", "qwen3"])
@pytest.mark.parametrize("stride", [1, 8])
def test_a_block_of_a_decoding_step_is_twelve_operations_and_a_stride_of_any_length_waits_once(
    topology: Topology, family: str, stride: int
) -> None:
    def counts(layers: int, tokens: int) -> tuple[int, int]:
        made, waits = operations(topology, family, layers, tokens, stride)
        return made.total(), waits

    # What sixteen tokens more take, and at two more layers: prompts and first draws cancel.
    (few, _), (more, _) = counts(1, 9), counts(1, 25)
    (deep, waits), (deeper, more_waits) = counts(3, 9), counts(3, 25)
    assert ((deeper - deep) - (more - few)) / 16 / 2 <= 12
    assert more_waits - waits == 16 / stride
