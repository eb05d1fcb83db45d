"""Makes the ops take one backend, to test each: the choice is one method (`common.dispatch`), replaced for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from torch import Tensor

from synpro_kernels.common.dispatch import BackendName, Backends


@contextmanager
def using(name: BackendName) -> Iterator[None]:
    """Within it every op takes this backend where it has it for the tensors' dtypes, else PyTorch.

    Whether it can run is not asked: Triton takes CPU tensors too, which its interpreter reads.
    """

    def choose(backends: Backends[object], *tensors: Tensor) -> BackendName:
        return name if backends.takes(name, *tensors) else "torch"

    with mock.patch.object(Backends, "choose", choose):
        yield
