"""The small ops between the products of a decoding step, each in one pass over its rows."""

from synpro_kernels.ops.row_ops.op import rms_norm, rotary, rotary_tables, swiglu

__all__ = ["rms_norm", "rotary", "rotary_tables", "swiglu"]
