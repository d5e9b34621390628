"""A net of leaky integrate-and-fire units, 784 → 256 → 10, forward and backward: `python benchmarks/spiking.py [threads]`.

100 steps, batch 64. `nn.spiking.LIF` under `nn.scan`, plain and compiled, against snnTorch's Leaky and norse's LIFBox with the same
weights, inputs, decay, threshold and soft reset. All run in turns in one process; compilation is not counted. A peer that is not
installed is skipped by name. A few of snnTorch's spikes differ: it takes a second θ off a unit that a reset left above θ.
"""

import importlib
import itertools
import json
import platform
import sys
import time
import warnings

import torch
from rounds import spread
from torch import nn

from neuropil.nn.scan import scan
from neuropil.nn.spiking import LIF

STEPS, BATCH, WIDTHS, BLOCK, ROUNDS = 100, 64, (784, 256, 10), 10, 9
DECAY, DT = 0.9, 0.001


class Net(nn.Module):
    """Ours, a cell: the state is the potentials of both layers."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second, self.lif = first, second, LIF(DECAY, 1.0, "soft", "fast_sigmoid", 25.0)

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        hidden, u = self.lif(self.first(x), state[0])
        out, v = self.lif(self.second(hidden), state[1])
        return out, (u, v)


def snntorch(first: nn.Linear, second: nn.Linear, x: torch.Tensor):
    package = importlib.import_module("snntorch")
    surrogate = importlib.import_module("snntorch.surrogate").fast_sigmoid(slope=25)
    a, b = (package.Leaky(DECAY, spike_grad=surrogate, reset_mechanism="subtract", reset_delay=False) for _ in range(2))

    def way() -> torch.Tensor:
        u, v, outputs = torch.zeros(BATCH, WIDTHS[1]), torch.zeros(BATCH, WIDTHS[2]), []
        for x_t in x:
            hidden, u = a(first(x_t), u)
            out, v = b(second(hidden), v)
            outputs.append(out)
        return torch.stack(outputs)

    return way


def norse(first: nn.Linear, second: nn.Linear, x: torch.Tensor):
    package = importlib.import_module("norse.torch.functional.lif_box")
    soft = importlib.import_module("norse.torch.functional.reset").reset_subtract
    p = package.LIFBoxParameters(tau_mem_inv=torch.tensor((1 - DECAY) / DT), alpha=torch.tensor(25.0), reset_method=soft)
    step, State, gain = package.lif_box_feed_forward_step, package.LIFBoxFeedForwardState, 1 / (1 - DECAY)

    def way() -> torch.Tensor:
        u, v, outputs = State(torch.zeros(BATCH, WIDTHS[1])), State(torch.zeros(BATCH, WIDTHS[2])), []
        for x_t in x:
            hidden, u = step(gain * first(x_t), u, p, DT)
            out, v = step(gain * second(hidden), v, p, DT)
            outputs.append(out)
        return torch.stack(outputs)

    return way


def seconds(way, net: nn.Module) -> float:
    net.zero_grad()
    start = time.perf_counter()
    way().mean().backward()
    return time.perf_counter() - start


def run(steps: int, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    first, second = (nn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS))
    net, x = Net(first, second), torch.rand(steps, BATCH, WIDTHS[0])
    start = torch.zeros(BATCH, WIDTHS[1]), torch.zeros(BATCH, WIDTHS[2])
    ways = {"scan": lambda: scan(net, x, start)[0], f"scan, compiled={BLOCK}": lambda: scan(net, x, start, compiled=BLOCK)[0]}
    ours, skipped = list(ways), []
    for peer in (snntorch, norse):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ways[peer.__name__] = peer(first, second, x)
        except ImportError as error:
            skipped.append(f"{peer.__name__}: {error}")
    with torch.no_grad():
        differ = {name: float((way() != ways["scan"]()).float().mean()) for name, way in ways.items()}
    taken = [{name: seconds(way, net) for name, way in ways.items()} for _ in range(rounds + 1)][1:]
    return {
        "share of output spikes that differ from scan's": differ,
        "forward and backward, seconds": {name: spread([t[name] for t in taken]) for name in ways},
        **{
            f"{name} is times faster than": {peer: spread([t[peer] / t[name] for t in taken]) for peer in ways if peer not in ours}
            for name in ours
        },
        "skipped": skipped,
    }


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    short = sys.argv[2:] == ["short"]  # only to see that it runs
    facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({**facts, **run(*((2 * BLOCK, 1) if short else (STEPS, ROUNDS)))}, indent=1))
