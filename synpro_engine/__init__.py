"""SynPro's engine: data-bound pretraining with model-aware synthesis, in one process group.

The names below are what scripts are made of; `examples/` has seven. The packages beside them have the rest.

Importing this package loads neither torch nor Megatron. It adds one import hook, which waits for the first import of
`megatron.core`, whoever makes it, and then keeps Megatron from optional packages that do not work here. Without a CUDA
device it also gives Megatron's own modules a proxy for `torch` that answers for the CPU, and replaces `Tensor.cuda` and
`Tensor.type`, in the whole process. So import this package before `megatron.core`: the other way round is a
RuntimeError.

A name is loaded when it is first used: its module is imported, for most of them with torch and Megatron, which takes
seconds; before the first one, notices of the two that say nothing to a user are silenced (`backend.quiet`). No process
group is made, no device is touched and no thread is started before `launched`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from synpro_engine.backend.shim import install_hook
from synpro_engine.version import VERSION as __version__

if TYPE_CHECKING:
    from synpro_engine.cli.ending import run_script
    from synpro_engine.config import UserError
    from synpro_engine.cycle import Cycle, ModelPair, Recipe, load_recipe, score_documents
    from synpro_engine.data import TokenCorpus, TokenLoader, load_tokenizer, read_documents
    from synpro_engine.dist import ParallelConfig, launched
    from synpro_engine.influence import EstimatorConfig
    from synpro_engine.model.build import build_model
    from synpro_engine.model.config import ModelConfig
    from synpro_engine.model.hf import export_hf
    from synpro_engine.model.pretrained import import_model
    from synpro_engine.rl.config import TuneConfig
    from synpro_engine.rl.policy import prepare_policy
    from synpro_engine.rl.trainer import tune
    from synpro_engine.sampler import Sampler, SamplingConfig
    from synpro_engine.synth import generate_corpus
    from synpro_engine.train.checkpoint import save_checkpoint
    from synpro_engine.train.config import TrainConfig
    from synpro_engine.train.engine import Engine
    from synpro_engine.train.metrics import read_metrics
    from synpro_engine.train.optimizer_config import OptimizerConfig
    from synpro_engine.train.trainer import pretrain

__all__ = [
    "Cycle",
    "Engine",
    "EstimatorConfig",
    "TuneConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ModelPair",
    "ParallelConfig",
    "Recipe",
    "Sampler",
    "SamplingConfig",
    "TokenCorpus",
    "TokenLoader",
    "TrainConfig",
    "UserError",
    "build_model",
    "export_hf",
    "generate_corpus",
    "import_model",
    "launched",
    "load_recipe",
    "load_tokenizer",
    "prepare_policy",
    "pretrain",
    "read_documents",
    "read_metrics",
    "run_script",
    "save_checkpoint",
    "score_documents",
    "tune",
]

# Where each lives; the imports above say the same to type checkers.
_HOMES = {
    "cli.ending": "run_script",
    "config": "UserError",
    "cycle": "Cycle ModelPair Recipe load_recipe score_documents",
    "data": "TokenCorpus TokenLoader load_tokenizer read_documents",
    "dist": "ParallelConfig launched",
    "influence": "EstimatorConfig",
    "model.build": "build_model",
    "model.config": "ModelConfig",
    "model.hf": "export_hf",
    "model.pretrained": "import_model",
    "rl.config": "TuneConfig",
    "rl.policy": "prepare_policy",
    "rl.trainer": "tune",
    "sampler": "Sampler SamplingConfig",
    "synth": "generate_corpus",
    "train.checkpoint": "save_checkpoint",
    "train.config": "TrainConfig",
    "train.engine": "Engine",
    "train.metrics": "read_metrics",
    "train.optimizer_config": "OptimizerConfig",
    "train.trainer": "pretrain",
}
_HOME_OF = {name: f"{__name__}.{home}" for home, names in _HOMES.items() for name in names.split()}


def _load(name: str) -> Any:
    """Load a public name; AttributeError, with the nearest one, for a name that is none."""
    if name not in _HOME_OF:
        from synpro_engine.config.errors import nearest

        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{nearest(name, _HOME_OF)}", name=name)
    from synpro_engine.backend.quiet import silence_known_warnings

    silence_known_warnings()
    globals()[name] = value = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # type checkers would take any name for one that is there
    __getattr__ = _load  # PEP 562


install_hook()
