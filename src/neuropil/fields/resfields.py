"""ResFields: a linear layer whose weight has a residual in time, composed of a few shared matrices; a field of clips and shapes.

    y = (W + Σ_r V[t, r] M_r) x + b,        W ∈ R^{m×n},  V ∈ R^{T×R},  M ∈ R^{R×mn}

Mihajlovic, Prokudin, Pollefeys & Tang, ICLR 2024, arXiv:2309.03160. More capacity over time at the price of one query of the plain
network: points come in groups of one time each, and one weight matrix a group is built, never one a point.

Time is a frame number (integers: row t of V) or a real t in [−1, 1], on which frame k of T lies at ``2k/(T − 1) − 1``: the first
and the last frame at the ends (`frame_times`), V linear in between. A frame number and its time give the same, also as the field's
coordinate.

`COMPOSITIONS` beside "vm" are those of the paper's ablation. Three differ from the authors' code on purpose: "shared" is
W + Σ_r M_r (there, vm_noweight, W is added once a matrix: R W + Σ_r M_r); "bank" (loe) adds the expert to W, where theirs takes W's
place and starts as zero; "bias" (resnet) adds its vector before the sine, not after (W (x + v) = W x + W v: the same, a layer on).
"""

from collections.abc import Sequence
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.fields.modulated import SPREAD, ModulatedSiren, TimeCodes, at_time, by_group

Times = Int[Tensor, "*f"] | Float[Tensor, "*f"]


def frame_times(frames: int) -> Float[Tensor, " frames"]:
    """``2k/(T − 1) − 1`` for k = 0 … T − 1: the times of T frames on [−1, 1]; a single frame lies at 0.

    >>> frame_times(5)
    tensor([-1.0000, -0.5000, 0.0000, 0.5000, 1.0000])
    """
    if frames < 0:
        raise Refused(f"frames: must be 0 or more, got {frames}")
    return torch.linspace(-1, 1, frames) if frames > 1 else torch.zeros(frames)


def _randn(*shape: int) -> nn.Parameter:
    return nn.Parameter(SPREAD * torch.randn(*shape))


class _VM(nn.Module):
    """``Δ_t = Σ_r V[t, r] M_r``; V, M ~ 0.01 N(0, 1)."""

    def __init__(self, T: int, R: int, m: int, n: int) -> None:
        super().__init__()
        self.V, self.M = _randn(T, R), _randn(R, m * n)
        self.shape = (m, n)

    def forward(self, t: Tensor) -> Tensor:
        return (at_time(self.V, t) @ self.M).unflatten(-1, self.shape)


class _Multiply(_VM):
    """``W_t = W ⊙ Σ_r V[t, r] M_r``; starts as W: V = 1/R, M = 1."""

    def __init__(self, T: int, R: int, m: int, n: int) -> None:
        super().__init__(T, R, m, n)
        nn.init.constant_(self.V, 1 / R)
        nn.init.ones_(self.M)


class _Attention(_VM):
    """``Δ_t = Σ_r V'[t, r] M_r, V' = softmax(A Aᵀ/R) V``: frames share codes by learned likeness; A = 1 at first."""

    def __init__(self, T: int, R: int, m: int, n: int) -> None:
        super().__init__(T, R, m, n)
        self.A = nn.Parameter(torch.ones(T, R))

    def forward(self, t: Tensor) -> Tensor:
        V = torch.softmax(self.A @ self.A.T / self.A.shape[1], 0) @ self.V  # each column sums to 1, as in the authors' code
        return (at_time(V, t) @ self.M).unflatten(-1, self.shape)


class _Shared(nn.Module):
    """``Δ_t = Σ_r M_r``, the same at all times; M ~ 10⁻⁶ N(0, 1)."""

    def __init__(self, T: int, R: int, m: int, n: int) -> None:
        super().__init__()
        self.M = nn.Parameter(1e-6 * torch.randn(R, m * n))
        self.shape = (m, n)

    def forward(self, t: Tensor) -> Tensor:
        return self.M.sum(0).unflatten(-1, self.shape).expand(*t.shape, *self.shape)


class _Full(nn.Module):
    """``Δ_t = M_t``, a matrix a frame; 0 at first."""

    def __init__(self, T: int, R: int, m: int, n: int) -> None:
        super().__init__()
        self.M = nn.Parameter(torch.zeros(T, m * n))
        self.shape = (m, n)

    def forward(self, t: Tensor) -> Tensor:
        return at_time(self.M, t).unflatten(-1, self.shape)


class _CP(nn.Module):
    """``Δ_t = Σ_r λ_r A[t, r] b_r c_rᵀ``; all factors ~ 0.01 N(0, 1)."""

    def __init__(self, T: int, R: int, m: int, n: int) -> None:
        super().__init__()
        self.weights, self.A, self.B, self.C = _randn(R), _randn(T, R), _randn(m, R), _randn(n, R)

    def forward(self, t: Tensor) -> Tensor:
        return (self.B * (self.weights * at_time(self.A, t))[..., None, :]) @ self.C.T


class _Tucker(nn.Module):
    """``Δ_t = B (Σ_r A[t, r] G_r) Cᵀ``, G of R³ numbers (an axis has no more than its size); all ~ 0.01 N(0, 1)."""

    def __init__(self, T: int, R: int, m: int, n: int) -> None:
        super().__init__()
        p, q, s = min(R, T), min(R, m), min(R, n)
        self.G, self.A, self.B, self.C = _randn(p, q, s), _randn(T, p), _randn(m, q), _randn(n, s)

    def forward(self, t: Tensor) -> Tensor:
        return self.B @ torch.einsum("...p,pqs->...qs", at_time(self.A, t), self.G) @ self.C.T


class _Bank(nn.Module):
    """``Δ_t = M_r`` of the nearest of R experts, spread evenly over [−1, 1]; 0 at first. Level of experts (Hao et al. 2022)."""

    def __init__(self, T: int, R: int, m: int, n: int) -> None:
        super().__init__()
        self.M, self.frames = nn.Parameter(torch.zeros(R, m * n)), T
        self.shape = (m, n)

    def forward(self, t: Tensor) -> Tensor:
        time = (_real(t, self.frames, self.M.dtype).clamp(-1, 1) + 1) / 2
        return self.M[(time * (len(self.M) - 1)).round().long()].unflatten(-1, self.shape)


class _Bias(TimeCodes):
    """``b_t = b + B[t]``, a vector a frame and no residual weight; 0 at first."""

    def __init__(self, T: int, R: int, m: int, n: int) -> None:
        super().__init__(T, m, spread=0.0)


COMPOSITIONS: dict[str, type[nn.Module]] = {
    "vm": _VM,
    "multiply": _Multiply,
    "attention": _Attention,
    "shared": _Shared,
    "full": _Full,
    "cp": _CP,
    "tucker": _Tucker,
    "bank": _Bank,
    "bias": _Bias,
}


class ResFieldLinear(nn.Linear):
    """``y = (W + Δ_t) x + b`` with Δ_t composed of `rank` matrices over `frames` rows in time, as one of `COMPOSITIONS` says.

    Fewer rows than the clip has frames are for real times only. "vm" has mn + m + TR + Rmn numbers. A group of s points at one time
    costs O(R m n + s m n) time and O(m n) memory beside its values. `Refused` for sizes below 1 or an unknown composition.

    >>> layer = ResFieldLinear(3, 8, frames=24, rank=10)
    >>> x = torch.zeros(2, 100, 3)
    >>> layer(x, torch.tensor([0, 23])).shape, torch.equal(layer(x, torch.tensor([0, 23])), layer(x, torch.tensor([-1.0, 1.0])))
    (torch.Size([2, 100, 8]), True)
    """

    def __init__(self, n: int, m: int, frames: int, rank: int = 10, composition: str = "vm") -> None:
        for name, value in (("n", n), ("m", m), ("frames", frames), ("rank", rank)):
            if value < 1:
                raise Refused(f"{name}: must be at least 1, got {value}")
        self.composition = choose("composition", composition, COMPOSITIONS)
        super().__init__(n, m)
        self.residual = COMPOSITIONS[composition](frames, rank, m, n)

    def weight_at(self, t: Times) -> Float[Tensor, "*f m n"]:
        """The whole weight matrix at frames or times t; every composition's but "bias", whose weight is W at all times."""
        if self.composition == "bias":
            return self.weight.expand(*t.shape, *self.weight.shape)
        return self.weight * self.residual(t) if self.composition == "multiply" else self.weight + self.residual(t)

    def forward(self, x: Float[Tensor, "*f s n"], t: Times) -> Float[Tensor, "*f s m"]:  # type: ignore[override]
        """The layer's values at the s points of every group, whose frame or time is t."""
        if self.composition == "bias":
            return nn.functional.linear(x, self.weight) + (self.bias + self.residual(t))[..., None, :]
        return by_group(x, self.weight_at(t), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, composition={self.composition}"


class ResField(nn.Module):
    """A SIREN of space and time with residuals in the linear layers numbered `layers`: (x, t) → a colour, a distance, …

    `sizes` = (d + 1, hidden…, out): the coordinates of x, then time, which the field appends itself. By default all but the
    first and the last layer have residuals, as in the paper (1, 2, 3 of a net with four hidden layers); none is the plain SIREN.
    `rows` of the tables in time may be fewer than `frames`: frames are then read at their times, between rows. First weights are
    those of `Siren` for the same state of torch's generator.

    >>> film = ResField([3, 64, 64, 64, 64, 3], frames=24)  # (x, y, t) → RGB
    >>> film(torch.zeros(24, 100, 2), torch.arange(24)).shape
    torch.Size([24, 100, 3])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        frames: int,
        rank: int = 10,
        composition: str = "vm",
        layers: Sequence[int] | None = None,
        rows: int | None = None,
        omega: float | Sequence[float] = 30.0,
        hidden_omega: float = 30.0,
    ) -> None:
        super().__init__()
        if frames < 1:
            raise Refused(f"frames: must be at least 1, got {frames}")
        self.frames, self.rows = frames, rows or frames

        def layer(n: int, m: int) -> nn.Module:
            return ResFieldLinear(n, m, self.rows, rank, composition)

        self.net = ModulatedSiren(sizes, layer, layers, omega, hidden_omega)

    def forward(self, x: Float[Tensor, "*f s d"], t: Times) -> Float[Tensor, "*f s d_out"]:
        """The field's values at the s points of every group, whose frame or time is t."""
        time = _real(t, self.frames, x.dtype)
        coordinates = torch.cat([x, time[..., None, None].expand(*x.shape[:-1], 1)], -1)
        return cast(Tensor, self.net(coordinates, t if self.rows == self.frames else time))


def _real(t: Tensor, frames: int, dtype: torch.dtype) -> Tensor:
    """Frame numbers as times (see `frame_times`); real times as they are."""
    if t.is_floating_point():
        return t.to(dtype)
    return t.to(dtype) * (2 / (frames - 1)) - 1 if frames > 1 else torch.zeros_like(t, dtype=dtype)
