"""What each part runs, at full size and on a CPU; the docstrings are what `--list` says.

A part's module does the work and can be called by itself.
"""

from __future__ import annotations

from benchmarks.common.processes import command
from benchmarks.gpu_acceptance.layouts import LAYOUTS
from benchmarks.gpu_acceptance.part import Place, Program
from synpro_kernels.common.triton_status import triton_status

_COPIES, _LAYOUTS = "benchmarks.gpu_acceptance.copies", "benchmarks.gpu_acceptance.layouts"


def _ran(module: str, *arguments: str, **variables: str) -> Program:
    return Program(command(module, *arguments), variables)


def _ranks(count: int, module: str, *arguments: str) -> Program:
    """The same on so many GPUs of this machine."""
    return _ran("torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "-m", module, *arguments)


def _interpreted(place: Place) -> dict[str, str]:
    return {"TRITON_INTERPRET": "1"} if place.dry and triton_status()[0] else {}


def kernels(place: Place) -> list[Program]:
    """Every op beside plain PyTorch: right, then speed."""
    tiny = ("--sizes", "tiny", "--rounds", "1") if place.dry else ()
    more = _interpreted(place)
    return [_ran("benchmarks.kernels", "--dtype", "bfloat16", *tiny, *place.output("kernels"), **more)]


def races(place: Place) -> list[Program]:
    """Every op 50 times on the same input: equal bits."""
    tiny = ("--sizes", "tiny", "--runs", "2") if place.dry else ()
    return [_ran("benchmarks.gpu_acceptance.races", *tiny, *place.output("races"), **_interpreted(place))]


def tests(place: Place) -> list[Program]:
    """Pytest of the Triton kernels and their machine code."""

    def those(*where: str, named: str = "", few: str = "", **more: str) -> Program:
        chosen = few if place.dry and few else named
        return _ran("pytest", "-q", "-rf", "-m", "not slow", *(("-k", chosen) if chosen else ()), *where, **more)

    triton, compiled = "tests/kernels/triton_kernels", "tests/kernels/compiled"
    # Apart: what was asked is told where time is over in what comes next. Last, what a CPU could tell as well.
    return [
        those("tests/train/test_operations.py", "tests/model/test_context.py", named="on_a_gpu or fused_kernels"),
        those(triton, few="views_with_gaps", **_interpreted(place)),
        those(f"--ignore={triton}", f"--ignore={compiled}", "tests/kernels", named="cuda"),
        those(compiled, few="no_kernel"),
    ]


def sanitizer(place: Place) -> list[Program]:
    """Compute-sanitizer's memcheck and racecheck, small shapes."""
    again = command("benchmarks.gpu_acceptance.races", "--sizes", "tiny", "--runs", "2")
    # The allocator's blocks are larger than tensors: what is written behind one would stay within its block.
    more = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1", **_interpreted(place)}
    tools = ("memcheck", "racecheck")
    return [Program(["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *again], more) for tool in tools]


def linear_logprob(place: Place) -> list[Program]:
    """The output layer against its goals in docs/kernels.md."""
    ours = "linear_logprob,linear_cross_entropy,materialised,chunked"
    tiny = ("--tokens", "64", "--width", "32", "--vocab", "257", "--rounds", "1", "--only", ours, "--no-memory")
    options = tiny if place.dry else ("--rounds", "5")
    return [_ran("benchmarks.linear_logprob", *options, *place.output("linear_logprob"))]


def persistent(place: Place) -> list[Program]:
    """The forward with a loading warp, which no GPU has run: right, then speed (sm_90)."""

    def forward(*options: str) -> Program:
        only = ("--only", "linear_logprob,persistent,persistent_in_turn", "--passes", "forward", "--no-memory")
        return _ran("benchmarks.linear_logprob", *only, *options, *place.output("persistent"))

    def repeated(form: str) -> Program:
        tiny = ("--sizes", "tiny", "--runs", "2") if place.dry else ()
        options = ("--only", "linear_logprob, forward", *tiny, *place.output("persistent"))
        return _ran("benchmarks.gpu_acceptance.races", *options, SYNPRO_PERSISTENT=form, **_interpreted(place))

    tiny = ("--tokens", "65", "--width", "64", "--vocab", "257", "--rounds", "1")
    odd = ("--tokens", "1003", "--width", "192", "--vocab", "50257", "--rounds", "1")
    # Where most can go wrong first: what hangs later leaves what it told.
    timed = [forward(*tiny)] if place.dry else [forward(*odd), forward("--rounds", "7")]
    return [*timed, repeated("together"), repeated("in-turn")]


def pretrain(place: Place) -> list[Program]:
    """Training steps of synpro-400m and synpro-1.1b."""

    def steps(*options: str) -> Program:
        return _ran("benchmarks.pretrain", *options, *place.output("pretrain"))

    both = ("--only", "synpro_engine,plain-pytorch")
    if place.dry:
        return [steps("smoke", *both, "--rounds", "1", "--warmups", "1")]
    # Right first, in few rows, for plain PyTorch keeps whole logits; then alone, in the recorded micro-batches.
    alone = ("--only", "synpro_engine", "--rounds", "5", "--memory")
    return [
        steps("synpro-400m", "pretrain.micro_batch=2", *both, "--rounds", "3"),
        steps("synpro-400m", *alone, "--micro-batches", "4"),
        steps("synpro-1.1b", *alone, "--micro-batches", "2"),
    ]


def decode(place: Place) -> list[Program]:
    """Sampling at the size of OLMo-2 1B, with and without CUDA graphs."""
    tiny = ("--recipe", "smoke", "--rows", "8", "--top-p", "0.9", "--prompt", "16", "--new", "4") if place.dry else ()
    return [_ran("benchmarks.generate", "--graphs", *tiny, *place.output("decode"))]


def grpo(place: Place) -> list[Program]:
    """Steps of tuning at the size of OLMo-2 1B."""
    tiny = ("--recipe", "smoke", "--prompts", "2", "--prompt", "256", "--new", "8", "--steps", "2") if place.dry else ()
    options = ("--folder", str(place.folder), *tiny, *place.output("grpo"))
    return [_ran("benchmarks.gpu_acceptance.grpo", *options)]


_INFLUENCE = '{"layers":8,"d_model":1024,"heads":16,"ffn":4096,"seq_len":1024,"step_rows":8,"step_micro_batch":4,"reference_tokens":16384}'  # fmt: skip # noqa: E501
_TINY_INFLUENCE = '{"layers":1,"d_model":64,"heads":2,"ffn":128,"seq_len":64,"vocab":512,"reference_tokens":256}'


def influence(place: Place) -> list[Program]:
    """What watching a training step costs."""
    options = ("--repeats", "1", "--set", _TINY_INFLUENCE) if place.dry else ("--repeats", "5", "--set", _INFLUENCE)
    return [_ran("benchmarks.influence_cost", "--parts", "in-run", *options, *place.output("influence"))]


def smoke(place: Place) -> list[Program]:
    """The whole cycle in bf16, on 1 GPU and on 2."""

    def run(ranks: int) -> Program:
        told = ("run", "smoke", "--dir", str(place.folder / f"smoke-{ranks}"), "dtype=bfloat16")
        return _ran("synpro_engine", "launch", "--nproc-per-node", str(ranks), *told)

    # Its batches are small: not every number of data-parallel ranks divides them, and two do.
    return [run(ranks) for ranks in sorted({1, min(2, place.gpus)})]


def copies(place: Place) -> list[Program]:
    """Steps while activations, checkpoints, models and weights are copied."""
    # Less vocabulary: drawing it on the CPU would take longer than the steps.
    tiny = ("--recipe", "smoke") if place.dry else ("model.layers=8", "model.vocab_size=16384")
    options = (*tiny, "pretrain.in_run=null", "--folder", str(place.folder), *place.output("copies"))
    programs = [_ran(_COPIES, *options), _ranks(2, _COPIES, *options)]
    return programs if place.dry or place.gpus > 1 else programs[:1]


def layouts(place: Place) -> list[Program]:
    """Steps in each layout of 2, 4 and 8 GPUs beside one."""
    tiny = ("--recipe", "smoke", "model.layers=4", "pretrain.micro_batch=1") if place.dry else ()
    folder = str(place.folder / "layouts-checkpoints")
    options = (*tiny, "pretrain.in_run=null", "--folder", folder, *place.output("layouts"))
    # On a CPU two of a kind: the others are held by tests there.
    asked = {2: LAYOUTS[2][:2]} if place.dry else {n: more for n, more in LAYOUTS.items() if n <= place.gpus}
    others = [_ranks(count, _LAYOUTS, *options, *layout) for count, more in asked.items() for layout in more]
    return [_ran(_LAYOUTS, *options), *others]


def checkpoint(place: Place) -> list[Program]:
    """Saving and loading synpro-400m."""
    tiny = ("--recipe", "smoke") if place.dry else ()
    options = ("--folder", str(place.folder), *tiny, *place.output("checkpoint"))
    return [_ran("benchmarks.gpu_acceptance.checkpoint", *options)]
