"""What spatial covariances tell of an EEG trial: alignment of recordings, common spatial patterns, the tangent space.

C_i = X_i X_iᵀ                                  X_i (channels, samples), a trial
X_i ← R^{−1/2} X_i,  R = mean C_i               Euclidean alignment (He & Wu 2020, arXiv:1808.05464): then mean C_i = I
W C̄₁ Wᵀ = Λ,  W (C̄₁ + C̄₂) Wᵀ = I               common spatial patterns (Ramoser et al. 2000), C_i of unit trace
vec log(M^{−1/2} C_i M^{−1/2})                  tangent space at M (Barachant et al. 2012), off-diagonals times √2
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import finite, full_precision, same_kind


def covariances(x: Float[Tensor, "n c t"]) -> Float[Tensor, "n c c"]:
    """C_i = X_i X_iᵀ, not centred, not divided. O(n c² t).

    >>> covariances(torch.ones(1, 2, 3))
    tensor([[[3., 3.],
             [3., 3.]]])
    """
    return x @ x.mT


def spectral(C: Float[Tensor, "*b c c"], f: str, least: float = 1e-10) -> Float[Tensor, "*b c c"]:
    """f of a symmetric matrix through its eigenvalues, held above `least` times the largest: "sqrt", "inverse sqrt" or "log".

    `Refused` for another f, other than float32 or float64, or (on the CPU) what is not finite.

    >>> spectral(torch.diag(torch.tensor([4.0, 1.0])), "inverse sqrt")
    tensor([[0.5000, 0.0000],
            [0.0000, 1.0000]])
    """
    functions = {"sqrt": torch.sqrt, "inverse sqrt": torch.rsqrt, "log": torch.log}
    if f not in functions:
        raise Refused(f"f: must be one of {', '.join(functions)}, got {f!r}")
    full_precision("C", C)
    finite("C", C)
    values, vectors = torch.linalg.eigh(C)
    tiny = torch.finfo(C.dtype).tiny
    bound = least * values[..., -1:].clamp(min=tiny)
    values = values.maximum(bound.where(bound > 0, tiny))  # where all eigenvalues are 0 it underflows
    return (vectors * functions[f](values)[..., None, :]) @ vectors.mT


def euclidean_align(x: Float[Tensor, "n c t"], reference: Float[Tensor, "c c"] | None = None) -> Float[Tensor, "n c t"]:
    """The trials of ONE recording whitened by its mean covariance; afterwards that is the identity. No labels are used.

    `reference`: an R of before (online: the mean over the trials so far). `Refused` for no trial, other than float32 or float64,
    or (on the CPU) an R that is not finite. O(n c² t + c³).

    >>> x = torch.randn(40, 3, 100)
    >>> torch.allclose(covariances(euclidean_align(x)).mean(0), torch.eye(3), atol=1e-4)
    True
    """
    if not len(x):
        raise Refused("x: alignment needs at least one trial, got none")
    full_precision("x", x)
    if reference is not None:
        same_kind("reference", reference, x)
    R = covariances(x).mean(0) if reference is None else reference
    finite("covariance of x" if reference is None else "reference", R)
    return spectral(R, "inverse sqrt") @ x


def csp(x: Float[Tensor, "n c t"], labels: Int[Tensor, " n"], filters: int = 6) -> Float[Tensor, "f c"]:
    """W of two classes (0 and 1): the `filters` rows whose share of class 0's variance is farthest from ½, best first.

    Features of a trial are ``log var(W X)``, see `csp_features`. `Refused` unless both classes are there, for other than float32 or
    float64, or (on the CPU) a trial that is silent or not finite. O(n c² t + c³).

    >>> x = torch.randn(40, 3, 100)
    >>> x[:20, 0] *= 3  # class 0 is loud in channel 0,
    >>> x[20:, 2] *= 3  # class 1 in channel 2
    >>> sorted(csp(x, torch.arange(40) // 20, filters=2).abs().argmax(1).tolist())
    [0, 2]
    """
    if not 1 <= filters <= x.shape[1]:
        raise Refused(f"filters: must lie in 1 … {x.shape[1]} channels, got {filters}")
    full_precision("x", x)
    C = covariances(x)
    C = C / C.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    if set(labels.tolist()) != {0, 1}:
        raise Refused(f"labels: both classes 0 and 1 are needed, got {sorted(set(labels.tolist()))}")
    first, second = (C[labels == k].mean(0) for k in (0, 1))
    finite("covariance of x, of unit trace", first + second)
    whitening = spectral(first + second, "inverse sqrt")
    values, vectors = torch.linalg.eigh(whitening @ first @ whitening)
    order = (values - 0.5).abs().argsort(descending=True)[:filters]
    return (whitening @ vectors[:, order]).T


def csp_features(x: Float[Tensor, "n c t"], W: Float[Tensor, "f c"]) -> Float[Tensor, "n f"]:
    """log variance of each filter's signal. `Refused` for fewer than 2 samples, or a W of another dtype.

    >>> csp_features(torch.randn(2, 3, 50), torch.eye(3)).shape
    torch.Size([2, 3])
    """
    same_kind("W", W, x)
    if x.shape[-1] < 2:
        raise Refused(f"x: a variance needs at least 2 samples, got shape {tuple(x.shape)}")
    return (W @ x).var(-1).clamp(min=1e-30).log()


def tangent_space(C: Float[Tensor, "n c c"], at: Float[Tensor, "c c"]) -> Float[Tensor, "n k"]:
    """The c (c + 1)/2 coordinates of each covariance in the tangent space at `at`: its norm is the distance. O(n c³).

    `Refused` for other than float32 or float64, or (on the CPU) what is not finite.

    >>> tangent_space(torch.eye(2)[None] * 2.0, torch.eye(2) * 2.0).abs().max() < 1e-6
    tensor(True)
    """
    full_precision("at", at)
    same_kind("C", C, at)
    finite("at", at)
    whitening = spectral(at, "inverse sqrt")
    L = spectral(whitening @ C @ whitening, "log")
    i, j = torch.triu_indices(*L.shape[-2:], device=L.device)
    return L[:, i, j] * torch.where(i == j, L.new_ones(()), math.sqrt(2))
