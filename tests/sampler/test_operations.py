"""How many operations a decoding step is, and how often the host waits.

On a GPU each operation is a launch, which takes as long as a small product, and at each wait the device stands still.
"""

from collections import Counter

import pytest

from synpro_engine.dist import Topology
from synpro_engine.model.build import build_model
from synpro_engine.model.config import ModelConfig
from synpro_engine.sampler import Sampler, SamplerConfig, SamplingConfig
from synpro_kernels.common.extension import csrc_loaded
from tests.counting import WAITS, Counted, Waited

pytestmark = pytest.mark.skipif(not csrc_loaded(), reason="counted with compiled ops; their definitions are many")


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

    counts(1, 9)  # what is made once for a process is no part of a step
    # What sixteen tokens more take, and at two more layers: prompts and first draws cancel.
    (few, _), (more, _) = counts(1, 9), counts(1, 25)
    (deep, waits), (deeper, more_waits) = counts(3, 9), counts(3, 25)
    assert ((deeper - deep) - (more - few)) / 16 / 2 <= 12
    assert more_waits - waits == 16 / stride
