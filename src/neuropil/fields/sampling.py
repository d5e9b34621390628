"""Where along a ray to look: stratified samples on any scale of distance, inverse-CDF samples of a histogram, proposals.

A ray's samples are s intervals between s + 1 borders. They live on a scale g(t) of distance, normalised to u ∈ [0, 1]:

    t(u) = g⁻¹((1 − u) g(near) + u g(far))         uniform t · disparity 1/t · sqrt √t · log ln t · piecewise (below)

"piecewise" is ``t/2`` up to distance 1 and ``1 − 1/(2t)`` from there: half of the borders uniform to 1, half in disparity to
infinity (Tancik et al. 2023, arXiv:2302.04264, §4). Proposals: the weights that one density gives are the histogram from which the
borders of the next round are drawn (Barron et al. 2022, arXiv:2111.12077, §3).

Every function takes any batch shape and costs O(s) time and memory a ray (`resample` O(s log s)). Jitter comes from torch's
global generator; no gradient flows into the borders that `resample` draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.data.cameras import Rays
from neuropil.errors import Refused, choose
from neuropil.fields.rendering import weights as weights_of

Map = Callable[[Tensor], Tensor]
SPACINGS: dict[str, tuple[Map, Map]] = {  # g and its inverse
    "uniform": (lambda t: t, lambda s: s),
    "disparity": (torch.reciprocal, torch.reciprocal),
    "sqrt": (torch.sqrt, torch.square),
    "log": (torch.log, torch.exp),
    "piecewise": (
        lambda t: torch.where(t < 1, t / 2, 1 - 0.5 / t.clamp_min(1)),
        lambda s: torch.where(s < 0.5, 2 * s, 0.5 / (1 - s.clamp_min(0.5))),
    ),
}
JITTERS = ("none", "ray", "sample")


@dataclass(frozen=True)
class Samples:
    """The intervals of each ray: their borders t (a length, rising) and the same borders as u in [0, 1] on the scale `spacing`."""

    borders: Float[Tensor, "*b e"]
    u: Float[Tensor, "*b e"]
    near: Float[Tensor, "*b"]
    far: Float[Tensor, "*b"]
    spacing: str

    @property
    def delta(self) -> Float[Tensor, "*b s"]:
        """The widths t₁ − t₀."""
        return self.borders.diff(dim=-1)

    @property
    def middle(self) -> Float[Tensor, "*b s"]:
        """(t₀ + t₁) / 2."""
        return (self.borders[..., 1:] + self.borders[..., :-1]) / 2

    def positions(self, rays: Rays) -> Float[Tensor, "*b s 3"]:
        """The points o + t d in the middle of the intervals."""
        return rays.origins[..., None, :] + self.middle[..., None] * rays.directions[..., None, :]


def spaced(
    near: Float[Tensor, "*b"], far: Float[Tensor, "*b"], count: int, spacing: str = "uniform", jitter: str = "none"
) -> Samples:
    """`count` intervals of equal width on the scale `spacing` (one of `SPACINGS`).

    `jitter` moves every inner border by up to half an interval: "sample" each on its own, "ray" all of a ray alike, "none" not.
    Raises `Refused` for an infinite far, and for near = 0 on the scales "disparity" and "log", which have no 0.

    >>> spaced(torch.tensor([0.0]), torch.tensor([5.0]), 9, "piecewise").borders.round(decimals=2)
    tensor([[0.0000, 0.2000, 0.4000, 0.6000, 0.8000, 1.0000, 1.2500, 1.6700, 2.5000, 5.0000]])
    """
    _positive(count)
    choose("spacing", spacing, SPACINGS)
    u = torch.linspace(0, 1, count + 1, dtype=near.dtype, device=near.device).expand(*near.shape, -1)
    if (noise := _noise(u, jitter)) is not None:
        middle = (u[..., 1:] + u[..., :-1]) / 2
        low, high = torch.cat([u[..., :1], middle], -1), torch.cat([middle, u[..., -1:]], -1)
        u = low + (high - low) * noise
    return _samples(u, near, far, spacing)


def resample(
    samples: Samples, weights: Float[Tensor, "*b s"], count: int, padding: float = 0.01, jitter: str = "none", keep: bool = False
) -> Samples:
    """`count` intervals whose borders are spread as the histogram (u, weights + `padding`): inverse-CDF sampling.

    The count + 1 borders are the quantiles ``(k + ½)/(count + 1)``, or with `jitter` drawn within each of these strata. `padding`
    lets a little of the borders fall where the weights saw nothing. `keep` sorts the old borders in (NeRF's fine samples), which
    gives ``count + s + 1`` intervals.

    >>> before = spaced(torch.tensor([0.0]), torch.tensor([4.0]), 4)
    >>> resample(before, torch.tensor([[0.0, 0.0, 1.0, 0.0]]), 4, padding=0.0).borders.round(decimals=2)
    tensor([[2.1000, 2.3000, 2.5000, 2.7000, 2.9000]])
    """
    _positive(count)
    if weights.shape != (*samples.u.shape[:-1], samples.u.shape[-1] - 1) or not weights.shape[-1]:
        raise Refused(f"weights: one an interval is needed, got {tuple(weights.shape)} for borders {tuple(samples.u.shape)}")
    if not 0 <= padding < float("inf"):
        raise Refused(f"padding: must be 0 or more and finite, got {padding}")
    old, histogram = samples.u.detach(), weights.detach() + padding
    histogram = histogram + (1e-5 - histogram.sum(-1, keepdim=True)).clamp_min(0) / histogram.shape[-1]  # a ray without weight
    cdf = torch.cumsum(histogram, -1)
    cdf = torch.cat([torch.zeros_like(cdf[..., :1]), cdf / cdf[..., -1:]], -1)
    strata = torch.arange(count + 1, dtype=old.dtype, device=old.device).expand(*old.shape[:-1], -1)
    noise = _noise(strata, jitter)
    quantile = ((strata + (0.5 if noise is None else noise)) / (count + 1)).contiguous()
    above = torch.searchsorted(cdf, quantile, right=True).clamp_max(cdf.shape[-1] - 1)
    low, high = cdf.gather(-1, above - 1), cdf.gather(-1, above)
    start, end = old.gather(-1, above - 1), old.gather(-1, above)
    u = start + (end - start) * ((quantile - low) / (high - low).clamp_min(1e-12)).clamp(0, 1)
    if keep:
        u = torch.cat([old, u], -1).sort(-1).values
    return _samples(u, samples.near, samples.far, samples.spacing)


def propose(
    rays: Rays,
    densities: Sequence[Callable[[Tensor], Tensor]],
    counts: Sequence[int],
    final: int,
    spacing: str = "piecewise",
    anneal: float = 1.0,
    jitter: str = "none",
) -> tuple[Samples, list[tuple[Samples, Tensor]]]:
    """`final` intervals where the proposal `densities` (points (… 3) → σ) found something, and each round's (samples, weights).

    Round k looks at `counts[k]` intervals, the first spread on the scale `spacing`, and hands on its weights as wᵃ with
    a = `anneal` in [0, 1]: from no preference (0) to the weights themselves (1). The rounds' weights carry gradients, for the
    interlevel loss.
    """
    if len(densities) != len(counts):
        raise Refused(f"counts: one for each of {len(densities)} proposal densities is needed, got {list(counts)}")
    if not 0 <= anneal <= 1:
        raise Refused(f"anneal: must lie in [0, 1], got {anneal}")
    first, *later = [*counts, final]
    samples = spaced(rays.near, rays.far, first, spacing, jitter)
    rounds = []
    for density, count in zip(densities, later, strict=True):
        weights = weights_of(density(samples.positions(rays)), samples.delta)
        rounds.append((samples, weights))
        samples = resample(samples, weights.detach() ** anneal, count, jitter=jitter)
    return samples, rounds


def clip_to_box(rays: Rays, half: float = 1.0) -> Rays:
    """The same rays with near and far drawn in to the cube [−half, half]³; near = far where they miss it.

    >>> rays = Rays(*torch.tensor([[[-3.0, 0, 0]], [[1.0, 0, 0]]]), *torch.tensor([[0.0], [9.0]]), torch.tensor([0]))
    >>> clipped = clip_to_box(rays)
    >>> clipped.near, clipped.far
    (tensor([2.]), tensor([4.]))
    """
    if not half > 0:
        raise Refused(f"half: must be positive, got {half}")
    d = rays.directions
    d = torch.where(d.abs() < 1e-9, torch.full_like(d, 1e-9), d)
    one, other = (-half - rays.origins) / d, (half - rays.origins) / d
    near = torch.maximum(torch.minimum(one, other).amax(-1), rays.near)
    far = torch.minimum(torch.maximum(one, other).amin(-1), rays.far)
    hit = near < far
    return Rays(
        rays.origins, rays.directions, torch.where(hit, near, rays.near), torch.where(hit, far, rays.near), rays.camera, rays.times
    )


def _samples(u: Tensor, near: Tensor, far: Tensor, spacing: str) -> Samples:
    g, inverse = SPACINGS[spacing]
    a, b = g(near)[..., None], g(far)[..., None]
    if not torch.compiler.is_compiling() and not bool((a.isfinite() & b.isfinite()).all() & far.isfinite().all()):
        raise Refused(
            f"near, far: finite ones on the scale {spacing!r} are needed, got {float(near.min()):g}, {float(far.max()):g}"
        )
    return Samples(inverse(a + (b - a) * u), u, near, far, spacing)


def _noise(like: Tensor, jitter: str) -> Tensor | None:
    """Uniform numbers in [0, 1) that broadcast with `like`: one a border, one a ray, or none."""
    if choose("jitter", jitter, JITTERS) == "none":
        return None
    shape = like.shape if jitter == "sample" else (*like.shape[:-1], 1)
    return torch.rand(shape, dtype=like.dtype, device=like.device)


def _positive(count: int) -> None:
    if count < 1:
        raise Refused(f"count: at least 1 interval is needed, got {count}")
