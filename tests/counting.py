"""Counts what a GPU would be asked: operations, each a launch, and waits of the host, while the device stands still."""

from collections import Counter
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")
READS = (Tensor.cpu, Tensor.numpy, Tensor.tolist, Tensor.item, Tensor.__bool__, Tensor.__int__, Tensor.__float__)
"""What brings numbers to the host; on a CPU, where the first three bring nothing, operations do not show it."""


class Counted(TorchDispatchMode):
    """Counts operations by name, but for views."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [value.alias_info for value in func._schema.returns]
        if not any(alias is not None and not alias.is_write for alias in aliases):
            self.made[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


class Waited(TorchFunctionMode):
    """Counts reads by the host of what is computed; the numbers of a tensor that was brought over count once."""

    def __init__(self) -> None:
        super().__init__()
        self.times, self._brought = 0, None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.times += func in READS and not (func is Tensor.numpy and args[0] is self._brought)
        found = func(*args, **(kwargs or {}))
        if func is Tensor.cpu:
            self._brought = found
        return found
