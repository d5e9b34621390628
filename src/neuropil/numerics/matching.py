"""Which found class is which true one: the assignment of least cost (Kuhn 1955, the Hungarian method; by scipy).

p* = argmax_p Σ_i [truth_i = p(found_i)]          over the one-to-one maps p of labels
"""

import torch
from jaxtyping import Float, Int
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from neuropil.errors import Refused


def hungarian_match(cost: Float[Tensor, "n m"]) -> Int[Tensor, " n"]:
    """For each row its own column, so that the sum of the costs is least; n ≤ m. O(n² m), on the CPU. `Refused` for n > m or NaN.

    >>> hungarian_match(torch.tensor([[1.0, 0.0], [0.0, 5.0]]))
    tensor([1, 0])
    """
    n, m = cost.shape
    if n > m or not bool(cost.isfinite().all()):
        raise Refused(f"cost: finite numbers in at most as many rows as columns are needed, got {n} × {m}")
    return torch.from_numpy(linear_sum_assignment(cost.detach().double().cpu().numpy())[1]).to(cost.device)


def match_labels(truth: Int[Tensor, "*s"], found: Int[Tensor, "*s"], k: int) -> Int[Tensor, " {k}"]:
    """The found label for each of k true ones, so that most entries agree: ``found`` renamed is ``names.argsort()[found]``.

    O(entries + k³). `Refused` for labels outside 0 … k − 1 or other shapes.

    >>> match_labels(torch.tensor([0, 0, 1, 2]), torch.tensor([2, 2, 0, 1]), 3)
    tensor([2, 0, 1])
    """
    if truth.shape != found.shape or not truth.numel():
        raise Refused(f"found: needs the shape of truth {tuple(truth.shape)} and an entry, got {tuple(found.shape)}")
    for name, labels in (("truth", truth), ("found", found)):
        if not 0 <= int(labels.min()) <= int(labels.max()) < k:
            raise Refused(f"{name}: labels must lie in 0 … {k - 1}, got {int(labels.min())} … {int(labels.max())}")
    together = torch.bincount((truth.long() * k + found.long()).flatten(), minlength=k * k).view(k, k)
    return hungarian_match(-together.double())
