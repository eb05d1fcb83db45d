"""One token a row from the softmax of its logits, by the row's random number."""

from synpro_kernels.ops.draw_tokens.op import draw_tokens
from synpro_kernels.ops.draw_tokens.torch_backend import inverse_cdf

__all__ = ["draw_tokens", "inverse_cdf"]
