"""How many operations a decoding step is: on a GPU each is a launch, and a launch takes as long as a small product."""

from collections import Counter
from typing import Any

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.sampler import Sampler, SamplingConfig
from synpro_kernels.common.extension import csrc_loaded

pytestmark = pytest.mark.skipif(not csrc_loaded(), reason="counted with compiled ops; their definitions are many")
WAITS = ("aten::_local_scalar_dense", "aten::nonzero")


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


def operations(topology: Topology, family: str, layers: int, tokens: int) -> Counter[str]:
    config = ModelConfig(
        family=family, layers=layers, d_model=64, heads=4, kv_heads=2, ffn=96, vocab_size=96, seq_len=64,
    )  # fmt: skip
    sampler = Sampler(build_model(config, topology, seed=1))
    sampling = SamplingConfig(temperature=1.0, top_p=0.9, max_new_tokens=tokens)
    with Counted() as counted:
        sampler.generate([[1, 2, 3], [4, 5]], group_size=4, sampling=sampling, stop_ids=frozenset(), seeds=[1, 2])
    return counted.made


@pytest.mark.parametrize("family", ["llama", "mistral", "olmo2", "qwen2", "qwen3"])
def test_a_block_of_a_decoding_step_is_thirteen_operations_and_a_step_waits_four_times(
    topology: Topology, family: str
) -> None:
    few, more = (operations(topology, family, 1, tokens) for tokens in (6, 10))
    deep, deeper = (operations(topology, family, 3, tokens) for tokens in (6, 10))
    # What four tokens more take at two more layers: prompts and draws cancel.
    assert ((deeper.total() - deep.total()) - (more.total() - few.total())) / 4 / 2 <= 13
    assert sum(deeper[name] - deep[name] for name in WAITS) <= 4 * 4
