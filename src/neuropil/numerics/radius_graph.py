"""Which points are near: the ordered pairs within a radius, by SciPy's k-d tree."""

import torch
from jaxtyping import Float, Int
from scipy.spatial import cKDTree
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import some


def radius_pairs(points: Float[Tensor, "n d"], radius: float) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """(sources, targets) of all ordered pairs i ≠ j with |x_i − x_j| ≤ radius, sorted by target, then source.

    On the device of `points`; the tree is built on the CPU. O(n log n + p log p) time, O(p) memory. What `nn.segments.Links.of`
    takes. `Refused` for a radius that is not above 0 or points that are not finite.

    >>> radius_pairs(torch.tensor([[0.0], [1.0], [3.0]]), 1.5)
    (tensor([1, 0]), tensor([0, 1]))
    """
    if not radius > 0:
        raise Refused(f"radius: must be above 0, got {radius}")
    if not bool(points.isfinite().all()):
        raise Refused("points: must be finite, got NaN or infinity")
    some("points", points)
    pairs = torch.from_numpy(cKDTree(points.detach().cpu().double().numpy()).query_pairs(radius, output_type="ndarray")).long()
    both = torch.cat([pairs, pairs.flip(1)])
    both = both[(both[:, 1] * len(points) + both[:, 0]).argsort()].to(points.device)
    return both[:, 0], both[:, 1]
