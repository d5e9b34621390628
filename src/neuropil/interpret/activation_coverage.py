"""Neuron activation coverage: an input is strange where it drives units into states that the known data rarely visit.

    g = ∂ KL(u ‖ p) / ∂z                      of each sample; u uniform over the C classes, p the softmax: (p − 1/C) pulled back
    s = σ(α z g)                              state of a unit, in (0, 1); maps are averaged over space first, z and g each
    Φ(s) = min(count(bin of s), r) / r        coverage of that state; counts over N known samples, one histogram a unit
    NAC-UE(x) = mean of Φ(s(x))               over units, then over layers: low for an input out of distribution
    NAC-ME    = mean of min(count, r) / r     over units and bins: how much of its range a model uses; more, more robust

Source: Liu, Tian, Li, Ma & Wang 2023, arXiv:2306.02879 (ICLR 2024). Detectors to compare with: `interpret.detectors`.

Differs from the paper's code: maps are averaged as the paper says, where the code sums h × w places: its α is ours / (h w)². The
code's M are edges, and one of its bins no state reaches: M there are ``bins=M - 2`` here (M − 1 for uniform bins, where the code
drops states of exactly 1). Values are looked up in their bins, not compared with each of them: memory n d, not n d M.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.nn.checks import at_least, finite, fits, numbers, suits
from neuropil.nn.sites import record
from neuropil.numerics.streaming import Histogram, uniform_edges

KINDS = ("zg", "z", "g")
GRIDS = ("middle", "uniform")


@dataclass(frozen=True)
class Layer:
    """How the states of one layer are made and counted: steepness α, bins, the count `r` that covers a bin, and the grid.

    `grid`: "uniform", or "middle": bins that grow finer towards s = 0.5, where α z g is small (`middle_edges`).
    """

    alpha: int | float = 100.0
    bins: int = 48
    r: int = 50
    grid: str = "middle"

    def __post_init__(self) -> None:
        choose("grid", self.grid, GRIDS)
        for name, least in (("alpha", 0.0), ("bins", 2), ("r", 1)):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= least and value > 0):
                raise Refused(f"{name}: must be {'above 0' if name == 'alpha' else f'at least {least}'}, got {value}")

    @property
    def edges(self) -> Float[Tensor, "e"]:
        """The borders of the bins."""
        return uniform_edges(0, 1, self.bins) if self.grid == "uniform" else middle_edges(self.bins)


@dataclass(frozen=True)
class Influence:
    """What n inputs do at each site: pooled values z and gradients g, (n, units) each; and the model's logits (n, C)."""

    z: Mapping[str, Float[Tensor, "n _"]]
    g: Mapping[str, Float[Tensor, "n _"]]
    logits: Float[Tensor, "n c"]

    def __len__(self) -> int:
        return len(self.logits)

    def __getitem__(self, rows: slice | Int[Tensor, "m"] | Bool[Tensor, "n"]) -> "Influence":
        """Some of the inputs: a slice, or a tensor of row numbers or of booleans."""
        z, g = ({site: value[rows] for site, value in values.items()} for values in (self.z, self.g))
        return Influence(z, g, self.logits[rows])


def over_space(x: Float[Tensor, "b c *space"]) -> Float[Tensor, "b c"]:
    """The mean over all axes after the channels' (axis 1). For tokens (b, t, d) give `pool` another: ``lambda x: x.mean(1)``.

    >>> over_space(torch.ones(2, 3, 4, 4)).shape, over_space(torch.ones(2, 3)).shape
    (torch.Size([2, 3]), torch.Size([2, 3]))
    """
    if 0 in x.shape[2:]:
        raise Refused(f"x: space must not be empty, got shape {tuple(x.shape)}")
    return x.flatten(2).mean(2) if x.ndim > 2 else x


def influence(
    model: nn.Module,
    x: Float[Tensor, "n *i"],
    sites: Sequence[str],
    *,
    pool: Callable[[Tensor], Tensor] = over_space,
    batch: int = 256,
) -> Influence:
    """z and ``g = ∂ KL(u ‖ p)/∂z`` at the sites, of a model that puts out logits.

    One forward and one backward pass; memory: that of a batch, and what is returned, in float32. `Refused` in train mode, where
    batch norm ties samples together; for an x that does not suit the model; for a site that passes not one tensor once; for logits
    that are not (n, C).

    >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4)).eval()
    >>> found = influence(model, torch.randn(5, 2), ["1", "2"])
    >>> p = found.logits.softmax(1)
    >>> found.z["1"].shape, torch.allclose(found.g["2"], p - 1 / 4, atol=1e-6)
    (torch.Size([5, 3]), True)
    """
    if model.training:
        raise Refused("model: is in train mode, where a sample's state may depend on the others; call model.eval()")
    if not sites or batch < 1 or not len(x):
        raise Refused(f"sites, x, batch: at least one each is needed, got {len(sites)}, {len(x)}, {batch}")
    suits("x", x, model)
    parts = [_influence(model, some, sites, pool) for some in x.split(batch)]
    z, g = ({site: torch.cat([part[site] for part in of]) for site in sites} for of in list(zip(*parts, strict=True))[:2])
    return Influence(z, g, torch.cat([logits for _, _, logits in parts]))


def _influence(
    model: nn.Module, x: Tensor, sites: Sequence[str], pool: Callable[[Tensor], Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    with torch.enable_grad(), record(model, *sites, graph=True) as seen:
        logits = model(x)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(x):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise Refused(f"model: must put out logits ({len(x)}, classes), got {got}")
    for site in sites:
        if site not in seen or len(seen[site]) != 1 or not isinstance(seen[site][0], Tensor):
            raise Refused(f"sites: {site!r} must pass one tensor once a call (patterns are not expanded)")
    values = [seen[site][0] for site in sites]
    with torch.enable_grad():
        divergence = -logits.float().log_softmax(1).mean(1).sum()  # KL(u ‖ p) but for the constant log C; samples do not mix
        gradients = torch.autograd.grad(divergence, values)
    z, g = ({s: pool(v.detach()).float() for s, v in zip(sites, vs, strict=True)} for vs in (values, gradients))
    for site in sites:
        if z[site].shape[:1] != x.shape[:1] or z[site].ndim != 2:
            raise Refused(f"pool: must give ({len(x)}, units) at {site!r}, gave {tuple(z[site].shape)}")
    return z, g, logits.detach()


def state(z: Float[Tensor, "*n d"], g: Float[Tensor, "*n d"], alpha: int | float, kind: str = "zg") -> Float[Tensor, "*n d"]:
    """``σ(α z g)``; without the gradient ``σ(α z)`` for `kind` "z", without the value ``σ(α g)`` for "g".

    >>> state(torch.tensor([2.0, 0.0]), torch.tensor([-1.0, 3.0]), alpha=0.5)
    tensor([0.2689, 0.5000])
    """
    choose("kind", kind, KINDS)
    return torch.sigmoid(alpha * (z * g if kind == "zg" else z if kind == "z" else g))


def middle_edges(bins: int, base: int | float = 1000.0) -> Float[Tensor, "e"]:
    """Borders in [0, 1], symmetric about 0.5 and closest together there: ``log_base`` of an even grid of [1, √base], and mirrored.

    `Refused` for an odd or too small number of bins.

    >>> [round(e, 2) for e in middle_edges(6).tolist()]
    [0.0, 0.35, 0.44, 0.5, 0.56, 0.65, 1.0]
    """
    if bins < 2 or bins % 2:
        raise Refused(f"bins: an even number from 2 on is needed, got {bins}")
    left = torch.linspace(1, base**0.5, bins // 2 + 1, dtype=torch.float64).log() / math.log(base)
    left[-1] = 0.5
    return torch.cat([left, 1 - left.flip(0)[1:]])


def covered(histogram: Histogram, s: Float[Tensor, "*n d"], r: int) -> Float[Tensor, "*n d"]:
    """``Φ(s) = min(count, r) / r`` of each unit's state, in [0, 1] and double precision. O(n d log bins).

    >>> known = Histogram.of(torch.tensor([[0.1], [0.2], [0.9]]), uniform_edges(0, 1, 2))
    >>> covered(known, torch.tensor([[0.3], [0.8]]), r=2).flatten().tolist()
    [1.0, 0.5]
    """
    at_least(1, r=r)
    fits("s", s, len(histogram.counts))
    numbers("s", s)  # NaN lies in no bin, and would pass for a state that nobody has seen
    return histogram.at(s).clamp_max(r).double() / r


def coverage(histogram: Histogram, r: int) -> float:
    """NAC-ME of one layer: the mean of ``min(count, r) / r`` over units and bins, in [0, 1].

    >>> coverage(Histogram.of(torch.tensor([[0.1], [0.2], [0.9]]), uniform_edges(0, 1, 2)), r=2)
    0.75
    """
    at_least(1, r=r)
    return float((histogram.counts.clamp_max(r).double() / r).mean())


class ActivationCoverage:
    """Detector of strange inputs (NAC-UE) and measure of a model (NAC-ME), used as scikit-learn's detectors are.

    Args:
        model: puts out logits (n, C); in eval mode. It is not changed.
        layers: a `Layer` for each site (names as in `nn.sites`); a list of sites takes the default for all.
        kind: the state: "zg" as in the paper, "z" or "g" alone.
        pool: of values and gradients, to (n, units); default: the mean over space.
        batch: how many inputs pass at once.

    Inputs x may be given as their `influence`, too: to try many settings it is computed once. About 1,000 known inputs will do.
    Time: one forward and one backward pass; memory: d · bins counts a layer.

    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)).eval()
    >>> known, strange = 0.1 * torch.randn(500, 2), torch.full((1, 2), 20.0)
    >>> nac = ActivationCoverage(model, {"1": Layer(alpha=100, bins=20, r=5)}).fit(known)
    >>> bool(nac.score_samples(strange) < nac.score_samples(known).mean()), 0 < nac.coverage() < 1
    (True, True)
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Layer] | Sequence[str],
        kind: str = "zg",
        *,
        pool: Callable[[Tensor], Tensor] = over_space,
        batch: int = 256,
    ) -> None:
        self.model, self.pool, self.batch = model, pool, batch
        self.layers = dict(layers) if isinstance(layers, Mapping) else {site: Layer() for site in layers}
        self.kind = choose("kind", kind, KINDS)
        self.histograms: dict[str, Histogram] = {}

    def fit(self, x: Float[Tensor, "n *i"] | Influence, y: Int[Tensor, "n"] | None = None) -> "ActivationCoverage":
        """Count the states of known inputs, from nothing. With labels y, only of those that the model classifies rightly."""
        self.histograms = {}
        return self.partial_fit(x, y)

    def partial_fit(self, x: Float[Tensor, "n *i"] | Influence, y: Int[Tensor, "n"] | None = None) -> "ActivationCoverage":
        """Count further known inputs: batch after batch gives what `fit` gives for all."""
        found = self._influence(x)
        if y is not None:
            if len(y) != len(found):
                raise Refused(f"y: one label for each input is needed, got {len(y)} for {len(found)}")
            found = found[found.logits.argmax(1) == y]
        for site, layer in self.layers.items():
            new = Histogram.of(self._state(found, site), layer.edges)
            self.histograms[site] = self.histograms[site] + new if site in self.histograms else new
        return self

    def score_samples(self, x: Float[Tensor, "n *i"] | Influence) -> Float[Tensor, "n"]:
        """NAC-UE: mean coverage of each input's states, in [0, 1]; the higher, the more like the known. `Refused` before `fit`."""
        self._fitted()
        found = self._influence(x)
        each = [covered(self.histograms[s], self._state(found, s), layer.r).mean(1) for s, layer in self.layers.items()]
        return torch.stack(each).mean(0)

    def coverage(self) -> float:
        """NAC-ME of the model on what it was fitted to: the mean over layers of `coverage`. `Refused` before `fit`."""
        self._fitted()
        return sum(coverage(self.histograms[site], layer.r) for site, layer in self.layers.items()) / len(self.layers)

    def _influence(self, x: Tensor | Influence) -> Influence:
        if not isinstance(x, Influence):
            finite("x", x)
            return influence(self.model, x, list(self.layers), pool=self.pool, batch=self.batch)
        if missing := self.layers.keys() - x.z.keys():
            raise Refused(f"x: its influence lacks the sites {', '.join(sorted(missing))}")
        return x

    def _state(self, found: Influence, site: str) -> Tensor:
        return state(found.z[site], found.g[site], self.layers[site].alpha, self.kind)

    def _fitted(self) -> None:
        if not self.histograms:
            raise Refused("histograms: nothing is known yet; call fit first")
