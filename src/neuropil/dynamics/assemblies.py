"""RNNs of RNNs: recurrent nets that forget where they began, wired to one another so that the whole forgets, too.

    dx_i/dt = −x_i + W_i φ(x_i) + Σ_j L_ij x_j + u_i        0 ≤ φ' ≤ g, time in units of τ

A block contracts at the rate c in the metric P > 0 if  P (−I + W D) + (−I + W D)ᵀ P ≤ −2 c P  for every diagonal 0 ≤ D ≤ g:

    A  g |W| − I Hurwitz    P = diag(l / r), (I − g |W|) r = 1, (I − g |W|)ᵀ l = 1       |W|_ij = |w_ij|, |W|_ii = max(w_ii, 0)
    B  W = Wᵀ < I / g       P = (2 λ I − W)⁻¹, λ ≥ the largest eigenvalue of W, λ > 0
    C  W = Θ⁻¹ U Σ Vᵀ Θ     P = Θ²,  U, V orthogonal, Θ > 0 and 0 < Σ < 1/g diagonal: g ‖P^½ W P^−½‖ < 1

Coupling: with M = blockdiag(P_i) and any B,  L = B − M⁻¹ Bᵀ M  has  M L + Lᵀ M = 0: it moves activity about without changing its
M-norm, so the whole contracts in M at the least of the blocks' rates, and is itself a block for the next level.

Kozachkov, Ennis & Slotine 2021, arXiv:2106.08928 (NeurIPS 2022). Differs: the metric and rate of B are worked out here (with
R = 2λI, ‖P^½ R D^½‖² ≤ 4 g λ < 4 makes the square complete); |W|_ii is max(w_ii, 0), for a unit at φ' = 0 has no use of a negative
w_ii; Σ is bounded by (1 − margin)/g so that a rate is left; beside the paper's Euler steps there is a step whose proof no coupling
can break.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.nn.checks import at_least, filled, fits, has_eigenvalues, same_kind, some
from neuropil.nn.scan import scan
from neuropil.numerics.orthogonal import cayley, exp_skew

PHI = {"relu": torch.relu, "tanh": torch.tanh}  # slopes in [0, 1]


class Matrices(NamedTuple):
    """W, metric P and coupling L of a block, all n × n."""

    W: Tensor
    P: Tensor
    L: Tensor


class Block(nn.Module):
    """A contracting net of n units; calling it gives ``(W, P)``, both (n, n)."""

    n: int
    g: float

    def matrices(self) -> Matrices:
        """W, P and, as nothing is wired yet, L = 0."""
        W, P = self()
        return Matrices(W, P, torch.zeros_like(W))

    def rate(self) -> float:
        """c > 0, a proven rate of contraction for every input, per τ."""
        raise NotImplementedError

    @torch.no_grad()
    def gain(self) -> float:
        """A bound of ‖P^½ W D P^−½‖ over all D."""
        W, P = (X.double() for X in self())
        K = torch.linalg.cholesky(P).mT  # ‖x‖_P = ‖K x‖
        if bool((P.diag().diag() == P).all()):  # D and K commute
            return self.g * _norm(K @ W @ torch.linalg.inv(K))
        return self.g * _norm(K @ W) * _norm(torch.linalg.inv(K))


class AbsStable(Block):
    """Condition A: a fixed W (a buffer, not trained) of which g |W| − I is Hurwitz; `Refused` if not, or W is empty or not finite.

    n² numbers twice. O(n³) once.

    >>> W, P = AbsStable(torch.tensor([[0.0, 0.9], [0.9, -3.0]]))()
    >>> P.diagonal()
    tensor([1., 1.])
    """

    W: Tensor
    P: Tensor

    def __init__(self, W: Float[Tensor, "n n"], g: float = 1.0) -> None:
        super().__init__()
        self.n, self.g = len(W), _slope(g)
        filled("W", W)
        has_eigenvalues("W", W)
        radius = perron(magnitude(W))
        if not g * radius < 1:
            raise Refused(f"W: the spectral radius of |W| must be below 1/g = {1 / g:g}, got {radius:g}")
        self.register_buffer("W", W)
        self.register_buffer("P", self._metric(W).to(W.dtype))

    @classmethod
    def random(
        cls, n: int, fan: int = 3, radius: float = 0.5, g: float = 1.0, generator: torch.Generator | None = None
    ) -> "AbsStable":
        """Every unit hears `fan` others, weights uniform in ±1, scaled to a spectral radius of |W| of `radius` / g.

        A fan of at least 1 leaves a loop somewhere, so that there is a radius to scale.

        >>> AbsStable.random(16, fan=2)()[0].count_nonzero()
        tensor(32)
        """
        if not 1 <= fan < n or not 0 < radius < 1:
            raise Refused(f"fan, radius: 1 ≤ fan < n = {n} and 0 < radius < 1 are needed, got {fan} and {radius}")
        heard = torch.rand(n, n, generator=generator).fill_diagonal_(-1.0).topk(fan).indices
        W = torch.zeros(n, n).scatter_(1, heard, 2 * torch.rand(n, fan, generator=generator) - 1)
        return cls(W * (radius / g / perron(W.abs())), g)

    def _metric(self, W: Tensor) -> Tensor:
        N = torch.eye(self.n, dtype=torch.float64, device=W.device) - self.g * magnitude(W.double())
        one = N.new_ones(self.n)
        return (torch.linalg.solve(N.mT, one) / torch.linalg.solve(N, one)).diag()

    def forward(self) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
        """W and P."""
        return self.W, self.P

    @torch.no_grad()
    def rate(self) -> float:
        """The least eigenvalue of the symmetric part of P^½ (I − g |W|) P^−½."""
        root = self.P.double().diagonal().sqrt()
        N = self.g * magnitude(self.W.double()) * root[:, None] / root
        return 1 - float(torch.linalg.eigvalsh((N + N.mT) / 2)[-1])


class SymStable(Block):
    """Condition B, trained: ``W = ((1 − m) I − Aᵀ A) / g``, ``P = ((1 − m) I + Aᵀ A)⁻¹``, m the margin in (0, 1).

    n² numbers; O(n³) a call. Starts near W = 0.

    >>> W, P = SymStable(4)()
    >>> bool((torch.linalg.eigvalsh(W) < 1).all()), bool((torch.linalg.eigvalsh(P) > 0).all())
    (True, True)
    """

    def __init__(self, n: int, g: float = 1.0, margin: float = 0.01, generator: torch.Generator | None = None) -> None:
        super().__init__()
        at_least(1, n=n)
        self.n, self.g, self.margin = n, _slope(g), _margin(margin)
        self.A = nn.Parameter(torch.eye(n) + 0.3 * torch.randn(n, n, generator=generator) / math.sqrt(n))

    def forward(self) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
        """W and P."""
        with torch.autocast(self.A.device.type, enabled=False):
            most, AA = (1 - self.margin) * torch.eye(self.n, dtype=self.A.dtype, device=self.A.device), self.A.mT @ self.A
            return (most - AA) / self.g, torch.linalg.inv(most + AA)

    @torch.no_grad()
    def rate(self) -> float:
        """``1 − (1 − m)² / (1 − m + σ²)`` with σ the least singular value of A; at least m."""
        most, least = 1 - self.margin, float(torch.linalg.svdvals(self.A.double())[-1])
        return 1 - most**2 / (most + least**2)


class SVDStable(Block):
    """Condition C, trained: ``W = Θ⁻¹ U Σ Vᵀ Θ``, ``P = Θ²``; U, V = exp(skew), Σ = (1 − m) exp(−z²) / g, Θ = exp(θ).

    n (n + 1) numbers; O(n³) a call. Starts with Σ near 0.4 / g and Θ = I.

    >>> W, P = SVDStable(4)()
    >>> bool((torch.linalg.svdvals(W) < 1).all())
    True
    """

    def __init__(self, n: int, g: float = 1.0, margin: float = 0.01, generator: torch.Generator | None = None) -> None:
        super().__init__()
        at_least(1, n=n)
        self.n, self.g, self.margin = n, _slope(g), _margin(margin)
        u, v = torch.randn(2, n * (n - 1) // 2, generator=generator)
        self.u, self.v = nn.Parameter(u), nn.Parameter(v)
        self.z = nn.Parameter(torch.empty(n).uniform_(0.8, 1.1, generator=generator))
        self.theta = nn.Parameter(torch.zeros(n))

    def singular(self) -> Float[Tensor, " n"]:
        """Σ."""
        return (1 - self.margin) / self.g * torch.exp(-self.z.square())

    def forward(self) -> tuple[Float[Tensor, "n n"], Float[Tensor, "n n"]]:
        """W and P."""
        with torch.autocast(self.z.device.type, enabled=False):
            U, V, theta = exp_skew(self.u, self.n), exp_skew(self.v, self.n), self.theta.exp()
            return (U * self.singular()) @ V.mT * theta / theta[:, None], theta.square().diag()

    @torch.no_grad()
    def rate(self) -> float:
        """``1 − g max Σ``, at least m."""
        return 1 - self.g * float(self.singular().max())


class SkewCoupling(nn.Module):
    """``L = B − M⁻¹ Bᵀ M`` for any B between blocks of the given sizes; call it with the metric M, (n, n).

    Args:
        sizes: units of each block.
        mask: (k, k), true where block i may hear block j in B; diagonal blocks are always zero. None: all pairs, as in the paper;
            `triangle` (k) reaches the same L with half the numbers.
        scale: B starts as N(0, scale²).

    >>> coupling, M = SkewCoupling([2, 3], scale=0.3), torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]).diag()
    >>> L = coupling(M).detach()
    >>> float((M @ L + L.T @ M).abs().max()) < 1e-6
    True
    """

    mask: Tensor

    def __init__(
        self,
        sizes: Sequence[int],
        mask: Bool[Tensor, "k k"] | None = None,
        scale: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        k = len(sizes)
        if min(sizes, default=0) < 1:
            raise Refused(f"sizes: at least one block of at least one unit is needed, got {list(sizes)}")
        if mask is not None and mask.shape != (k, k):
            raise Refused(f"mask: must be ({k}, {k}), one row and column a block, got {tuple(mask.shape)}")
        allowed = torch.ones(k, k, dtype=torch.bool) if mask is None else mask.cpu().clone()
        units = torch.tensor(sizes)
        allowed = allowed.fill_diagonal_(False).repeat_interleave(units, 0).repeat_interleave(units, 1)
        self.register_buffer("mask", allowed)
        self.values = nn.Parameter(scale * torch.randn(int(allowed.sum()), generator=generator))

    def B(self) -> Float[Tensor, "n n"]:
        """The free matrix."""
        return self.values.new_zeros(self.mask.shape).masked_scatter(self.mask, self.values)

    def forward(self, M: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        """L in the metric M. O(n³). `Refused` for an M that does not fit."""
        if M.shape != self.mask.shape:
            raise Refused(f"M: must be {tuple(self.mask.shape)}, got {tuple(M.shape)}")
        same_kind("M", M, self.values)
        with torch.autocast(M.device.type, enabled=False):
            B = self.B()
            return B - torch.linalg.solve(M, B.mT @ M)


class FreeCoupling(SkewCoupling):
    """``L = B``, for comparison: nothing keeps it from blowing up."""

    def forward(self, M: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
        """B, whatever M is."""
        return self.B()


def triangle(k: int) -> Bool[Tensor, "{k} {k}"]:
    """The mask of block i hearing block j < i: as `SkewCoupling` answers each of B's blocks, every pair is wired both ways."""
    return torch.ones(k, k, dtype=torch.bool).tril(-1)


@dataclass(frozen=True)
class Step:
    """A cell of given matrices (any of them may have leading axes), ``(u, x) → (x', x')``; made by `Assembly.step`.

    euler:   x' = x + dt (−x + W φ(x) + L x + u)                cayley:  x' = C (x + dt (−x + W φ(x) + u)),  C = cayley(dt L)
    """

    W: Tensor
    T: Tensor  # L, or C
    dt: float
    phi: str
    method: str

    def __post_init__(self) -> None:
        if not math.isfinite(self.dt):
            raise Refused(f"dt: must be finite, got {self.dt}")

    def __call__(self, u: Float[Tensor, "*b n"], x: Float[Tensor, "*b n"]) -> tuple[Float[Tensor, "*b n"], Float[Tensor, "*b n"]]:
        fits("u", u, self.W.shape[-1], self.W)
        fits("x", x, self.W.shape[-1], self.W)
        pull = PHI[self.phi](x) @ self.W.mT + u - x
        if self.method == "euler":
            x = x + self.dt * (pull + x @ self.T.mT)
        else:
            x = (x + self.dt * pull) @ self.T.mT
        return x, x


class Assembly(Block):
    """Blocks wired by a coupling: a cell ``(u, x) → (x, x)`` of ``n = Σ n_i`` units, and a block for the next assembly.

    Args:
        blocks: `Block`s, assemblies among them (whose own dt and method then do not count).
        coupling: `SkewCoupling` (or `FreeCoupling`) of their sizes.
        dt: the step in units of τ. One that is too large for the proof is `Refused`, see `largest_step`; B and trained blocks move
            later on, so ask again after training.
        phi: "relu" or "tanh"; the blocks' g must be at least 1, its largest slope.
        method: "euler", the paper's, or "cayley", which turns by an M-orthogonal matrix, so that no coupling is too strong.

    A step costs O(b n²); the matrices O(n³), once a step if the assembly itself is the cell, once a sequence with `step` or `run`.

    >>> blocks = [AbsStable.random(4), SVDStable(3)]
    >>> pair = Assembly(blocks, SkewCoupling([4, 3], scale=0.3), dt=0.05)
    >>> four = Assembly([pair, SymStable(2)], SkewCoupling([7, 2]), dt=0.05)
    >>> four.run(torch.zeros(10, 5, 9))[0].shape
    torch.Size([10, 5, 9])
    """

    def __init__(
        self, blocks: Sequence[Block], coupling: SkewCoupling, dt: float = 0.03, phi: str = "relu", method: str = "euler"
    ) -> None:
        super().__init__()
        if not blocks:
            raise Refused("blocks: at least one is needed, got none")
        self.blocks, self.coupling, self.dt = nn.ModuleList(blocks), coupling, dt
        self.phi, self.method = choose("phi", phi, PHI), choose("method", method, ("euler", "cayley"))
        self.n, self.g = sum(b.n for b in blocks), min(b.g for b in blocks)
        if len(coupling.mask) != self.n:
            raise Refused(f"coupling: must be for the blocks' {self.n} units, got {len(coupling.mask)}")
        if self.g < 1:
            raise Refused(f"blocks: {phi} has slopes up to 1, got a block made for slopes up to g = {self.g:g}")
        most = math.inf if isinstance(coupling, FreeCoupling) else self.largest_step()
        if not 0 < dt < most:
            raise Refused(f"dt: must lie between 0 and {most:.3g}, where {method} steps of this assembly must contract, got {dt}")

    def matrices(self) -> Matrices:
        """Of all blocks together, with the coupling between them."""
        parts = [b.matrices() for b in self.blocks]  # type: ignore[operator]
        W, P, L = (torch.block_diag(*of) for of in zip(*parts, strict=True))
        return Matrices(W, P, L + self.coupling(P))

    def step(self) -> Step:
        """The cell with its matrices worked out, for one sequence."""
        W, _, L = self.matrices()
        with torch.autocast(W.device.type, enabled=False):
            return Step(W, L if self.method == "euler" else cayley(self.dt * L), self.dt, self.phi, self.method)

    def forward(self, u: Float[Tensor, "*b n"], x: Float[Tensor, "*b n"]) -> tuple[Float[Tensor, "*b n"], Float[Tensor, "*b n"]]:
        """One step."""
        return self.step()(u, x)

    def start(self, *batch: int) -> Float[Tensor, "*b n"]:
        """All units at rest."""
        return self.coupling.values.new_zeros(*batch, self.n)

    def run(
        self, u: Float[Tensor, "t *b n"], x: Float[Tensor, "*b n"] | None = None
    ) -> tuple[Float[Tensor, "t *b n"], Float[Tensor, "*b n"]]:
        """All states under the inputs u, from x or from rest, and the last one. `Refused` for no inputs, or what does not fit."""
        some("u", u, 0)
        return scan(self.step(), u, self.start(*u.shape[1:-1]) if x is None else x)

    def leaves(self) -> list[Block]:
        """The blocks that are no assemblies, at any depth, in the order of their units."""
        return [leaf for b in self.blocks for leaf in (b.leaves() if isinstance(b, Assembly) else [b])]  # type: ignore[misc]

    @torch.no_grad()
    def rate(self) -> float:
        """The least rate of the leaves, less what the coupling adds: rounding if it is skew, anything if it is free."""
        _, P, L = (X.double() for X in self.matrices())
        K = torch.linalg.cholesky(P).mT
        turn = K @ L @ torch.linalg.inv(K)
        return min(b.rate() for b in self.leaves()) - float(torch.linalg.eigvalsh((turn + turn.mT) / 2)[-1])

    @torch.no_grad()
    def gain(self) -> float:
        """The largest of the leaves'."""
        return max(b.gain() for b in self.leaves())

    @torch.no_grad()
    def largest_step(self) -> float:
        """The dt below which every step shrinks every M-distance: ``2 c / (ℓ + w)²``.

        For ‖(I + dt J) v‖² ≤ (1 − 2 dt c + dt² ‖J‖²) ‖v‖² in M-norms, ‖J‖ ≤ ℓ + w, w the `gain`; ℓ = ‖−I + L‖ = √(1 + ρ(L)²) for
        Euler steps, 1 for Cayley's, which turn by L apart. Sufficient, not necessary; Euler steps of dt > 2 / (1 + ρ²) are unstable
        while the units are silent.
        """
        _, _, L = self.matrices()
        has_eigenvalues("coupling", L)
        radius = float(torch.linalg.eigvals(L.double()).abs().max()) if self.method == "euler" else 0.0
        return 2 * max(self.rate(), 0.0) / (math.hypot(1, radius) + self.gain()) ** 2


class AssemblyNet(nn.Module):
    """Inputs → assembly → classes: ``V x_t + b`` drives the units, the last state is read by a linear map.

    >>> net = AssemblyNet(1, Assembly([SVDStable(4), SVDStable(4)], SkewCoupling([4, 4])), 10)
    >>> net(torch.zeros(7, 5, 1)).shape
    torch.Size([5, 10])
    """

    def __init__(self, d: int, assembly: Assembly, d_out: int) -> None:
        super().__init__()
        at_least(1, d=d, d_out=d_out)
        self.V, self.assembly, self.read = nn.Linear(d, assembly.n), assembly, nn.Linear(assembly.n, d_out)

    def forward(self, x: Float[Tensor, "t b d"]) -> Float[Tensor, "b d_out"]:
        """Read-outs of the last state. `Refused` for no inputs, or what does not fit."""
        fits("x", x, self.V.in_features, self.V.weight)
        some("x", x, 0)
        return self.read(self.assembly.run(self.V(x))[1])


def contraction_rate(model: nn.Module) -> float:
    """The proven rate c of the outermost block in `model`: ‖x − y‖_M shrinks at least like exp(−c t / τ) for any common input.

    Below 0 nothing is proven. Raises `Refused` if there is no block. O(n³).

    >>> contraction_rate(AbsStable(torch.tensor([[0.0, 0.5], [0.5, 0.0]])))
    0.5
    """
    for module in model.modules():
        if isinstance(module, Block):
            return module.rate()
    raise Refused(f"model: must hold a Block, got {type(model).__name__} without")


def distance(x: Float[Tensor, "*b n"], y: Float[Tensor, "*b n"], M: Float[Tensor, "*m n n"]) -> Float[Tensor, "..."]:
    """``‖x − y‖_M = √((x − y)ᵀ M (x − y))``; leading axes of M broadcast. `Refused` unless all are of one dtype.

    >>> float(distance(torch.tensor([1.0, 0.0]), torch.zeros(2), 4 * torch.eye(2)))
    2.0
    """
    same_kind("y", y, x)
    same_kind("M", M, x)
    return ((x - y) @ M * (x - y)).sum(-1).clamp_min(0).sqrt()


def magnitude(W: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """|W| of condition A: |w_ij| off the diagonal, max(w_ii, 0) on it."""
    return W.abs() - W.diagonal().abs().diag() + W.diagonal().clamp_min(0).diag()


def perron(N: Float[Tensor, "n n"]) -> float:
    """The spectral radius of a matrix of numbers ≥ 0. O(n³). `Refused` for what is empty or not finite."""
    filled("N", N)
    has_eigenvalues("N", N)
    return float(torch.linalg.eigvals(N.double()).abs().max())


def _norm(X: Tensor) -> float:
    return float(torch.linalg.matrix_norm(X, 2))


def _slope(g: float) -> float:
    if not 0 < g < math.inf:
        raise Refused(f"g: the largest slope must be positive and finite, got {g}")
    return g


def _margin(margin: float) -> float:
    if not 0 < margin < 1:
        raise Refused(f"margin: must lie between 0 and 1, got {margin}")
    return margin
