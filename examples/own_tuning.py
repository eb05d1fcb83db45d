"""A reward and a surrogate of your own: what a text earns, and what of that is maximised token by token.

A recipe names either as `path/to/file.py:NAME`; naming a file in a recipe runs it, before the first stage.

    REWARD='reward.functions={plain: examples/own_tuning.py:plain_words}'
    WEIGHTS='reward.rephrase={influence: 3, format: 1, plain: 0.5}'
    LOSS='tune.rephrase.surrogate=examples/own_tuning.py:soft'
    synpro tune quickstart "$REWARD" "$WEIGHTS" "$LOSS"
    torchrun --nproc-per-node 2 -m synpro_engine tune quickstart "$REWARD" "$WEIGHTS" "$LOSS"
    python examples/own_tuning.py                   # what plain words earn, and how far the gain of a token can go

This file, run as a program, prints the reward of two texts, and the slope of both surrogates over ratios.
"""

import sys

import torch

from synpro_engine import run_script
from synpro_engine.reward import Candidate, Composer, FunctionReward
from synpro_engine.synth import Parsed
from synpro_kernels import SURROGATES, Gain, PolicyObjective, PolicyTokens

LONG = 9  # letters


def plain_words(candidate: Candidate) -> float:
    """The share of a text's words that are short; the source, the parsed text and its entries are all at hand."""
    words = candidate.parsed.text.split()
    return sum(len(word) < LONG for word in words) / max(1, len(words))


def soft(logprob: torch.Tensor, tokens: PolicyTokens, objective: PolicyObjective) -> Gain:
    """No clip but a sigmoid of the ratio, whose slope at 1 is 1 and fades on both sides; each token by itself."""
    del objective  # its clips are of no use here
    ratio = torch.exp(logprob - tokens.behaviour)
    value = 4 * torch.sigmoid(ratio - 1) * tokens.advantage
    return Gain(value, ratio, held=torch.zeros_like(ratio, dtype=torch.bool))


def main() -> None:
    """Print rewards and slopes."""
    # As a recipe's rewards are put together: in Python any function is one.
    composer = Composer([FunctionReward("plain", plain_words, range=(0.0, 1.0))], {"rephrase": {"plain": 1.0}})
    candidates = [
        Candidate(operation="rephrase", source="", raw=text, parsed=Parsed(ok=True, text=text))
        for text in ("The sea was calm that day.", "Considerable meteorological tranquillity predominated.")
    ]
    for candidate, reward in zip(candidates, composer.score(candidates).total, strict=True):
        print(f"{reward:.2f}  {candidate.parsed.text}")
    print("ratio        " + "  ".join(f"{ratio:5.2f}" for ratio in (0.5, 0.9, 1.0, 1.1, 2.0)))
    for name, surrogate in (("clip", SURROGATES["clip"]), ("soft", soft)):
        logprob = torch.tensor([0.5, 0.9, 1.0, 1.1, 2.0]).log().requires_grad_()
        tokens = PolicyTokens(behaviour=torch.zeros(5), advantage=torch.ones(5), weight=torch.ones(5))
        gain = surrogate(logprob, tokens, PolicyObjective())
        (slope,) = torch.autograd.grad(gain.value.sum(), logprob)
        print(f"{name} slope   " + "  ".join(f"{value:5.2f}" for value in slope.tolist()))


if __name__ == "__main__":
    sys.exit(run_script(main))
