"""Statistics of more data than fits in memory: each is made from one batch by `of`, and ``a + b`` is that of both batches together.

    total = sum(Moments.of(x) for x in batches)          in any order, of any sizes: the result is the same but for rounding

Means and sums of centred products merge after Chan, Golub & LeVeque (1983) and Pébay (2008); sums of squares would cancel:

    δ = μ_b − μ_a,   n = n_a + n_b,   μ = μ_a + δ n_b / n,   M₂ = M₂a + M₂b + δ² n_a n_b / n

All are kept in double precision. Rows are samples: everything before the last axis is flattened.
"""

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import fits, nonnegative

S = TypeVar("S", bound="_Sum")


class _Sum:
    """What ``sum`` needs: 0 + a is a."""

    def __radd__(self: S, other: Any) -> S:
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented

    def to(self: S, device: Any) -> S:
        """The same on another device."""
        return replace(self, **{name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)})  # type: ignore[type-var]


def _rows(x: Tensor) -> Tensor:
    if x.ndim < 1:
        raise Refused("x: rows of features (…, d) are needed, got a single number")
    return x.detach().reshape(-1, x.shape[-1]).double()


def _centred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviations from it; those of a constant feature are 0 exactly, not its mean's rounding error."""
    if not len(x):
        return x.new_zeros(x.shape[1]), x
    mean = torch.where((x == x[0]).all(0), x[0], x.mean(0))
    return mean, x - mean


def _ratio(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0: a unit that never varies has no correlation, skew or kurtosis."""
    return torch.where(b > 0, a / b.where(b > 0, torch.ones_like(b)), torch.zeros_like(a))


def _same(a: Tensor, b: Tensor, what: str) -> None:
    if a.shape != b.shape:
        raise Refused(f"merge: both must be of as many {what}, got {tuple(a.shape)} and {tuple(b.shape)}")


@dataclass(frozen=True)
class Moments(_Sum):
    """Count, mean, centred sums of powers 2 to 4, least and largest value, count above 0 (`active`), of each feature.

    O(n d) time a batch, O(d) memory. Empty batches are allowed; what needs rows that are not there is NaN or infinite.

    >>> m = Moments.of(torch.tensor([[1.0], [2.0]])) + Moments.of(torch.tensor([[6.0]]))
    >>> m.count, m.mean.item(), m.var.item(), m.high.item()
    (3, 3.0, 7.0, 6.0)
    """

    count: int
    mean: Float[Tensor, "d"]
    m2: Float[Tensor, "d"]
    m3: Float[Tensor, "d"]
    m4: Float[Tensor, "d"]
    low: Float[Tensor, "d"]
    high: Float[Tensor, "d"]
    active: Int[Tensor, "d"]

    @classmethod
    def of(cls, x: Float[Tensor, "*n d"]) -> "Moments":
        """Of the rows of one batch."""
        x = _rows(x)
        bound = x.new_full((1, x.shape[1]), float("inf"))
        mean, off = _centred(x)
        m2, m3, m4 = (off.pow(p).sum(0) for p in (2, 3, 4))
        low, high = torch.cat([x, bound]).amin(0), torch.cat([x, -bound]).amax(0)
        return cls(len(x), mean, m2, m3, m4, low, high, (x > 0).sum(0))

    def __add__(self, other: "Moments") -> "Moments":
        if not isinstance(other, Moments):
            return NotImplemented
        _same(self.mean, other.mean, "features")
        a, b = self.count, other.count
        n, d = max(a + b, 1), other.mean - self.mean
        m2 = self.m2 + other.m2 + d**2 * (a * b / n)
        m3 = self.m3 + other.m3 + d**3 * (a * b * (a - b) / n**2) + 3 * d * (a * other.m2 - b * self.m2) / n
        m4 = (
            self.m4
            + other.m4
            + d**4 * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * d**2 * (a * a * other.m2 + b * b * self.m2) / n**2
            + 4 * d * (a * other.m3 - b * self.m3) / n
        )
        low, high = torch.minimum(self.low, other.low), torch.maximum(self.high, other.high)
        return Moments(a + b, self.mean + d * (b / n), m2, m3, m4, low, high, self.active + other.active)

    @property
    def var(self) -> Float[Tensor, "d"]:
        """Unbiased: divided by n − 1."""
        return self.m2 / (self.count - 1) if self.count > 1 else torch.full_like(self.m2, float("nan"))

    @property
    def std(self) -> Float[Tensor, "d"]:
        """Square root of `var`."""
        return self.var.sqrt()

    @property
    def skew(self) -> Float[Tensor, "d"]:
        """``√n M₃ / M₂^{3/2}``; 0 for a feature that never varies."""
        return _ratio(self.count**0.5 * self.m3, self.m2**1.5)

    @property
    def kurtosis(self) -> Float[Tensor, "d"]:
        """``n M₄ / M₂²``: 3 for a Gaussian; 0 for a feature that never varies."""
        return _ratio(self.count * self.m4, self.m2**2)

    @property
    def share_active(self) -> Float[Tensor, "d"]:
        """Share of values above 0."""
        return self.active / max(self.count, 1)


@dataclass(frozen=True)
class Gram(_Sum):
    """Sums of products of all pairs of features: the Gram matrix XᵀX and the covariance. O(n d²) time a batch, O(d²) memory.

    >>> x = torch.tensor([[1.0, 2.0], [3.0, 6.0], [5.0, 1.0]])
    >>> g = Gram.of(x[:1]) + Gram.of(x[1:])
    >>> torch.allclose(g.gram, (x.T @ x).double()), torch.allclose(g.covariance, x.T.cov().double())
    (True, True)
    """

    count: int
    mean: Float[Tensor, "d"]
    scatter: Float[Tensor, "d d"]

    @classmethod
    def of(cls, x: Float[Tensor, "*n d"]) -> "Gram":
        """Of the rows of one batch."""
        mean, off = _centred(_rows(x))
        return cls(len(off), mean, off.T @ off)

    def __add__(self, other: "Gram") -> "Gram":
        if not isinstance(other, Gram):
            return NotImplemented
        _same(self.mean, other.mean, "features")
        n, d = max(self.count + other.count, 1), other.mean - self.mean
        scatter = self.scatter + other.scatter + torch.outer(d, d) * (self.count * other.count / n)
        return Gram(self.count + other.count, self.mean + d * (other.count / n), scatter)

    @property
    def gram(self) -> Float[Tensor, "d d"]:
        """XᵀX, not centred."""
        return self.scatter + self.count * torch.outer(self.mean, self.mean)

    @property
    def covariance(self) -> Float[Tensor, "d d"]:
        """Unbiased: divided by n − 1."""
        return self.scatter / (self.count - 1) if self.count > 1 else torch.full_like(self.scatter, float("nan"))

    @property
    def correlation(self) -> Float[Tensor, "d d"]:
        """Pearson's, 0 for a feature that never varies."""
        deviation = self.scatter.diagonal().sqrt()
        return _ratio(self.scatter, torch.outer(deviation, deviation))


@dataclass(frozen=True)
class Pearson(_Sum):
    """Correlation of each feature of x with each feature of y over the same samples. O(n d e) time a batch, O(d e) memory.

    >>> x, y = torch.randn(50, 3), torch.randn(50, 2)
    >>> r = sum(Pearson.of(a, b) for a, b in zip(x.split(7), y.split(7))).correlation
    >>> torch.allclose(r, torch.cat([x, y], 1).double().T.corrcoef()[:3, 3:])
    True
    """

    count: int
    mean_x: Float[Tensor, "d"]
    mean_y: Float[Tensor, "e"]
    square_x: Float[Tensor, "d"]
    square_y: Float[Tensor, "e"]
    product: Float[Tensor, "d e"]

    @classmethod
    def of(cls, x: Float[Tensor, "*n d"], y: Float[Tensor, "*m e"]) -> "Pearson":
        """Of the rows of one batch of both."""
        x, y = _rows(x), _rows(y)
        if len(x) != len(y):
            raise Refused(f"x, y: as many rows in both are needed, got {len(x)} and {len(y)}")
        (mean_x, x), (mean_y, y) = _centred(x), _centred(y)
        return cls(len(x), mean_x, mean_y, x.square().sum(0), y.square().sum(0), x.T @ y)

    def __add__(self, other: "Pearson") -> "Pearson":
        if not isinstance(other, Pearson):
            return NotImplemented
        _same(self.product, other.product, "features")
        a, b = self.count, other.count
        n, dx, dy = max(a + b, 1), other.mean_x - self.mean_x, other.mean_y - self.mean_y
        return Pearson(
            a + b,
            self.mean_x + dx * (b / n),
            self.mean_y + dy * (b / n),
            self.square_x + other.square_x + dx**2 * (a * b / n),
            self.square_y + other.square_y + dy**2 * (a * b / n),
            self.product + other.product + torch.outer(dx, dy) * (a * b / n),
        )

    @property
    def correlation(self) -> Float[Tensor, "d e"]:
        """ρ of every pair; 0 where one of the two never varies."""
        return _ratio(self.product, torch.outer(self.square_x.sqrt(), self.square_y.sqrt()))


@dataclass(frozen=True)
class Histogram(_Sum):
    """Counts of each feature's values in bins [e_i, e_{i+1}); the last bin holds its upper edge, too.

    `edges` are the bins + 1 rising borders, the same for all features (see `uniform_edges`). `outside` counts what lies in no bin,
    NaN among it. O(n d log bins) time a batch, O(d bins) memory: values are not compared with every bin. Merged counts are exact.

    >>> h = Histogram.of(torch.tensor([[0.0], [0.5], [1.0], [1.5]]), edges=uniform_edges(0, 1, 2))
    >>> h.counts.tolist(), h.outside.tolist()
    ([[1, 2]], [1])
    >>> h.at(torch.tensor([[0.7], [2.0]])).tolist()
    [[2], [0]]
    """

    edges: Float[Tensor, "e"]
    counts: Int[Tensor, "d bins"]
    outside: Int[Tensor, "d"]

    def __post_init__(self) -> None:
        nonnegative("counts", self.counts)

    @classmethod
    def of(cls, x: Float[Tensor, "*n d"], edges: Float[Tensor, "e"]) -> "Histogram":
        """Of the rows of one batch. `Refused` if the edges do not rise."""
        if len(edges) < 2 or not bool((edges.diff() > 0).all()):
            raise Refused(f"edges: at least two, each above the one before, got {edges.tolist()[:8]}")
        edges = edges.detach().double().to(x.device)
        index, inside = _bins(_rows(x), edges)
        n, d = index.shape
        bins = len(edges) - 1
        flat = (index + bins * torch.arange(d, device=x.device))[inside]
        counts = torch.bincount(flat, minlength=d * bins).reshape(d, bins)
        return cls(edges, counts, n - inside.sum(0))

    def __add__(self, other: "Histogram") -> "Histogram":
        if not isinstance(other, Histogram):
            return NotImplemented
        _same(self.counts, other.counts, "features and bins")
        if not torch.equal(self.edges, other.edges):
            raise Refused("merge: both histograms must have the same edges")
        return Histogram(self.edges, self.counts + other.counts, self.outside + other.outside)

    def at(self, x: Float[Tensor, "*n d"]) -> Int[Tensor, "*n d"]:
        """The count of the bin that each value lies in, 0 where it lies in none."""
        fits("x", x, len(self.counts))
        index, inside = _bins(_rows(x), self.edges)
        return torch.where(inside, self.counts.T.gather(0, index), 0).reshape(x.shape)

    @property
    def density(self) -> Float[Tensor, "d bins"]:
        """Counts over their sum and the width of the bin: integrates to 1 where there are counts."""
        return self.counts / self.counts.sum(1, keepdim=True).clamp_min(1) / self.edges.diff()


def uniform_edges(low: int | float, high: int | float, bins: int) -> Float[Tensor, "e"]:
    """`bins` + 1 borders of equal bins.

    >>> uniform_edges(0, 1, 4).tolist()
    [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if bins < 1 or not low < high:
        raise Refused(f"low, high, bins: low < high and bins ≥ 1 are needed, got {low}, {high}, {bins}")
    return torch.linspace(low, high, bins + 1, dtype=torch.float64)


def _bins(x: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """The bin of each value, and whether it lies in any."""
    index = torch.bucketize(x, edges, right=True) - 1
    inside = (x >= edges[0]) & (x <= edges[-1])
    return index.clamp(0, len(edges) - 2), inside
