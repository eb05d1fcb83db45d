"""Score texts of yours: how much would training on each help a Hugging Face model with a reference text of yours?

The direction is what AdamW's next step would make of the reference's gradient (`next_step_direction`); a text's score
is how far a step on that text alone, clipped as in training, goes the same way. Positive helps. Compare texts with each
other: of one number by itself the sign says most. docs/influence.md holds such scores to real training steps.

    python examples/score_your_jsonl.py                     # SmolLM2-135M on the lines below, about a minute
    python examples/score_your_jsonl.py --model DIR --texts pool.jsonl --reference wanted.jsonl --dir runs/pool
    torchrun --nproc-per-node 4 examples/score_your_jsonl.py --model DIR --texts pool.jsonl --reference wanted.jsonl

Writes scores.jsonl into --dir, a line for each text in its order, and prints the best and the worst texts, and the
command that scores other files along the same direction.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from synpro_engine import (
    Engine,
    EstimatorConfig,
    ModelPair,
    OptimizerConfig,
    ParallelConfig,
    TokenCorpus,
    import_model,
    launched,
    load_tokenizer,
    read_documents,
    run_script,
    save_checkpoint,
    score_documents,
)
from synpro_engine.config import json_text
from synpro_engine.data import Batch, Document, Tokenizer, eval_windows
from synpro_engine.dist import Axis, Topology, on_main
from synpro_engine.influence import next_step_direction, save_direction

REFERENCE = (
    "Water boils at a lower temperature on a mountain, because the air presses less on its surface.",
    "A magnet loses its strength when it is heated, for the little magnets in it no longer point the same way.",
    "Salt melts ice on a road: salt water freezes only at a lower temperature than pure water does.",
    "A balloon rises because the warm air in it is lighter than the cold air around it.",
    "Light bends when it passes from air into glass, since it travels more slowly there.",
    "Iron rusts when oxygen and water reach it, and paint keeps both of them away.",
)
TEXTS = (
    "Steam takes up far more room than the water it was made from, and pushes the piston out.",
    "Sugar dissolves faster in hot water, because its molecules move more quickly there.",
    "A metal spoon feels colder than a wooden one, for it carries the heat of the hand away.",
    "The committee will meet on Tuesday to approve the minutes of the last meeting.",
    "Click here to subscribe!!! Best prices, free shipping, limited time only!!!",
    "He never wrote to her again, though he kept all of her letters in a drawer.",
    "the the the the the the the the the the the the the the the the",
    "xq7 blorp zzt 0x3f ;; kkw vrm --- ##1 qoph lkj",
)


def write_lines(path: Path, texts: Sequence[str]) -> Path:
    """Write built-in texts as a JSONL; a line of yours needs a `text`, and may have an `id`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json_text({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def batches(documents: Iterable[Document], tokenizer: Tokenizer, args: argparse.Namespace, dp: Axis) -> list[Batch]:
    """This rank's share of the documents, end to end in windows, each token a target once."""
    corpus = TokenCorpus.from_documents(documents, tokenizer)
    return list(eval_windows(corpus, args.context, batch_size=args.rows, dp_rank=dp.rank, dp_size=dp.size))


def make_pair(args: argparse.Namespace, topology: Topology) -> tuple[ModelPair, Path]:
    """Write the model and the direction down, so that other files can be scored along it later; with the tokenizer."""
    model, words = import_model(args.model, topology, tokenizer_dir=args.dir / "tokenizer", seq_len=args.context)
    tokenizer = load_tokenizer(words)
    reference = batches(read_documents(args.reference), tokenizer, args, topology.dp)
    # What a typical step on these texts does to the weights and to AdamW's second moment.
    some = batches(itertools.islice(read_documents(args.texts), 64), tokenizer, args, topology.dp)
    engine = Engine(model, OptimizerConfig(lr=args.lr))
    direction = next_step_direction(engine, reference, [[batch] for batch in some], show_progress=True)
    theta, probe = args.dir / "theta", args.dir / "direction"
    save_checkpoint(theta, model)
    save_direction(probe, model, direction)
    return ModelPair.of_paths(theta, probe, words, topology), words


def score(args: argparse.Namespace, topology: Topology) -> None:
    """Score every text along a new direction, and show the two ends of the ranking."""
    args.texts = args.texts or on_main(topology, lambda: write_lines(args.dir / "texts.jsonl", TEXTS))
    args.reference = args.reference or on_main(topology, lambda: write_lines(args.dir / "reference.jsonl", REFERENCE))
    scores = args.dir / "scores.jsonl"
    on_main(topology, lambda: scores.unlink(missing_ok=True))  # those along an older direction
    pair, words = make_pair(args, topology)
    score_documents(pair, EstimatorConfig(micro_batch=args.rows), str(args.texts), scores, topology)
    if topology.is_main:
        show(args, scores)
        print("to score other files along the same direction:")
        weights = f"--checkpoint {pair.theta} --probe {pair.probe} --tokenizer {words}"
        print(f"  synpro influence {weights} --input MORE.jsonl --output MORE-scores.jsonl")


def show(args: argparse.Namespace, scores: Path) -> None:
    """Print the best and the worst texts; a score that is no finite number is null in the file."""
    texts = {document.id: document.text for document in read_documents(args.texts)}
    records = [json.loads(line) for line in scores.read_text(encoding="utf-8").splitlines()]
    ranked = sorted((r for r in records if r["value"] is not None), key=lambda r: r["value"], reverse=True)
    some = min(args.show, len(ranked) // 2)
    for title, part in (("best", ranked[:some]), ("worst", ranked[len(ranked) - some :])):
        print(f"{title} of {len(records)} texts in {scores}:")
        for record in part:
            print(f"  {record['value']:+.2e}  loss {record['loss']:.2f}  {texts[record['id']][:76]!r}")


def main() -> None:
    """Read the arguments and join the job (of one process, or of those that torchrun started)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default="embedded:smollm2-135m",
        help="Hugging Face directory of a Llama, Mistral, OLMo-2 or Qwen2/2.5/3 model, or a GGUF file (%(default)s)",
    )
    parser.add_argument("--texts", type=Path, help="texts to score: .jsonl (plain or compressed), .parquet, a folder")
    parser.add_argument("--reference", type=Path, help="what the model should become good at, likewise")
    parser.add_argument("--context", type=int, default=256, help="longest piece of a text in tokens (%(default)s)")
    parser.add_argument("--lr", type=float, default=1e-5, help="rate at which you would train on it (%(default)s)")
    parser.add_argument("--rows", type=int, default=2, help="pieces that run at once (%(default)s)")
    parser.add_argument("--show", type=int, default=3, help="texts to print of either end (%(default)s)")
    parser.add_argument("--dir", type=Path, default=Path("runs/scores"), help="where results go (%(default)s)")
    args = parser.parse_args()
    with launched(ParallelConfig()) as topology:
        score(args, topology)


if __name__ == "__main__":
    sys.exit(run_script(main))
