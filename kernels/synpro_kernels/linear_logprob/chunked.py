"""The PyTorch path: chunks of tokens against the whole vocabulary. Runs on any device; never holds [tokens, vocab].

Knows one vocabulary shard and no process group. Targets are columns of the shard; one outside [0, V) belongs to another
shard. Shapes: T tokens, H width, V columns, C tokens of a chunk.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from synpro_kernels.linear_logprob.settings import LogitSettings, accumulation_dtype

# Bytes of one chunk of logits: enough tokens for long GEMMs, since each chunk also passes over the weight's gradient.
_CHUNK_BYTES = {"cpu": 64 << 20, "cuda": 512 << 20}
_MM_HAS_OUT_DTYPE = "dtype" in torch.ops.aten.mm.overloads()
# Stands for log 0 where it meets a probability of 0 (0 * -inf would be NaN).
_LOG_FLOOR = -1e4


def _chunks(tokens: int, vocab: int, like: Tensor) -> Iterator[slice]:
    budget = _CHUNK_BYTES.get(like.device.type, _CHUNK_BYTES["cuda"])
    size = max(1, min(tokens, budget // (vocab * accumulation_dtype(like.dtype).itemsize)))
    for start in range(0, tokens, size):
        yield slice(start, min(start + size, tokens))


def _operands(*tensors: Tensor) -> list[Tensor]:
    """What the GEMMs multiply: CPUs without half-precision units get fp32 copies, everything else the tensors."""
    half = tensors[0].dtype in (torch.bfloat16, torch.float16)
    return [t.float() if half and t.device.type == "cpu" else t for t in tensors]


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """Product with accumulation and result in fp32 (fp64 for fp64), also for half-precision operands."""
    if a.dtype in (torch.float32, torch.float64):
        return a @ b
    if _MM_HAS_OUT_DTYPE and a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


def _capped(hidden_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, settings: LogitSettings) -> Tensor:
    """Products plus bias, as tanh(. / softcap) where there is a soft cap; not yet scaled."""
    products_CV = _mm(hidden_CH, weight_VH.t())
    if bias_V is not None:
        products_CV += bias_V
    if settings.softcap is not None:
        products_CV.div_(settings.softcap).tanh_()
    return products_CV


def _scale(settings: LogitSettings) -> float:
    return (settings.softcap or 1.0) / settings.temperature


def _own_columns(target_C: Tensor, vocab: int) -> tuple[Tensor, Tensor]:
    """(whether the target is in this shard, its column or 0)."""
    own = (target_C >= 0) & (target_C < vocab)
    return own, torch.where(own, target_C, 0)


def stats(
    hidden_TH: Tensor, weight_VH: Tensor, target_T: Tensor, bias_V: Tensor | None, settings: LogitSettings
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what the shard knows of each token: m = max z, s = sum e^(z-m), u = sum e^(z-m) (z-m), z of the target."""
    tokens, vocab = hidden_TH.shape[0], weight_VH.shape[0]
    precise = accumulation_dtype(hidden_TH.dtype)
    maximum, sumexp, weighted, target_logit = (hidden_TH.new_empty(tokens, dtype=precise) for _ in range(4))
    hidden_TH, weight_VH = _operands(hidden_TH, weight_VH)
    for chunk in _chunks(tokens, vocab, hidden_TH):
        z_CV = _capped(hidden_TH[chunk], weight_VH, bias_V, settings).mul_(_scale(settings))
        own, column = _own_columns(target_T[chunk], vocab)
        target_logit[chunk] = torch.where(own, z_CV.gather(1, column[:, None]).squeeze(1), 0.0)
        top = z_CV.amax(dim=1)
        maximum[chunk] = top
        z_CV -= top.masked_fill(top == -torch.inf, 0.0)[:, None]
        e_CV = z_CV.exp()
        sumexp[chunk] = e_CV.sum(dim=1)
        weighted[chunk] = e_CV.mul_(z_CV.clamp_min_(_LOG_FLOOR)).sum(dim=1)
    return maximum, sumexp, weighted, target_logit


def gradients(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    target_T: Tensor,
    bias_V: Tensor | None,
    results_T: tuple[Tensor, Tensor, Tensor],
    grads_T: tuple[Tensor, Tensor, Tensor],
    settings: LogitSettings,
    *,
    need_hidden: bool,
    need_weight: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the shard's gradients of hidden (accumulation dtype), weight and bias, computing the logits again.

    `results_T`: (maximum, sumexp, entropy) over the whole vocabulary; `grads_T`: of (logprob, logsumexp, entropy).
    """
    precise = accumulation_dtype(hidden_TH.dtype)
    grad_hidden = hidden_TH.new_empty(hidden_TH.shape, dtype=precise) if need_hidden else None
    grad_weight = weight_VH.new_zeros(weight_VH.shape, dtype=precise) if need_weight else None
    grad_bias = weight_VH.new_zeros(weight_VH.shape[0], dtype=precise) if bias_V is not None else None
    weight_dtype = weight_VH.dtype
    hidden_TH, weight_VH = _operands(hidden_TH, weight_VH)
    for chunk in _chunks(hidden_TH.shape[0], weight_VH.shape[0], hidden_TH):
        h_CH = hidden_TH[chunk]
        capped_CV = _capped(h_CH, weight_VH, bias_V, settings)
        parts = [row[chunk] for row in (*results_T, *grads_T)]
        dz_CV = _logit_gradient(capped_CV, target_T[chunk], parts, settings)
        if grad_bias is not None:
            grad_bias += dz_CV.sum(dim=0)
        dz_CV = dz_CV.to(h_CH.dtype)
        if grad_hidden is not None:
            grad_hidden[chunk] = _mm(dz_CV, weight_VH)
        if grad_weight is not None and dz_CV.dtype == precise:
            grad_weight.addmm_(dz_CV.t(), h_CH)
        elif grad_weight is not None:
            grad_weight += _mm(dz_CV.t(), h_CH)
    return grad_hidden, None if grad_weight is None else grad_weight.to(weight_dtype), grad_bias


def _logit_gradient(capped_CV: Tensor, target_C: Tensor, parts: list[Tensor], settings: LogitSettings) -> Tensor:
    """dL/dproduct of a chunk: p (g_lse - g_lp - g_ent (log p + entropy)) + g_lp at the target, then the chain rule."""
    maximum, sumexp, entropy, grad_logprob, grad_logsumexp, grad_entropy = (part[:, None] for part in parts)
    z_CV = (capped_CV * _scale(settings)).sub_(maximum)
    p_CV = z_CV.exp().div_(sumexp)
    constant = grad_logsumexp - grad_logprob - grad_entropy * (entropy - sumexp.log())
    dz_CV = p_CV.mul_(z_CV.clamp_min_(_LOG_FLOOR).mul_(-grad_entropy).add_(constant))
    own, column = _own_columns(target_C, capped_CV.shape[1])
    column_C1 = column[:, None]  # one entry a row, so a plain write: adding scatters are not repeatable on GPUs
    dz_CV.scatter_(1, column_C1, dz_CV.gather(1, column_C1) + torch.where(own[:, None], grad_logprob, 0.0))
    if settings.softcap is not None:
        dz_CV.mul_(capped_CV.square_().neg_().add_(1.0))
    return dz_CV.mul_(1.0 / settings.temperature)
