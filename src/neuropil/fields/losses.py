"""What radiance fields minimise beside the squared error of colours; each gives one number a ray, for any batch shape.

    interlevel   Σ_i max(0, w_i − bound_i)² / w_i,   bound_i = Σ_j ŵ_j over the proposal's intervals j that meet interval i
    distortion   Σ_ij w_i w_j |m_i − m_j| + ⅓ Σ_i w_i² d_i
    orientation  Σ_i w_i max(0, n_i·d)²              normals that face away from the camera
    normals      Σ_i w_i (1 − n_i·n̂_i)              predicted normals n̂ against those of the density

The first two are of Barron et al. 2022, arXiv:2111.12077, eq. 13 and 15, the last two of Verbin et al. 2022, arXiv:2112.03907
(there with ‖n − n̂‖², twice this). Borders are usually the normalised u of `sampling.Samples`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import numbers


def interlevel(
    weights: Float[Tensor, "*b s"],
    borders: Float[Tensor, "*b s+1"],
    proposal_weights: Float[Tensor, "*b p"],
    proposal_borders: Float[Tensor, "*b p+1"],
) -> Float[Tensor, "*b"]:
    """How far the final weights stick out of what the proposal's histogram allows; trains the proposal alone.

    `weights` and `borders` are taken as they are (no gradient into them). O(s log p) time a ray.

    >>> ends, two = torch.tensor([0.0, 1.0]), torch.tensor([0.0, 0.5, 1.0])
    >>> interlevel(torch.tensor([0.8]), ends, torch.tensor([0.3, 0.5]), two) < 1e-12  # 0.3 + 0.5 covers 0.8
    tensor(True)
    """
    numbers("borders", borders)
    numbers("proposal_borders", proposal_borders)
    w, t, edges = weights.detach(), borders.detach().contiguous(), proposal_borders.detach().contiguous()
    total = torch.cat([torch.zeros_like(proposal_weights[..., :1]), torch.cumsum(proposal_weights, -1)], -1)
    last = proposal_weights.shape[-1] - 1
    first = (torch.searchsorted(edges[..., :-1].contiguous(), t[..., :-1].contiguous(), right=True) - 1).clamp(0, last)
    final = torch.searchsorted(edges[..., 1:].contiguous(), t[..., 1:].contiguous(), right=True).clamp(0, last)
    bound = total.gather(-1, final + 1) - total.gather(-1, first)
    return ((w - bound).clamp_min(0).square() / (w + 1e-7)).sum(-1)


def distortion(weights: Float[Tensor, "*b s"], borders: Float[Tensor, "*b s+1"]) -> Float[Tensor, "*b"]:
    """How spread a ray's weights are: 0 for one thin interval. O(s) time and memory a ray.

    For rising middles ``Σ_ij w_i w_j |m_i − m_j| = 2 Σ_i w_i (m_i W_i − M_i)`` with the sums ``W_i = Σ_{j<i} w_j`` and
    ``M_i = Σ_{j<i} w_j m_j`` of what came before.

    >>> distortion(torch.tensor([1.0]), torch.tensor([0.0, 0.6]))  # a single interval: d/3
    tensor(0.2000)
    """
    middle = (borders[..., 1:] + borders[..., :-1]) / 2
    moment = weights * middle
    before_w = torch.cumsum(weights, -1) - weights
    before_m = torch.cumsum(moment, -1) - moment
    between = 2 * (weights * (middle * before_w - before_m)).sum(-1)
    return between + (weights.square() * borders.diff(dim=-1)).sum(-1) / 3


def orientation(
    weights: Float[Tensor, "*b s"], normals: Float[Tensor, "*b s 3"], directions: Float[Tensor, "*b 3"]
) -> Float[Tensor, "*b"]:
    """Punishes visible normals (length 1) that point along the ray's direction, away from the camera."""
    along = torch.einsum("...sk,...k->...s", normals, directions)
    return (weights * along.clamp_min(0).square()).sum(-1)


def predicted_normals(
    weights: Float[Tensor, "*b s"], normals: Float[Tensor, "*b s 3"], predicted: Float[Tensor, "*b s 3"]
) -> Float[Tensor, "*b"]:
    """``Σ w (1 − cos)`` between the density's normals and the predicted ones, both of length 1."""
    if normals.shape != predicted.shape:
        raise Refused(f"predicted: of the normals' shape {tuple(normals.shape)} is needed, got {tuple(predicted.shape)}")
    return (weights * (1 - (normals * predicted).sum(-1))).sum(-1)
