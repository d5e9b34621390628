"""Grouping by direction, and how well a grouping finds objects: spherical k-means, ARI over the foreground.

z_i = argmax_k x_i·m_k,      m_k = normalise(Σ_{i: z_i = k} x_i)           (Dhillon & Modha 2001, doi:10.1023/A:1007612920971)
FG-ARI: the adjusted Rand index (Hubert & Arabie 1985) over the pixels of objects only; 1 = the same grouping, 0 = chance
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from neuropil.errors import Refused, optional
from neuropil.nn.checks import finite, some


def spherical_kmeans(
    x: Float[Tensor, "b p d"], k: int, generator: torch.Generator, starts: int = 8, steps: int = 30
) -> Int[Tensor, "b p"]:
    """Groups 0 … k − 1 of the p rows of each of b sets, by direction: the best of `starts` runs, each of `steps` updates.

    Centres start as k rows drawn as in k-means++ (the chance of a row grows with 1 − its cosine to the nearest centre so far).
    A centre that loses all rows stays where it is. All sets and starts run at once: O(b starts steps p k d) time,
    O(b starts p (k + d)) memory. Rows of length 0 go anywhere. Raises `Refused` unless 1 ≤ k ≤ p, starts ≥ 1 and steps ≥ 1.

    >>> x = torch.tensor([[[1.0, 0.1], [0.1, 1.0], [5.0, 0.0]]])
    >>> z = spherical_kmeans(x, 2, torch.Generator().manual_seed(0))[0].tolist()
    >>> z[0] == z[2] != z[1]
    True
    """
    some("x", x)
    finite("x", x)
    b, p, d = x.shape
    if not 1 <= k <= p:
        raise Refused(f"k: must lie in 1 … {p} (the rows of a set), got {k}")
    if min(starts, steps) < 1:
        raise Refused(f"starts, steps: at least 1, got {starts} and {steps}")
    rows = normalize(x.detach(), dim=-1)[:, None].expand(b, starts, p, d).reshape(b * starts, p, d)
    each = torch.arange(b * starts, device=x.device)
    far = torch.ones_like(rows[..., 0])
    centres = rows.new_empty(b * starts, 0, d)
    for _ in range(k):
        draw = torch.rand(b * starts, 1, generator=generator, device=generator.device, dtype=x.dtype).to(x.device)
        mass = (far + 1e-9).cumsum(-1)
        chosen = rows[each, torch.searchsorted(mass, draw * mass[:, -1:]).clamp_max(p - 1)[:, 0]]
        centres = torch.cat([centres, chosen[:, None]], 1)
        far = (1 - rows @ centres.mT).amin(-1).clamp_min(0)
    for _ in range(steps):
        member = one_hot((rows @ centres.mT).argmax(-1), k).to(x.dtype)
        total = member.mT @ rows
        centres = torch.where(total.norm(dim=-1, keepdim=True) > 0, normalize(total, dim=-1), centres)
    cosine, group = (rows @ centres.mT).max(-1)
    best = cosine.sum(-1).view(b, starts).argmax(-1)
    return group.view(b, starts, p)[torch.arange(b, device=x.device), best]


def foreground_ari(truth: Int[Tensor, "b *places"], found: Int[Tensor, "b *places"]) -> Float[Tensor, " b"]:
    """The adjusted Rand index of each image over the places whose true label is positive (0: background, below: ignored).

    scikit-learn's `adjusted_rand_score`, in float64 on the CPU. Raises `Refused` for an image without any object.

    >>> foreground_ari(torch.tensor([[0, 1, 1, 2, 2]]), torch.tensor([[5, 7, 7, 5, 5]]))
    tensor([1.], dtype=torch.float64)
    """
    metrics = optional("sklearn.metrics", "memory")
    scores = []
    for number, (t, f) in enumerate(zip(truth.flatten(1).cpu(), found.flatten(1).cpu(), strict=True)):
        object_ = t > 0
        if not bool(object_.any()):
            raise Refused(f"truth: image {number} has no object (no label above 0)")
        scores.append(metrics.adjusted_rand_score(t[object_].numpy(), f[object_].numpy()))
    return torch.tensor(scores, dtype=torch.float64)
