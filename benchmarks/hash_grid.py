"""The hash encoding's kernels against plain tensor operations, forward and backward.

65,536 points in 3-D, 16 levels × 2 features, tables of 2^17 rows; the gradient is the table's, as in training. The tensors go
level by level, the faster of two ways that were tried (all levels at once took 4 times as long). On CUDA, where there is no
kernel, the tensor operations against a copy of the bytes that they have to move at least.
"""

import time
from collections.abc import Iterator

import torch
from rounds import Ratio, in_turns, main

from neuropil.fields.grids import HashGrid
from neuropil.numerics import multilinear

POINTS, LEVELS, FEATURES = 1 << 16, 16, 2


def made(device: str) -> tuple[HashGrid, torch.Tensor, torch.Tensor]:
    """A grid, points and the gradient of what is read there."""
    torch.manual_seed(0)
    grid = HashGrid(3, levels=LEVELS, features=FEATURES, table=2**17, coarsest=16, finest=2048).to(device)
    torch.nn.init.normal_(grid.table)
    return grid, 2 * torch.rand(POINTS, 3, device=device) - 1, torch.randn(POINTS, grid.width, device=device)


def step(read, grid: HashGrid, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Forward and backward; the table's gradient."""
    grid.table.grad = None
    read(x, grid.table, grid.resolutions, grid.sizes).backward(g)
    return grid.table.grad


def compare(quick: bool) -> Iterator[Ratio]:
    grid, x, g = made("cpu")
    ways = {"kernels": multilinear._compiled, "tensors": multilinear.eager}
    torch.testing.assert_close(*(read(x, grid.table, grid.resolutions, grid.sizes) for read in ways.values()))
    torch.testing.assert_close(*(step(read, grid, x, g) for read in ways.values()), atol=1e-4, rtol=1e-4)

    for threads in sorted({torch.get_num_threads(), 1}, reverse=True):
        torch.set_num_threads(threads)
        taken = in_turns({name: lambda read=read: step(read, grid, x, g) for name, read in ways.items()}, 3 if quick else 9)
        what = f"hash encoding, forward and backward, 65,536 points, {threads} thread{'s' * (threads > 1)}"
        wish = 5.0 if threads > 1 else None
        yield Ratio(what, "tensor operations", taken["kernels"], taken["tensors"], at_least=wish)
    if torch.cuda.is_available():
        yield on_cuda(3 if quick else 9)


def on_cuda(rounds: int) -> Ratio:
    # least traffic: coordinates, 8 rows a point and level, and the output; backward the same with rows read and written
    rows, rest = POINTS * LEVELS * 8 * FEATURES, POINTS * (3 + LEVELS * FEATURES)
    moved = torch.empty((3 * rows + 2 * rest) * 4 // 2, dtype=torch.uint8, device="cuda")  # a copy reads and writes each byte
    to, (grid, x, g) = torch.empty_like(moved), made("cuda")

    def clock() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    ways = {"tensors": lambda: step(multilinear.eager, grid, x, g), "copy": lambda: to.copy_(moved)}
    taken = in_turns(ways, rounds, clock)
    return Ratio(
        "the same, tensor operations on CUDA", "a copy of as many bytes", taken["tensors"], taken["copy"], note="no kernel there"
    )


if __name__ == "__main__":
    main(compare)
