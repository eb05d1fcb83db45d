"""What Muon makes of a momentum, and how that changes with the momentum: pure functions of matrices.

One home of how fused matrices are taken apart, of scales and of the look ahead, for the step (`muon`) and for the
directions that influence is measured along. Shapes: [B, M, N], a stack of single matrices, each by itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from synpro_engine.model.canonical import Kind, shard, unshard
from synpro_engine.model.config import ModelConfig
from synpro_engine.train.optimizer import MATRICES
from synpro_engine.train.optimizer_config import MuonConfig, MuonScale
from synpro_engine.train.owned import Shape
from synpro_kernels import orthogonalize, orthogonalize_definition

_EPS = 1e-7  # of a norm that is divided by

Place = tuple[str, int]
"""(key of a whole parameter, which of the matrices that it fuses)."""
Places = tuple[Place, ...]


def looked_ahead(gradient: Tensor, momentum: Tensor, config: MuonConfig) -> Tensor:
    """What is orthogonalised: the momentum, which has the gradient in it already, or by Nesterov a later step's."""
    return gradient.lerp(momentum, config.momentum) if config.nesterov else momentum


def gradient_share(config: MuonConfig) -> float:
    """What a step's own gradient is multiplied by in that."""
    share = 1.0 - config.momentum
    return share * (1.0 + config.momentum) if config.nesterov else share


def orthogonalised(ahead_BMN: Tensor, config: MuonConfig, dtype: torch.dtype) -> Tensor:
    """The update at a rate of 1, [B, M, N] in fp32, of momenta; products are made in `dtype`."""
    rows, columns = ahead_BMN.shape[-2:]
    if config.normalise_rows:
        ahead_BMN = _rows_of_one(ahead_BMN.to(torch.promote_types(ahead_BMN.dtype, torch.float32)))
    return orthogonalize(
        ahead_BMN, steps=config.steps, coefficients=config.coefficients, dtype=dtype, eps=_EPS
    ).mul_(update_scale(config.scale, rows, columns))  # fmt: skip


def size_of(ahead_BMN: Tensor, config: MuonConfig) -> Tensor:
    """The lengths that momenta are divided by first, in fp32 or better: of each [B, 1, 1], of each row [B, M, 1]."""
    precise = ahead_BMN.to(torch.promote_types(ahead_BMN.dtype, torch.float32))
    return precise.norm(dim=-1 if config.normalise_rows else (-2, -1), keepdim=True)


def pulled_back(ahead_BMN: Tensor, along_BMN: Tensor, config: MuonConfig, least: Tensor | None = None) -> Tensor:
    """J^T `along`, [B, M, N] in fp32 (fp64 for fp64), of the Jacobian J of `orthogonalised` at `ahead`.

    By <along, J dM> = <J^T along, dM> it says how any small change dM of the momentum moves the update along `along`.
    Of the iteration as it is made, not of its limit: what its few steps leave of small singular values bounds J by the
    length of N, where the differential of a polar factor divides by them. U is the same at every length of N, so that J
    goes inversely by it, and has no bound: lengths below `least`, of the shape of `size_of`, count as that, and where
    N is 0, J is.
    """
    rows, columns = ahead_BMN.shape[-2:]
    size = size_of(ahead_BMN, config)
    longer = torch.ones_like(size) if least is None else size.maximum(least) / size
    longer = longer.where(size != 0.0, 0.0)
    found = []
    # One by one: the iteration's matrices in between are kept for the way back.
    for ahead, along in zip(ahead_BMN * longer, along_BMN, strict=True):
        with torch.enable_grad():
            given = ahead.detach().requires_grad_()
            x = _rows_of_one(given) if config.normalise_rows else given
            wide = x.mT if rows > columns else x  # Gram matrices of the shorter side
            made = orthogonalize_definition(wide, steps=config.steps, coefficients=config.coefficients, eps=_EPS)
        [back] = torch.autograd.grad(made, given, along.mT if rows > columns else along)
        found.append(back)
    # At 0 what was differentiated is the iteration's epsilon.
    return torch.stack(found).mul_(size != 0.0).mul_(update_scale(config.scale, rows, columns))


def update_scale(scale: MuonScale, rows: int, columns: int) -> float:
    """What the orthogonalised momentum of a [rows, columns] matrix is multiplied by."""
    if scale == "spectral":
        return math.sqrt(max(1.0, rows / columns))
    return 0.2 * math.sqrt(max(rows, columns))


def single_matrices(config: ModelConfig, whole: Mapping[str, Tensor]) -> Iterator[tuple[Places, Tensor]]:
    """The matrices that parameters fuse (queries apart from keys, gates from ups), stacked [B, M, N] by their shapes.

    whole: whole parameters, by keys that end as in `MATRICES`.
    """
    of_shape: dict[Shape, dict[Place, Tensor]] = {}
    for key, parameter in whole.items():
        for index, matrix in enumerate(unshard(config, kind_of(key), [parameter])):
            of_shape.setdefault(tuple(matrix.shape), {})[key, index] = matrix
    for matrices in of_shape.values():
        yield tuple(matrices), torch.stack(list(matrices.values()))


def fused(config: ModelConfig, matrices: Mapping[Place, Tensor]) -> dict[str, Tensor]:
    """The whole parameters of all their single matrices."""
    of_key: dict[str, list[Tensor]] = {}
    for key, index in sorted(matrices):
        of_key.setdefault(key, []).append(matrices[key, index])
    return {key: shard(config, kind_of(key), its, 0, 1) for key, its in of_key.items()}


def kind_of(key: str) -> Kind:
    """What a parameter of a block fuses, by the end of its name."""
    return next(kind for name, kind in MATRICES.items() if key.endswith(name))


def _rows_of_one(matrices: Tensor) -> Tensor:
    return matrices / matrices.norm(dim=-1, keepdim=True).clamp(min=_EPS)
