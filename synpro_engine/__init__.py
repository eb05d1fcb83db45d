"""SynPro's engine: data-bound pretraining with model-aware synthesis, in one process group.

Importing the package installs the import hook that lets Megatron-Core run without CUDA. The hook touches
nothing until the first `megatron.core` module is imported, so this stays cheap (torch is not loaded here).
"""

from synpro_engine.backend.shim import install_hook

__version__ = "0.1.0"

install_hook()
