"""Neuropil: published neural mechanisms as PyTorch parts, each with its paper's claim as a program.

Nothing heavy happens here: a wing is imported when it is first touched (``neuropil.memory``), so
``import neuropil`` costs milliseconds and does not import torch.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"
__all__ = ["__version__", "catalog", "data", "lab", "memory", "nn", "numerics", "training"]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
