"""The Numba kernels of `multilinear`: forward, gradient of the points, gradient of the table.

Points are located RUN at a time by loops that vectorise, then read or written one by one. Corners are built by doubling: after
axis k the first 2^(k+1) entries of `w` and `row` hold the weights and row keys of the corners seen so far. No kernel branches on
the dimension: it is a constant to the compiler, as the length of the tuple `axes`; so is the number of features of the table's
gradient up to 8 (`columns` is an array beyond). Kernels are compiled once for each dimension, dtype and such number, in about 1
s, and then come from Numba's cache on disk. The tests' type checker must not wrap them: hence `no_type_check`.
"""

import functools
from typing import Any, no_type_check

import numba
import numpy
import torch
from torch import Tensor

from neuropil.numerics.threads import ranges, share

BLOCK = 1 << 16  # the most points a task goes through level by level: so many that a level's rows, once in cache, are used again
RUN = 128  # points that are located together: their corners stay in the first cache
SMALL = 1 << 10  # points below which one thread does it all
P1, P2, P3 = 2654435761, 805459861, 3674653429  # `multilinear.PRIMES`; the first is 1


def forward(x: Tensor, table: Tensor, resolutions: list[int], sizes: list[int]) -> Tensor:
    """y: (n, L F)."""
    out = table.new_empty(x.shape[0], len(sizes) * table.shape[1])
    share(_forward, _blocks(x), *_arrays(x, resolutions, sizes, table, out))
    return out


def gradient_of_points(g: Tensor, x: Tensor, table: Tensor, resolutions: list[int], sizes: list[int]) -> Tensor:
    """gᵀ ∂y/∂x: (n, d)."""
    out = torch.zeros(x.shape, dtype=x.dtype)
    share(_points, _blocks(x), *_arrays(x, resolutions, sizes, table, g, out))
    return out


def gradient_of_table(g: Tensor, x: Tensor, table: Tensor, resolutions: list[int], sizes: list[int]) -> Tensor:
    """gᵀ ∂y/∂table: (rows, F)."""
    out = torch.zeros(table.shape, dtype=table.dtype)
    parts = -(-torch.get_num_threads() // len(sizes)) if len(x) > SMALL else 1  # of a level, where they are fewer than threads
    tasks = [(level, size * k // parts, size * (k + 1) // parts) for level, size in enumerate(sizes) for k in range(parts)]
    features = out.shape[1]
    columns = (0,) * features if features <= 8 else numpy.empty(features)
    share(_table, tasks, *_arrays(x, resolutions, sizes, out, g), columns)
    return out


def _blocks(x: Tensor) -> list[tuple[int, int]]:
    return ranges(len(x), BLOCK) if len(x) > SMALL else [(0, len(x))]


def _arrays(x: Tensor, resolutions: list[int], sizes: list[int], *more: Tensor) -> tuple[Any, ...]:
    offsets = numpy.cumsum([0, *sizes])[:-1]
    plain = [t.detach().contiguous().numpy() for t in (x, *more)]
    return (plain[0], (0,) * x.shape[1], numpy.array(resolutions), numpy.array(sizes), offsets, *plain[1:])


_jit = functools.partial(numba.njit, cache=True, nogil=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")


@no_type_check
@_jit(inline="always")
def _locate(x, start, stop, axes, n, size, dense, f, low, w, row):
    """Of points start … stop − 1 in a level of n cells: fractions f[d, p], weights w[2^d, p] and rows row[2^d, p]."""
    points, stride = stop - start, 1
    one, half = x.dtype.type(1), x.dtype.type(0.5) * x.dtype.type(n)
    for p in range(points):
        w[0, p], row[0, p] = one, 0
    for k in range(len(axes)):
        factor = numpy.uint32(stride if dense else (1, P1, P2, P3)[k])
        for p in range(points):
            u = (min(max(x[start + p, k], -one), one) + one) * half
            c = min(numpy.int32(u), numpy.int32(n - 1)) if u >= 0 else numpy.int32(0)  # 0 for NaN
            f[k, p] = u - x.dtype.type(c)
            low[p] = numpy.uint32(c) * factor
        for j in range(1 << k):
            upper = j + (1 << k)
            for p in range(points):
                w[upper, p] = w[j, p] * f[k, p]
                w[j, p] = w[j, p] * (one - f[k, p])
            if dense:
                for p in range(points):
                    row[upper, p] = row[j, p] + low[p] + factor
                    row[j, p] = row[j, p] + low[p]
            else:
                for p in range(points):
                    row[upper, p] = row[j, p] ^ (low[p] + factor)
                    row[j, p] = row[j, p] ^ low[p]
        stride *= n + 1
    if not dense:
        for j in range(1 << len(axes)):
            for p in range(points):
                row[j, p] &= numpy.uint32(size - 1)


@no_type_check
@_jit(inline="always")
def _room(x, d):
    """f, low, w, row for `_locate`; row keys are taken modulo 2^32, a multiple of every hashed level's size."""
    shape = (1 << d, RUN)
    f, low = numpy.empty((d, RUN), x.dtype), numpy.empty(RUN, numpy.uint32)
    return f, low, numpy.empty(shape, x.dtype), numpy.empty(shape, numpy.uint32)


@no_type_check
@_jit()
def _forward(first, last, x, axes, resolution, sizes, offset, table, out):
    """Points first … last − 1 at all levels."""
    d, corners, features = len(axes), 1 << len(axes), table.shape[1]
    f, low, w, row = _room(x, d)
    for l in range(len(sizes)):
        n, size = resolution[l], sizes[l]
        level, dense = table[offset[l] : offset[l] + size], (n + 1) ** d <= size
        for start in range(first, last, RUN):
            stop = min(start + RUN, last)
            _locate(x, start, stop, axes, n, size, dense, f, low, w, row)
            for p in range(stop - start):
                for k in range(features):
                    total = x.dtype.type(0)
                    for c in range(corners):
                        total += w[c, p] * level[row[c, p], k]
                    out[start + p, l * features + k] = total


@no_type_check
@_jit()
def _points(first, last, x, axes, resolution, sizes, offset, table, g, out):
    """Points first … last − 1 at all levels: out[i, m] += N/2 Σ_c ±Π_{k≠m} w_k(c) ⟨g_i, row(c)⟩."""
    d, corners, features = len(axes), 1 << len(axes), table.shape[1]
    f, low, w, row = _room(x, d)
    s, one = numpy.empty(corners, x.dtype), x.dtype.type(1)
    for l in range(len(sizes)):
        n, size = resolution[l], sizes[l]
        level, dense = table[offset[l] : offset[l] + size], (n + 1) ** d <= size
        for start in range(first, last, RUN):
            stop = min(start + RUN, last)
            _locate(x, start, stop, axes, n, size, dense, f, low, w, row)
            for p in range(stop - start):
                i = start + p
                for c in range(corners):
                    s[c] = 0
                    for k in range(features):
                        s[c] += g[i, l * features + k] * level[row[c, p], k]
                for m in range(d):
                    if -one <= x[i, m] <= one:
                        slope = x.dtype.type(0)
                        for c in range(corners):
                            others = s[c] if c >> m & 1 else -s[c]
                            for k in range(d):
                                if k != m:
                                    others *= f[k, p] if c >> k & 1 else one - f[k, p]
                            slope += others
                        out[i, m] += slope * (x.dtype.type(0.5) * x.dtype.type(n))


@no_type_check
@_jit()
def _table(l, begin, end, x, axes, resolution, sizes, offset, out, g, columns):
    """All points, for the rows begin … end − 1 of level l: nobody else writes there, and each row adds up in the points' order."""
    d, corners, features = len(axes), 1 << len(axes), len(columns)
    f, low, w, row = _room(x, d)
    n, size = resolution[l], sizes[l]
    level, dense = out[offset[l] : offset[l] + size], (n + 1) ** d <= size
    for start in range(0, len(x), RUN):
        stop = min(start + RUN, len(x))
        _locate(x, start, stop, axes, n, size, dense, f, low, w, row)
        for p in range(stop - start):
            for c in range(corners):
                r = row[c, p]
                if begin <= r < end:
                    for k in range(features):
                        level[r, k] += w[c, p] * g[start + p, l * features + k]
