"""`nn.scan` of a tanh cell of 256 units over 1,000 steps, batch 32, 64 inputs: plain, and compiled in blocks.

Against a Python loop of the same cell, and against torch.nn.LSTM of 256 units, which is another function: it does four times the
products. Compilation is not counted.
"""

from collections.abc import Callable, Iterator

import torch
from rounds import Ratio, in_turns, main
from torch import nn

from neuropil.nn.scan import scan

BATCH, INPUTS, UNITS, BLOCK = 32, 64, 256, 20


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


def forward(way: Callable[[], torch.Tensor]) -> None:
    with torch.no_grad():
        way()


def both(way: Callable[[], torch.Tensor]) -> None:
    way().sum().backward()


def compare(quick: bool) -> Iterator[Ratio]:
    torch.manual_seed(0)
    cell, lstm, steps = Cell(), nn.LSTM(INPUTS, UNITS), 200 if quick else 1000
    x, h = torch.randn(steps, BATCH, INPUTS), torch.zeros(BATCH, UNITS)
    compiled = f"compiled in blocks of {BLOCK}"
    ours = {compiled: lambda: scan(cell, x, h, compiled=BLOCK)[0], "plain": lambda: scan(cell, x, h)[0]}
    peers = {"a Python loop": lambda: loop(cell, x, h), "torch's LSTM": lambda: lstm(x)[0]}
    for way in ours.values():
        torch.testing.assert_close(way(), peers["a Python loop"](), atol=1e-4, rtol=1e-4)

    for what, run in (("forward and backward", both), ("forward", forward)):
        taken = in_turns({name: lambda way=way, run=run: run(way) for name, way in (ours | peers).items()}, 2 if quick else 5)
        for name in ours:
            for other in peers:
                wish = 1.0 if other == "torch's LSTM" and name == compiled else None
                note = "four times the products" if other == "torch's LSTM" else ""
                row = f"`scan` of 256 tanh units, {steps:,} steps, {name}, {what}"
                yield Ratio(row, other, taken[name], taken[other], at_least=wish, note=note)


if __name__ == "__main__":
    main(compare)
