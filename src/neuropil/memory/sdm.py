"""Kanerva's sparse distributed memory (SDM), and the softmax attention that its reading amounts to.

A pattern (address p, content v) is added to the store of every neuron x whose address lies within Hamming distance d of p; reading
at ξ sums the stores within d of ξ. With r random neurons the weight of a pattern at distance dv is, on average,

    (r / 2ⁿ) I(n, d, dv),    I = Σ_a Σ_c C(n − dv, a) C(dv, c),    c ≥ n − d − a,  c ≤ d + a + dv − n

the number of points in both balls (a: places where ξ and p agree and x agrees with both; c: where they differ and x sides with ξ).
As log I is nearly a straight line in cos = 1 − 2 dv / n, the weights are nearly softmax(β cos).

Kanerva 1988; Bricken & Pehlevan, "Attention Approximates Sparse Distributed Memory", NeurIPS 2021, arXiv:2111.05498. Vectors are ±1
here, {0, 1} there. The projection that the paper learns into the binary-like space is any layer before `sdm_attention`.
"""

import functools
import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import logsumexp, ndtr, ndtri
from scipy.stats import binom
from torch import Tensor

from neuropil.errors import Refused, choose
from neuropil.memory.lookup import Ball, Softmax, lookup
from neuropil.nn.checks import at_least, finite, fits, numbers, same_kind, some, within


@functools.cache
def circle_intersection(n: int, d: int, dv: int) -> int:
    """I(n, d, dv): how many of the 2ⁿ points lie within `d` of both of two points that are `dv` apart, exactly. O(n) big integers.

    Raises `Refused` unless 0 ≤ d ≤ n and 0 ≤ dv ≤ n.

    >>> circle_intersection(3, 1, 0), circle_intersection(3, 1, 2), circle_intersection(3, 1, 3)
    (4, 2, 0)
    """
    for name, value in (("d", d), ("dv", dv)):
        if not 0 <= value <= n:
            raise Refused(f"{name}: must lie between 0 and n={n}, got {value}")
    below = [0]  # below[c] = Σ_{c' < c} C(dv, c')
    for c in range(dv + 1):
        below.append(below[-1] + math.comb(dv, c))
    total = 0
    for a in range(n - dv + 1):
        least, most = max(0, n - d - a), min(dv, d + a + dv - n)
        if least <= most:
            total += math.comb(n - dv, a) * (below[most + 1] - below[least])
    return total


@functools.cache
def log_overlap(n: int, d: int) -> Float[Tensor, "dv"]:
    """log I(n, d, dv) for dv = 0 … n, float64; −∞ where the balls do not meet. O(n²) big integers, kept.

    >>> log_overlap(3, 1).exp().round().tolist()
    [4.0, 2.0, 2.0, 0.0]
    """
    counts = (circle_intersection(n, d, dv) for dv in range(n + 1))
    return torch.tensor([math.log(count) if count else -math.inf for count in counts], dtype=torch.float64)


def cap_intersection(n: int, c: float, cosine: Float[Tensor, "*b"], nodes: int = 128) -> Float[Tensor, "*b"]:
    """The continuous I: log of the share of the unit sphere in Rⁿ whose cosine to both of two directions is at least `c`.

    ``(1/π) ∫_{θ/2}^{arccos c} (1 − c² / cos² φ)^{(n−2)/2} dφ`` with ``cos θ = cosine``: project the sphere on the plane of both
    directions; in polar coordinates the radial integral is exact. For binary vectors c = 1 − 2 d / n. Gauss–Legendre in logarithms;
    −∞ where the caps do not meet. O(b · nodes). Raises `Refused` for n < 3 or c outside (0, 1).

    >>> share = cap_intersection(3, 0.5, torch.tensor([1.0])).exp()        # one cap of the ordinary sphere: (1 − c)/2
    >>> round(float(share), 4)
    0.25
    """
    if n < 3 or not 0 < c < 1:
        raise Refused(f"n, c: needed are n of at least 3 and c between 0 and 1, got {n} and {c}")
    x, w = np.polynomial.legendre.leggauss(nodes)
    low = np.arccos(np.clip(cosine.double().cpu().numpy(), -1, 1))[..., None] / 2
    high = math.acos(c)
    width = np.clip(high - low, 0, None)
    s = (x + 1) / 2
    phi = high - width * s**2  # takes the root of the integrand at its upper end away; dφ = 2 width s ds
    inside = np.clip(1 - (c / np.cos(phi)) ** 2, 0, None)
    with np.errstate(divide="ignore"):
        terms = np.log(w * s * width / math.pi) + (n - 2) / 2 * np.log(inside)
        return torch.from_numpy(np.asarray(logsumexp(terms, axis=-1))).to(cosine.device)


def ball_fraction(n: int, d: int) -> float:
    """p: the share of the 2ⁿ points within Hamming distance `d` of a point.

    >>> ball_fraction(2, 1)
    0.75
    """
    return circle_intersection(n, d, 0) / 2**n


def radius(n: int, p: float) -> int:
    """The smallest radius whose ball holds at least the share `p` of all points (the binomial quantile).

    >>> radius(1000, 0.001)
    451
    """
    at_least(0, n=n)
    if not 0 < p <= 1:
        raise Refused(f"p: must lie between 0 and 1, got {p}")
    return next(d for d in range(n + 1) if ball_fraction(n, d) >= p)


class Fit(NamedTuple):
    """log I ≈ β cos + const: the slope and the share of variance it explains."""

    beta: float
    r2: float


def fit_beta(n: int, d: int, most: int | None = None) -> Fit:
    """β of the softmax that reading with radius `d` amounts to: the slope of log I against cos = 1 − 2 dv / n, least squares.

    Over the distances dv ≤ `most` at which the balls meet; the default, `d`, is where the weights are: beyond it the line bends.
    Raises `Refused` for fewer than three of them.

    >>> fit = fit_beta(64, 11)
    >>> round(fit.beta, 1), round(fit.r2, 3)
    (14.9, 0.976)
    """
    log_i = log_overlap(n, d)[: (d if most is None else most) + 1]
    log_i = log_i[log_i.isfinite()]
    if len(log_i) < 3:
        raise Refused(f"d, most: a line needs three distances at which the balls meet, got {len(log_i)}")
    cosine = 1 - 2 * torch.arange(len(log_i), dtype=torch.float64) / n
    x, y = cosine - cosine.mean(), log_i - log_i.mean()
    return Fit(float(x @ y / (x @ x)), float((x @ y) ** 2 / ((x @ x) * (y @ y))))


def critical_distance(n: int, d: int, r: float, m: int) -> int:
    """How many bits of a query may be wrong so that every read brings it nearer to its pattern, on average.

    With `r` neurons, `m` random patterns and o(dv) = (r / 2ⁿ) I(n, d, dv), bits read at distance dv have signal-to-noise ratio
    ``o(dv) / √(o(dv) + (m − 1) Σ_k C(n, k) 2⁻ⁿ (o(k)² + o(k)))``: Poisson noise, and the other patterns'. Of n bits,
    ``n Φ(−SNR)`` come out wrong; the query moves nearer while these are fewer than dv.

    >>> critical_distance(64, 15, 2.0**64, 1024)
    18
    """
    at_least(0, r=r)
    at_least(1, m=m)
    with np.errstate(divide="ignore", invalid="ignore"):  # 2ⁿ, o² and their like are beyond float64 from n ≈ 500 on: logarithms
        log_o = np.log(r) - n * math.log(2) + log_overlap(n, d).numpy()
        crosstalk = np.log(m - 1) + logsumexp(binom.logpmf(np.arange(n + 1), n, 0.5) + np.logaddexp(2 * log_o, log_o))
        dv = np.arange(1, n // 2 + 1)
        snr = np.exp(log_o[dv] - np.logaddexp(log_o[dv], crosstalk) / 2)
    nearer = n * ndtr(-snr) < dv  # False for NaN, where nothing at all is read
    return int(np.append(nearer, False).argmin())


def best_radius(n: int, r: float, m: int, goal: str = "signal") -> int:
    """The radius that is best for `r` neurons and `m` random patterns, for one of three goals; p is the share of neurons in a ball.

    - ``signal``: the highest signal-to-noise ratio of a noise-free query, ``r p / (1 + m p (1 + r p²))`` (Kanerva 1988).
    - ``capacity``: the most patterns of which a noise-free query reads all n bits right with probability 0.99: that ratio solved
      for m. (`m` plays no part.)
    - ``critical distance``: the largest `critical_distance`; of several equally good radii the middle one.

    O(n) radii, O(n²) big integers each. Raises `Refused` for an unknown goal. The paper's three radii for n = 64:

    >>> [best_radius(64, 2.0**64, 1024, goal) for goal in ("signal", "capacity", "critical distance")]
    [11, 5, 15]
    """
    choose("goal", goal, ("signal", "capacity", "critical distance"))
    at_least(2, n=n)
    at_least(0, r=r)
    at_least(1, m=m)
    radii = range(1, n // 2 + 1)
    if goal == "critical distance":
        distances = [critical_distance(n, d, r, m) for d in radii]
        best = [d for d, distance in zip(radii, distances, strict=True) if distance == max(distances)]
        return best[len(best) // 2]
    z2 = ndtri(0.99 ** (1 / n)) ** 2

    def score(d: int) -> float:
        p = ball_fraction(n, d)
        return r * p / (1 + m * p * (1 + r * p**2)) if goal == "signal" else (r * p / z2 - 1) / (p + r * p**3)

    return max(radii, key=score)


@dataclass(frozen=True)
class Overlap:
    """The separation of a memory with infinitely many neurons: weights I(n, d, dv) / Σ I on minus Hamming distances.

    >>> Overlap(3, 1)(-torch.tensor([0.0, 1.0, 3.0]))
    tensor([0.6667, 0.3333, 0.0000])
    """

    n: int
    d: int

    def __call__(self, similarity: Tensor) -> Tensor:
        """Weights of similarities ``*b m``; zeros for a query in whose reach there is no pattern."""
        if not similarity.is_floating_point():
            raise Refused(f"similarity: must be floating point, got {similarity.dtype}")
        table = (log_overlap(self.n, self.d) - log_overlap(self.n, self.d)[0]).exp().to(similarity)
        distance = (-similarity).round().long()
        within("-similarity", distance, self.n + 1)  # a negative distance would count from the end
        weights = table[distance]
        return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)


@dataclass(frozen=True)
class SDM:
    """A sparse distributed memory: neurons at ±1 `addresses`, their `stores`, and the radius of reading and writing.

    Writing gives a new memory. O(m r n) time to write m patterns and O(b r n) to read b queries; memory O(r (n + v)).

    >>> generator = torch.Generator().manual_seed(0)
    >>> patterns = torch.randint(2, (5, 32), generator=generator) * 2.0 - 1
    >>> memory = SDM.random(neurons=20_000, n=32, radius=10, generator=generator).write(patterns, patterns)
    >>> noisy = patterns.clone(); noisy[:, :3] *= -1
    >>> bool((memory.recall(noisy, steps=3) == patterns).all())
    True
    """

    addresses: Float[Tensor, "r n"]
    stores: Float[Tensor, "r v"]
    radius: int

    @classmethod
    def random(cls, neurons: int, n: int, radius: int, generator: torch.Generator | None = None, width: int | None = None) -> "SDM":
        """An empty memory of `neurons` random addresses, whose contents are `width` wide (default n)."""
        if not 0 <= radius <= n or neurons < 1:
            raise Refused(f"radius, neurons: needed are 0 <= radius <= n={n} and a neuron, got {radius} and {neurons}")
        addresses = torch.randint(2, (neurons, n), generator=generator) * 2.0 - 1
        return cls(addresses, torch.zeros(neurons, width or n), radius)

    @property
    def within(self) -> Ball:
        """Weight 1 within the radius."""
        return Ball(at_least=-float(self.radius))

    def write(self, patterns: Float[Tensor, "m n"], contents: Float[Tensor, "m v"]) -> "SDM":
        """The memory with `contents` added to all neurons within the radius of their patterns."""
        _check_signs("patterns", patterns)
        some("patterns", patterns, 0)
        same_kind("patterns", patterns, self.addresses)
        fits("contents", contents, self.stores.shape[1], self.stores)
        finite("contents", contents)
        added = lookup(self.addresses, patterns, contents, similarity="hamming", separation=self.within)
        return replace(self, stores=self.stores + added)

    def read(self, query: Float[Tensor, "*b n"]) -> Float[Tensor, "*b v"]:
        """The sum of the stores within the radius of `query`."""
        _check_signs("query", query)
        same_kind("query", query, self.addresses)
        return lookup(query, self.addresses, self.stores, similarity="hamming", separation=self.within)

    def recall(self, query: Float[Tensor, "*b n"], steps: int = 1) -> Float[Tensor, "*b n"]:
        """Autoassociative reading: the majority bit of `read`, `steps` times; a tied bit keeps the query's."""
        for _ in range(steps):
            query = majority(self.read(query), query)
        return query


def majority(read: Float[Tensor, "*b n"], query: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """The sign of every bit of `read`; a tie keeps the query's bit.

    >>> majority(torch.tensor([2.0, -1.0, 0.0]), torch.tensor([-1.0, -1.0, 1.0]))
    tensor([ 1., -1.,  1.])
    """
    numbers("read", read)
    return torch.where(read == 0, query, read.sign())


def sdm_attention(
    query: Float[Tensor, "*b n"], keys: Float[Tensor, "m n"], values: Float[Tensor, "m v"], beta: float
) -> Float[Tensor, "*b v"]:
    """Reading as attention: ``softmax(β cos(query, keys)) values``, all vectors L2-normalised first. Cost as `lookup`.

    >>> sdm_attention(torch.tensor([3.0, 0.0]), torch.eye(2), torch.tensor([[1.0], [0.0]]), beta=math.log(3.0))
    tensor([0.7500])
    """
    at_least(0, beta=beta)
    return lookup(query, keys, values, similarity="cosine", separation=Softmax(beta))


def _check_signs(name: str, given: Tensor) -> None:
    if not bool((given.abs() == 1).all()):
        raise Refused(f"{name}: must be -1 or +1")
