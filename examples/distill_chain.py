"""Train a chain of models on the same text, in which each student is the next one's teacher.

The first generation learns from the text alone. Each later one begins from other weights, reads the text in another
order, and learns from the labels and from what the generation before it says of each token (`pretrain.distill`;
"Born-Again Networks", Furlanello et al., arXiv 1805.04770). Any recipe will do whose organic text is not chosen by
in-run scores, which a chain does without; what it has beyond pretraining is left alone.

    python examples/distill_chain.py                              # three generations of `smoke`, a few minutes
    python examples/distill_chain.py my.yaml --length 5 --share 0.7 --dir runs/chain pretrain.max_steps=2000
    torchrun --nproc-per-node 2 examples/distill_chain.py --dir runs/chain-2

Prints the held-out losses of each generation as it ends. Called again with the same arguments it goes on where it was,
from the last checkpoint of the generation in hand, and a larger --length adds generations to those that are there.
Each is a run of its own in --dir: `synpro report DIR/generation-*` shows them side by side, and
`synpro ensemble DIR/generation-*/pretrain` how good they are together.
"""

import argparse
import gc
import sys
from pathlib import Path

from synpro_engine import Cycle, Recipe, UserError, launched, load_recipe, read_metrics, run_script
from synpro_engine.dist import Topology


def place(args: argparse.Namespace, generation: int) -> Path:
    """The run of a generation, from 0."""
    return args.dir / f"generation-{generation}"


def recipe_of(args: argparse.Namespace, generation: int) -> Recipe:
    """The recipe as a generation has it: a seed of its own over the same text, and the last generations as teachers."""
    # Scores of training's own documents go with the loss of the labels alone, so that no generation makes them.
    recipe = load_recipe(args.recipe, ["pretrain.in_run=null", *args.overrides])
    if recipe.pretrain.distill is not None:
        raise UserError("`pretrain.distill`: is the chain's own; give --share, --temperature and --teachers")
    first = recipe.seed if recipe.pretrain.seed is None else recipe.pretrain.seed
    own = [f"pretrain.seed={first + generation}"]
    if recipe.pretrain.checkpoint_copy is not None:  # each its own: one must not go on from another's checkpoint
        own.append(f"pretrain.checkpoint_copy={recipe.pretrain.checkpoint_copy}/generation-{generation}")
    if generation:
        taught_by = range(max(0, generation - args.teachers), generation)
        # Whole paths: one that is not goes from where the command is given, which may be elsewhere the next time.
        teachers = ",".join(f"'{place(args, one).absolute() / 'pretrain'}'" for one in taught_by)
        own += [
            f"pretrain.distill.teachers=[{teachers}]",
            f"pretrain.distill.share={args.share}",
            f"pretrain.distill.temperature={args.temperature}",
        ]
    return load_recipe(args.recipe, ["pretrain.in_run=null", *args.overrides, *own])


def train(args: argparse.Namespace, topology: Topology) -> None:
    """Bring every generation to its end, in their order; those that are there are left as they are."""
    for generation in range(args.length):
        Cycle(recipe_of(args, generation), place(args, generation), topology).run("pretrain", redo=args.redo)
        gc.collect()  # a model that waits for it would lie beside the next generation's
        if topology.is_main:
            show(args, generation)


def show(args: argparse.Namespace, generation: int) -> None:
    """Print a generation's last held-out losses, in nats per token."""
    records = read_metrics(place(args, generation) / "pretrain" / "metrics.jsonl")
    last = [record for record in records if record["kind"] == "eval"][-1]
    losses = ", ".join(f"{name.removesuffix('_loss')} {last[name]:.4f}" for name in last if name.endswith("_loss"))
    print(f"generation {generation}: step {last['step']}, held-out loss: {losses}", flush=True)


def main() -> None:
    """Read the arguments and join the job (of one process, or of those that torchrun started)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="smoke", help="a recipe's name or YAML file (%(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the recipe, of each generation")
    parser.add_argument("--length", type=int, default=3, help="generations in all (%(default)s)")
    parser.add_argument("--share", type=float, default=0.5, help="of the teacher in what is minimised (%(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="of both distributions (%(default)s)")
    parser.add_argument("--teachers", type=int, default=1, help="the last so many generations teach (%(default)s)")
    parser.add_argument("--redo", action="store_true", help="make anew what other settings made")
    parser.add_argument("--dir", type=Path, default=Path("runs/chain"), help="the generations' runs (%(default)s)")
    args = parser.parse_intermixed_args()
    if "=" in args.recipe:  # settings alone
        args.recipe, args.overrides = "smoke", [args.recipe, *args.overrides]
    if args.length < 1 or args.teachers < 1:
        parser.error("--length and --teachers: at least 1")
    recipe = load_recipe(args.recipe, args.overrides)
    with launched(recipe.parallel, recipe.seed) as topology:
        train(args, topology)


if __name__ == "__main__":
    sys.exit(run_script(main))
