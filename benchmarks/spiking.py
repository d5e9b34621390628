"""A net of leaky integrate-and-fire units, 784 → 256 → 10, 100 steps, batch 64, forward and backward.

`nn.spiking.LIF` under `nn.scan`, plain and compiled, against snnTorch's Leaky and norse's LIFBox with the same weights, inputs,
decay, threshold and soft reset. Compilation is not counted. Norse's spikes are ours; a few of snnTorch's differ, for it takes a
second θ off a unit that a reset left above θ.
"""

import itertools
from collections.abc import Callable, Iterator

import torch
from rounds import Missing, Ratio, in_turns, main, peer
from torch import nn

from neuropil.nn.scan import scan
from neuropil.nn.spiking import LIF

BATCH, WIDTHS, BLOCK = 64, (784, 256, 10), 10
DECAY, DT = 0.9, 0.001
NORSE = ("norse", "pip install --no-deps norse nir nirtorch")
Way = Callable[[], torch.Tensor]


class Net(nn.Module):
    """Ours, a cell: the state is the potentials of both layers."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second, self.lif = first, second, LIF(DECAY, 1.0, "soft", "fast_sigmoid", 25.0)

    def forward(self, x: torch.Tensor, state: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        hidden, u = self.lif(self.first(x), state[0])
        out, v = self.lif(self.second(hidden), state[1])
        return out, (u, v)


def snntorch(first: nn.Linear, second: nn.Linear, x: torch.Tensor) -> Way:
    package = peer("snntorch", "snntorch")
    surrogate = peer("snntorch.surrogate", "snntorch").fast_sigmoid(slope=25)
    a, b = (package.Leaky(DECAY, spike_grad=surrogate, reset_mechanism="subtract", reset_delay=False) for _ in range(2))

    def way() -> torch.Tensor:
        u, v, outputs = torch.zeros(BATCH, WIDTHS[1]), torch.zeros(BATCH, WIDTHS[2]), []
        for x_t in x:
            hidden, u = a(first(x_t), u)
            out, v = b(second(hidden), v)
            outputs.append(out)
        return torch.stack(outputs)

    return way


def norse(first: nn.Linear, second: nn.Linear, x: torch.Tensor) -> Way:
    package = peer("norse.torch.functional.lif_box", *NORSE)
    soft = peer("norse.torch.functional.reset", *NORSE).reset_subtract
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


def compare(quick: bool) -> Iterator[Ratio]:
    torch.manual_seed(0)
    first, second = (nn.Linear(a, b) for a, b in itertools.pairwise(WIDTHS))
    net, x = Net(first, second), torch.rand(100, BATCH, WIDTHS[0])
    start = torch.zeros(BATCH, WIDTHS[1]), torch.zeros(BATCH, WIDTHS[2])
    compiled = f"compiled in blocks of {BLOCK}"
    ours: dict[str, Way] = {"plain": lambda: scan(net, x, start)[0], compiled: lambda: scan(net, x, start, compiled=BLOCK)[0]}
    peers, differ = {}, {}
    for make, most in ((snntorch, 0.02), (norse, 0.001)):  # shares of other spikes: see above; rounding
        try:
            peers[make.__name__] = make(first, second, x)
        except Missing as why:
            yield Ratio("LIF net, forward and backward", make.__name__, package=make.__name__, skipped=str(why))
            continue
        with torch.no_grad():
            differ[make.__name__] = float((peers[make.__name__]() != ours["plain"]()).float().mean())
        assert differ[make.__name__] <= most, f"{differ[make.__name__]:.2%} of {make.__name__}'s spikes differ from ours"
    with torch.no_grad():
        assert (ours[compiled]() != ours["plain"]()).float().mean() <= 0.001

    ways = {name: lambda way=way: way().mean().backward() for name, way in (ours | peers).items()}
    taken = in_turns(ways, 3 if quick else 9)
    for name, other in itertools.product(ours, peers):
        note = f"{differ[other]:.1%} of output spikes differ" + ("" if other == "norse" else ": two resets at once")
        what = f"LIF net, forward and backward, {name}"
        yield Ratio(what, other, taken[name], taken[other], at_least=1, note=note, package=other)


if __name__ == "__main__":
    main(compare)
