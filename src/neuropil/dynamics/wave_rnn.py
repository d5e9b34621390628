"""Wave-RNN: a recurrent net whose recurrent matrix is a small circular convolution, started as a shift: inputs travel as waves.

    h_{t+1} = φ(w ⋆ h_t + V x_t + b)        h ∈ R^{c × n}: c rings of n units; ⋆ circular along the ring, mixing rings

From ∂h/∂t = ν ∂h/∂x on a ring, one way. With the "wave" start, (w ⋆ h)[j, i] = h[j, i + 1] and V writes to unit 0 of each ring:
unit −k holds the input of k steps ago, a ring of n units is a memory of n steps. "still" puts the tap in the middle: nothing moves.

Keller, Muller, Sejnowski & Welling 2023, arXiv:2309.08045 (ICLR 2024). Differs: kernels of 3 taps only, as in the paper's runs.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.nn.checks import at_least, fits, same_kind, some, transformable
from neuropil.nn.scan import scan

PHI: dict[str, Callable[[Tensor], Tensor]] = {"relu": torch.relu, "tanh": torch.tanh, "identity": lambda x: x}


class WaveCell(nn.Module):
    """One step of the rings. The state is h, of shape (*b, c, n); see `start`.

    Args:
        d: inputs a step.
        units: n, the length of each ring: the horizon of the memory in steps.
        rings: c.
        phi: "relu" (the paper's for synthetic tasks), "tanh" or "identity".
        init: "wave" (shift by one a step), "still" (identity) or "random" (torch's uniform).
        source: "one" writes inputs to unit 0 of every ring with weight 1 and nowhere else, "noise" draws V from N(0, 0.001²).

    d c n + c n + 3 c² + c numbers; O(c² n + c n d) time a step and batch element. The output is the state, flat.

    >>> cell = WaveCell(1, units=4, rings=1, phi="identity")
    >>> scan(cell, torch.tensor([[[1.0]], [[2.0]], [[3.0]]]), cell.start(1))[1]
    tensor([[[3., 0., 1., 2.]]], grad_fn=...)
    """

    def __init__(
        self,
        d: int,
        units: int,
        rings: int,
        phi: str = "relu",
        init: str = "wave",
        source: str = "one",
    ) -> None:
        super().__init__()
        if min(d, rings) < 1 or units < 2:
            raise Refused(f"d, units, rings: at least 1, 2 and 1 are needed, got {d}, {units} and {rings}")
        self.units, self.rings, self.phi = units, rings, choose("phi", phi, PHI)
        choose("init", init, ("wave", "still", "random"))
        choose("source", source, ("one", "noise"))
        self.V = nn.Linear(d, rings * units)
        bound = (3 * rings) ** -0.5
        self.w = nn.Parameter(torch.empty(rings, rings, 3).uniform_(-bound, bound))
        self.b = nn.Parameter(torch.empty(rings).uniform_(-bound, bound))
        with torch.no_grad():
            if init != "random":
                self.w.zero_()[:, :, 2 if init == "wave" else 1] = torch.eye(rings)
                self.b.zero_()
            if source == "one":
                self.V.bias.zero_()
                self.V.weight.zero_().view(rings, units, d)[:, 0] = 1.0
            else:
                self.V.weight.normal_(0, 0.001)

    def start(self, *batch: int) -> Float[Tensor, "*b c n"]:
        """Rings at rest."""
        return self.w.new_zeros(*batch, self.rings, self.units)

    def forward(
        self, x: Float[Tensor, "*b d"], h: Float[Tensor, "*b c n"]
    ) -> tuple[Float[Tensor, "*b c*n"], Float[Tensor, "*b c n"]]:
        """One step. `Refused` if the state is not of this cell's shape."""
        if h.shape[-2:] != (self.rings, self.units):
            raise Refused(f"state: must end in (rings, units) = ({self.rings}, {self.units}), got {tuple(h.shape)}")
        fits("x", x, self.V.in_features, self.V.weight)
        drive = self.V(x).unflatten(-1, (self.rings, self.units)) + self.b[:, None]
        h = PHI[self.phi](drive + self.convolve(h))
        return h.flatten(-2), h

    def convolve(self, h: Float[Tensor, "*b c n"]) -> Float[Tensor, "*b c n"]:
        """w ⋆ h as one matrix product over the three neighbours of every unit."""
        if h.ndim < 2 or h.shape[-2] != self.rings:
            raise Refused(f"h: must end in (rings, units) with {self.rings} rings, got {tuple(h.shape)}")
        same_kind("h", h, self.w)
        neighbours = torch.cat([h.roll(1, -1), h, h.roll(-1, -1)], -2)
        return self.w.transpose(1, 2).flatten(1) @ neighbours

    def matrix(self) -> Float[Tensor, "m m"]:
        """The recurrent matrix of the flat state, m = c n: c × c circulant blocks of n × n."""
        eye = torch.eye(self.rings * self.units, dtype=self.w.dtype, device=self.w.device)
        return self.convolve(eye.unflatten(-1, (self.rings, self.units))).flatten(-2).T


class IdentityCell(nn.Module):
    """The wave-free twin: a dense recurrent matrix that starts as the identity, ``h ← φ(U h + V x + b)``, V ~ N(0, 0.001²).

    Le, Jaitly & Hinton 2015, arXiv:1504.00941 (iRNN). n² + n (d + 2) numbers, O(n²) time a step.

    >>> cell = IdentityCell(2, 5)
    >>> cell(torch.zeros(3, 2), cell.start(3))[0].shape
    torch.Size([3, 5])
    """

    def __init__(self, d: int, units: int, phi: str = "relu") -> None:
        super().__init__()
        at_least(1, d=d, units=units)
        self.V, self.U, self.phi = nn.Linear(d, units), nn.Linear(units, units), choose("phi", phi, PHI)
        nn.init.normal_(self.V.weight, std=0.001)
        nn.init.eye_(self.U.weight)
        nn.init.zeros_(self.U.bias)

    def start(self, *batch: int) -> Float[Tensor, "*b n"]:
        """Units at rest."""
        return self.U.weight.new_zeros(*batch, len(self.U.weight))

    def forward(self, x: Float[Tensor, "*b d"], h: Float[Tensor, "*b n"]) -> tuple[Float[Tensor, "*b n"], Float[Tensor, "*b n"]]:
        """One step."""
        fits("x", x, self.V.in_features, self.V.weight)
        fits("h", h, self.U.in_features, self.U.weight)
        h = PHI[self.phi](self.V(x) + self.U(h))
        return h, h


class Reader(nn.Module):
    """A cell run over a sequence, and a linear read-out of its output at every step (or of the last one).

    >>> Reader(IdentityCell(2, 5), 5, 3)(torch.zeros(7, 4, 2)).shape
    torch.Size([7, 4, 3])
    """

    def __init__(self, cell: nn.Module, width: int, d_out: int, last: bool = False, compiled: int | None = None) -> None:
        super().__init__()
        at_least(1, width=width, d_out=d_out)
        self.cell, self.read, self.last, self.compiled = cell, nn.Linear(width, d_out), last, compiled

    def forward(self, x: Float[Tensor, "t b d"]) -> Float[Tensor, "*t b d_out"]:
        """Read-outs, time first."""
        some("x", x, 0)
        y, _ = scan(self.cell, x, self.cell.start(x.shape[1]), compiled=self.compiled)  # type: ignore[operator]
        return self.read(y[-1] if self.last else y)


def wave_speed(h: Float[Tensor, "t n"]) -> float:
    """Units a step at which a pattern h[t, i] travels along a ring, toward lower indices: the slope ω/k of its space-time spectrum.

    The peak of |FFT|² over wave numbers k ≠ 0, each weighted by its power: ν = Σ ω k P / Σ k² P (least squares through the origin).
    `Refused` for no states, or half precision.

    >>> x = torch.arange(32)
    >>> pulse = torch.stack([torch.exp(-0.5 * ((x - 16 + t + 16) % 32 - 16.0) ** 2) for t in range(32)])
    >>> round(wave_speed(pulse), 2)
    1.0
    """
    transformable("h", h)
    t, n = h.shape
    power = torch.fft.fft2(h - h.mean()).abs().square()
    omega, k = torch.meshgrid(*(torch.fft.fftfreq(size, device=h.device) for size in (t, n)), indexing="ij")
    moving = power * ((k != 0) & (k.abs() < 0.25))  # fast ripples alias in time
    return float((omega * k * moving).sum() / (k.square() * moving).sum().clamp_min(1e-30))
