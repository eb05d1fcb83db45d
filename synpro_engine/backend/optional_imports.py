"""What Megatron-Core may import of the packages that it uses where they are there.

Megatron asks only whether such a package imports, and only an ImportError means no to it: a package built for another
torch, or one that needs the GPU which this machine lacks, would end every model's building. Its own `import` is
therefore replaced, in its modules alone, by one that says no in these cases as well.
"""

from __future__ import annotations

import builtins
import types
from typing import Any

# Their kernels take CUDA tensors alone.
_GPU_PACKAGES = {"amp_C", "apex", "flash_attn", "flash_attn_3", "fused_weight_gradient_mlp_cuda", "transformer_engine"}
# Fused optimizers and norms, which Megatron would take unasked and untried. torch's AdamW is fused as well, works
# wherever torch does, and keeps one form of state, so that checkpoints go on on any machine.
_NEVER = ("amp_C", "apex.multi_tensor_apply", "apex.optimizers", "transformer_engine.pytorch.optimizers")
# Of these a fault is a fault.
_OURS = {"megatron", "torch"}


def guard_imports(module: types.ModuleType, *, gpu: bool) -> None:
    """Give `module`, which is yet to be executed, an `import` that answers ImportError for what is of no use here.

    gpu: whether packages for GPUs may be imported at all.
    """

    def guarded(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        root = name.partition(".")[0]
        if name in _NEVER or (root in _GPU_PACKAGES and not gpu):
            raise ModuleNotFoundError(f"{name} is not offered to Megatron-Core here", name=name)
        if level or root in _OURS:
            return builtins.__import__(name, globals, locals, fromlist, level)
        try:
            if root == "transformer_engine":  # the outer package imports also where what lies within does not
                builtins.__import__("transformer_engine.pytorch")
            return builtins.__import__(name, globals, locals, fromlist)
        except ImportError:
            raise
        except Exception as error:  # third-party modules fail at import with whatever they like
            raise ImportError(f"{name} fails: {type(error).__name__}: {error}", name=name) from error

    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": guarded}
