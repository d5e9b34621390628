"""Volume rendering as plain functions of any batch shape and any number of channels.

    w_i = (1 − exp(−σ_i δ_i)) · T_i        T_i = exp(−Σ_{j<i} σ_j δ_j)        Ĉ = Σ_i w_i c_i + (1 − Σ_i w_i) c_bg

Sources: Max 1995, Optical models for direct volume rendering; Mildenhall et al. 2020, arXiv:2003.08934 (the quadrature);
Yariv et al. 2021, arXiv:2106.12052 (VolSDF); Wang et al. 2021, arXiv:2106.10689 (NeuS).
All functions cost O(s) time and memory a ray of s samples and are differentiable in every tensor argument.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import numbers, same_kind, some


def weights(density: Float[Tensor, "*b s"], delta: Float[Tensor, "*b s"]) -> Float[Tensor, "*b s"]:
    """The share of a ray's light that each of its s samples gives: ``Σ_i w_i + T_end = 1``.

    Args:
        density: σ ≥ 0, in 1/length.
        delta: the samples' widths δ, in length.

    >>> weights(torch.tensor([0.0, 1e9, 1.0]), torch.ones(3))
    tensor([0., 1., 0.])
    """
    depth = density * delta
    before = torch.cumsum(depth[..., :-1], -1)  # not cumsum(depth) − depth: an opaque sample would cancel what came before it
    return -torch.expm1(-depth) * torch.exp(-torch.cat([torch.zeros_like(depth[..., :1]), before], -1))


def alpha_weights(alpha: Float[Tensor, "*b s"]) -> Float[Tensor, "*b s"]:
    """``w_i = α_i Π_{j<i} (1 − α_j)`` for opacities α in [0, 1], as NeuS and Gaussian splats give them.

    >>> alpha_weights(torch.tensor([0.5, 0.5, 1.0]))
    tensor([0.5000, 0.2500, 0.2500])
    """
    through = torch.cumprod(1 - alpha, -1)
    return alpha * torch.cat([torch.ones_like(through[..., :1]), through[..., :-1]], -1)


def volsdf_density(
    distance: Float[Tensor, "*b"], beta: float | Float[Tensor, ""], alpha: float | None = None
) -> Float[Tensor, "*b"]:
    """VolSDF: ``σ = α Ψ_β(−f)``, Ψ_β the Laplace distribution function of scale β > 0 (a length); α = 1/β unless given."""
    if not isinstance(beta, Tensor) and not beta > 0:
        raise Refused(f"beta: must be positive, got {beta}")
    inside = 0.5 + 0.5 * distance.sign() * torch.expm1(-distance.abs() / beta)
    return inside / beta if alpha is None else alpha * inside


def neus_alpha(distance: Float[Tensor, "*b e"], sharpness: float | Float[Tensor, ""]) -> Float[Tensor, "*b s"]:
    """NeuS: ``α_i = max((Φ(f_i) − Φ(f_{i+1})) / Φ(f_i), 0)`` for signed distances f at the s + 1 borders of s samples.

    Φ(f) = 1/(1 + e^{−κ f}) with `sharpness` κ > 0 in 1/length.
    """
    cdf = torch.sigmoid(sharpness * distance)
    return ((cdf[..., :-1] - cdf[..., 1:]) / cdf[..., :-1].clamp_min(1e-12)).clamp(0, 1)


def composite(
    weights: Float[Tensor, "*b s"], values: Float[Tensor, "*b s c"], background: Float[Tensor, "*d c"] | None = None
) -> Float[Tensor, "*b c"]:
    """``Σ_i w_i v_i + (1 − Σ_i w_i) background`` for any number of channels; no `background` is one of zeros.

    Composite linear colours or probabilities; apply gamma, sigmoid or decoding before or after, never in between.

    >>> composite(torch.tensor([0.25, 0.25]), torch.tensor([[1.0], [0.0]]), torch.tensor([1.0]))
    tensor([0.7500])
    """
    same_kind("values", values, weights)
    colour = torch.einsum("...s,...sc->...c", weights, values)
    if background is not None and not _spreads(background.shape, colour.shape):
        raise Refused(f"background: must spread to the colours' shape {tuple(colour.shape)}, got {tuple(background.shape)}")
    return colour if background is None else colour + (1 - weights.sum(-1, keepdim=True)) * background


def _spreads(given: torch.Size, to: torch.Size) -> bool:
    """Whether a background has all channels and no more axes than the colours."""
    ahead = zip(given[-2::-1], to[-2::-1], strict=False)
    return len(given) <= len(to) and given[-1:] == to[-1:] and all(n in (1, m) for n, m in ahead)


def accumulation(weights: Float[Tensor, "*b s"]) -> Float[Tensor, "*b"]:
    """Σ_i w_i: how much of the ray was stopped."""
    return weights.sum(-1)


def expected_depth(weights: Float[Tensor, "*b s"], middle: Float[Tensor, "*b s"]) -> Float[Tensor, "*b"]:
    """``Σ w_i m_i / Σ w_i`` at the samples' middles m; 0 where the ray meets nothing."""
    total = weights.sum(-1)
    return (weights * middle).sum(-1) / total.clamp_min(1e-10)


def median_depth(weights: Float[Tensor, "*b s"], middle: Float[Tensor, "*b s"]) -> Float[Tensor, "*b"]:
    """The first m_i with Σ_{j≤i} w_j ≥ ½; the last sample's where that never happens. Piecewise constant: no gradient in w.

    >>> median_depth(torch.tensor([0.3, 0.3, 0.4]), torch.tensor([1.0, 2.0, 3.0]))
    tensor(2.)
    """
    some("weights", weights)
    numbers("weights", weights)
    index = (torch.cumsum(weights, -1) < 0.5).sum(-1, keepdim=True).clamp_max(weights.shape[-1] - 1)
    return middle.gather(-1, index)[..., 0]


def render_normals(weights: Float[Tensor, "*b s"], normals: Float[Tensor, "*b s 3"]) -> Float[Tensor, "*b 3"]:
    """``Σ w n`` scaled to length 1 (0 where the ray meets nothing)."""
    return torch.nn.functional.normalize(composite(weights, normals), dim=-1)


def contract(x: Float[Tensor, "*b d"], norm: float = torch.inf) -> Float[Tensor, "*b d"]:
    """``x ↦ (2 − 1/‖x‖) x/‖x‖`` outside the unit ball of `norm` (∞: the cube of Nerfacto, 2: the ball of mip-NeRF 360).

    The identity inside; all of space lands within radius 2. Barron et al. 2022, arXiv:2111.12077, eq. 10.

    >>> contract(torch.tensor([[0.5, 0.0], [4.0, 2.0]]))
    tensor([[0.5000, 0.0000],
            [1.7500, 0.8750]])
    """
    some("x", x)
    cube = norm == torch.inf  # its norm as a maximum is several times faster
    r = x.abs().amax(-1, keepdim=True) if cube else torch.linalg.vector_norm(x, ord=norm, dim=-1, keepdim=True)
    r = r.clamp_min(1.0)
    return (2 - 1 / r) / r * x
