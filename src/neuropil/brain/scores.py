"""How good a model of brain recordings is: against the noise ceiling, by geometry, and against chance.

σ²_noise = mean_t var_r x,   σ²_mean = var_t mean_r x,   ceiling = max(0, σ²_mean − σ²_noise / r) / σ²_mean      (r repeats)
CKA(K, L) = HSIC(K, L) / √(HSIC(K, K) HSIC(L, L)),        K, L: kernel matrices over the same n stimuli
RSA = Spearman correlation of the upper triangles of two dissimilarity matrices
p = (1 + #{null ≥ score}) / (1 + times)

Sources: noise ceiling: Allen et al. 2022 (NSD; Nature Neuroscience 25, methods), Schoppe et al. 2016. RSA: Kriegeskorte, Mur &
Bandettini 2008. CKA: Kornblith et al. 2019, arXiv:1905.00414; its unbiased HSIC: Song et al. 2012 (JMLR 13). Permutation p:
Phipson & Smyth 2010.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from scipy.stats import spearmanr
from torch import Tensor

from neuropil.errors import Refused, choose, optional


def pearson(a: Float[Tensor, "t v"], b: Float[Tensor, "t v"]) -> Float[Tensor, " v"]:
    """Pearson's r of each column of a with the same column of b; 0 where either does not vary (it then tells nothing).

    O(t v). `Refused` if the shapes differ, t < 2, or a value is not finite.

    >>> x = torch.tensor([[1.0, 1.0, 5.0], [2.0, 2.0, 5.0], [3.0, 3.0, 5.0]])
    >>> pearson(x, x * torch.tensor([2.0, -1.0, 1.0]))
    tensor([ 1.0000, -1.0000,  0.0000])
    """
    _paired(a, b)
    x, y = _standard(a), _standard(b)
    return (x * y).sum(0).clamp(-1, 1)


def explained_variance(
    predicted: Float[Tensor, "t v"], measured: Float[Tensor, "t v"], ceiling: Float[Tensor, " w"] | None = None
) -> Float[Tensor, " v"]:
    """1 − Σ (y − ŷ)² / Σ (y − ȳ)² of each column, over its noise ceiling if one is given: then 1 is as good as can be.

    Unlike `pearson` ** 2 it also counts errors of mean and scale, and a bad model is below 0. O(t v). `Refused` for columns that do
    not vary or have no ceiling (it says how many and which is first): leave them out, they cannot be explained.

    >>> y = torch.tensor([[1.0], [2.0], [3.0]])
    >>> explained_variance(y, y), explained_variance(torch.full((3, 1), 2.0), y)
    (tensor([1.]), tensor([0.]))
    """
    _paired(predicted, measured)
    require_varying(measured, "measured")
    score = 1 - (measured - predicted).square().sum(0) / (measured - measured.mean(0)).square().sum(0)
    if ceiling is None:
        return score
    if ceiling.shape != score.shape:
        raise Refused(f"ceiling: one for each of {len(score)} columns, got {tuple(ceiling.shape)}")
    _no_bad(~(ceiling > 0), "ceiling", "no signal above their noise")
    return score / ceiling


def noise_ceiling(repeats: Float[Tensor, "r t v"]) -> Float[Tensor, " v"]:
    """The share, in [0, 1], of the variance of the mean over r repeats that is signal: the best r² a model can reach on that mean.

    ceiling = max(0, σ²_mean − σ²_noise / r) / σ²_mean, the noise unbiased over repeats, the variance of the mean unbiased over the
    t stimuli. NSD's NC = ncsnr² / (ncsnr² + 1/r), ncsnr² = σ²_signal / σ²_noise, is the same number. The noise must be independent
    between repeats; 0 for a column that never varies. O(r t v). `Refused` for fewer than 2 repeats or stimuli, or values that are
    not finite.

    >>> signal = torch.randn(1, 4000, 1)
    >>> 0.7 < float(noise_ceiling(signal + torch.randn(4, 4000, 1))) < 0.9  # 1 / (1 + 1/4)
    True
    """
    r, t, _ = repeats.shape
    if r < 2 or t < 2:
        raise Refused(f"repeats: at least 2 repeats of 2 stimuli are needed, got {r} of {t}")
    _finite(repeats, "repeats")
    noise, mean = repeats.var(0).mean(0), repeats.mean(0).var(0)
    ceiling = (mean - noise / r).clamp(min=0) / mean.clamp(min=torch.finfo(mean.dtype).tiny)
    return torch.where((repeats == repeats[0, 0]).all(0).all(0), 0.0, ceiling)


def dissimilarity(responses: Float[Tensor, "n v"], metric: str = "correlation") -> Float[Tensor, " pairs"]:
    """How unlike the responses to each two of n stimuli are: the upper triangle, row by row, of the n × n matrix.

    `metric`: ``correlation`` (1 − Pearson's r over v, in [0, 2]) or ``euclidean``. O(n² v), memory O(n²). `Refused` for n < 2, for
    values that are not finite, and by correlation for a stimulus whose response is the same in all v.

    >>> dissimilarity(torch.tensor([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [3.0, 2.0, 1.0]])).round()
    tensor([0., 2., 2.])
    """
    choose("metric", metric, ("correlation", "euclidean"))
    n = len(responses)
    if n < 2:
        raise Refused(f"responses: at least 2 stimuli are needed, got {n}")
    _finite(responses, "responses")
    if metric == "euclidean":
        matrix = torch.cdist(responses, responses, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        require_varying(responses.T, "responses (transposed: one column a stimulus)")
        unit = _standard(responses.T)
        matrix = (1 - unit.T @ unit).clamp(0, 2)
    return matrix[*torch.triu_indices(n, n, offset=1, device=responses.device)]


def rsa(a: Float[Tensor, "n v"], b: Float[Tensor, "m w"], metric: str = "correlation") -> float:
    """Spearman's correlation of the two `dissimilarity` triangles: whether a and b find the same stimuli alike.

    >>> x = torch.randn(6, 10)
    >>> round(rsa(x, 3 * x.flip(1)), 6)  # the same geometry
    1.0
    """
    _same_stimuli(a, b)
    x, y = (dissimilarity(z, metric).cpu().numpy() for z in (a, b))
    if len(x) < 2 or x.min() == x.max() or y.min() == y.max():
        raise Refused(f"a, b: {len(a)} stimuli give dissimilarities that do not vary; ranks need at least two different ones")
    return float(spearmanr(x, y).statistic)


def cka(
    a: Float[Tensor, "n v"], b: Float[Tensor, "m w"], kernel: str = "linear", unbiased: bool = False, width: float = 1.0
) -> float:
    """Centred kernel alignment of two representations of the same n stimuli: 1 for the same up to rotation and scale.

    Args:
        kernel: ``linear`` (x · y) or ``rbf`` (exp(−|x − y|² / 2σ²), σ = `width` times the median distance).
        unbiased: Song et al.'s HSIC, whose mean is 0 for independent data (n ≥ 4; can be below 0). The plain one grows towards 1 as
            the number of features passes n, whatever they are.

    O(n² (v + w)), memory O(n²), in float64. `Refused` for another kernel, different or too few stimuli, or a representation that is
    the same for all stimuli.

    >>> x = torch.randn(20, 5)
    >>> round(cka(x, 2 * x.flip(1)), 6), round(cka(x, x, kernel="rbf", unbiased=True), 6)
    (1.0, 1.0)
    """
    choose("kernel", kernel, ("linear", "rbf"))
    _same_stimuli(a, b)
    least = 4 if unbiased else 2
    if len(a) < least:
        raise Refused(f"a: at least {least} stimuli are needed, got {len(a)}")
    hsic = _hsic_unbiased if unbiased else _hsic
    K, L = (_kernel(x.double(), kernel, width, name) for x, name in ((a, "a"), (b, "b")))
    scale = hsic(K, K) * hsic(L, L)
    if not scale > 0:
        raise Refused("a, b: the same for all stimuli (their kernel has no variance)")
    return float(hsic(K, L) / scale.sqrt())


def _kernel(x: Tensor, kernel: str, width: float, name: str) -> Tensor:
    _finite(x, name)
    if kernel == "linear":
        x = x - x.mean(0)
        return x @ x.T
    if not width > 0:
        raise Refused(f"width: must be above 0, got {width}")
    distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    median = distance[*torch.triu_indices(len(x), len(x), offset=1, device=x.device)].median()
    if not median > 0:
        raise Refused(f"{name}: more than half of its stimuli are the same, so the rbf kernel has no width")
    return (-(distance / (width * median)).square() / 2).exp()


def _hsic(K: Tensor, L: Tensor) -> Tensor:
    centred = K - K.mean(0) - K.mean(1, keepdim=True) + K.mean()
    return (centred * L).sum()


def _hsic_unbiased(K: Tensor, L: Tensor) -> Tensor:
    """tr(K̃ L̃) + 1ᵀK̃1 1ᵀL̃1 / ((n−1)(n−2)) − 2/(n−2) 1ᵀK̃L̃1, the diagonals of K̃, L̃ zero; the factor 1/(n(n−3)) cancels in CKA."""
    n = len(K)
    K, L = (x - x.diag().diag() for x in (K, L))
    return (K * L).sum() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K.sum(0) @ L.sum(0))


def group_splits(
    labels: Int[Tensor, " n"], groups: Int[Tensor, " m"] | None = None, folds: int | None = 5
) -> list[tuple[Int[Tensor, " train"], Int[Tensor, " test"]]]:
    """Train and test rows of each fold, no group on both sides (scikit-learn's `GroupKFold`; `folds` None: `LeaveOneGroupOut`).

    Without groups, `StratifiedKFold` in file order: neighbours in time then share a fold as far as classes allow. `Refused` for
    fewer than 2 folds, fewer groups than folds, or a class with fewer rows than folds.

    >>> [test.tolist() for _, test in group_splits(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1]), folds=None)]
    [[0, 1], [2, 3]]
    """
    selection = optional("sklearn.model_selection", "brain")
    if folds is not None and folds < 2:
        raise Refused(f"folds: at least 2, got {folds}")
    y = labels.cpu().numpy()
    if groups is None:
        few = int(labels.unique(return_counts=True)[1].min()) if len(labels) else 0
        if folds is None or few < folds:
            raise Refused(f"folds: the rarest class has {few} rows, so at most {few} folds (got {folds}) without groups")
        found = selection.StratifiedKFold(folds).split(y, y)
    else:
        if groups.shape != labels.shape:
            raise Refused(f"groups: one for each of {len(labels)} rows, got {tuple(groups.shape)}")
        there = len(groups.unique())
        if there < (folds or 2):
            raise Refused(f"groups: {there} different ones cannot make {folds or 2} folds (at most {there})")
        splitter = selection.LeaveOneGroupOut() if folds is None else selection.GroupKFold(folds)
        found = splitter.split(y, y, groups.cpu().numpy())
    return [(torch.from_numpy(train), torch.from_numpy(test)) for train, test in found]


@dataclass(frozen=True)
class Control:
    """A score beside the scores of shuffled labels: `p` is the chance of a score as high by shuffling alone."""

    score: float
    p: float
    null: Float[Tensor, " times"]


def permutation_control(
    score: Callable[[Tensor], float],
    order: Shaped[Tensor, "n *rest"],
    times: int,
    generator: torch.Generator | None = None,
    groups: Int[Tensor, " m"] | None = None,
) -> Control:
    """`score(order)` against the score of `times` shuffles of its rows: labels, or an order (``torch.arange(n)``) to index by.

    Args:
        score: higher is better; called times + 1 times.
        groups: rows are shuffled inside their group only, as runs and sessions ask for (labels are exchangeable within them).

    p = (1 + #{null ≥ score}) / (1 + times), never 0. `Refused` for times < 1 or labels that no shuffle can change.

    >>> x = torch.arange(40.0)
    >>> permutation_control(lambda y: float(pearson(x[:, None], y[:, None])), x.clone(), times=99).p
    0.01
    """
    if times < 1:
        raise Refused(f"times: at least 1 shuffle, got {times}")
    rows = torch.zeros(len(order), dtype=torch.int64) if groups is None else groups.cpu()
    if len(rows) != len(order):
        raise Refused(f"groups: one for each of {len(order)} rows, got {len(rows)}")
    by_group = rows.argsort(stable=True)
    kept = order[by_group.to(order.device)].flatten(1) if order.ndim > 1 else order[by_group.to(order.device)][:, None]
    if bool(((kept[1:] == kept[:-1]).all(1).cpu() | (rows[by_group].diff() != 0)).all()):
        where = "" if groups is None else " of each group"
        raise Refused(f"order: the same in all {len(order)} rows{where}: no shuffle can change it")
    device = generator.device if generator is not None else "cpu"
    null = []
    for _ in range(times):
        shuffled = torch.rand(len(order), generator=generator, device=device, dtype=torch.float64).argsort().cpu()
        source = torch.empty_like(shuffled)
        source[by_group] = shuffled[rows[shuffled].argsort(stable=True)]  # each group at random, in its own places
        null.append(float(score(order[source.to(order.device)])))
    observed, scores = float(score(order)), torch.tensor(null, dtype=torch.float64)
    return Control(observed, (1 + int((scores >= observed).sum())) / (1 + times), scores)


def require_varying(x: Float[Tensor, "t v"], name: str) -> None:
    """`Refused` if columns of x do not vary over t: it says how many and which is first.

    >>> require_varying(torch.tensor([[1.0, 2.0], [1.0, 3.0]]), "voxels")
    Traceback (most recent call last):
    neuropil.errors.Refused: voxels: 1 of 2 columns is constant (the first: 0); leave it out
    """
    _no_bad((x == x[:1]).all(0), name, "constant")


def _no_bad(bad: Tensor, name: str, what: str) -> None:
    if bool(bad.any()):
        count = int(bad.sum())
        is_, it = ("is", "it") if count == 1 else ("are", "them")
        raise Refused(f"{name}: {count} of {len(bad)} columns {is_} {what} (the first: {int(bad.nonzero()[0])}); leave {it} out")


def _standard(x: Tensor) -> Tensor:
    """Columns of mean 0 and length 1; of zeros where they do not vary."""
    x = torch.where((x == x[:1]).all(0), 0.0, x - x.mean(0))
    return torch.nn.functional.normalize(x, dim=0, eps=torch.finfo(x.dtype).tiny)


def _paired(a: Tensor, b: Tensor) -> None:
    if a.shape != b.shape:
        raise Refused(f"b: must have the shape of a {tuple(a.shape)}, got {tuple(b.shape)}")
    if len(a) < 2:
        raise Refused(f"a: at least 2 rows are needed, got {len(a)}")
    _finite(a, "a")
    _finite(b, "b")


def _same_stimuli(a: Tensor, b: Tensor) -> None:
    if len(a) != len(b):
        raise Refused(f"b: must have the {len(a)} stimuli of a, got {len(b)}")


def _finite(x: Tensor, name: str) -> None:
    bad = ~x.isfinite()
    if bool(bad.any()):
        raise Refused(f"{name}: {int(bad.sum())} of {x.numel()} values are not finite (the first at {bad.nonzero()[0].tolist()})")
