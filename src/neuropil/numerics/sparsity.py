"""How sparse activity is, and which units answer to which class.

    Hoyer(h) = (√n - |h|₁ / |h|₂) / (√n - 1)        1: one unit alone; 0: all alike               (Hoyer 2004, JMLR 5:1457)
    unit i is in the ensemble of class c  ⇔  μ_i > (1 + cut) m_i                    (Tosato et al. 2023, arXiv:2305.18353)
    Jaccard(A, B) = |A ∩ B| / |A ∪ B|

μ_i is the unit's mean activity over the class and m_i the mean of all other units' μ. The authors' code takes cut = 2 to find
ensembles and 1 to count the units that two classes share.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import at_least, numbers, some, within


def hoyer(h: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """Hoyer's sparsity of each row of n ≥ 2 numbers: 0 for a constant, 1 for a one-hot row, nan for a row of zeros.

    Scaling a row changes nothing. O(n) a row.

    >>> hoyer(torch.tensor([[0.0, 0.0, 3.0, 0.0], [1.0, 1.0, 1.0, 1.0]]))
    tensor([1., 0.])
    """
    n = h.shape[-1]
    if n < 2:
        raise Refused(f"h: rows of at least 2 numbers are needed, got {n}")
    return (math.sqrt(n) - h.norm(1, -1) / h.norm(2, -1)) / (math.sqrt(n) - 1)


def class_means(h: Float[Tensor, "b n"], labels: Int[Tensor, " b"], classes: int) -> Float[Tensor, "{classes} n"]:
    """The mean activity of each unit over the samples of each class; nan for a class without samples. O(classes b n).

    >>> class_means(torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0]]), torch.tensor([0, 0, 1]), 2)
    tensor([[2., 0.],
            [0., 5.]])
    """
    at_least(0, classes=classes)
    within("labels", labels, classes)
    member = (labels == torch.arange(classes, device=labels.device)[:, None]).to(h.dtype)
    return member @ h / member.sum(1, keepdim=True)


def ensembles(h: Float[Tensor, "b n"], labels: Int[Tensor, " b"], classes: int, cut: float = 2.0) -> Bool[Tensor, "{classes} n"]:
    """Which units stand out for a class: mean activity above 1 + cut times that of the other units. h ≥ 0; O(classes b n).

    A class without samples, or a silent one, has an empty ensemble.

    >>> h = torch.tensor([[9.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 9.0]])
    >>> ensembles(h, torch.tensor([0, 1]), 2).int()
    tensor([[1, 0, 0, 0],
            [0, 0, 0, 1]], dtype=torch.int32)
    """
    some("h", h)
    numbers("h", h)
    if h.shape[-1] < 2 or bool((h < 0).any()):
        raise Refused(f"h: activity ≥ 0 of at least 2 units is needed, got {h.shape[-1]} units from {float(h.min()):g} on")
    mean = class_means(h, labels, classes)
    others = (mean.sum(1, keepdim=True) - mean).clamp_min(0) / (h.shape[-1] - 1)
    return mean > (1 + cut) * others


def jaccard(a: Bool[Tensor, "*#b n"], b: Bool[Tensor, "*#b n"]) -> Float[Tensor, "*b"]:
    """Overlap of sets of units given as masks; nan where both are empty.

    >>> jaccard(torch.tensor([True, True, False]), torch.tensor([False, True, True]))
    tensor(0.3333)
    """
    return (a & b).sum(-1) / (a | b).sum(-1)
