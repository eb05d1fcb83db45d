"""A surrogate of the user's own: `surrogate: path/to/file.py:NAME` in the settings of tuning.

It is a function as those of `synpro_kernels.SURROGATES` are: of log-probabilities [N], `PolicyTokens` and
`PolicyObjective`, to a `Gain`, token by token.
"""

from __future__ import annotations

import torch

from synpro_engine.config import UserError
from synpro_engine.config.own_code import Own, calling, load_own, own_reference
from synpro_engine.rl.config import TuneConfig
from synpro_engine.rl.policy import policy_objective
from synpro_kernels import SURROGATES, Gain, PolicyObjective, PolicyTokens

_TRIED = 5  # tokens


def load_surrogate(config: TuneConfig, key: str) -> str:
    """Put a surrogate of the user's own into the table, under its reference's name; returns what names its version.

    "" for one that is built in. UserError, naming key, file and line, where the file has no such function, or one that
    gives no gain of each token of what these settings give it; so is what it raises later, in training.
    """
    own = own_reference(config.surrogate)
    if own is None:
        return ""
    function, digest = load_own(own, key, callable, "function")

    def told(logprob_N: torch.Tensor, tokens: PolicyTokens, objective: PolicyObjective) -> Gain:
        return calling(own, key, lambda: function(logprob_N, tokens, objective))

    SURROGATES[config.surrogate] = told
    _try(own, key, config)
    return digest


def _try(own: Own, key: str, config: TuneConfig) -> None:
    """What it cannot do must not come out after pretraining."""
    logprob_N = torch.linspace(-3.0, -0.1, _TRIED, requires_grad=True)
    rows = {
        name: torch.linspace(low, high, _TRIED)
        for name, low, high in (
            ("behaviour", -2.9, -0.3), ("advantage", -1.0, 1.0), ("weight", 0.5, 1.0), ("sequence_gap", -0.1, 0.1),
            *((("reference", -2.0, -0.2),) if config.kl_beta else ()),
            *((("correction", 0.5, 1.5),) if config.importance else ()),
        )
    }  # fmt: skip
    gain = SURROGATES[config.surrogate](logprob_N, PolicyTokens(**rows), policy_objective(config))
    where = f"`{key}`: {own.file}: `{own.name}`"
    if not isinstance(gain, Gain):
        raise UserError(f"{where} gives {type(gain).__name__} in place of synpro_kernels.Gain")
    for name, values in gain._asdict().items():
        shape = tuple(values.shape) if isinstance(values, torch.Tensor) else None
        if shape != (_TRIED,):
            raise UserError(f"{where} gives a {name} of shape {shape} for tokens of shape ({_TRIED},)")
    if not gain.value.requires_grad:
        raise UserError(f"{where} gives a value without a gradient of the log-probabilities")
