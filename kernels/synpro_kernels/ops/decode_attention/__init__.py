"""Attention of one decoding step over prompts that groups share and over each row's own new positions."""

from synpro_kernels.ops.decode_attention.definition import decode_attention_definition
from synpro_kernels.ops.decode_attention.heads import store_heads
from synpro_kernels.ops.decode_attention.op import decode_attention
from synpro_kernels.ops.decode_attention.types import DecodeRows, HeadNorm, Slots

__all__ = ["decode_attention", "decode_attention_definition", "DecodeRows", "store_heads", "HeadNorm", "Slots"]
