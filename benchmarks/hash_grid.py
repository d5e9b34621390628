"""The hash encoding's kernels against plain tensor operations, forward and backward: `python benchmarks/hash_grid.py`.

65,536 points in 3-D, 16 levels × 2 features, tables of 2^17 rows; the gradient is the table's, as in training. Both run in turns
in one process, so that the ratio of each pair is of one moment. The tensor operations go level by level, the faster of two ways
that were tried (all levels at once took 4 times as long). On CUDA, where there is no kernel, the share of the copy bandwidth that
they reach.
"""

import json
import platform
import sys
import time

import torch
from rounds import spread

from neuropil.fields.grids import HashGrid
from neuropil.numerics import multilinear

POINTS, PAIRS = 1 << 16, 9


def seconds(read, grid: HashGrid, x: torch.Tensor, g: torch.Tensor) -> tuple[float, float]:
    """Forward and backward."""
    grid.table.grad = None
    wait = torch.cuda.synchronize if x.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    y = read(x, grid.table, grid.resolutions, grid.sizes)
    wait()
    middle = time.perf_counter()
    y.backward(g)
    wait()
    return middle - start, time.perf_counter() - middle


def copy_bandwidth(device: torch.device) -> float:
    """Bytes read and written a second by a copy of 256 MiB."""
    a = torch.empty(1 << 28, dtype=torch.uint8, device=device)
    b, times = torch.empty_like(a), []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        b.copy_(a)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return 2 * a.numel() / min(times)


def run(device: torch.device) -> dict[str, object]:
    torch.manual_seed(0)
    grid = HashGrid(3, levels=16, features=2, table=2**17, coarsest=16, finest=2048).to(device)
    torch.nn.init.normal_(grid.table)
    x = 2 * torch.rand(POINTS, 3, device=device) - 1
    g = torch.randn(POINTS, grid.width, device=device)
    ways = {"tensors": multilinear.eager}
    if device.type == "cpu":
        ways = {"kernels": multilinear._compiled, **ways}
        torch.testing.assert_close(*(read(x, grid.table, grid.resolutions, grid.sizes) for read in ways.values()))
    pairs = [{name: seconds(read, grid, x, g) for name, read in ways.items()} for _ in range(PAIRS + 1)][1:]
    found: dict[str, object] = {
        f"{name}, seconds": {
            "forward": spread([p[name][0] for p in pairs]),
            "backward": spread([p[name][1] for p in pairs]),
            "both": spread([sum(p[name]) for p in pairs]),
        }
        for name in ways
    }
    if device.type == "cpu":
        found["kernels are times faster"] = spread([sum(p["tensors"]) / sum(p["kernels"]) for p in pairs])
        least = {name: min(sum(p[name]) for p in pairs) for name in ways}
        found["fastest against fastest"] = round(least["tensors"] / least["kernels"], 2)
    else:
        # least traffic: coordinates, 8 rows a point and level, and the output; backward the same with rows read and written
        forward = POINTS * (3 + 16 * 8 * 2 + 32) * 4
        backward = POINTS * (3 + 2 * 16 * 8 * 2 + 32) * 4
        best = min(sum(p["tensors"]) for p in pairs)
        found["share of the copy bandwidth"] = round((forward + backward) / best / copy_bandwidth(device), 4)
    return found


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    if not torch.cuda.is_available():
        import numba

        print(json.dumps({**facts, "numba": numba.__version__, **run(torch.device("cpu"))}, indent=1))
    else:
        print(json.dumps({**facts, "device": torch.cuda.get_device_name(), **run(torch.device("cuda"))}, indent=1))
