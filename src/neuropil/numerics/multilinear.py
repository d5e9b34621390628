"""Multilinear interpolation in a stack of grids, the reading step of every grid, plane and hash encoding.

    y_l(x) = Σ_{c ∈ {0,1}^d} w_c(u) · table_l[row_l(⌊u⌋ + c)]        u = (x + 1)/2 · N_l        w_c(u) = Π_k (c_k ? f_k : 1 − f_k)

with f = u − ⌊u⌋ for L levels of N_l cells an axis on [−1, 1]^d. A level with (N_l + 1)^d ≤ T_l rows is stored densely
(first axis fastest); a finer one shares its T_l rows by the spatial hash ``row(v) = (⊕_k v_k π_k) mod T_l`` of Müller et al. 2022,
arXiv:2201.05989 (π = 1, 2654435761, 805459861, 3674653429; T_l a power of two).

Points outside [−1, 1]^d read the border and have no gradient there; NaN gives NaN. The function is linear in the table and
piecewise multilinear in x, so derivatives of any order are exact inside a cell; at cell borders they are those of the upper cell.

On a CPU with the "fields" extra, Numba kernels do forward and first derivatives: rows of the table's gradient have one owner
each, so no atomics, and equal runs give equal bits on any number of threads. Elsewhere (CUDA, half precision, under `torch.func`,
for derivatives of derivatives) the same formula runs as plain tensor operations. Both cost O(n L 2^d F) time; the kernels need
O(n L F) memory, the tensors O(n L 2^d F).
"""

import itertools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.numerics.threads import numba_is_there

PRIMES = (1, 2654435761, 805459861, 3674653429)


def multilinear(
    x: Float[Tensor, "*b d"], table: Float[Tensor, "rows f"], resolutions: Sequence[int], sizes: Sequence[int]
) -> Float[Tensor, "*b lf"]:
    """Read each of L levels at the points x and put the features side by side, level by level.

    Args:
        x: coordinates in [−1, 1]^d, d = 1 … 4.
        table: the rows of all levels, one level after the other.
        resolutions: N_l, the cells an axis of each level.
        sizes: T_l, the rows of each level; they add up to the table's. Raises `Refused` where one is neither (N_l + 1)^d nor a
            power of two below that.

    >>> line = torch.tensor([[0.0], [1.0], [4.0]])  # one level of two cells: vertices at −1, 0, 1
    >>> multilinear(torch.tensor([[-1.0], [0.5]]), line, [2], [3]).flatten()
    tensor([0.0000, 2.5000])
    """
    d = x.shape[-1]
    if not 1 <= d <= len(PRIMES):
        raise Refused(f"x: 1 to {len(PRIMES)} coordinates a point, got {d}")
    if not 0 < len(resolutions) == len(sizes) or sum(sizes) != len(table):
        raise Refused(f"sizes: one for each of {len(resolutions)} levels and {len(table)} rows together, got {list(sizes)}")
    for n, t in zip(resolutions, sizes, strict=True):
        if n < 1 or t < 1 or (t < (n + 1) ** d and t & (t - 1)):
            raise Refused(f"sizes: a level of {n} ≥ 1 cells needs {(n + 1) ** d} rows or a power of two below that, got {t}")
    points = x.reshape(-1, d)
    read = _compiled if _has_kernels(points, table) else eager
    return read(points, table, list(resolutions), list(sizes)).reshape(*x.shape[:-1], len(sizes) * table.shape[1])


def rows(resolution: int, d: int, most: int | None = None) -> int:
    """How many rows a level of N cells an axis takes: (N + 1)^d, or the hashed `most` where that is fewer."""
    dense = (resolution + 1) ** d
    return dense if most is None else min(dense, most)


def eager(
    x: Float[Tensor, "n d"], table: Float[Tensor, "rows f"], resolutions: list[int], sizes: list[int]
) -> Float[Tensor, "n lf"]:
    """The formula as plain tensor operations, a level at a time; differentiable as often as wanted."""
    starts = itertools.accumulate(sizes, initial=0)
    return torch.cat([_level(x, table[start : start + t], n) for n, t, start in zip(resolutions, sizes, starts, strict=False)], -1)


def _level(x: Float[Tensor, "n d"], table: Float[Tensor, "rows f"], resolution: int) -> Float[Tensor, "n f"]:
    """One level. Corners by doubling: axis k appends those at its upper end to those of the axes before it."""
    d, n = x.shape[-1], resolution
    u = (x.clamp(-1, 1) + 1) * (0.5 * n)
    corner = u.detach().nan_to_num().floor().clamp_max(n - 1)  # NaN comes out as NaN, it does not crash
    f, corner = u - corner, corner.long()
    dense = (n + 1) ** d <= len(table)
    w = torch.ones_like(f[:, :1])
    row = torch.zeros_like(corner[:, :1])
    for k in range(d):
        factor = (n + 1) ** k if dense else PRIMES[k]
        ends = [corner[:, k : k + 1] * factor, (corner[:, k : k + 1] + 1) * factor]
        row = torch.cat([row + end if dense else row ^ end for end in ends], -1)
        w = torch.cat([w * (1 - f[:, k : k + 1]), w * f[:, k : k + 1]], -1)
    row = row if dense else row & (len(table) - 1)
    values = table.index_select(0, row.flatten()).unflatten(0, row.shape)
    return (w[..., None].to(table.dtype) * values).sum(-2)


def _has_kernels(x: Tensor, table: Tensor) -> bool:
    """Whether the kernels can take these tensors: real CPU memory, one single or double type, no `torch.func` transform."""
    plain = x.device.type == table.device.type == "cpu" and x.dtype == table.dtype and x.dtype in (torch.float32, torch.float64)
    transformed = not torch.compiler.is_compiling() and torch._C._functorch.peek_interpreter_stack() is not None
    dual = not torch.compiler.is_compiling() and torch.autograd.forward_ad._current_level >= 0
    return plain and not transformed and not dual and numba_is_there()


@torch.library.custom_op("neuropil::multilinear", mutates_args=())
def _compiled(x: Tensor, table: Tensor, resolutions: list[int], sizes: list[int]) -> Tensor:
    from neuropil.numerics import multilinear_cpu

    return multilinear_cpu.forward(x, table, resolutions, sizes)


@_compiled.register_fake
def _(x: Tensor, table: Tensor, resolutions: list[int], sizes: list[int]) -> Tensor:
    return table.new_empty(x.shape[0], len(sizes) * table.shape[1])


@torch.library.custom_op("neuropil::multilinear_backward", mutates_args=())
def _compiled_backward(
    g: Tensor, x: Tensor, table: Tensor, resolutions: list[int], sizes: list[int], of_x: bool, of_table: bool
) -> tuple[Tensor, Tensor]:
    """(gᵀ ∂y/∂x, gᵀ ∂y/∂table); an empty tensor for what is not asked."""
    from neuropil.numerics import multilinear_cpu

    gx = multilinear_cpu.gradient_of_points(g, x, table, resolutions, sizes) if of_x else x.new_empty(0)
    gt = multilinear_cpu.gradient_of_table(g, x, table, resolutions, sizes) if of_table else table.new_empty(0)
    return gx, gt


@_compiled_backward.register_fake
def _(
    g: Tensor, x: Tensor, table: Tensor, resolutions: list[int], sizes: list[int], of_x: bool, of_table: bool
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x) if of_x else x.new_empty(0), torch.empty_like(table) if of_table else table.new_empty(0)


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, table, ctx.resolutions, ctx.sizes = inputs
    ctx.save_for_backward(x, table)


def _first(ctx, g):  # type: ignore[no-untyped-def]
    x, table = ctx.saved_tensors
    of_x, of_table = ctx.needs_input_grad[:2]
    gx, gt = _compiled_backward(g.contiguous(), x, table, ctx.resolutions, ctx.sizes, of_x, of_table)
    return gx if of_x else None, gt if of_table else None, None, None


def _save_first(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    g, x, table, ctx.resolutions, ctx.sizes, ctx.of_x, ctx.of_table = inputs
    ctx.save_for_backward(g, x, table)


def _second(ctx, ggx, ggt):  # type: ignore[no-untyped-def]
    """The derivatives of the first derivatives, through the eager formula (itself differentiable)."""
    keep = torch.is_grad_enabled()  # even third derivatives are asked for
    with torch.enable_grad():
        g, x, table = [t if keep and t.requires_grad else t.detach().requires_grad_() for t in ctx.saved_tensors]
        y = eager(x, table, ctx.resolutions, ctx.sizes)
        gx, gt = torch.autograd.grad(y, (x, table), g, create_graph=True)
        pairs = [(gx, ggx)] * ctx.of_x + [(gt, ggt)] * ctx.of_table
        outputs = [(value, cotangent) for value, cotangent in pairs if value.requires_grad and cotangent is not None]
        values, cotangents = zip(*outputs, strict=True)
        grads = torch.autograd.grad(values, (g, x, table), cotangents, create_graph=keep, allow_unused=True)
    return (*grads, None, None, None, None)


torch.library.register_autograd(_compiled._opoverload, _first, setup_context=_save)
torch.library.register_autograd(_compiled_backward._opoverload, _second, setup_context=_save_first)
