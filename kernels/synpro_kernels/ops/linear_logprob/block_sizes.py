"""How large a block of logits each backend works on: what fits the caches, or fills a GPU.

Sizes depend on shapes and the device's kind alone, so that results repeat bit for bit. Shapes as in `types`.
"""

from synpro_kernels.common.pieces import block_bytes
from synpro_kernels.ops.linear_logprob.types import Shard


def by_device(shard: Shard) -> tuple[int, int]:
    """(C, B) for PyTorch: up to 8192 columns of as many tokens as the device's block size holds."""
    vocab = min(shard.vocab, 8192)
    return _fitting(shard.tokens, block_bytes(shard.hidden_TH), vocab * shard.precise.itemsize, 16), vocab


def in_cache(shard: Shard) -> tuple[int, int]:
    """(C, B) for C++: 2 MiB, near the size of a core's L2 cache, where the row kernel then reads the product."""
    return min(shard.tokens, 512), min(shard.vocab, 1024)


def whole_columns(shard: Shard) -> tuple[int, int]:
    """(C, B) for Triton: all tokens, so that a block completes its rows of the weight's gradient.

    What is written of a block is its gradient only, in the operands' dtype; 256 MiB of it keep the products long.
    """
    # With all tokens in a block a weight row's gradient is one product in cuBLAS's fp32, rounded once; no staging.
    return shard.tokens, _fitting(shard.vocab, 256 << 20, shard.tokens * shard.hidden_TH.element_size(), 256)


def cached_logits_bytes(tokens: int, vocab: int, *, on_gpu: bool, itemsize: int) -> int:
    """Bytes of the block of logits that `linear_cross_entropy` and its like hold, of `vocab` rows of the weight.

    itemsize: of the operands, in which a GPU has the block's gradient beside it where that is less than fp32.
    """
    beside = itemsize if on_gpu and itemsize < 4 else 0
    return _cached_tokens(tokens, vocab, on_gpu, 4) * vocab * (4 + beside)


def _cached_tokens(tokens: int, vocab: int, on_gpu: bool, itemsize: int) -> int:
    # 1 GiB is 2,048 tokens at a vocabulary of 131,072: 8,192 tokens are four chunks (docs/kernels.md has their cost).
    return _fitting(tokens, (1 << 30) if on_gpu else (64 << 20), vocab * itemsize, 64)


def cached(shard: Shard, vocab: int) -> tuple[int, int]:
    """(C, B) of logits that stay until their gradient is known: C tokens against all of `vocab`, B columns at a time.

    `vocab` is the largest shard's, so that all ranks cut the tokens alike and meet in the same collectives.
    """
    on_gpu = shard.hidden_TH.is_cuda
    tokens = _cached_tokens(shard.tokens, vocab, on_gpu, shard.precise.itemsize)
    # On a CPU in columns of 1024: a block stays in a core's cache, and the products ran at 157 to 192 GFLOP/s against
    # 92 to 157 over the whole vocabulary (docs/kernels.md). A GPU wants one long product.
    return tokens, vocab if on_gpu else min(shard.vocab, 1024)


def _fitting(total: int, budget: int, bytes_each: int, multiple: int) -> int:
    """How many fit into the budget of bytes, as a multiple, at least one multiple and at most all."""
    return min(total, max(multiple, budget // bytes_each // multiple * multiple))
