"""How well a score tells two kinds of samples apart: `auroc`, `fpr_at`.

    AUROC = P(s⁺ > s⁻) + ½ P(s⁺ = s⁻)                    the Mann–Whitney statistic: ties count half
    FPR95 = P(s⁻ ≥ t),  t = the largest threshold with P(s⁺ ≥ t) ≥ 0.95

Higher scores mean "positive". In out-of-distribution detection the positives usually are the samples in distribution: FPR95 is the
share of strange samples let in by a threshold that lets in 95 % of the known.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused


def auroc(positive: Float[Tensor, "*b n"], negative: Float[Tensor, "*b m"]) -> Float[Tensor, "*b"]:
    """Area under the ROC curve, for each score of a batch of scores: 1 apart, 0.5 alike. O((n + m) log m); no sampling, ties exact.

    `Refused` for no samples or NaN.

    >>> auroc(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 2.0])).item()
    0.875
    """
    positive, negative = _checked(positive, negative)
    ordered = negative.sort(-1).values
    below, not_above = (torch.searchsorted(ordered, positive, right=right) for right in (False, True))
    return (below + not_above).double().mean(-1) / 2 / negative.shape[-1]


def fpr_at(positive: Float[Tensor, "*b n"], negative: Float[Tensor, "*b m"], tpr: float = 0.95) -> Float[Tensor, "*b"]:
    """Share of negatives at or above the threshold that at least a share `tpr` of the positives reaches (FPR95). O(n log n + m).

    `Refused` for no samples, NaN, or a `tpr` outside (0, 1].

    >>> fpr_at(torch.arange(1.0, 21.0), torch.tensor([0.0, 1.0, 2.0, 30.0])).item()
    0.5
    """
    if not 0 < tpr <= 1:
        raise Refused(f"tpr: must lie in (0, 1], got {tpr}")
    positive, negative = _checked(positive, negative)
    reached = math.ceil(tpr * positive.shape[-1] - 1e-9)
    threshold = positive.sort(-1, descending=True).values[..., reached - 1, None]
    return (negative >= threshold).double().mean(-1)


def _checked(positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one type and memory layout, if there is something to compare."""
    for name, scores in (("positive", positive), ("negative", negative)):
        if not scores.shape[-1]:
            raise Refused(f"{name}: at least one score is needed, got none")
        if bool(scores.isnan().any()):
            raise Refused(f"{name}: scores must be numbers, {int(scores.isnan().sum())} are NaN")
    kind = torch.promote_types(positive.dtype, negative.dtype)
    return positive.detach().to(kind).contiguous(), negative.detach().to(kind).contiguous()
