"""Chance without a formula: `permutation_test` of a difference, `bootstrap` interval of any statistic.

    p = (1 + #{T* ≥ T}) / (1 + R)          over R random swaps of a and b, or exactly over all of them where they are few
    [T*_{α/2}, T*_{1−α/2}]                  quantiles of the statistic over R samples drawn with replacement (Efron 1979)

Samples run along the last axis; axes before it are independent questions, answered with the same draws. Values are compared in
pairs (the i-th of a with the i-th of b) unless ``paired=False``. A statistic is a function of tensors (…, n) that works along the
last axis, whatever comes before it: all resamples go through it at once, in as few pieces as `memory` numbers allow.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused, choose
from neuropil.nn.checks import numbers, some

MEMORY = 2**24


def difference(a: Tensor, b: Tensor) -> Tensor:
    """The difference of means.

    >>> difference(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])).item()
    1.0
    """
    for name, x in (("a", a), ("b", b)):
        if not x.is_floating_point():
            raise Refused(f"{name}: must be floating point, got {x.dtype}")
    return a.mean(-1) - b.mean(-1)


def permutation_test(
    a: Float[Tensor, "*b n"],
    b: Float[Tensor, "*b m"],
    statistic: Callable[[Tensor, Tensor], Tensor] = difference,
    *,
    paired: bool = True,
    alternative: str = "two-sided",
    resamples: int = 9999,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
) -> Float[Tensor, "*b"]:
    """p of the hypothesis that a and b may be swapped: within pairs, or, unpaired, dealt anew between the two.

    `alternative`: "greater" (of a over b), "less" or "two-sided" (twice the smaller, at most 1). Pairs with 2ⁿ ≤ `resamples` swaps
    get all of them: p is exact then. So that rounding does not break ties, differences of means count as equal within 1e-12 of the
    largest values, those of another `statistic` within 1e-12 of the observed one: of no use where that is 0 but for rounding.
    O(resamples · n) time for a plain statistic. `Refused` for empty or unequal paired samples.

    >>> a = torch.tensor([2.0, 3.0, 5.0, 4.0, 6.0, 3.0])
    >>> permutation_test(a, a - 1).item() == 2 / 2**6
    True
    """
    choose("alternative", alternative, ("two-sided", "greater", "less"))
    for name, x in (("a", a), ("b", b)):
        some(name, x)
        numbers(name, x)
    a, b = _samples(paired, a, b)
    n, m = a.shape[-1], b.shape[-1]
    exact = paired and 2**n <= resamples
    if exact:
        resamples = 2**n
    observed = statistic(a, b)
    numbers("statistic", observed)
    size = a.abs().amax(-1) + b.abs().amax(-1) if statistic is difference else observed.abs()
    slack = 1e-12 * size + 1e-300  # equal but for rounding counts as equal
    above = below = torch.zeros_like(observed)
    for piece in _pieces(resamples, observed.numel() * (n + m), memory):
        if paired:
            if exact:
                swap = (torch.arange(piece.start, piece.stop, device=a.device)[:, None] >> torch.arange(n, device=a.device)) % 2 > 0
            else:
                swap = (torch.rand(len(piece), n, generator=generator) < 0.5).to(a.device)
            x, y = a[..., None, :], b[..., None, :]
            values = statistic(torch.where(swap, y, x), torch.where(swap, x, y))
        else:
            order = torch.rand(len(piece), n + m, generator=generator).argsort(-1).to(a.device)
            dealt = torch.cat([a, b], -1)[..., order]
            values = statistic(dealt[..., :n], dealt[..., n:])
        above = above + (values >= (observed - slack)[..., None]).sum(-1)
        below = below + (values <= (observed + slack)[..., None]).sum(-1)
    greater, less = ((count if exact else 1 + count) / (resamples if exact else 1 + resamples) for count in (above, below))
    if alternative == "two-sided":
        return (2 * torch.minimum(greater, less)).clamp_max(1.0)
    return greater if alternative == "greater" else less


@dataclass(frozen=True)
class Interval:
    """A statistic of the sample and the bounds of its interval."""

    value: Float[Tensor, "*b"]
    low: Float[Tensor, "*b"]
    high: Float[Tensor, "*b"]


def bootstrap(
    *samples: Float[Tensor, "*b _"],
    statistic: Callable[..., Tensor] | None = None,
    paired: bool = True,
    level: float = 0.95,
    method: str = "percentile",
    resamples: int = 9999,
    generator: torch.Generator | None = None,
    memory: int = MEMORY,
) -> Interval:
    """The interval of ``statistic(*samples)``; default: the mean of one sample, the difference of the means of two.

    `method`: "percentile", or "bca" (bias-corrected and accelerated, Efron 1987), which n jackknife values correct for bias and
    skew: for paired samples of at least two. O(resamples · n) time for a plain statistic. `Refused` for empty or, if paired,
    unequal samples, or a level outside (0, 1).

    >>> found = bootstrap(torch.arange(100.0), generator=torch.Generator().manual_seed(0))
    >>> found.value.item(), 42 < found.low < 46, 53 < found.high < 57
    (49.5, tensor(True), tensor(True))
    """
    if not 0 < level < 1:
        raise Refused(f"level: must lie between 0 and 1, got {level}")
    choose("method", method, ("percentile", "bca"))
    data = _samples(paired, *samples)
    for x in data:
        numbers("samples", x)
    if method == "bca" and (not paired or data[0].shape[-1] < 2):
        raise Refused("method: 'bca' is for paired samples of at least two values")
    if statistic is None:
        if len(data) > 2:
            raise Refused(f"statistic: for {len(data)} samples it must be given")
        statistic = difference if len(data) == 2 else lambda x: x.mean(-1)
    observed = statistic(*data)
    sizes = [x.shape[-1] for x in data]
    values = []
    for piece in _pieces(resamples, observed.numel() * sum(sizes), memory):
        drawn = [
            torch.randint(n, (len(piece), n), generator=generator).to(data[0].device) for n in (sizes[:1] if paired else sizes)
        ]
        rows = drawn * len(data) if paired else drawn
        values.append(statistic(*(x[..., row] for x, row in zip(data, rows, strict=True))))
    ordered = torch.cat(values, -1).sort(-1).values
    tail = torch.full((2, *observed.shape), (1 - level) / 2, dtype=torch.float64, device=observed.device)
    tail[1] = 1 - tail[1]
    if method == "bca":
        tail = _corrected(tail, ordered, observed, data, statistic)
    low, high = (_quantile(ordered, q) for q in tail)
    return Interval(observed, low, high)


def _corrected(tail: Tensor, ordered: Tensor, observed: Tensor, data: list[Tensor], statistic: Callable[..., Tensor]) -> Tensor:
    """The levels of the BCa interval: Φ(z₀ + (z₀ + z) / (1 − a (z₀ + z)))."""
    n, least = data[0].shape[-1], 0.5 / ordered.shape[-1]
    share = ((ordered < observed[..., None]).double() + (ordered == observed[..., None]).double() / 2).mean(-1)
    z0 = torch.special.ndtri(share.clamp(least, 1 - least))
    others = torch.arange(n - 1, device=observed.device) + (torch.arange(n - 1) >= torch.arange(n)[:, None]).to(observed.device)
    left_out = statistic(*(x[..., others] for x in data))
    off = left_out.mean(-1, keepdim=True) - left_out
    cubes, squares = off.pow(3).sum(-1), off.square().sum(-1)
    a = torch.where(squares > 0, cubes / (6 * squares.clamp_min(1e-300).pow(1.5)), 0.0)
    z = z0 + torch.special.ndtri(tail)
    return torch.special.ndtr(z0 + z / (1 - a * z))


def _quantile(ordered: Tensor, q: Tensor) -> Tensor:
    """The q-quantile along the last axis, linear between neighbours; q has the other axes."""
    place = q * (ordered.shape[-1] - 1)
    floor = place.floor().long().clamp(0, ordered.shape[-1] - 1)
    pair = [ordered.gather(-1, (floor + k).clamp_max(ordered.shape[-1] - 1)[..., None])[..., 0] for k in (0, 1)]
    return torch.lerp(pair[0], pair[1], (place - floor).clamp(0, 1))


def _samples(paired: bool, *samples: Tensor) -> list[Tensor]:
    """The samples in double precision, if they can be asked about."""
    if not samples or any(x.ndim < 1 or not x.shape[-1] for x in samples):
        raise Refused("samples: each needs at least one value along its last axis")
    sizes = [x.shape[-1] for x in samples]
    if paired and len(set(sizes)) > 1:
        raise Refused(f"samples: pairs need as many values in each, got {sizes}; or give paired=False")
    return [x.detach().double() for x in samples]


def _pieces(resamples: int, each: int, memory: int) -> Iterator[range]:
    """The numbers of the resamples, in pieces that fit."""
    if resamples < 1:
        raise Refused(f"resamples: at least 1, got {resamples}")
    size = max(1, math.floor(memory / max(each, 1)))
    for start in range(0, resamples, size):
        yield range(start, min(start + size, resamples))
