"""The output layer of a plain PyTorch model without its logits: `linear_logprob` beside a linear layer's cross-entropy.

With a large vocabulary the logits, and their gradient, are by far the largest tensors of a training step. The op makes
them block by block and keeps none, and gives the same losses and gradients. Nothing of the engine is needed for it:
`synpro_kernels` asks for torch alone, and takes C++ on CPUs and Triton on GPUs where they are there.

    python examples/linear_logprob_in_torch.py
    python examples/linear_logprob_in_torch.py --vocab 128256 --width 1024 --rows 8 --length 1024     # on a GPU
    torchrun --nproc-per-node 2 examples/linear_logprob_in_torch.py                                   # under DDP

Trains two copies of a model on the same batches, one with each output layer. Prints their losses side by side, how far
apart their gradients are, and time and peak memory of a step.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from synpro_kernels import IGNORE, linear_logprob
from synpro_kernels.testing import peak_growth

WORDS = 64  # so many ids of the vocabulary occur, which is what there is to learn


class Decoder(nn.Module):
    """A causal decoder of PyTorch's own parts; `fused` says which way its loss is taken."""

    def __init__(self, vocab: int, width: int, *, fused: bool) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.fused = fused
        self.embedding = nn.Embedding(vocab, width)
        self.blocks = nn.TransformerEncoder(block, 2, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, vocab, bias=False)

    def forward(self, tokens_BS: Tensor, labels_BS: Tensor) -> Tensor:
        """Mean loss over the labels that are not ignored, in nats per token."""
        mask_SS = nn.Transformer.generate_square_subsequent_mask(tokens_BS.size(1), device=tokens_BS.device)
        hidden_BSH = self.blocks(self.embedding(tokens_BS), mask=mask_SS, is_causal=True)
        if self.fused:
            scored = linear_logprob(hidden_BSH, self.head.weight, labels_BS)  # also: .logsumexp, and entropy=True
            return -scored.logprob.sum() / (labels_BS != IGNORE).sum()
        logits_BSV = self.head(hidden_BSH)
        return F.cross_entropy(logits_BSV.flatten(0, 1), labels_BS.flatten(), ignore_index=IGNORE)


class Trial(NamedTuple):
    """One of the two models in training."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    seconds: list[float]

    def step(self, tokens_BS: Tensor, labels_BS: Tensor) -> float:
        """One step of training; its loss. Gradients stay until the next one, for comparison."""
        begun = time.perf_counter()
        self.optimizer.zero_grad()
        loss = self.model(tokens_BS, labels_BS)
        loss.backward()
        self.optimizer.step()
        value = loss.item()  # waits for the device
        self.seconds.append(time.perf_counter() - begun)
        return value


def start(args: argparse.Namespace, device: torch.device, *, fused: bool) -> Trial:
    """The same weights for both; under torchrun DDP sums the gradients of either."""
    torch.manual_seed(0)
    model: nn.Module = Decoder(args.vocab, args.width, fused=fused).to(device)
    if dist.is_initialized():
        model = nn.parallel.DistributedDataParallel(model)
    return Trial(model, torch.optim.AdamW(model.parameters(), lr=args.lr), [])


def batch(args: argparse.Namespace, device: torch.device, number: int) -> tuple[Tensor, Tensor]:
    """Random ids of a few words; the first quarter of each row has no label, as a prompt has none."""
    rank = dist.get_rank() if dist.is_initialized() else 0
    draw = torch.Generator().manual_seed(1000 * number + rank)
    ids_BT = torch.randint(WORDS, (args.rows, args.length + 1), generator=draw).to(device) * (args.vocab // WORDS)
    labels_BS = ids_BT[:, 1:].clone()
    labels_BS[:, : args.length // 4] = IGNORE
    return ids_BT[:, :-1], labels_BS


def gap(ours: nn.Module, theirs: nn.Module) -> float:
    """Largest difference of two models' gradients, over the largest entry of any."""
    pairs = [(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)]
    found = [(float((a - b).abs().max()), float(b.abs().max())) for a, b in pairs if a is not None and b is not None]
    return max(apart for apart, _ in found) / max(size for _, size in found)


def compare(args: argparse.Namespace, device: torch.device) -> None:
    """Train both and print what they say; under torchrun the first process does."""
    say = print if not dist.is_initialized() or dist.get_rank() == 0 else lambda _: None
    trials = {"logits": start(args, device, fused=False), "linear_logprob": start(args, device, fused=True)}
    for number in range(args.steps):
        losses = {name: trial.step(*batch(args, device, number)) for name, trial in trials.items()}
        apart = gap(*(trial.model for trial in trials.values()))
        told = "  ".join(f"{name} {loss:.6f}" for name, loss in losses.items())
        say(f"step {number + 1}: {told}  gradients apart {apart:.1e}")
    for name, trial in trials.items():
        typical = statistics.median(trial.seconds)
        trial.optimizer.zero_grad()  # the peak is to hold the gradients too
        grown = peak_growth(lambda trial=trial: trial.step(*batch(args, device, args.steps)), device.type)
        memory = "unknown" if grown is None else f"{grown / 2**20:.0f} MiB"
        say(f"{name}: {1e3 * typical:.0f} ms a step, peak memory {memory} beside weights and moments")


def main() -> None:
    """Read the arguments and join the job, if torchrun started one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocab", type=int, default=16384, help="rows of the output layer (%(default)s)")
    parser.add_argument("--width", type=int, default=64, help="width of the model (%(default)s)")
    parser.add_argument("--rows", type=int, default=4, help="sequences in a batch (%(default)s)")
    parser.add_argument("--length", type=int, default=256, help="tokens of a sequence (%(default)s)")
    parser.add_argument("--steps", type=int, default=8, help="training steps (%(default)s)")
    parser.add_argument("--lr", type=float, default=3e-3, help="AdamW's learning rate (%(default)s)")
    args = parser.parse_args()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", dist.get_node_local_rank(0))
        torch.cuda.set_device(device)
    if dist.is_torchelastic_launched():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    compare(args, device)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
