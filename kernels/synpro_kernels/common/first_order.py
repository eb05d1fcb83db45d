"""What gradients that are made by hand must refuse."""

import torch


def check_first_order(op: str) -> None:
    """Raise RuntimeError within a backward that is to be differentiated again: it would pass for a constant."""
    # Grad mode is on in a backward pass only under create_graph.
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op}'s gradients are not differentiable: create_graph is not supported")
