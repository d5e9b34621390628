"""Screening by influence: strong groups of variables out of many, each turned into one feature, for a very small net to read.

    B random starts of m variables → backward dropping → the K best that share no variable → [f_S1 … f_SK]
    P(hit) = C(p − r, m − r) / C(p, m)      the chance that a start holds all r variables of a module;  B ≥ 5 / P(hit)

Works on any rows of numbers: a table, pixels, or the activations of a frozen net (`pooled_activations`). The top of thousands of
scores looks strong even where there is nothing to find, so the same search on shuffled labels is always reported beside it. What
was used is shown (cell tables, saliency); what is causal is not.

Lo & Yin 2021, arXiv:2104.12672. Differs: variables are cut in two by `fit_cuts`; constants are left out of the starts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.interaction.influence import CUTS, Dagger, Labels, backward_dropping, digitise, fit_cuts, null_mean
from neuropil.nn.checks import at_least, finite, nonnegative, numbers, some
from neuropil.nn.modes import evaluating
from neuropil.nn.sites import record

MOST_STARTS = 20_000
LARGEST = 9  # start size; 512 cells
POOL: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda a: a.flatten(2).mean(-1) if a.ndim > 2 else a,
    "max": lambda a: a.flatten(2).amax(-1) if a.ndim > 2 else a,
    "flat": lambda a: a.flatten(1),
}


def hit_chance(p: int, m: int, r: int) -> float:
    """The chance that a random start of `m` of `p` variables holds all `r` of a module: C(p − r, m − r) / C(p, m).

    >>> round(hit_chance(30, 7, 3), 4)
    0.0086
    """
    if not 1 <= r <= m <= p:
        raise Refused(f"p, m, r: 1 ≤ r ≤ m ≤ p is needed, got p = {p}, m = {m}, r = {r}")
    return math.comb(p - r, m - r) / math.comb(p, m)


def rule_of_thumb(n: int, p: int, r: int = 2) -> tuple[int, int]:
    """Start size m and number of starts B for `n` rows of `p` variables that should meet each module of `r` five times.

    m is the largest with 2^m ≤ n, between 2 and 9 (and at most p); B = 5 / P(hit), at most 20,000.

    >>> rule_of_thumb(200, 30, 3)
    (7, 580)
    """
    at_least(1, n=n)
    m = min(max(2, min(LARGEST, int(math.log2(n)))), p)
    return m, min(MOST_STARTS, math.ceil(5 / hit_chance(p, m, min(r, m))))


@dataclass(frozen=True)
class KeptGroup:
    """One kept group of variables: I, its mean under shuffled labels, and for each of 2^k cells (first variable fastest) how many
    training rows fell into it and their label mean. `Refused` for I or its mean not finite, or negative counts."""

    variables: tuple[int, ...]
    score: float
    null_mean: float
    counts: Int[Tensor, "cells"]
    means: Float[Tensor, "cells"]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.score) and math.isfinite(self.null_mean)):
            raise Refused(f"score, null_mean: must be finite, got {self.score} and {self.null_mean}")
        nonnegative("counts", self.counts)


@dataclass(frozen=True)
class Explanation:
    """What a screen kept, best first, out of `p` variables, and the top I of the same search on each shuffle of the labels."""

    groups: tuple[KeptGroup, ...]
    shuffled: tuple[float, ...]
    p: int

    def saliency(self) -> Float[Tensor, "p"]:
        """Σ I over the groups that use a variable; `.view` it as an image. Says what was used, not what is causal."""
        total = torch.zeros(self.p)
        for group in self.groups:
            total[list(group.variables)] += group.score
        return total

    @property
    def above_chance(self) -> int:
        """How many groups score above the top of every shuffle."""
        return sum(group.score > max(self.shuffled, default=0.0) for group in self.groups)

    def __str__(self) -> str:
        lines = [f"I = {g.score:.2f} (null mean {g.null_mean:.2f})  variables {g.variables}" for g in self.groups]
        return "\n".join([*lines, "top I on shuffled labels: " + (", ".join(f"{t:.2f}" for t in self.shuffled) or "not asked for")])


class ScoreScreen:
    """``fit(features, y)`` finds up to `keep` disjoint groups of variables, ``transform(features)`` gives one feature for each.

    Args:
        keep: K.
        size, starts: m and B; None: `rule_of_thumb` for modules of `order` variables.
        cut: how a variable is cut in two, "median" or "2-means" (`fit_cuts`).
        shuffles: how often the search is repeated on shuffled labels, for `explanation`.
        seed: of the starts and shuffles.

    Everything is fitted on the rows given to `fit`, which must be training rows only. After it: `cuts` (p,), `dagger` (a module
    with state), `explanation`. O((1 + shuffles) B (n m + m 2^m)) time, blocks of 64 MB. `Refused` for bad arguments, rows that are
    all constant, labels that are.

    >>> x = torch.randint(2, (200, 12), generator=torch.Generator().manual_seed(0)).float()
    >>> screen = ScoreScreen(keep=2).fit(x, (x[:, 3] != x[:, 8]).float())
    >>> screen.explanation.groups[0].variables, screen.transform(x).shape
    ((3, 8), torch.Size([200, 2]))
    """

    cuts: Tensor
    dagger: Dagger
    explanation: Explanation

    def __init__(
        self,
        keep: int = 8,
        size: int | None = None,
        starts: int | None = None,
        order: int = 2,
        cut: str = "median",
        shuffles: int = 3,
        seed: int = 0,
    ) -> None:
        for name, number in (("keep", keep), ("size", size), ("starts", starts), ("order", order), ("shuffles", shuffles + 1)):
            if number is not None and number < 1:
                raise Refused(f"{name}: must be at least {int(name != 'shuffles')}, got {number - (name == 'shuffles')}")
        self.keep, self.size, self.starts, self.order = keep, size, starts, order
        self.cut, self.shuffles, self.seed = choose("cut", cut, CUTS), shuffles, seed

    def fit(self, features: Float[Tensor, "n p"], y: Labels) -> "ScoreScreen":
        """Cut, search, keep, and take the cell means."""
        finite("features", features)
        if len(features) < 2:
            raise Refused(f"features: at least two rows are needed, got {len(features)}")
        g = torch.Generator().manual_seed(self.seed)
        self.cuts = fit_cuts(features, self.cut)
        codes = digitise(features, self.cuts)
        starts = self._draw(len(features), self.cuts.isfinite().nonzero()[:, 0], g)
        found, scores = backward_dropping(codes, y, starts)
        top = []
        for _ in range(self.shuffles):
            shuffled = y[torch.randperm(len(y), generator=g).to(y.device)]
            top.append(float(backward_dropping(codes, shuffled, starts)[1].max()))
        subsets, kept_scores = disjoint(found, scores, self.keep)
        self.dagger = Dagger(*subsets.shape).to(features.device).fit(codes, y, subsets)
        groups = zip(subsets, kept_scores, null_mean(codes, subsets), self.dagger.counts, self.dagger.means, strict=True)
        self.explanation = Explanation(tuple(_group(*group) for group in groups), tuple(top), features.shape[1])
        return self

    def transform(self, features: Float[Tensor, "n p"], raw: bool = False) -> Float[Tensor, "n k"]:
        """The features of the kept groups, best first; with `raw`, followed by the groups' own variables as they are."""
        if not hasattr(self, "dagger"):
            raise Refused("transform: fit must come first")
        if features.ndim != 2 or features.shape[1] != len(self.cuts):
            raise Refused(f"features: must be of shape (n, {len(self.cuts)}) as fitted, got {tuple(features.shape)}")
        numbers("features", features)
        some("features", features, 0)
        made = self.dagger(digitise(features, self.cuts))
        return torch.cat([made, features[:, self.variables]], 1) if raw else made

    @property
    def variables(self) -> list[int]:
        """All variables of the kept groups, best group first."""
        return [v for group in self.explanation.groups for v in group.variables]

    def _draw(self, n: int, pool: Tensor, g: torch.Generator) -> Tensor:
        """B sorted random starts from the variables in `pool`."""
        p = len(pool)
        if p == 0:
            raise Refused("features: every variable is constant")
        m, b = rule_of_thumb(n, p, min(self.order, p))
        if self.size is not None:
            m = min(self.size, p)
            b = min(MOST_STARTS, math.ceil(5 / hit_chance(p, m, min(self.order, m))))
        counts = [len(part) for part in torch.arange(self.starts or b).split(4_096)]
        drawn = torch.cat([torch.rand(count, p, generator=g).topk(m, 1).indices for count in counts])
        return pool[drawn.sort(1).values.to(pool.device)]


def _group(subset: Tensor, score: Tensor, null: Tensor, counts: Tensor, means: Tensor) -> KeptGroup:
    variables = tuple(subset[subset >= 0].tolist())
    used = 2 ** len(variables)  # places without a variable come last: their cells are never met
    return KeptGroup(variables, float(score), float(null), counts[:used].cpu().clone(), means[:used].cpu().clone())


def disjoint(subsets: Int[Tensor, "s m"], scores: Float[Tensor, "s"], keep: int) -> tuple[Int[Tensor, "k m"], Float[Tensor, "k"]]:
    """From the highest score down, up to `keep` subsets (filled up with −1) that share no variable. O(keep s m²).

    >>> disjoint(torch.tensor([[0, 1], [1, 2], [2, -1]]), torch.tensor([3.0, 2.0, 1.0]), 5)[0].tolist()
    [[0, 1], [2, -1]]
    """
    free = torch.ones(len(subsets), dtype=torch.bool, device=subsets.device)
    taken: list[int] = []
    while len(taken) < keep and bool(free.any()):
        best = int(scores.masked_fill(~free, -torch.inf).argmax())
        taken.append(best)
        used = subsets[best][subsets[best] >= 0]
        free &= ~torch.isin(subsets, used).any(1)
    return subsets[taken], scores[taken]


def pooled_activations(
    model: nn.Module, site: str, x: Float[Tensor, "n *rest"], pool: str = "mean", block: int = 256
) -> Float[Tensor, "n p"]:
    """What a frozen model's `site` (see `neuropil.nn.sites`) puts out for each row of `x`, one number a unit or channel.

    `pool` of (n, c, …): "mean" or "max" over the places of a channel, or "flat", all. The model is run in evaluation mode, without
    gradients, `block` rows at a time, and each of its parts left in the mode it was in. `Refused` for an unknown pool, site, or one
    that gives no row per input, and for an `x` that the model does not take.

    >>> net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU())
    >>> pooled_activations(net, "1", torch.zeros(5, 1, 8, 8)).shape
    torch.Size([5, 3])
    """
    shape = POOL[choose("pool", pool, POOL)]
    try:
        with torch.no_grad(), evaluating(model), record(model, site, keep=shape) as seen:
            for part in x.split(block):
                model(part)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise Refused(f"x: the model does not take {x.dtype} of shape {tuple(x.shape)} ({reason})") from error
    activations = torch.cat(next(iter(seen.values())))
    if len(seen) != 1 or activations.ndim != 2 or len(activations) != len(x):
        raise Refused(f"site: {site!r} must give one row for each of {len(x)} inputs, got shape {tuple(activations.shape)}")
    return activations
