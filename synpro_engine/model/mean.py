"""Weighted means of tensors that are read one after the other, and of Hugging Face directories made of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from synpro_engine.config import UserError
from synpro_engine.data.tokenizer import PublishedTokenizer
from synpro_engine.dist import Topology, on_main, shared_artifact
from synpro_engine.model import canonical
from synpro_engine.model.config import ModelConfig
from synpro_engine.model.hf import KIND
from synpro_engine.model.tensor_files import SafetensorsFiles, write_tensors


def mean_of(name: str, tensors: Iterable[Tensor], shares: Sequence[float]) -> Tensor:
    """The sum of `tensors`, all of one shape, times their `shares`: fp64, on the CPU.

    Held are the sum and one tensor at a time. UserError, with the tensor's `name`, where it is no finite number.
    """
    total: Tensor | None = None
    for tensor, share in zip(tensors, shares, strict=True):
        total = tensor.double() * share if total is None else total.add_(tensor, alpha=share)
    assert total is not None
    if not bool(total.isfinite().all()):
        raise UserError(f"tensor `{name}`: holds NaN or infinity in one of the models")
    return total


def average_published(
    directories: Sequence[Path],
    shares: Sequence[float],
    config: ModelConfig,
    tokenizer: PublishedTokenizer,
    output: Path,
    topology: Topology,
    passed: Callable[[int], object],
) -> None:
    """Write the mean of Hugging Face directories of one model, tensor by tensor, as another one. Collective.

    config: the shape that the files of each of them hold. Types of tensors, config.json and generation settings are the
    first one's. passed: is told of each tensor. UserError, which names the tensor, where the mean is no finite number.
    """
    shapes = canonical.canonical_shapes(config)
    files = [SafetensorsFiles(directory) for directory in directories]

    def means() -> Iterator[tuple[str, Tensor]]:
        for name in shapes:
            kind = files[0].dtype(name)
            yield name, mean_of(name, (file[name] for file in files), shares).to(kind)
            passed(1)

    def write_the_rest(folder: Path) -> None:
        shutil.copyfile(directories[0] / "config.json", folder / "config.json")
        tokenizer.save(folder)

    settings = {"mean_of": [str(directory) for directory in directories], "shares": list(shares)}
    with shared_artifact(topology, output, KIND, settings) as folder:
        on_main(topology, lambda: write_the_rest(folder))
        widest = max((files[0].dtype(name) for name in shapes), key=lambda kind: kind.itemsize)
        write_tensors(folder, means(), shapes, widest, topology, stoppable=True)


def normalised(shares: Sequence[float], count: int) -> list[float]:
    """Given shares of `count` models as parts of 1, equal ones where none is given. UserError for others."""
    if not shares:
        return [1.0 / count] * count
    if len(shares) != count:
        raise UserError(f"--share: {len(shares)} are given for {count} models; give one for each, or none")
    total = sum(shares)
    if not all(share > 0 for share in shares) or not torch.tensor(total).isfinite():
        raise UserError("--share: must be numbers above 0")
    return [share / total for share in shares]
