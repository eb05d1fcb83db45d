"""What goes in and comes out."""

from typing import NamedTuple

from torch import Tensor


class Teacher(NamedTuple):
    """hidden [..., H_k], row by row beside the student's, and the weight [V, H_k] of its output layer; constants.

    Under a group the weight is this rank's rows of the vocabulary, as the student's is.
    """

    hidden: Tensor
    weight: Tensor


class Distilled(NamedTuple):
    """Sums over the labelled tokens, fp32 (fp64 for fp64); `loss` is differentiable, once, the others are reported.

    loss = (1 - share) cross_entropy + z_loss + share temperature^2 divergence.
    """

    loss: Tensor
    cross_entropy: Tensor
    z_loss: Tensor
    divergence: Tensor
    """KL(mean of the teachers' probabilities || the student's), both at the temperature, in nats."""
