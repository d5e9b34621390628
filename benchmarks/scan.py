"""`nn.scan` of a tanh cell of 256 units over 1,000 steps: `python benchmarks/scan.py [threads]`.

Plain and compiled, against a Python loop of the same cell and torch.nn.LSTM of 256 units (which does four times the products).
Batch 32, 64 inputs. All run in turns in one process, so that the ratios of a round are of one moment; compilation is not counted.
"""

import json
import platform
import sys
import time

import torch
from rounds import spread
from torch import nn

from neuropil.nn.scan import scan

STEPS, BATCH, INPUTS, UNITS, BLOCK, ROUNDS = 1000, 32, 64, 256, 20, 5


class Cell(nn.Module):
    """``h ← tanh(U h + V x + b)``."""

    def __init__(self) -> None:
        super().__init__()
        self.V, self.U = nn.Linear(INPUTS, UNITS), nn.Linear(UNITS, UNITS, bias=False)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = torch.tanh(self.V(x) + self.U(h))
        return h, h


def loop(cell: Cell, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    outputs = []
    for x_t in x:
        y, h = cell(x_t, h)
        outputs.append(y)
    return torch.stack(outputs)


def seconds(way, module: nn.Module) -> dict[str, float]:
    """Forward without a graph, and forward with one and backward."""
    with torch.no_grad():
        start = time.perf_counter()
        way()
        forward = time.perf_counter() - start
    module.zero_grad()
    start = time.perf_counter()
    way().sum().backward()
    return {"forward": forward, "forward and backward": time.perf_counter() - start}


def run(steps: int, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    cell, lstm = Cell(), nn.LSTM(INPUTS, UNITS)
    x, h = torch.randn(steps, BATCH, INPUTS), torch.zeros(BATCH, UNITS)
    ways = {
        "scan": (lambda: scan(cell, x, h)[0], cell),
        f"scan, compiled={BLOCK}": (lambda: scan(cell, x, h, compiled=BLOCK)[0], cell),
        "Python loop": (lambda: loop(cell, x, h), cell),
        "nn.LSTM": (lambda: lstm(x)[0], lstm),
    }
    names = list(ways)
    for name in names[:2]:
        torch.testing.assert_close(ways[name][0](), ways["Python loop"][0](), atol=1e-4, rtol=1e-4)
    taken = [{name: seconds(*way) for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    found: dict[str, object] = {}
    for what in ("forward", "forward and backward"):
        found[f"{what}, seconds"] = {name: spread([t[name][what] for t in taken]) for name in names}
        found[f"{what}, {names[1]} is times faster than"] = {
            name: spread([t[name][what] / t[names[1]][what] for t in taken]) for name in names if name != names[1]
        }
    return found


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    short = sys.argv[2:] == ["short"]  # only to see that it runs
    facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({**facts, **run(*((2 * BLOCK, 1) if short else (STEPS, ROUNDS)))}, indent=1))
