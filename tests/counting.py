"""Counts what a GPU would be asked: operations, each a launch, and waits of the host, while the device stands still."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
READS = (Tensor.cpu, Tensor.tolist)
"""What brings numbers to the host with no operation that shows it on a CPU. `numpy` is none: of a tensor on a GPU it is
an error, and behind `cpu` it reads what is there."""


class Counted(TorchDispatchMode):
    """Counts operations by name, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [value.alias_info for value in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            self.made[func._schema.name] += 1
        if func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            self.made["aten::nonzero"] += 1  # which a GPU's kernel makes of a mask, and waits for
        return func(*args, **(kwargs or {}))


class Waited(TorchFunctionMode):
    """Counts reads by the host of what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func in READS
        return func(*args, **(kwargs or {}))
