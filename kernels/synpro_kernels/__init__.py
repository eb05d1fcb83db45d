"""Ops with one contract each and a plain PyTorch definition. Knows torch and Triton only.

Everything that an engine calls is importable from here. `ops` has a folder for each op, with a README.md of its maths
and counts; `common` is what ops share; `testing` is how they are tested, with a GPU or without one.
"""

from synpro_kernels.ops.decode_attention import (
    DecodeRows,
    HeadNorm,
    Slots,
    decode_attention,
    decode_attention_definition,
    store_heads,
)
from synpro_kernels.ops.draw_tokens import draw_tokens, inverse_cdf
from synpro_kernels.ops.grad_dot import (
    Direction,
    Fp8Direction,
    GradDots,
    LowRankDirection,
    bias_dot,
    embedding_dot,
    formed_dot,
    grad_dot,
    grad_dot_prefix,
    low_rank,
    pairwise_grad_dot,
    scale_dot,
    segment_sum,
    to_fp8,
)
from synpro_kernels.ops.linear_distill import Distilled, Teacher, linear_distill, linear_distill_definition
from synpro_kernels.ops.linear_logprob import (
    IGNORE,
    CrossEntropy,
    LogProbs,
    TileSkip,
    cached_logits_bytes,
    linear_cross_entropy,
    linear_logprob,
    linear_logprob_definition,
    linear_policy_loss,
)
from synpro_kernels.ops.newton_schulz import orthogonalize, orthogonalize_definition
from synpro_kernels.ops.policy_loss import (
    DIVERGENCES,
    RATIO_EDGES,
    SURROGATES,
    Gain,
    PolicyObjective,
    PolicyTokens,
    SurrogateTerms,
    policy_loss,
    ratio_quantile,
)
from synpro_kernels.ops.row_ops import rms_norm, rotary, rotary_tables, swiglu
from synpro_kernels.ops.skinny_linear import skinny_linear, skinny_linear_definition

__all__ = [
    "decode_attention",
    "decode_attention_definition",
    "DecodeRows",
    "store_heads",
    "HeadNorm",
    "Slots",
    "linear_logprob",
    "linear_logprob_definition",
    "linear_cross_entropy",
    "linear_policy_loss",
    "cached_logits_bytes",
    "linear_distill",
    "linear_distill_definition",
    "Distilled",
    "Teacher",
    "LogProbs",
    "CrossEntropy",
    "TileSkip",
    "IGNORE",
    "policy_loss",
    "PolicyObjective",
    "PolicyTokens",
    "SurrogateTerms",
    "SURROGATES",
    "RATIO_EDGES",
    "ratio_quantile",
    "DIVERGENCES",
    "Gain",
    "grad_dot",
    "pairwise_grad_dot",
    "grad_dot_prefix",
    "formed_dot",
    "bias_dot",
    "scale_dot",
    "embedding_dot",
    "segment_sum",
    "GradDots",
    "Direction",
    "LowRankDirection",
    "Fp8Direction",
    "low_rank",
    "to_fp8",
    "orthogonalize",
    "orthogonalize_definition",
    "draw_tokens",
    "inverse_cdf",
    "rms_norm",
    "rotary",
    "rotary_tables",
    "swiglu",
    "skinny_linear",
    "skinny_linear_definition",
]
