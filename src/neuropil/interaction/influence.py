"""Influence score: how well groups of discrete variables *jointly* separate a label, found by dropping variables one by one.

A set S of variables with L levels each splits n samples into cells j of n_j members and label mean ȳ_j:

    influence            I(S) = Σ_j n_j² (ȳ_j − ȳ)² / Σ_i (y_i − ȳ)² = Σ_j t_j² / Σ_i r_i²,   r_i = y_i − ȳ,  t_j = Σ_{i in j} r_i
    null_mean            E I(S) = n/(n − 1) · (1 − Σ_j (n_j/n)²)   over all orders of the labels, exactly
    backward_dropping    S ← S without the v whose loss leaves the highest I, … down to one variable; the best S on the way
    Dagger               f_S(x) = ȳ of the training cell that x falls in: the "dagger" feature

Leaving a variable out sums the table t over one of its axes: the samples are read once per start, and dropping works on tables
of L^m numbers, for all starts at once. Unlike R², I falls when a useless variable is added: dropping stops by itself.

Lo & Yin 2021, arXiv:2104.12672 and arXiv:2106.06911; Chernoff, Lo & Zheng 2009, doi:10.1214/09-AOAS265. Differs: of subsets with
equal I (to 1e-9) the smallest is kept, so that constant or doubled variables fall out; the papers do not say how continuous
variables are cut, so both rules of `fit_cuts` are ours.
"""

import itertools

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import pad

from neuropil.errors import Refused, choose
from neuropil.nn.checks import numbers, within

CELLS = 2**16  # most cells of one subset: far more than samples would fill
BLOCK = 2**23  # numbers held at once
TIE = 1e-9  # scores closer than this are equal
CUTS = ("median", "2-means")

Labels = Float[Tensor, "n"] | Int[Tensor, "n"]


def fit_cuts(x: Float[Tensor, "n p"], how: str = "median") -> Float[Tensor, "p"]:
    """One cut for each variable, in the middle between two neighbouring *different* values of the training rows `x`.

    `how`: "median", the cut nearest to as many rows below as above (so a bit that is mostly 1 stays a bit), or "2-means", the cut
    with the least variance within both sides (exact). A constant has no cut: ∞, one cell. O(n p log n). `Refused` for fewer than
    two rows, numbers that are not finite or an unknown `how`.

    >>> fit_cuts(torch.tensor([[0.0, 7.0, 1.0], [1.0, 7.0, 1.0], [2.0, 7.0, 0.0], [9.0, 7.0, 1.0]]))
    tensor([1.5000,    inf, 0.5000])
    """
    choose("how", how, CUTS)
    n = len(x)
    if n < 2:
        raise Refused(f"x: at least two rows are needed, got {n}")
    if not bool(x.isfinite().all()):
        raise Refused("x: must be finite, got NaN or ∞")
    ordered = x.sort(0).values
    low, high = ordered[:-1], ordered[1:]
    below = torch.arange(1, n, device=x.device, dtype=torch.float64)[:, None]
    if how == "median":
        cost = (below - n / 2).abs().expand(n - 1, x.shape[1])
    else:
        sums = (ordered - ordered.mean(0)).double().cumsum(0)
        left, right = sums[:-1] / below, (sums[-1] - sums[:-1]) / (n - below)
        cost = -below * (n - below) * (left - right).square()
    place = cost.masked_fill(low >= high, torch.inf).argmin(0, keepdim=True)
    low, high = low.gather(0, place)[0], high.gather(0, place)[0]
    middle = low + (high - low) / 2
    return torch.where(low < high, torch.where(middle < high, middle, low), torch.inf)


def digitise(x: Float[Tensor, "n p"], cuts: Float[Tensor, "p"]) -> Int[Tensor, "n p"]:
    """1 where a variable lies above its cut, else 0; int64. O(n p).

    >>> digitise(torch.tensor([[0.2, 5.0], [0.7, -5.0]]), torch.tensor([0.5, torch.inf])).tolist()
    [[0, 0], [1, 0]]
    """
    numbers("x", x)
    numbers("cuts", cuts)
    return (x > cuts).long()


def cells(codes: Int[Tensor, "n p"], subsets: Int[Tensor, "s k"], levels: int = 2) -> Int[Tensor, "s n"]:
    """The cell ``Σ_i x_{S_i} L^i`` of each sample in each subset; a place of −1 holds no variable. O(s n k) time, O(s n) memory.

    >>> cells(torch.tensor([[1, 0, 1], [0, 1, 1]]), torch.tensor([[0, 2], [1, -1]])).tolist()
    [[3, 2], [0, 1]]
    """
    within("subsets + 1 (columns of codes)", subsets + 1, codes.shape[1] + 1)
    columns = pad(codes, (0, 1)).T  # the last one, where −1 points, is zero
    cell = codes.new_zeros(len(subsets), len(codes))
    for i in range(subsets.shape[1]):
        cell += levels**i * columns[subsets[:, i]]
    return cell


def influence(codes: Int[Tensor, "n p"], y: Labels, subsets: Int[Tensor, "s k"], levels: int = 2) -> Float[Tensor, "s"]:
    """I(S) of each subset, float64; −1 in a row of `subsets` is no variable.

    `codes` are integers 0 … `levels` − 1, `y` any numbers: I does not change with y → a y + b, with names of levels, or with the
    order of rows. O(s (n k + L^k)) time, O(n p) memory and blocks of 64 MB. `Refused` for codes outside the levels, labels that are
    constant or not finite, subsets of no column, more than 65,536 cells.

    >>> codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    >>> influence(codes, torch.tensor([0, 1, 1, 0]), torch.tensor([[0, -1], [0, 1]]))
    tensor([0., 1.], dtype=torch.float64)
    """
    r = _residuals(codes, y, levels)
    _check_subsets(codes, subsets, levels)
    return torch.cat([_score(_tables(codes, r, block, levels), r) for block in _blocks(codes, subsets, levels)])


def null_mean(codes: Int[Tensor, "n p"], subsets: Int[Tensor, "s k"], levels: int = 2) -> Float[Tensor, "s"]:
    """The mean of I(S) over all orders of the labels, exactly: ``n/(n − 1) (1 − Σ_j p_j²)``, p_j = n_j/n; whatever the labels are.

    Costs and errors as `influence`.

    >>> null_mean(torch.tensor([[0], [0], [1], [1]]), torch.tensor([[0]]))
    tensor([0.6667], dtype=torch.float64)
    """
    n = len(codes)
    _check_codes(codes, levels)
    if n < 2:
        raise Refused(f"codes: at least 2 rows are needed, got {n}")
    _check_subsets(codes, subsets, levels)
    one = torch.ones(n, dtype=torch.float64, device=codes.device)
    squares = [_tables(codes, one / n, block, levels).square().sum(-1) for block in _blocks(codes, subsets, levels)]
    return n / (n - 1) * (1 - torch.cat(squares))


def backward_dropping(
    codes: Int[Tensor, "n p"], y: Labels, starts: Int[Tensor, "s m"], levels: int = 2
) -> tuple[Int[Tensor, "s m"], Float[Tensor, "s"]]:
    """From each start of m variables, drop the one whose loss leaves I highest, down to one; the best subset on the way and its I.

    Subsets keep the order of their start and are filled up with −1. O(s (n m + m L^m)) time; errors as `influence`, and `Refused`
    for a start that names a variable twice or none (−1).

    >>> codes = torch.cartesian_prod(*[torch.arange(2)] * 3)
    >>> backward_dropping(codes, codes[:, 0] ^ codes[:, 2], torch.tensor([[0, 1, 2]]))
    (tensor([[ 0,  2, -1]]), tensor([2.], dtype=torch.float64))
    """
    r = _residuals(codes, y, levels)
    _check_starts(codes, starts, levels)
    found = [_drop(codes, r, block, levels) for block in _blocks(codes, starts, levels)]
    return torch.cat([s for s, _ in found]), torch.cat([i for _, i in found])


def _drop(codes: Tensor, r: Tensor, subset: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    s, m = subset.shape
    each = torch.arange(s, device=codes.device)
    table = _tables(codes, r, subset, levels)
    kept, best = subset, _score(table, r)
    for k in range(m, 1, -1):
        # The cell is Σ_i x_i L^i, so variable i is the middle axis of (higher, L, lower): summing over it leaves i out.
        shapes = [(s, levels ** (k - 1 - i), levels, levels**i) for i in range(k)]
        without = torch.stack([table.view(shape).sum(2).flatten(1) for shape in shapes], 1)
        score, drop = _score(without, r).max(1)
        table = without[each, drop]
        subset = subset[torch.arange(k, device=codes.device) != drop[:, None]].view(s, k - 1)
        better = score >= best * (1 - TIE)
        kept = torch.where(better[:, None], pad(subset, (0, m - k + 1), value=-1), kept)
        best = torch.where(better, score, best)
    return kept, best


def best_subsets(
    codes: Int[Tensor, "n p"], y: Labels, groups: Int[Tensor, "s k"], levels: int = 2
) -> tuple[Int[Tensor, "s k"], Float[Tensor, "s"]]:
    """Of each group of k variables the subset with the highest I among all 2^k − 1, filled up with −1, and its I.

    O(s (n k + 2^k L^k)) time; errors as `backward_dropping`, and `Refused` for k > 8.

    >>> codes = torch.cartesian_prod(*[torch.arange(2)] * 3)
    >>> best_subsets(codes, codes[:, 0] ^ codes[:, 2], torch.tensor([[0, 1, 2]]))
    (tensor([[ 0,  2, -1]]), tensor([2.], dtype=torch.float64))
    """
    k = groups.shape[1]
    if k > 8:
        raise Refused(f"groups: all subsets are tried for at most 8 variables, got {k}; use backward_dropping")
    r = _residuals(codes, y, levels)
    _check_starts(codes, groups, levels)
    chosen = [c for size in range(1, k + 1) for c in itertools.combinations(range(k), size)]  # smallest first
    scores = []
    for block in _blocks(codes, groups, levels):
        table = _tables(codes, r, block, levels).view(-1, *[levels] * k)  # variable i is axis k − i
        without = [[k - i for i in range(k) if i not in c] for c in chosen]
        scores.append(torch.stack([_score((table.sum(axes) if axes else table).flatten(1), r) for axes in without], 1))
    score = torch.cat(scores)
    best = score.amax(1)
    first = torch.arange(len(chosen), 0, -1, device=codes.device)  # of equal ones the smallest subset
    which = (first * (score >= best[:, None] * (1 - TIE))).argmax(1)
    places = torch.tensor([c + (-1,) * (k - len(c)) for c in chosen], device=codes.device)[which]
    return torch.where(places >= 0, groups.gather(1, places.clamp(min=0)), -1), best


class Dagger(nn.Module):
    """The features ``f_S(x) = ȳ of the training cell of x`` of s subsets of up to k variables; an unseen cell gives ȳ of all.

    s L^k means and counts are kept (buffers: they travel with `state_dict`). `fit` reads the labels: on training rows the features
    are optimistic, so judge what reads them on other rows.

    >>> codes = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 0]])
    >>> f = Dagger(1, 2).fit(codes, torch.tensor([0.0, 1.0, 1.0, 0.0]), torch.tensor([[0, 1]]))
    >>> f(torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])).T
    tensor([[0.0000, 1.0000, 0.5000, 0.5000]])
    """

    subsets: Tensor
    means: Tensor
    counts: Tensor

    def __init__(self, s: int, k: int, levels: int = 2) -> None:
        super().__init__()
        if min(s, k) < 1 or levels < 2 or levels**k > CELLS:
            raise Refused(f"s, k, levels: at least 1, 1 and 2, and levels^k ≤ {CELLS:,}, got {s}, {k} and {levels}")
        self.levels = levels
        self.register_buffer("subsets", torch.full((s, k), -1))
        self.register_buffer("means", torch.zeros(s, levels**k))
        self.register_buffer("counts", torch.zeros(s, levels**k, dtype=torch.int64))

    def fit(self, codes: Int[Tensor, "n p"], y: Labels, subsets: Int[Tensor, "s k"]) -> "Dagger":
        """Take the subsets and the cell means of the training rows. O(s (n k + L^k)). `Refused` as for `influence`."""
        if subsets.shape != self.subsets.shape:
            raise Refused(f"subsets: must be of shape {tuple(self.subsets.shape)}, got {tuple(subsets.shape)}")
        r = _residuals(codes, y, self.levels)
        _check_subsets(codes, subsets, self.levels)
        blocks = _blocks(codes, subsets, self.levels)
        counts = torch.cat([_tables(codes, torch.ones_like(r), block, self.levels) for block in blocks])
        sums = torch.cat([_tables(codes, r, block, self.levels) for block in blocks])
        self.subsets.copy_(subsets)
        self.means.copy_(y.double().mean() + sums / counts.clamp(min=1))
        self.counts.copy_(counts)
        return self

    def forward(self, codes: Int[Tensor, "n p"]) -> Float[Tensor, "n s"]:
        """The s features of each row. O(n s k)."""
        _check_codes(codes, self.levels)
        return self.means.gather(1, cells(codes, self.subsets, self.levels)).T


def _score(table: Tensor, r: Tensor) -> Tensor:
    """``Σ_j t_j² / Σ_i r_i²`` along the last axis."""
    return table.square().sum(-1) / r.square().sum()


def _tables(codes: Tensor, r: Tensor, subsets: Tensor, levels: int) -> Tensor:
    """``t_j = Σ_{i in j} r_i`` of every cell of every subset, (s, L^k): one scatter."""
    table = r.new_zeros(len(subsets), levels ** subsets.shape[1])
    return table.scatter_add_(1, cells(codes, subsets, levels), r.expand(len(subsets), -1))


def _blocks(codes: Tensor, subsets: Tensor, levels: int) -> tuple[Tensor, ...]:
    """Rows of `subsets` that fit into memory at once."""
    k = subsets.shape[1]
    return subsets.split(max(1, BLOCK // max(len(codes), (k + 1) * levels**k)))


def _residuals(codes: Tensor, y: Tensor, levels: int) -> Tensor:
    """``y − ȳ`` in float64, after looking at codes and labels."""
    _check_codes(codes, levels)
    if y.ndim != 1 or len(y) != len(codes):
        raise Refused(f"y: one label for each of {len(codes)} rows is needed, got shape {tuple(y.shape)}")
    y = y.double()
    if not bool(y.isfinite().all()):
        raise Refused("y: must be finite, got NaN or ∞")
    if bool((y == y[0]).all()):
        raise Refused(f"y: must not be constant, all are {y[0]:g}")
    return y - y.mean()


def _check_codes(codes: Tensor, levels: int) -> None:
    if torch.compiler.is_compiling():
        return
    if codes.ndim != 2 or codes.dtype != torch.int64 or len(codes) == 0:
        raise Refused(f"codes: must be int64 of shape (n, p) with n ≥ 1, got {codes.dtype} of {tuple(codes.shape)}")
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < levels:
        raise Refused(f"codes: must lie in 0 … {levels - 1} (levels {levels}), got {int(codes.min())} … {int(codes.max())}")


def _check_subsets(codes: Tensor, subsets: Tensor, levels: int) -> None:
    s, k = subsets.shape
    if k < 1 or levels**k > CELLS:
        raise Refused(f"subsets: levels^k must be at most {CELLS:,} cells with k ≥ 1, got k = {k} and levels {levels}")
    if s < 1 or int(subsets.min()) < -1 or int(subsets.max()) >= codes.shape[1]:
        raise Refused(
            f"subsets: at least one, of columns 0 … {codes.shape[1] - 1} of codes or −1, got shape {tuple(subsets.shape)}"
        )


def _check_starts(codes: Tensor, starts: Tensor, levels: int) -> None:
    _check_subsets(codes, starts, levels)
    ordered = starts.sort(1).values
    if int(ordered[:, 0].min()) < 0 or bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise Refused("starts: each must name different columns of codes, got one twice or −1")
