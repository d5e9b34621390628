"""MgNO: a dense net of functions whose weights are multigrid V-cycles (He, Liu & Xu 2024, ICLR, arXiv:2310.19809).

O_i(u) = σ( Σ_j W_ij u_j + B_ij )         W_ij bounded linear operators, B_ij functions (a 1 × 1 convolution with bias)

One cycle W: f ↦ u does for all pairs of channels at once, on levels l = 0 … J − 1, each with half of the points of the one before:

    smooth      u ← S f   (first),   u ← u + S (f − A u)   (then)          S, A 3 × 3, without bias
    restrict    u ← Π u,   f ← R f   or, with `residual`, the textbook's R (f − A u)       Π, R 3 × 3, every second point
    …           down to the coarsest level, and up again:
    prolong     u_l ← u_l + T u_{l+1},   then smooth again                                T transposed, stride 2

Nothing in it but convolutions: W is linear. What lies beyond the border is decided by `padding` alone: zeros (Dirichlet), reflect
(Neumann), circular (periodic). Every smoothing step has its own S and A.

Which points a level keeps is said by `grid`:
    cells   n = 2^{J−1} m points             every second one, from the first;   T 4 × 4
    ends    n = 2^{J−1} m + 1, both ends     every second one, ends kept;        T 3 × 3
    inner   n = 2^{J−1} m − 1, no ends       every second one, from the second;  T 3 × 3       (zeros at the ends are exact)

Differs from the released code: T pads as the other convolutions do (there always with zeros, so that "circular" is not
equivariant); with `norm` one scale and shift a channel instead of one a point, so that the weights know no grid.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu, pad

from neuropil.errors import Refused, choose
from neuropil.nn.checks import at_least, same_kind, some, suits
from neuropil.physics.checks import channels

PADDING = ("zeros", "reflect", "circular")
# padding of Π and R, size of T's kernel, padding of T, and what n is beyond a multiple of 2^{J−1}
GRIDS = {"cells": (1, 4, 1, 0), "ends": (1, 3, 1, 1), "inner": (0, 3, 0, -1)}


class MultigridLinear(nn.Module):
    """One V-cycle, linear from c_f to c_u channels.

    Args:
        c_f, c_u: channels of the input and of the output.
        levels: J.
        smoothing: (before, after) of each level; default (1, 0), on the coarsest (2, 0). Level 0 needs one step before.
        padding: "zeros", "reflect" or "circular" ("circular" with "cells" only).
        grid: which points there are, see the module.
        widths: channels are multiplied by these on the levels (1, 2, … J for the paper's Helmholtz nets); default 1.
        residual: restrict the residual f − A u instead of f.

    O(points c² 9 Σ_l 4^{-l}) time. About 9 c² (4 J + …) numbers. `Refused` for a grid that cannot be halved J − 1 times.

    >>> import torch
    >>> W = MultigridLinear(2, 3, levels=3)
    >>> f, g = torch.randn(2, 1, 2, 16, 16)
    >>> torch.allclose(W(2 * f - g), 2 * W(f) - W(g), atol=1e-5)
    True
    """

    def __init__(
        self,
        c_f: int,
        c_u: int,
        levels: int,
        smoothing: Sequence[tuple[int, int]] | None = None,
        padding: str = "zeros",
        grid: str = "cells",
        widths: Sequence[int] | None = None,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if min(c_f, c_u, levels) < 1:
            raise Refused(f"c_f, c_u, levels: must be at least 1, got {c_f}, {c_u} and {levels}")
        smoothing = [(1, 0)] * (levels - 1) + [(2, 0)] if smoothing is None else list(smoothing)
        widths = [1] * levels if widths is None else list(widths)
        if len(smoothing) != levels or min(map(min, smoothing)) < 0 or smoothing[0][0] < 1:
            raise Refused(f"smoothing: {levels} pairs of counts, the first of them from 1, are needed, got {smoothing}")
        if len(widths) != levels or min(widths) < 1:
            raise Refused(f"widths: {levels} positive factors are needed, got {widths}")
        self.padding, self.grid, self.levels = choose("padding", padding, PADDING), choose("grid", grid, GRIDS), levels
        if padding == "circular" and grid != "cells":
            raise Refused(f"padding: 'circular' needs grid 'cells', got {grid!r}")
        transfer, kernel, self.crop, _ = GRIDS[grid]
        f, u = [c_f * w for w in widths], [c_u * w for w in widths]

        def conv(a: int, b: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(a, b, 3, stride, transfer if stride == 2 else 1, bias=False, padding_mode=padding)  # type: ignore[arg-type]

        def steps(level: int, count: int) -> nn.ModuleList:
            return nn.ModuleList(Smoother(conv(u[level], f[level]), conv(f[level], u[level])) for _ in range(count))

        self.first = conv(c_f, c_u)
        self.before = nn.ModuleList(steps(k, before - (k == 0)) for k, (before, _) in enumerate(smoothing))
        self.after = nn.ModuleList(steps(k, after) for k, (_, after) in enumerate(smoothing))
        down = range(levels - 1)
        self.Pi, self.R = (nn.ModuleList(conv(c[k], c[k + 1], stride=2) for k in down) for c in (u, f))
        self.A = nn.ModuleList(conv(u[k], f[k]) for k in down) if residual else None
        self.T = nn.ModuleList(nn.ConvTranspose2d(u[k + 1], u[k], kernel, 2, self.crop, bias=False) for k in down)

    def forward(self, f: Float[Tensor, "b f h w"]) -> Float[Tensor, "b u h w"]:
        """The cycle's u for the right-hand side f."""
        self._check(f)
        u, kept = self.first(f), []
        for level in range(self.levels):
            for smooth in self.before[level]:  # type: ignore[attr-defined]
                u = smooth(u, f)
            kept.append((u, f))
            if level + 1 < self.levels:
                f = self.R[level](f if self.A is None else f - self.A[level](u))
                u = self.Pi[level](u)
        for level in reversed(range(self.levels - 1)):
            fine, f = kept[level]
            u = self.joined(level, fine + self.prolong(level, u))
            for smooth in self.after[level]:  # type: ignore[attr-defined]
                u = smooth(u, f)
        return u

    def prolong(self, level: int, u: Tensor) -> Tensor:
        """T u, with what lies beyond the border as `padding` says. `Refused` for a level without a coarser one."""
        self._finer(level)
        T: nn.ConvTranspose2d = self.T[level]  # type: ignore[assignment]
        channels("u", u, T.in_channels, 2, T.weight)
        if self.padding == "zeros":
            return T(u)
        return T(pad(u, (1, 1, 1, 1), self.padding))[..., 2:-2, 2:-2]

    def joined(self, level: int, u: Tensor) -> Tensor:
        """What is done to a level's u when the coarser one has been added: nothing."""
        return u

    def _finer(self, level: int) -> None:
        if not 0 <= level < len(self.T):
            raise Refused(f"level: must be one of {len(self.T)} from 0 on, got {level}")

    def _check(self, f: Tensor) -> None:
        channels("f", f, self.first.in_channels, 2, self.first.weight)
        beyond, unit = GRIDS[self.grid][3], 2 ** (self.levels - 1)
        short = self.padding == "reflect"  # a mirror needs a second point
        for n in f.shape[2:]:
            points = (n - beyond) // unit + beyond
            if (n - beyond) % unit or points < 1 + short:
                wanted = f"{unit} m {beyond:+d}".replace(" +0", "")
                raise Refused(
                    f"f: {self.levels} levels of grid {self.grid!r} need {wanted} points an axis, got {tuple(f.shape[2:])}"
                )


class Smoother(nn.Module):
    """``u ← u + S (f − A u)``.

    >>> import torch
    >>> A, S = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
    >>> _ = nn.init.constant_(A.weight, 4.0), nn.init.constant_(S.weight, 0.25)
    >>> Smoother(A, S)(torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1)).item()
    0.25
    """

    def __init__(self, A: nn.Module, S: nn.Module) -> None:
        super().__init__()
        self.A, self.S = A, S

    def forward(self, u: Float[Tensor, "b u h w"], f: Float[Tensor, "b f h w"]) -> Float[Tensor, "b u h w"]:
        """One step for the right-hand side f. `Refused` for channels that A and S do not take, and a grid without points."""
        same_kind("f", f, u)
        for name, x, takes in (("u", u, self.A), ("f", f, self.S)):
            suits(name, x, takes)
            some(name, x, -1)
            some(name, x, -2)
        return u + self.S(f - self.A(u))


class NormedCycle(MultigridLinear):
    """A V-cycle with a layer norm on the way up, as the paper's net for Navier–Stokes has it: NOT linear.

    >>> import torch
    >>> NormedCycle(2, 2, levels=2)(torch.randn(1, 2, 8, 8)).shape
    torch.Size([1, 2, 8, 8])
    """

    def __init__(self, c_f: int, c_u: int, levels: int, **options: object) -> None:
        super().__init__(c_f, c_u, levels, **options)  # type: ignore[arg-type]
        self.norms = nn.ModuleList(nn.GroupNorm(1, T.out_channels) for T in self.T)  # type: ignore[arg-type]

    def joined(self, level: int, u: Tensor) -> Tensor:
        """Mean 0 and variance 1 over channels and points."""
        self._finer(level)
        norm: nn.GroupNorm = self.norms[level]  # type: ignore[assignment]
        channels("u", u, norm.num_channels, 2, norm.weight)
        return norm(u)


class MgNO(nn.Module):
    """``u ← GELU(W(u) + B u)`` for each of `layers`, then 1 × 1 to the output; no lifting, no projection.

    Args:
        c_in, c_out: channels of the functions.
        width: channels within (24 in the paper's nets for Darcy, with 4 or 5 layers and 5 or 6 levels).
        layers, levels: how many.
        norm: layer norms in the cycles and a way from input to output around all (the net for Navier–Stokes); then c_in = c_out.
        options: of `MultigridLinear`.

    >>> import torch
    >>> MgNO(1, 1, width=4, layers=2, levels=3, grid="inner")(torch.randn(2, 1, 15, 15)).shape
    torch.Size([2, 1, 15, 15])
    """

    def __init__(self, c_in: int, c_out: int, width: int, layers: int, levels: int, norm: bool = False, **options: object) -> None:
        super().__init__()
        if layers < 1 or width < 1:
            raise Refused(f"layers, width: must be at least 1, got {layers} and {width}")
        if norm and c_in != c_out:
            raise Refused(f"norm: the way around all needs c_in = c_out, got {c_in} and {c_out}")
        at_least(1, c_in=c_in, c_out=c_out)
        cycle, self.norm = NormedCycle if norm else MultigridLinear, norm
        c = [c_in] + [width] * layers
        self.W = nn.ModuleList(cycle(a, width, levels, **options) for a in c[:-1])  # type: ignore[arg-type]
        self.B = nn.ModuleList(nn.Conv2d(a, width, 1) for a in c[:-1])
        self.last = nn.Conv2d(width, c_out, 1, bias=False)

    def forward(self, u: Float[Tensor, "b i h w"]) -> Float[Tensor, "b o h w"]:
        """The image of a function, on its grid."""
        channels("u", u, self.B[0].in_channels, 2, self.last.weight)  # type: ignore[arg-type]
        v = u
        for W, B in zip(self.W, self.B, strict=True):
            v = gelu(W(v) + B(v))
        return self.last(v) + u if self.norm else self.last(v)
