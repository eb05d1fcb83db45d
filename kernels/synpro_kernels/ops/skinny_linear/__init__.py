"""The product of a few rows with a weight, as a decoding step makes it: its time is that of reading the weight."""

from synpro_kernels.ops.skinny_linear.definition import skinny_linear_definition
from synpro_kernels.ops.skinny_linear.op import skinny_linear

__all__ = ["skinny_linear", "skinny_linear_definition"]
