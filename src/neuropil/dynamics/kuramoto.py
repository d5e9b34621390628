"""Kuramoto oscillators as a layer: unit vectors that turn by themselves, are pulled by an input, and pull one another into line.

    dx_i/dt = Ω_i x_i + Proj_{x_i}(c_i + Σ_j J_ij x_j),      Proj_x(y) = y − (y·x) x,      x_i ∈ R^N, |x_i| = 1
    x_i ← normalise(x_i + γ (Ω_i x_i + Proj_{x_i}(c_i + Σ_j J_ij x_j)))        (T times, the same weights at every step)
    E(x) = − a Σ_i x_i·Σ_j J_ij x_j − Σ_i x_i·c_i

a = ½ is the paper's Lyapunov form: it falls along the flow if J is symmetric, Ω = 0 and γ is small, and not in general: with γ = 1,
with Ω ≠ 0 or with a free J (attention is never symmetric) it goes up at some steps. a = 1 is what the authors' code reports and
what their Sudoku nets vote by. The step never divides by less than 1: flow and state are orthogonal.

Miyato, Löwe, Geiger & Welling 2024, "Artificial Kuramoto Oscillatory Neurons", arXiv:2410.13821 (ICLR 2025). A state has shape
(*places, C, N): C oscillators of N numbers at each place; J runs over all C N numbers of all places. Positions enter attention as
in Miyato, Jaeger, Welling & Geiger 2024, arXiv:2310.10375 (GTA), with matrices that are learned on, as in the authors' code.
Differs: channels come last; energies are those of the states before each step, without the zero that the code puts before them.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from neuropil.errors import Refused
from neuropil.nn.attention import attend
from neuropil.nn.checks import at_least, fits, same_kind
from neuropil.nn.scan import scan


def normalise(x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """Each N-vector to length 1; a zero vector stays one.

    >>> normalise(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    return normalize(x, dim=-1)


def project(y: Float[Tensor, "*b n"], x: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """``y − (y·x) x``: the part of y along the sphere at the unit vectors x.

    >>> project(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 0.0]))
    tensor([0., 3.])
    """
    return y - (y * x).sum(-1, keepdim=True) * x


def step(
    x: Float[Tensor, "*b n"],
    pull: Float[Tensor, "*b n"],
    gamma: float | Float[Tensor, ""] = 1.0,
    spin: Float[Tensor, "*b n"] | None = None,
) -> Float[Tensor, "*b n"]:
    """``normalise(x + γ (Ωx + Proj_x(pull)))`` with ``pull = c + Jx`` and ``spin = Ωx`` (None: no rotation). O(size of x).

    >>> x = torch.tensor([1.0, 0.0])
    >>> for _ in range(20):
    ...     x = step(x, torch.tensor([0.0, 1.0]), gamma=0.5)
    >>> bool(x[1] > 0.999)
    True
    """
    flow = project(pull, x)
    return normalise(x + gamma * (flow if spin is None else spin + flow))


def energy(
    x: Float[Tensor, "b *rest n"], coupled: Float[Tensor, "b *rest n"], c: Float[Tensor, "b *rest n"], half: bool = False
) -> Float[Tensor, " b"]:
    """``− a Σ x·Jx − Σ x·c`` of each element of a batch, `coupled` = Jx; a = 1, or ½ if `half` (the Lyapunov form).

    >>> x = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> energy(x, 2 * x, x), energy(x, 2 * x, x, half=True)
    (tensor([-6.]), tensor([-4.]))
    """
    return -(x * ((0.5 if half else 1.0) * coupled + c)).flatten(1).sum(1)


class Omega(nn.Module):
    """Ωx: every pair of numbers of an oscillator turns in its plane, ``(a, b) → ω (b, −a)``, ω the length of a learned 2-vector.

    Args:
        c, n: oscillators a place, and their (even) dimension.
        init: ω at the start, at least 0.
        shared: one ω for all pairs; else one for each of the C N / 2.
        learn: whether ω is trained.

    >>> Omega(1, 2, init=0.5)(torch.tensor([[1.0, 0.0]]))
    tensor([[ 0.0000, -0.5000]], grad_fn=...)
    """

    def __init__(self, c: int, n: int, init: float = 1.0, shared: bool = False, learn: bool = True) -> None:
        super().__init__()
        if n < 2 or n % 2:
            raise Refused(f"n: rotation in planes needs an even dimension of at least 2, got {n}")
        if not (init >= 0 and math.isfinite(init)):
            raise Refused(f"init: a frequency must be finite and at least 0, got {init}")
        at_least(1, c=c)
        self.w = nn.Parameter(
            torch.full((1 if shared else c, 1 if shared else n // 2, 2), init / math.sqrt(2)), requires_grad=learn
        )

    def forward(self, x: Float[Tensor, "*b c n"]) -> Float[Tensor, "*b c n"]:
        """The velocity of rotation at x, orthogonal to x."""
        if x.shape[-1] < 2 or x.shape[-1] % 2:
            raise Refused(f"x: vectors of an even number of numbers are needed, got shape {tuple(x.shape)}")
        a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
        omega = torch.linalg.vector_norm(self.w, dim=-1)
        return torch.stack([omega * b, -omega * a], -1).flatten(-2)


class ConvJ(nn.Module):
    """Σ_j J_ij x_j as a convolution over an h × w grid of places: kernel² (C N)² numbers, as much time a place.

    >>> ConvJ(2, 4, kernel=3)(torch.randn(1, 5, 6, 2, 4)).shape
    torch.Size([1, 5, 6, 2, 4])
    """

    def __init__(self, c: int, n: int, kernel: int = 3) -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise Refused(f"kernel: must be odd and at least 1, got {kernel}")
        at_least(1, c=c, n=n)
        self.conv = nn.Conv2d(c * n, c * n, kernel, padding=kernel // 2)

    def forward(self, x: Float[Tensor, "b h w c n"]) -> Float[Tensor, "b h w c n"]:
        """Zeros lie beyond the border."""
        if x.shape[-2] * x.shape[-1] != self.conv.in_channels or 0 in x.shape:
            raise Refused(f"x: (b, h, w, c, n) with c n = {self.conv.in_channels} is needed, none 0, got {tuple(x.shape)}")
        same_kind("x", x, self.conv.weight)
        return self.conv(x.flatten(-2).movedim(-1, 1)).movedim(1, -1).unflatten(-1, x.shape[-2:])


class Attention(nn.Module):
    """Self-attention among p places whose positions are learned linear maps: ``M_o softmax((M_q q)ᵀ(M_k k)/√d) M_v v``, then U.

    Args:
        d: numbers a place.
        heads: a divisor of d with d / heads even.
        grid: the extents of the places; their M start as rotations by the place's coordinates times frequencies 10000^(−i/F),
            M_o as their inverse. None: no positions, any number of places.

    Number k of head h is number ``k heads + h`` of a place, as in the authors' code, so that their weights fit. 4 d² + 4 d numbers
    and, for positions, 8 p d / heads; O(p d² + p² d) time.

    >>> Attention(8, heads=2, grid=(3, 3))(torch.randn(5, 9, 8)).shape
    torch.Size([5, 9, 8])
    """

    def __init__(self, d: int, heads: int, grid: Sequence[int] | None = None) -> None:
        super().__init__()
        at_least(1, d=d)
        if heads < 1 or d % (2 * heads):
            raise Refused(f"heads: d / heads must be even, got d={d} and {heads} heads")
        self.heads, self.places = heads, None if grid is None else math.prod(grid)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        if grid is not None:
            turn = rotations(grid, d // heads // 2)
            self.M = nn.Parameter(torch.stack([turn, turn, turn, turn.mT]))

    def forward(self, x: Float[Tensor, "b p d"]) -> Float[Tensor, "b p d"]:
        """Every place looks at all places. `Refused` if their number is not the grid's."""
        if self.places is not None and x.shape[1] != self.places:
            raise Refused(f"x: this attention knows {self.places} places, got {x.shape[1]}")
        fits("x", x, self.qkv.in_features, self.qkv.weight)
        qkv = self.qkv(x)
        if self.places is not None:
            qkv = apply(self.M[:3].transpose(0, 1).flatten(1, 2), qkv, self.heads)
        q, k, v = qkv.unflatten(-1, (3, -1, self.heads)).permute(2, 0, 4, 1, 3)  # each b heads p d/heads
        y = attend(q, k, v).permute(0, 2, 3, 1).flatten(2)
        if self.places is not None:
            y = apply(self.M[3], y, self.heads)
        return self.out(y)


def rotations(grid: Sequence[int], pairs: int) -> Float[Tensor, "p pairs 2 2"]:
    """A rotation for each place of a grid and pair of features: angle = a coordinate × 10000^(−i/F), F = ⌈pairs / axes⌉.

    The first F pairs take the first coordinate, the next F the second, and so on.

    >>> rotations((2,), 1)[1, 0]
    tensor([[ 0.5403, -0.8415], [ 0.8415,  0.5403]])
    """
    if min(grid, default=0) < 1 or pairs < 1:
        raise Refused(f"grid, pairs: extents and pairs must be positive, got {tuple(grid)} and {pairs}")
    f = -(-pairs // len(grid))
    frequency = 10000.0 ** (-torch.arange(f) / f)
    at = torch.cartesian_prod(*(torch.arange(float(extent)) for extent in grid)).view(-1, len(grid))
    angle = (at[..., None] * frequency).flatten(1)[:, :pairs]
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], -1).unflatten(-1, (2, 2))


def apply(M: Float[Tensor, "p pairs 2 2"], x: Float[Tensor, "*b p d"], heads: int = 1) -> Float[Tensor, "*b p d"]:
    """Each pair of features of each place and head by its own 2 × 2 matrix, the same for all heads; d = pairs · 2 · heads.

    >>> apply(rotations((2,), 1), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor([[1.0000, 0.0000], [0.5403, 0.8415]])
    """
    if heads < 1 or x.ndim < 2 or x.shape[-2:] != (len(M), 2 * heads * M.shape[1]):
        raise Refused(f"x, heads: (…, {len(M)}, {M.shape[1]} · 2 · heads) as M is needed, got {tuple(x.shape)} and {heads} heads")
    same, other = (m.diagonal(0, -2, -1).flatten(1).repeat_interleave(heads, 1) for m in (M, M.flip(-1)))
    swapped = x.unflatten(-1, (-1, 2, heads)).roll(1, -2).flatten(-3)  # roll by 1 of 2: quicker than flip
    return same * x + other * swapped  # (M₀₀ a, M₁₁ b) + (M₀₁ b, M₁₀ a)


class AttentionJ(nn.Module):
    """Σ_j J_ij x_j as `Attention` among the places of a grid.

    >>> AttentionJ(2, 4, heads=2, grid=(3, 3))(torch.randn(1, 3, 3, 2, 4)).shape
    torch.Size([1, 3, 3, 2, 4])
    """

    def __init__(self, c: int, n: int, heads: int, grid: Sequence[int] | None = None) -> None:
        super().__init__()
        at_least(1, c=c, n=n)
        self.attention = Attention(c * n, heads, grid)

    def forward(self, x: Float[Tensor, "b *places c n"]) -> Float[Tensor, "b *places c n"]:
        """Every place looks at all places."""
        if x.shape[-2] * x.shape[-1] != self.attention.qkv.in_features:
            raise Refused(f"x: must end in (c, n) with c n = {self.attention.qkv.in_features}, got {tuple(x.shape)}")
        return self.attention(x.flatten(-2).flatten(1, -2)).view(x.shape)


class KuramotoLayer(nn.Module):
    """T steps of C oscillators of N numbers at each place under a conditional input c. The state is x; nothing is kept.

    Args:
        J: ``(b, *places, C, N) → the same shape``: `ConvJ`, `AttentionJ` or any other module.
        c, n: oscillators a place, and their dimension, at least 2.
        gamma: γ, positive; trained if `learn_gamma`.
        omega: Ω, say an `Omega`; None: no rotation.
        norm: whether c first goes through a group norm with a group for each oscillator (over its numbers and all places).

    Time and memory: T calls of J, and T states for the backward pass.

    >>> layer = KuramotoLayer(ConvJ(2, 4), 2, 4)
    >>> x, E = layer(torch.randn(3, 5, 5, 2, 4), torch.randn(3, 5, 5, 2, 4), steps=8)
    >>> x.shape, E.shape, bool(torch.allclose(x.norm(dim=-1), torch.ones(3, 5, 5, 2)))
    (torch.Size([3, 5, 5, 2, 4]), torch.Size([8, 3]), True)
    """

    def __init__(
        self,
        J: nn.Module,
        c: int,
        n: int,
        gamma: float = 1.0,
        omega: nn.Module | None = None,
        norm: bool = True,
        learn_gamma: bool = False,
    ) -> None:
        super().__init__()
        if c < 1 or n < 2:
            raise Refused(f"c, n: at least 1 oscillator of dimension at least 2 is needed, got {c} and {n}")
        if not (gamma > 0 and math.isfinite(gamma)):
            raise Refused(f"gamma: must be positive and finite, got {gamma}")
        self.J, self.omega, self.c, self.n = J, omega, c, n
        self.gamma = nn.Parameter(torch.tensor(float(gamma)), requires_grad=learn_gamma)
        self.norm = nn.GroupNorm(c, c * n) if norm else None

    def forward(
        self, x: Float[Tensor, "b *places c n"], c: Float[Tensor, "b *places c n"], steps: int
    ) -> tuple[Float[Tensor, "b *places c n"], Float[Tensor, "{steps} b"]]:
        """x_T from x_0 (normalised first), and the energies (a = 1) of x_0 … x_{T−1}."""
        x, c = self.start(x, c, steps)
        energies, x = scan(lambda _, x: self.advance(x, c)[::-1], x.new_zeros(steps), x)
        return x, energies

    def path(
        self, x: Float[Tensor, "b *places c n"], c: Float[Tensor, "b *places c n"], steps: int
    ) -> Float[Tensor, "{steps} b *places c n"]:
        """The states x_1 … x_T."""
        x, c = self.start(x, c, steps)
        return scan(lambda _, x: (self.advance(x, c)[0],) * 2, x.new_zeros(steps), x)[0]

    def start(
        self, x: Float[Tensor, "b *places c n"], c: Float[Tensor, "b *places c n"], steps: int = 1
    ) -> tuple[Float[Tensor, "b *places c n"], Float[Tensor, "b *places c n"]]:
        """What the steps run on: x on the sphere and c through its norm. `Refused` for other sizes or ``steps < 1``."""
        if steps < 1:
            raise Refused(f"steps: at least 1, got {steps}")
        for name, of in (("x", x), ("c", c)):
            if of.shape[-2:] != (self.c, self.n):
                raise Refused(f"{name}: must end in (c, n) = ({self.c}, {self.n}), got {tuple(of.shape)}")
        if x.shape != c.shape:
            raise Refused(f"x, c: must have the same shape, got {tuple(x.shape)} and {tuple(c.shape)}")
        same_kind("c", c, x if self.norm is None else self.norm.weight)
        same_kind("x", x, c)
        if self.norm is not None:
            c = self.norm(c.flatten(-2).movedim(-1, 1)).movedim(1, -1).unflatten(-1, (self.c, self.n))
        return normalise(x), c

    def advance(
        self, x: Float[Tensor, "b *places c n"], c: Float[Tensor, "b *places c n"], half: bool = False
    ) -> tuple[Float[Tensor, "b *places c n"], Float[Tensor, " b"]]:
        """One step from a state and an input that went through `start`; and the energy of the state before it."""
        coupled = self.J(x)
        spin = None if self.omega is None else self.omega(x)
        return step(x, coupled + c, self.gamma, spin), energy(x, coupled, c, half)


class Readout(nn.Module):
    """``|(U x)_k| + b_k``: lengths, not phases. U x is cut into `d_out` vectors of `m` numbers (N if not given).

    >>> Readout(2, 4, d_out=6)(torch.randn(3, 5, 2, 4)).shape
    torch.Size([3, 5, 6])
    """

    def __init__(self, c: int, n: int, d_out: int, m: int | None = None) -> None:
        super().__init__()
        at_least(1, c=c, n=n, d_out=d_out, m=m or n)
        self.U, self.b = nn.Linear(c * n, d_out * (m or n)), nn.Parameter(torch.zeros(d_out))

    def forward(self, x: Float[Tensor, "*b c n"]) -> Float[Tensor, "*b d_out"]:
        """Lengths plus b."""
        if x.shape[-2] * x.shape[-1] != self.U.in_features:
            raise Refused(f"x: must end in (c, n) with c n = {self.U.in_features}, got {tuple(x.shape)}")
        same_kind("x", x, self.U.weight)
        return torch.linalg.vector_norm(self.U(x.flatten(-2)).unflatten(-1, (len(self.b), -1)), dim=-1) + self.b
