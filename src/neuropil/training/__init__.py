"""Training: one `fit` loop with checkpoints that resume bit-equal."""

import importlib
from typing import Any

__all__ = ["History", "cosine", "fit", "minibatches", "warmup_cosine"]


def __getattr__(name: str) -> Any:
    """The functions of the module ``fit``, which imports torch, when they are first touched."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.fit")
    for public in __all__:  # after the import, which itself has set `fit` to the module
        globals()[public] = getattr(module, public)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted(__all__)
