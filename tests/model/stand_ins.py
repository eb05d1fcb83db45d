"""Packages of a GPU's stack as a CPU can have them: their signatures and layouts, torch's numbers.

Each refuses what the package itself would: an argument that it has not, another layout, another dtype. Sources:
flash-attn 2's `flash_attn_interface.py`, Transformer Engine 2's `dot_product_attention.py`, and Megatron's own calls of
apex's extension.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import torch
import torch.nn.functional as F
from megatron.core.extensions import transformer_engine as untouched
from packaging.version import Version
from torch import Tensor, nn

HALVES = (torch.float16, torch.bfloat16)


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
    """Of [b, q, heads, hn] over [b, k, groups, hn], of whose positions the queries are the last."""
    assert query.dtype in HALVES and query.dtype == key.dtype == value.dtype, "half precision alone"
    batch, count, heads, width = query.shape
    assert key.shape == value.shape == (batch, key.size(1), key.size(2), width) and heads % key.size(2) == 0
    seen = torch.ones(count, key.size(1), dtype=torch.bool).tril(key.size(1) - count)
    q, k, v = (x.transpose(1, 2) for x in (query, key, value))
    k, v = (x.repeat_interleave(heads // key.size(2), 1) for x in (k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale).transpose(1, 2)


class Flash(types.ModuleType):
    """flash_attn; `calls` are the shapes of queries and keys that it was asked for."""

    def __init__(self) -> None:
        super().__init__("flash_attn")
        self.calls: list[tuple[torch.Size, torch.Size]] = []

    def flash_attn_func(
        self, q: Tensor, k: Tensor, v: Tensor, dropout_p: float = 0.0, softmax_scale: float | None = None,
        causal: bool = False, window_size: tuple[int, int] = (-1, -1), softcap: float = 0.0,
        alibi_slopes: Tensor | None = None, deterministic: bool = False, return_attn_probs: bool = False,
    ) -> Tensor:  # fmt: skip
        """[b, q, heads, hn], [b, k, groups, hn] twice -> [b, q, heads, hn]."""
        assert causal and not dropout_p and window_size == (-1, -1) and not softcap and alibi_slopes is None
        self.calls.append((q.shape, k.shape))
        return _causal(q, k, v, softmax_scale)


_causal = causal  # which an argument of the package hides


class DotProductAttention(nn.Module):
    """Transformer Engine's, in the format [s, b, heads, hn]; reads no mask where it is causal, as there."""

    calls: ClassVar[list[torch.Size]] = []

    def __init__(
        self, num_attention_heads: int, kv_channels: int | tuple[int, int], num_gqa_groups: int | None = None,
        attention_dropout: float = 0.0, qkv_format: str = "sbhd", attn_mask_type: str = "causal",
        window_size: tuple[int, int] | None = None, sequence_parallel: bool = False, tp_size: int = 1,
        get_rng_state_tracker: Callable[..., Any] | None = None, tp_group: Any = None, layer_number: int | None = None,
        attention_type: str = "self", cp_group: Any = None, cp_global_ranks: Any = None, cp_stream: Any = None,
        cp_comm_type: str = "p2p", softmax_scale: float | None = None, softmax_type: str = "vanilla",
        return_max_logit: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        assert qkv_format == "sbhd" and attention_type == "self" and not attention_dropout and cp_group is None
        assert attn_mask_type == "causal" and window_size is None and softmax_type == "vanilla"
        self.shape = (num_attention_heads // tp_size, (num_gqa_groups or num_attention_heads) // tp_size, kv_channels)
        self.scale = softmax_scale

    def forward(
        self, query_layer: Tensor, key_layer: Tensor, value_layer: Tensor, attention_mask: Any = None,
        qkv_format: str | None = None, cu_seqlens_q: Tensor | None = None, cu_seqlens_kv: Tensor | None = None,
        cu_seqlens_q_padded: Tensor | None = None, cu_seqlens_kv_padded: Tensor | None = None,
        max_seqlen_q: int | None = None, max_seqlen_kv: int | None = None, attn_mask_type: str | None = None,
        window_size: tuple[int, int] | None = None, checkpoint_core_attention: bool = False,
        core_attention_bias_type: str = "no_bias", core_attention_bias: Tensor | None = None,
        alibi_slopes: Tensor | None = None, fast_zero_fill: bool = True, inference_params: Any = None,
        pad_between_seqs: bool | None = None,
    ) -> Tensor:  # fmt: skip
        """[s, b, heads, hn], [s, b, groups, hn] twice -> [s, b, heads hn]."""
        assert attn_mask_type in (None, "causal") and qkv_format in (None, "sbhd") and cu_seqlens_q is None
        heads, groups, width = self.shape
        assert query_layer.shape[2:] == (heads, width) and key_layer.shape[2:] == (groups, width)
        DotProductAttention.calls.append(query_layer.shape)
        q, k, v = (x.transpose(0, 1) for x in (query_layer, key_layer, value_layer))
        return causal(q, k, v, self.scale).transpose(0, 1).flatten(-2)


class _Names(types.ModuleType):
    """A module that has a class of every name that is asked for: bases of what is not built here."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        made: Any = type(name, (nn.Module,), {}) if name[0].isupper() else _Names(f"{self.__name__}.{name}")
        setattr(self, name, made)
        return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Every module within Transformer Engine, as `_Names`."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if fullname.partition(".")[0] != "transformer_engine":
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        return _Names(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        if module.__name__ == "transformer_engine.pytorch":
            vars(module)["DotProductAttention"] = DotProductAttention


@contextmanager
def transformer_engine() -> Iterator[type[DotProductAttention]]:
    """Have Megatron's own layers over Transformer Engine made anew, over the class above."""
    DotProductAttention.calls = []
    before = set(sys.modules)
    # By its file, past the guard through which Megatron's modules are imported: it would say no on a CPU.
    spec = importlib.util.spec_from_file_location(untouched.__name__, Path(str(untouched.__file__)))
    assert spec is not None and spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    with (
        mock.patch.object(sys, "meta_path", [_Finder(), *sys.meta_path]),
        mock.patch("megatron.core.utils._te_version", Version("2.8.0")),
        mock.patch.dict(sys.modules, {untouched.__name__: made}),
    ):
        try:
            spec.loader.exec_module(made)
            assert made.HAVE_TE and issubclass(made.TEDotProductAttention, DotProductAttention)
            yield DotProductAttention
        finally:
            for name in set(sys.modules) - before:
                if name.partition(".")[0] == "transformer_engine":
                    del sys.modules[name]


class GradientExtension(types.ModuleType):
    """fused_weight_gradient_mlp_cuda; `calls` are the shapes of the sums that it was to add to."""

    def __init__(self) -> None:
        super().__init__("fused_weight_gradient_mlp_cuda")
        self.calls: list[torch.Size] = []

    def wgrad_gemm_accum_fp32(self, x: Tensor, grad: Tensor, sums: Tensor) -> None:
        """Adds grad^T x, of [tokens, in] and [tokens, out] in half precision, to [out, in] in fp32."""
        assert x.dtype == grad.dtype and x.dtype in HALVES and sums.dtype == torch.float32
        assert x.is_contiguous() and grad.is_contiguous() and sums.is_contiguous()
        assert sums.shape == (grad.size(-1), x.size(-1)) and len(x) == len(grad)
        self.calls.append(sums.shape)
        sums += grad.T.float() @ x.float()
