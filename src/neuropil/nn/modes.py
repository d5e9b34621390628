"""Train and eval mode of a net, submodule by submodule: ``net.train(mode)`` sets them all alike, and thaws what was frozen."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def modes_kept(*parts: Any) -> Iterator[list[nn.Module]]:
    """Afterwards every submodule is back in its own mode, also after an exception; inside, the list of all of them.

    A bound method counts as its module; functions and None have no modes. O(submodules).
    """
    owners = [getattr(part, "__self__", part) for part in parts]
    modes = {m: m.training for owner in owners if isinstance(owner, nn.Module) for m in owner.modules()}
    try:
        yield list(modes)
    finally:
        for m, mode in modes.items():
            m.training = mode


@contextmanager
def evaluating(*parts: Any) -> Iterator[None]:
    """All modules in eval mode inside; then each submodule is back in its own mode (see `modes_kept`).

    >>> net = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3).eval())
    >>> with evaluating(net):
    ...     [m.training for m in net]
    [False, False]
    >>> [m.training for m in net]
    [True, False]
    """
    with modes_kept(*parts) as modules:
        for m in modules:
            m.training = False
        yield
