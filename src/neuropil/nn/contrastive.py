"""Contrastive losses: what belongs together is near, all else is far.

NT-Xent   ℓ_i = −log exp(s_{i,p(i)}/τ) / Σ_{k≠i} exp(s_{ik}/τ)      over the 2n rows of [a; b], p(i) the partner of row i
InfoNCE   ℓ_i = −log exp(s(a_i, b_i)/τ) / Σ_j exp(s(a_i, b_j)/τ)

s is the cosine. (Chen et al. 2020, SimCLR, arXiv:2002.05709; van den Oord et al. 2018, arXiv:1807.03748.) Rows of the same class
count as negatives, as published.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from neuropil.errors import Refused
from neuropil.nn.checks import same_kind


def nt_xent(a: Float[Tensor, "n d"], b: Float[Tensor, "m e"], tau: float = 0.2) -> Float[Tensor, ""]:
    """The mean of ℓ over the rows of both; any number of rows. O(n² d) time, O(n²) memory.

    >>> eye = torch.eye(3)
    >>> nt_xent(eye, eye, tau=0.1) < nt_xent(eye, eye.roll(1, 0), tau=0.1)
    tensor(True)
    """
    _check(a, b, tau)
    rows = normalize(torch.cat([a, b]), dim=-1)
    logits = (rows @ rows.T / tau).fill_diagonal_(float("-inf"))
    partner = torch.arange(2 * len(a), device=a.device).roll(len(a))
    return cross_entropy(logits, partner)


def info_nce(a: Float[Tensor, "n d"], b: Float[Tensor, "m e"], tau: float = 0.2) -> Float[Tensor, ""]:
    """The mean of ℓ over the rows of `a`: which row of `b` is mine? O(n² d) time, O(n²) memory.

    >>> info_nce(torch.eye(2), torch.zeros(2, 2))  # nothing to tell by: log 2
    tensor(0.6931)
    """
    _check(a, b, tau)
    return cross_entropy(normalize(a, dim=-1) @ normalize(b, dim=-1).T / tau, torch.arange(len(a), device=a.device))


def _check(a: Tensor, b: Tensor, tau: float) -> None:
    if a.shape != b.shape or not len(a):
        raise Refused(f"a, b: the same shape (n ≥ 1, d) is needed, got {tuple(a.shape)} and {tuple(b.shape)}")
    same_kind("b", b, a)
    if not tau > 0:
        raise Refused(f"tau: must be above 0, got {tau}")
