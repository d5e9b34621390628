"""Linear probes: how much of y can be read from the activations x by one linear map, on samples that it has not seen.

    ridge      min_W  |Y − X W − b|² + λ |W|²
    logistic   min_W  Σ −log softmax(X W + b)_y + λ/2 |W|²

A probe that is rich enough learns anything: the control is the same probe on shuffled labels, and what counts is the difference,
the selectivity (Hewitt & Liang 2019, arXiv:1909.03368, who draw a label for each word type; here labels are shuffled over samples).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from neuropil.errors import Refused, choose
from neuropil.numerics.ridge import ridge


@dataclass(frozen=True)
class Probe:
    """A fitted probe: ``x @ weights + bias``, its score on the held-out samples, and the control's.

    The score is the accuracy for labels, R² (mean over targets) for numbers.
    """

    weights: Float[Tensor, "d c"]
    bias: Float[Tensor, "c"]
    score: float
    control: float

    @property
    def selectivity(self) -> float:
        """``score − control``."""
        return self.score - self.control

    def __call__(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n c"]:
        """Scores of the classes, or predicted numbers."""
        return x.to(self.weights) @ self.weights + self.bias


def probe(
    x: Float[Tensor, "n d"],
    y: Int[Tensor, "n"] | Float[Tensor, "n"] | Float[Tensor, "n c"],
    kind: str = "ridge",
    *,
    penalty: float = 1.0,
    held_out: float = 0.25,
    groups: Int[Tensor, "n"] | None = None,
    generator: torch.Generator | None = None,
) -> Probe:
    """Fit a probe of y on a random part of the samples and score it, and its control, on the rest.

    Args:
        x: activations, one row a sample; they are standardised by the fitted part (the probe's weights are for raw x).
        y: integer labels, or numbers ("ridge" takes both; for labels it regresses on their one-hot codes).
        kind: "ridge" or "logistic".
        penalty: λ.
        held_out: share of the samples (of the groups, if given) that is kept for the score.
        groups: samples of one group (a sequence, a subject) are never divided between fitting and scoring.
        generator: of the split and the shuffle (a CPU one).

    In double precision. Ridge: O(n d² + d³); logistic: up to 500 passes of O(n d c). `Refused` for numbers with "logistic", a
    share that leaves a part empty, or fewer rows in y.

    >>> x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    >>> found = probe(x, (x[:, 0] > 0).long(), generator=torch.Generator().manual_seed(0))
    >>> found.score > 0.9, found.control < 0.7
    (True, True)
    """
    choose("kind", kind, ("ridge", "logistic"))
    labels = not y.is_floating_point()
    if len(y) != len(x) or (groups is not None and len(groups) != len(x)):
        raise Refused(f"x, y, groups: as many rows in each are needed, got {len(x)} and {len(y)}")
    if not penalty > 0:
        raise Refused(f"penalty: must be above 0, got {penalty}")
    if kind == "logistic" and not labels:
        raise Refused("y: a logistic probe needs integer labels, got numbers; take kind='ridge'")
    x, y = x.detach().double(), (y.detach() if labels else y.detach().double().reshape(len(y), -1))
    classes = int(y.max()) + 1 if labels else 0
    seen = _split(len(x), held_out, groups, generator).to(x.device)
    mean, spread = x[seen].mean(0), x[seen].std(0, correction=0)
    spread = torch.where(spread > 1e-12 * (1 + mean.abs()), spread, torch.ones_like(spread))
    z = (x - mean) / spread

    def fitted(y: Tensor) -> tuple[Tensor, Tensor, float]:
        if kind == "logistic":
            W, b = logistic(z[seen], y[seen], penalty, classes)
        else:
            target = one_hot(y[seen], classes).double() if labels else y[seen]
            W, b = ridge(z[seen], target, target.new_full(target.shape[1:], penalty))
        out, true = z[~seen] @ W + b, y[~seen]
        return W, b, float((out.argmax(1) == true).double().mean()) if labels else _r2(out, true)

    W, b, score = fitted(y)
    *_, control = fitted(y[torch.randperm(len(y), generator=generator).to(y.device)])
    W = W / spread[:, None]
    return Probe(W, b - mean @ W, score, control)


def logistic(
    x: Float[Tensor, "n d"], y: Int[Tensor, "n"], penalty: float, classes: int | None = None
) -> tuple[Float[Tensor, "d c"], Float[Tensor, "c"]]:
    """W and b of ``min Σ −log softmax(X W + b)_y + λ/2 |W|²``, by L-BFGS. `Refused` for λ ≤ 0, where there may be no minimum.

    >>> W, b = logistic(torch.tensor([[-1.0], [1.0]]), torch.tensor([0, 1]), penalty=0.1)
    >>> bool(W[0, 1] > W[0, 0])
    True
    """
    if not penalty > 0:
        raise Refused(f"penalty: must be above 0, got {penalty}")
    W = x.new_zeros(x.shape[1], classes or int(y.max()) + 1).requires_grad_()
    b = x.new_zeros(W.shape[1]).requires_grad_()
    step = torch.optim.LBFGS([W, b], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        step.zero_grad()
        loss = cross_entropy(x @ W + b, y) + penalty / (2 * len(x)) * W.square().sum()
        loss.backward()
        return loss

    with torch.enable_grad():
        step.step(objective)  # type: ignore[arg-type]
    return W.detach(), b.detach()


def _split(n: int, held_out: float, groups: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Which samples are fitted to; whole groups on either side."""
    index = torch.arange(n) if groups is None else groups.cpu().unique(return_inverse=True)[1]
    count = int(index.max()) + 1
    away = round(held_out * count)
    if not 0 < away < count:
        raise Refused(f"held_out: both parts need a sample (or group); {held_out} of {count} leaves one empty")
    kept = torch.ones(count, dtype=torch.bool)
    kept[torch.randperm(count, generator=generator)[:away]] = False
    return kept[index]


def _r2(out: Tensor, true: Tensor) -> float:
    """1 − |y − ŷ|² / |y − ȳ|², the mean over targets; 0 for a target that never varies."""
    spread = (true - true.mean(0)).square().sum(0)
    return float(torch.where(spread > 0, 1 - (true - out).square().sum(0) / spread.clamp_min(1e-300), 0.0).mean())
