"""Checks that parts share: one line that names the argument instead of a matrix product's complaint, or a wrong result in silence.

Shapes and kinds of numbers are always checked: they cost nothing and, compiled, become guards of the graph. Values are checked only
where a wrong one would pass in silence, and only on the CPU and outside of a compiled graph: elsewhere, looking would mean waiting.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from neuropil.errors import Refused


def fits(name: str, x: Tensor, width: int, like: Tensor | None = None) -> None:
    """`Refused` unless the last axis of `x` has `width` numbers, and they are of the kind of `like` (the weights; autocast aside).

    >>> fits("x", torch.zeros(2, 3), 4)
    Traceback (most recent call last):
    neuropil.errors.Refused: x: the last axis must have 4 numbers, got shape (2, 3)
    """
    if x.ndim < 1 or x.shape[-1] != width:
        raise Refused(f"{name}: the last axis must have {width} numbers, got shape {tuple(x.shape)}")
    if like is not None:
        same_kind(name, x, like)


def same_kind(name: str, x: Tensor, like: Tensor) -> None:
    """`Refused` unless `x` is of the dtype of `like`, or autocast is on, which sees to it.

    >>> same_kind("x", torch.zeros(2).double(), torch.zeros(2))
    Traceback (most recent call last):
    neuropil.errors.Refused: x: must be torch.float32 as what it meets, got torch.float64; bring both to one with .to()
    """
    if x.dtype != like.dtype and not torch.is_autocast_enabled(x.device.type):
        raise Refused(f"{name}: must be {like.dtype} as what it meets, got {x.dtype}; bring both to one with .to()")


def some(name: str, x: Tensor, axis: int = -1) -> None:
    """`Refused` if the axis of `x` is empty.

    >>> some("x", torch.zeros(2, 0))
    Traceback (most recent call last):
    neuropil.errors.Refused: x: axis -1 must not be empty, got shape (2, 0)
    """
    if not x.shape[axis]:
        raise Refused(f"{name}: axis {axis} must not be empty, got shape {tuple(x.shape)}")


def filled(name: str, x: Tensor) -> None:
    """`Refused` if `x` has no numbers.

    >>> filled("x", torch.zeros(0, 2))
    Traceback (most recent call last):
    neuropil.errors.Refused: x: must not be empty, got shape (0, 2)
    """
    if not x.numel():
        raise Refused(f"{name}: must not be empty, got shape {tuple(x.shape)}")


def full_precision(name: str, x: Tensor) -> None:
    """`Refused` unless `x` is float32 or float64: torch decomposes nothing else.

    >>> full_precision("x", torch.zeros(2).half())
    Traceback (most recent call last):
    neuropil.errors.Refused: x: float64 or float32 is needed, got torch.float16
    """
    if x.dtype not in (torch.float32, torch.float64):
        raise Refused(f"{name}: float64 or float32 is needed, got {x.dtype}")


def at_least(least: float | int, **given: Any) -> None:
    """`Refused` unless all numbers are finite and at least `least`.

    >>> at_least(1, layers=0)
    Traceback (most recent call last):
    neuropil.errors.Refused: layers: must be at least 1, got 0
    """
    for name, value in given.items():
        if not least <= value < float("inf"):
            raise Refused(f"{name}: must be at least {least:g}, got {value:g}" + (" (and finite)" if value == float("inf") else ""))


def looks(x: Tensor) -> bool:
    """Whether the values of `x` may be looked at here: not on a GPU, not in a graph that is being compiled, not under vmap.

    >>> looks(torch.zeros(1))
    True
    """
    plain = not torch.compiler.is_compiling() and x.device.type == "cpu"
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(x)


def nonnegative(name: str, x: Tensor) -> None:
    """`Refused` for a count that is negative or NaN. One pass.

    >>> nonnegative("counts", torch.tensor([0, -1]))
    Traceback (most recent call last):
    neuropil.errors.Refused: counts: must be 0 or more and no NaN, got a least value of -1
    """
    if looks(x) and x.numel() and not bool((x >= 0).all()):
        raise Refused(f"{name}: must be 0 or more and no NaN, got a least value of {x.min().item():g}")


def within(name: str, ids: Tensor, size: int) -> None:
    """`Refused` for an id outside 0 … size − 1: a negative one would count from the end. One pass.

    >>> within("ids", torch.tensor([0, -1]), 3)
    Traceback (most recent call last):
    neuropil.errors.Refused: ids: must lie in 0 … 2, got -1
    """
    if looks(ids) and ids.numel():
        low, high = torch.aminmax(ids)
        if low < 0 or high >= size:
            raise Refused(f"{name}: must lie in 0 … {size - 1}, got {int(low if low < 0 else high)}")


def numbers(name: str, x: Tensor) -> None:
    """`Refused` for NaN, where a comparison or a sort would swallow it. One pass.

    >>> numbers("x", torch.tensor([1.0, torch.nan]))
    Traceback (most recent call last):
    neuropil.errors.Refused: x: must have no NaN, got 1 of 2
    """
    if looks(x) and x.is_floating_point() and _odd(x) and bool((bad := x.isnan()).any()):
        raise Refused(f"{name}: must have no NaN, got {int(bad.sum())} of {x.numel()}")


def finite(name: str, x: Tensor) -> None:
    """`Refused` for NaN and infinity, where a decomposition would fail in words of its own. One pass.

    >>> finite("x", torch.tensor([1.0, torch.inf]))
    Traceback (most recent call last):
    neuropil.errors.Refused: x: must be finite, got 1 of 2 numbers that are not
    """
    if looks(x) and _odd(x) and bool((bad := ~x.isfinite()).any()):
        raise Refused(f"{name}: must be finite, got {int(bad.sum())} of {x.numel()} numbers that are not")


def _odd(x: Tensor) -> bool:
    """Whether a closer look is worth while: one sum, which NaN and infinity survive, costs a third of asking each number."""
    return not math.isfinite(x.detach().sum().abs().item())


def suits(name: str, x: Tensor, net: Any) -> None:
    """`Refused` for what a given net cannot take: numbers of another kind, features or channels other than its first layer's.

    The first layer is known if it is linear or a convolution, also at the head of an `nn.Sequential` that does just what its layers
    do; of a function nothing is. Whole numbers, say tokens, are left to other nets.

    >>> suits("tokens", torch.zeros(2, 3, dtype=torch.long), nn.Embedding(5, 2))
    >>> suits("x", torch.zeros(2, 3, 8), nn.Sequential(nn.Conv1d(4, 1, 3), nn.ReLU()))
    Traceback (most recent call last):
    neuropil.errors.Refused: x: must be (b, 4, *grid) with 1 axes, got (2, 3, 8)
    """
    from neuropil.nn.mlp import MLP  # which needs this file

    first = net
    while isinstance(first, nn.Sequential) and len(first) and type(first).forward in (nn.Sequential.forward, MLP.forward):
        first = first[0]
    if isinstance(first, nn.Linear):
        fits(name, x, first.in_features)
    elif isinstance(first, nn.modules.conv._ConvNd):
        axes, c = len(first.kernel_size), first.in_channels
        if x.ndim != axes + 2 or x.shape[1] != c:
            raise Refused(f"{name}: must be (b, {c}, *grid) with {axes} axes, got {tuple(x.shape)}")
    known = isinstance(first, nn.Linear | nn.modules.conv._ConvNd)
    if isinstance(net, nn.Module) and (known or x.is_floating_point()) and (weight := next(net.parameters(), None)) is not None:
        same_kind(name, x, weight)


def transformable(name: str, u: Tensor) -> None:
    """`Refused` for what torch has no FFT of: nothing at all, bfloat16, and on the CPU float16.

    >>> transformable("u", torch.zeros(0, 1, 8))
    Traceback (most recent call last):
    neuropil.errors.Refused: u: must not be empty, got shape (0, 1, 8)
    """
    filled(name, u)
    if u.dtype == torch.bfloat16 or (u.dtype == torch.float16 and u.device.type == "cpu"):
        raise Refused(f"{name}: float32 or float64 is needed, got {u.dtype}")


def has_eigenvalues(name: str, x: Tensor) -> None:
    """`Refused` for NaN and infinity, on any device: LAPACK's search for the eigenvalues of such a matrix may never end.

    It runs on the CPU, so that the device is waited for anyway. Symmetric matrices are safe (see `finite`). One pass.

    >>> has_eigenvalues("A", torch.tensor([[torch.nan]]))
    Traceback (most recent call last):
    neuropil.errors.Refused: A: must be finite, got 1 of 1 numbers that are not
    """
    if not torch.compiler.is_compiling() and not bool((good := x.isfinite()).all()):
        raise Refused(f"{name}: must be finite, got {int((~good).sum())} of {x.numel()} numbers that are not")
