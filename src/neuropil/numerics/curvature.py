"""Differential geometry of any metric, by automatic differentiation: connection, curvature, covariant and Lie derivatives.

    Γ^m_ij = ½ g^mk (∂_i g_kj + ∂_j g_ik − ∂_k g_ij)
    R^i_jkl = ∂_k Γ^i_lj − ∂_l Γ^i_kj + Γ^i_kp Γ^p_lj − Γ^i_lp Γ^p_kj
    R_jl = R^i_jil      R = g^jl R_jl      G_jl = R_jl − ½ g_jl R      K = R_ijkl R^ijkl
    C_ijkl = R_ijkl − (g_ik R_jl − g_il R_jk + g_jl R_ik − g_jk R_il)/(n−2) + R (g_ik g_jl − g_il g_jk)/((n−1)(n−2))

Misner, Thorne & Wheeler 1973, "Gravitation", §8 and §13, whose signs these are (a sphere has R > 0); the index order is that of
Cranganore, Bodnar, Berzins & Brandstetter 2025, arXiv:2507.11589. A derivative's index always comes first: ``dg[…, k, i, j]`` is
∂_k g_ij. Everything is algebra on g, ∂g, ∂∂g, so a source that knows its derivatives (a network, a grid) can be put in directly.
Signature and dimension are free. Curvature subtracts large numbers from one another: use float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jacfwd, vmap

from neuropil.errors import Refused
from neuropil.nn.checks import filled, full_precision, same_kind

Metric = Callable[[Tensor], Tensor]  # the coordinates of one point (n,) -> g_ij, (n, n)


def _einsum(rule: str, *operands: Tensor) -> Tensor:
    """`torch.einsum` over trailing axes, never in half precision: autocast would leave nothing of a curvature."""
    inputs, output = rule.split("->")
    batched = ",".join(f"...{term}" for term in inputs.split(","))
    with torch.autocast(operands[0].device.type, enabled=False):
        return torch.einsum(f"{batched}->...{output}", *operands)


def jet(f: Callable[[Tensor], Tensor], x: Float[Tensor, "*b n"], order: int = 2) -> tuple[Tensor, ...]:
    """``(f, ∂f, ∂∂f, …)`` of a function of one point at the points x, up to `order`; derivative indices come first.

    Forward mode nested `order` times, so that f may be anything that `torch.func` can push tangents through; it costs about
    (n + 1)^order evaluations of f. Raises `Refused` for a negative order.

    >>> value, first, second = jet(lambda x: x[0] ** 2 * x[1], torch.tensor([3.0, 5.0]))
    >>> first.tolist(), second.tolist()
    ([30.0, 9.0], [[10.0, 6.0], [6.0, 0.0]])
    """
    if order < 0:
        raise Refused(f"order: must not be negative, got {order}")
    filled("x", x)

    def derived(h: Callable[[Tensor], tuple[Tensor, ...]]) -> Callable[[Tensor], tuple[Tensor, ...]]:
        def last_and_all(point: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
            values = h(point)
            return values[-1], values

        def lifted(point: Tensor) -> tuple[Tensor, ...]:
            top, below = jacfwd(last_and_all, has_aux=True)(point)
            return (*below, top.movedim(-1, 0))

        return lifted

    def plain(point: Tensor) -> tuple[Tensor, ...]:
        return (f(point),)

    values: Callable[[Tensor], tuple[Tensor, ...]] = plain
    for _ in range(order):
        values = derived(values)
    batch = x.shape[:-1]
    parts = vmap(values)(x.reshape(-1, x.shape[-1])) if batch else values(x)
    # torch's tangents of numbers times Python's can come out in double precision
    return tuple((part.reshape(*batch, *part.shape[1:]) if batch else part).to(parts[0].dtype) for part in parts)


@dataclass(frozen=True)
class Geometry:
    """All that follows from ``g_ij``, ``∂_k g_ij`` and ``∂_l ∂_k g_ij`` at a batch of points; each tensor is made when asked for.

    Memory O(n⁴) a point. Without `ddg` there is a connection but no curvature: asking for it raises `Refused`.

    >>> def sphere(x):
    ...     return torch.diag(torch.stack([torch.ones_like(x[0]), x[0].sin() ** 2]))
    >>> unit = geometry(sphere, torch.tensor([[0.5, 0.0], [1.0, 2.0]], dtype=torch.float64))
    >>> unit.scalar
    tensor([2.0000, 2.0000], dtype=torch.float64)
    """

    g: Float[Tensor, "*b n n"]
    dg: Float[Tensor, "*b n n n"]
    ddg: Float[Tensor, "*b n n n n"] | None = None

    @cached_property
    def inverse(self) -> Float[Tensor, "*b n n"]:
        """``g^ij``."""
        return torch.linalg.inv(self.g)

    @cached_property
    def christoffel(self) -> Float[Tensor, "*b n n n"]:
        """``Γ^m_ij``, the upper index first."""
        return _einsum("mk,kij->mij", self.inverse, _first_kind(self.dg))

    @cached_property
    def d_christoffel(self) -> Float[Tensor, "*b n n n n"]:
        """``∂_l Γ^m_ij = g^mk (∂_l Γ_kij − ∂_l g_kp Γ^p_ij)``."""
        if self.ddg is None:
            raise Refused("ddg: curvature needs the second derivatives of the metric, got None")
        inner = _first_kind(self.ddg) - _einsum("lkp,pij->lkij", self.dg, self.christoffel)
        return _einsum("mk,lkij->lmij", self.inverse, inner)

    @cached_property
    def riemann(self) -> Float[Tensor, "*b n n n n"]:
        """``R^i_jkl``, antisymmetric in k and l."""
        half = _einsum("kilj->ijkl", self.d_christoffel) + _einsum("ikp,plj->ijkl", self.christoffel, self.christoffel)
        return half - half.transpose(-1, -2)

    @cached_property
    def riemann_lower(self) -> Float[Tensor, "*b n n n n"]:
        """``R_ijkl``."""
        return _einsum("ip,pjkl->ijkl", self.g, self.riemann)

    @cached_property
    def ricci(self) -> Float[Tensor, "*b n n"]:
        """``R_jl``; zero in a vacuum."""
        return _einsum("ijil->jl", self.riemann)

    @cached_property
    def scalar(self) -> Float[Tensor, "*b"]:
        """The Ricci scalar ``R``."""
        return _einsum("jl,jl->", self.inverse, self.ricci)

    @cached_property
    def einstein(self) -> Float[Tensor, "*b n n"]:
        """``G_jl``, 8π times the energy and momentum."""
        return self.ricci - self.g * self.scalar[..., None, None] / 2

    @cached_property
    def weyl(self) -> Float[Tensor, "*b n n n n"]:
        """``C_ijkl``, the part of the curvature that no local matter makes: every trace of it is zero. Needs n > 2."""
        n = self.g.shape[-1]
        if n < 3:
            raise Refused(f"g: the Weyl tensor needs at least 3 dimensions, got {n}")
        ricci_part = _wedge(self.g, self.ricci) / (n - 2)
        scalar_part = self.scalar[..., None, None, None, None] * _wedge(self.g, self.g) / (2 * (n - 1) * (n - 2))
        return self.riemann_lower - ricci_part + scalar_part

    @cached_property
    def kretschmann(self) -> Float[Tensor, "*b"]:
        """``K = R_ijkl R^ijkl``, the same in every chart."""
        raised = _einsum("ja,kb,lc,iabc->ijkl", self.inverse, self.inverse, self.inverse, self.riemann)
        return _einsum("ijkl,ijkl->", self.riemann_lower, raised)


def _first_kind(dg: Tensor) -> Tensor:
    """``Γ_kij = ½ (∂_i g_kj + ∂_j g_ik − ∂_k g_ij)`` of ``dg[…, k, i, j]``."""
    return (_einsum("ikj->kij", dg) + _einsum("jik->kij", dg) - dg) / 2


def _wedge(h: Tensor, k: Tensor) -> Tensor:
    """The Kulkarni–Nomizu product ``h_ik k_jl − h_il k_jk + h_jl k_ik − h_jk k_il``."""
    half = _einsum("ik,jl->ijkl", h, k) + _einsum("jl,ik->ijkl", h, k)
    return half - half.transpose(-1, -2)


def geometry(metric: Metric, x: Float[Tensor, "*b n"], order: int = 2) -> Geometry:
    """The geometry of `metric`, a function of one point, at the points x; ``order=1`` stops at the connection and is cheaper.

    Costs about (n + 1)^order evaluations of the metric, side by side. Raises `Refused` for integers, half precision, an order other
    than 1 or 2, or a metric whose value is not n × n.

    >>> flat = geometry(lambda x: torch.eye(3), torch.zeros(7, 3))
    >>> flat.riemann.shape, float(flat.kretschmann.max())
    (torch.Size([7, 3, 3, 3, 3]), 0.0)
    """
    full_precision("x", x)
    if order not in (1, 2):
        raise Refused(f"order: must be 1 (connection) or 2 (curvature), got {order}")
    with torch.autocast(x.device.type, enabled=False):
        parts = jet(metric, x, order)
    n = x.shape[-1]
    if parts[0].shape[-2:] != (n, n) or parts[0].ndim != x.ndim + 1:
        raise Refused(f"metric: must give ({n}, {n}) at one point of {n} coordinates, got {tuple(parts[0].shape[x.ndim - 1 :])}")
    return Geometry(*parts)


def covariant_derivative(tensor: Callable[[Tensor], Tensor], metric: Metric, x: Float[Tensor, "*b n"], indices: str) -> Tensor:
    """``∇_k T = ∂_k T + Σ Γ^i_kp T^…p… − Σ Γ^p_ki T_…p…``, the new index k first.

    `tensor` is a function of one point; `indices` says where each of its indices stands, "^" for up and "_" for down: "^_" for
    T^i_j, "" for a number. Raises `Refused` for another sign or another count of indices.

    >>> def polar(x):
    ...     return torch.diag(torch.stack([torch.ones_like(x[0]), x[0] ** 2]))
    >>> float(covariant_derivative(polar, polar, torch.tensor([2.0, 1.0]), "__").abs().max())
    0.0
    """
    value, change = jet(tensor, x, order=1)
    _check_indices(indices, value, x)
    connection = geometry(metric, x, order=1).christoffel
    for place, sign in enumerate(indices):
        turned = _einsum("nko->kno", connection) if sign == "^" else -_einsum("okn->kno", connection)  # o: old, n: new
        change = change + _replace(turned, value, place, len(indices))
    return change


def lie_derivative(
    tensor: Callable[[Tensor], Tensor], vector: Callable[[Tensor], Tensor], x: Float[Tensor, "*b n"], indices: str
) -> Tensor:
    """``(L_V T) = V^k ∂_k T − Σ ∂_p V^i T^…p… + Σ ∂_i V^p T_…p…``: how T changes along the flow of V. No metric is involved.

    Arguments as for `covariant_derivative`; `vector` is a function of one point, too.

    >>> def turn(x):
    ...     return torch.stack([-x[1], x[0]])
    >>> lie_derivative(lambda x: torch.eye(2), turn, torch.tensor([2.0, 1.0]), "__").abs().max()  # a rotation keeps lengths
    tensor(0.)
    """
    value, change = jet(tensor, x, order=1)
    _check_indices(indices, value, x)
    v, dv = jet(vector, x, order=1)  # dv[k, i] = ∂_k V^i
    same_kind("tensor", value, v)
    letters = "abcdefgh"[: len(indices)]
    result = _einsum(f"k,k{letters}->{letters}", v, change)
    for place, sign in enumerate(indices):
        turned = -dv.transpose(-1, -2) if sign == "^" else dv  # [new, old]
        result = result + _replace(turned[..., None, :, :], value, place, len(indices)).squeeze(x.ndim - 1)
    return result


def _replace(matrix: Tensor, value: Tensor, place: int, rank: int) -> Tensor:
    """``Σ_old matrix[k, new, old] value[… old …]`` with index k first and `new` in the place of `old`."""
    old = "abcdefgh"[:rank]
    new = old[:place] + "n" + old[place + 1 :]
    return _einsum(f"kn{old[place]},{old}->k{new}", matrix, value)


def _check_indices(indices: str, value: Tensor, x: Tensor) -> None:
    rank, n = value.ndim - x.ndim + 1, x.shape[-1]
    if set(indices) - set("^_") or len(indices) != rank or set(value.shape[x.ndim - 1 :]) - {n}:
        shape = tuple(value.shape[x.ndim - 1 :])
        raise Refused(f'indices: one "^" or "_" for each of the tensor\'s indices of {n} is needed, got {indices!r} for {shape}')
