"""Other libraries' training steps: transformers in a plain loop, by its Trainer and with Liger's kernels; torchtitan.

None is a dependency. Who is not there, or cannot run here, raises what says so.
"""

from __future__ import annotations

import importlib
import queue
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.pretrain.loop import Contender, Loop, Weights, adamw, held
from synpro_engine.cycle import Recipe
from synpro_engine.data import Batch
from synpro_engine.dist import Topology
from synpro_engine.model.hf import hf_config


def transformers(recipe: Recipe, weights: Weights, topology: Topology) -> Contender:
    """The model and loss of transformers, in a plain loop."""
    return _looped(_model(recipe, weights), recipe, topology)


def _model(recipe: Recipe, weights: Weights) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    told = hf_config(recipe.model, torch.float32, SimpleNamespace(model_ids={}))  # pyright: ignore[reportArgumentType]
    config = AutoConfig.for_model(**told)
    # An id for padding, which some families have by default, would keep its embedding from training.
    config.use_cache, config.pad_token_id = False, None
    module = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")
    missing, unexpected = module.load_state_dict(dict(weights), strict=False)
    assert not unexpected and set(missing) <= ({"lm_head.weight"} if recipe.model.tie_embeddings else set()), missing
    return module


def _looped(module: Any, recipe: Recipe, topology: Topology) -> Loop:
    def loss(tokens_BS: Tensor, labels_BS: Tensor) -> Tensor:
        # Labels that are shifted already, and a divisor of 1: the loop divides.
        return module(input_ids=tokens_BS, labels=labels_BS, shift_labels=labels_BS, num_items_in_batch=1).loss

    return Loop(module, loss, recipe.pretrain.optimizer, topology.device)


def liger(recipe: Recipe, weights: Weights, topology: Topology) -> Contender:
    """transformers' model with all of Liger's kernels for its family, in a plain loop."""
    if topology.device.type != "cuda":
        raise NotImplementedError("its kernels are Triton's, for a GPU alone")
    patches, family = importlib.import_module("liger_kernel.transformers"), recipe.model.family
    apply = getattr(patches, f"apply_liger_kernel_to_{family}", None)
    if apply is None:
        raise NotImplementedError(f"has no kernels for {family}")
    module = _model(recipe, weights)
    modeling = sys.modules[type(module).__module__]
    before = dict(vars(modeling))
    apply(model=module)
    # Some of it is put into transformers' module, for every model of the family: the other contenders' too.
    changed = {name: value for name, value in vars(modeling).items() if before.get(name) is not value}
    vars(modeling).update({name: before[name] for name in changed})
    return _Patched(_looped(module, recipe, topology), modeling, changed)


class _Patched:
    """A contender whose steps alone find some names of a module changed."""

    def __init__(self, loop: Loop, owner: ModuleType, changed: Mapping[str, object]) -> None:
        self._loop, self._owner, self._changed = loop, owner, changed
        self.held = loop.held

    def step(self, batches: Sequence[Batch]) -> float:
        """See `Contender`."""
        names = vars(self._owner)
        before = {name: names[name] for name in self._changed}
        names.update(self._changed)
        try:
            return self._loop.step(batches)
        finally:
            names.update(before)


def torchtitan(recipe: Recipe, weights: Weights, topology: Topology) -> Contender:
    """The Llama and the loss of torchtitan 0.2 in a plain loop, for its Trainer reads data, devices and mesh itself."""
    llama3 = importlib.import_module("torchtitan.models.llama3")
    if not hasattr(llama3, "TransformerModelArgs"):
        raise NotImplementedError("is another release than 0.2, which makes its models otherwise")
    model = recipe.model
    usual = model.head_dim in (None, model.d_model // model.heads) and not model.tie_embeddings
    if model.family not in ("llama", "mistral") or not usual:
        raise NotImplementedError("has Llama alone, with heads of d_model / heads and an output layer of its own")
    arguments = llama3.TransformerModelArgs(
        dim=model.d_model, n_layers=model.layers, n_heads=model.heads, n_kv_heads=model.kv_heads,
        vocab_size=model.vocab_size, norm_eps=model.norm_eps, rope_theta=model.rope_theta, max_seq_len=model.seq_len,
        # The gated width is int(this times int(8/3 d_model)).
        multiple_of=1, ffn_dim_multiplier=(model.ffn + 0.5) / int(8 * model.d_model / 3),
    )  # fmt: skip
    # Its positions are stretched in any case; by a factor of 1 they stay.
    stretch = {"factor": 1.0} if model.rope_scaling is None else model.rope_scaling.model_dump()
    vars(arguments.rope_scaling_args).update(stretch, scaling_factor=stretch["factor"])
    module = llama3.Transformer(arguments)
    module.load_state_dict(llama3.Llama3StateDictAdapter(arguments, None).from_hf(dict(weights)))
    summed = importlib.import_module("torchtitan.components.loss").cross_entropy_loss
    return Loop(
        module, lambda tokens, labels: summed(module(tokens), labels), recipe.pretrain.optimizer, topology.device
    )


def trainer(recipe: Recipe, weights: Weights, topology: Topology) -> Contender:
    """transformers' model under transformers' Trainer."""
    if topology.device.type == "cuda" and topology.world_size == 1 and torch.cuda.device_count() > 1:
        raise NotImplementedError(
            "takes all GPUs that a process sees (nn.DataParallel): CUDA_VISIBLE_DEVICES=0 shows one"
        )
    importlib.import_module("accelerate")  # without which the Trainer cannot be made
    return TrainerSteps(_model(recipe, weights), recipe, topology.device)


class _Closed(Exception):
    """Nobody asks for steps any more."""


class TrainerSteps:
    """The Trainer's own loop, in a thread: it reads the micro-batches that a step is given, and waits for the next.

    Its data loader is a plain one, for accelerate's reads a batch ahead. It keeps no log and no checkpoint.
    """

    def __init__(self, module: Any, recipe: Recipe, device: torch.device) -> None:
        self._module, self._config, self._device = module.to(device), recipe.pretrain.optimizer, device
        self._optimizer = adamw(module, self._config)
        self._given: queue.SimpleQueue[dict[str, Tensor] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Tensor | BaseException] = queue.SimpleQueue()
        self._count = 0

    def step(self, batches: Sequence[Batch]) -> float:
        """See `Contender`; always as many micro-batches."""
        if not self._count:
            self._count = len(batches)
            threading.Thread(target=self._run, args=(torch.get_num_threads(),), name="trainer", daemon=True).start()
        assert len(batches) == self._count
        for batch in batches:
            # Labels that are shifted already: by these the Trainer counts tokens, and the model does not shift.
            labels = batch.labels_BS
            self._given.put({"input_ids": batch.tokens_BS, "labels": labels, "shift_labels": labels})
        found = self._done.get()
        if isinstance(found, BaseException):
            raise RuntimeError(f"{type(found).__name__}: {found}") from found
        return float(found)

    def held(self) -> dict[str, int]:
        """See `Contender`."""
        return held(self._module, self._optimizer)

    def close(self) -> None:
        """End the loop."""
        self._given.put(None)

    def _run(self, threads: int) -> None:
        try:
            torch.set_num_threads(threads)  # a thread's own
            if self._device.type == "cuda":
                torch.cuda.set_device(self._device)
            with tempfile.TemporaryDirectory() as folder:
                self._train(folder)
        except _Closed:
            pass
        except BaseException as error:  # raised by the step that waits
            self._done.put(error)

    def _train(self, folder: str) -> None:
        import transformers

        given, done, losses = self._given, self._done, list[Tensor]()

        class Fed(IterableDataset[dict[str, Tensor]]):
            def __iter__(self) -> Iterator[dict[str, Tensor]]:
                while (batch := given.get()) is not None:
                    yield batch
                raise _Closed

        class Watched(transformers.Trainer):
            def get_train_dataloader(self) -> Any:
                return DataLoader(Fed(), batch_size=None)

            def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
                loss = super().training_step(model, *args, **kwargs)
                losses.append(loss)  # its part of the step's mean
                return loss

        class Told(transformers.TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                done.put(torch.stack(losses).sum())
                losses.clear()

        on_cpu = self._device.type == "cpu"
        settings = transformers.TrainingArguments(
            output_dir=folder, max_steps=10**9, gradient_accumulation_steps=self._count, use_cpu=on_cpu,
            bf16=not on_cpu, max_grad_norm=self._config.clip, logging_strategy="no", save_strategy="no",
            report_to="none", disable_tqdm=True, remove_unused_columns=False,
        )  # fmt: skip
        constant = torch.optim.lr_scheduler.LambdaLR(self._optimizer, lambda step: 1.0)
        Watched(
            model=self._module, args=settings, callbacks=[Told()], optimizers=(self._optimizer, constant),
            train_dataset=Fed(),
        ).train()  # fmt: skip
