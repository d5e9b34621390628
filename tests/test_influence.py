"""Influence score, backward dropping, dagger features, screening and interaction-based convolution: the exact invariants."""

import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from neuropil.errors import Refused
from neuropil.interaction.influence import (
    Dagger,
    backward_dropping,
    best_subsets,
    cells,
    digitise,
    fit_cuts,
    influence,
    null_mean,
)
from neuropil.interaction.interaction_conv import InteractionConv, InteractionNet
from neuropil.interaction.score_screen import KeptGroup, ScoreScreen, disjoint, hit_chance, pooled_activations, rule_of_thumb
from neuropil.lab.claims import select
from neuropil.lab.run import measure

G = torch.Generator().manual_seed(0)
CODES = torch.randint(3, (60, 6), generator=G)
Y = torch.randn(60, generator=G)
SUBSETS = torch.tensor([[0, 2, 5], [1, 3, -1], [4, -1, -1]])


def literal(codes, y, subset):
    """The card's formula, cell by cell."""
    rows, y = codes[:, [v for v in subset if v >= 0]].tolist(), y.double()
    groups = {}
    for row, label in zip(rows, y.tolist(), strict=True):
        groups.setdefault(tuple(row), []).append(label)
    top = sum(len(g) ** 2 * (np.mean(g) - float(y.mean())) ** 2 for g in groups.values())
    return top / float((y - y.mean()).square().sum())


def dropping(codes, y, start):
    """Backward dropping, one subset at a time."""
    subset, seen = list(start), []
    while True:
        seen.append((literal(codes, y, subset), subset))
        if len(subset) == 1:
            return max(seen, key=lambda pair: pair[0])
        subset = max(([v for v in subset if v != w] for w in subset), key=lambda s: literal(codes, y, s))


def test_the_formula_cell_by_cell():
    expected = torch.tensor([literal(CODES, Y, s) for s in SUBSETS.tolist()])
    assert torch.allclose(influence(CODES, Y, SUBSETS, 3), expected.double(), rtol=1e-10)


def test_dropping_equals_the_loop_and_is_never_below_its_start():
    starts = torch.rand(40, 6, generator=G).topk(4).indices
    subsets, scores = backward_dropping(CODES, Y, starts, 3)
    for start, subset, score in zip(starts.tolist(), subsets.tolist(), scores.tolist(), strict=True):
        best, kept = dropping(CODES, Y, start)
        assert score == pytest.approx(best, rel=1e-8)
        assert [v for v in subset if v >= 0] == kept
    assert (scores >= influence(CODES, Y, starts, 3) * (1 - 1e-8)).all()
    assert torch.allclose(scores, influence(CODES, Y, subsets, 3), rtol=1e-10)


def test_best_subsets_is_the_maximum_over_all():
    groups = torch.tensor([[0, 1, 2, 3], [5, 4, 1, 0]])
    subsets, scores = best_subsets(CODES, Y, groups, 3)
    for group, subset, score in zip(groups.tolist(), subsets.tolist(), scores.tolist(), strict=True):
        every = [list(c) for k in range(1, 5) for c in itertools.combinations(group, k)]
        assert score == pytest.approx(max(literal(CODES, Y, s) for s in every), rel=1e-8)
        assert score == pytest.approx(literal(CODES, Y, subset), rel=1e-8)


def test_blocks_change_nothing(monkeypatch):
    starts = torch.rand(30, 6, generator=G).topk(3).indices
    whole = backward_dropping(CODES, Y, starts, 3), influence(CODES, Y, starts, 3), null_mean(CODES, starts, 3)
    monkeypatch.setattr("neuropil.interaction.influence.BLOCK", 200)
    parts = backward_dropping(CODES, Y, starts, 3), influence(CODES, Y, starts, 3), null_mean(CODES, starts, 3)
    assert torch.equal(whole[0][0], parts[0][0])
    assert torch.equal(whole[1], parts[1]) and torch.equal(whole[2], parts[2])


def test_null_mean_is_the_mean_over_all_orders_of_the_labels():
    codes, y = torch.tensor([[0, 1], [0, 0], [1, 0], [2, 1], [2, 1], [2, 0]]), torch.tensor([0.0, 1, 1, 5, -2, 0])
    subsets = torch.tensor([[0, -1], [0, 1], [1, -1]])
    orders = [influence(codes, y[list(order)], subsets, 3) for order in itertools.permutations(range(6))]
    assert torch.allclose(torch.stack(orders).mean(0), null_mean(codes, subsets, 3), rtol=1e-10)


def test_scale_of_labels_names_of_levels_and_order_of_rows_do_not_matter():
    before = influence(CODES, Y, SUBSETS, 3)
    order = torch.randperm(60, generator=G)
    assert torch.allclose(influence(CODES, -3 * Y + 7, SUBSETS, 3), before, rtol=1e-5)
    assert torch.allclose(influence(torch.tensor([2, 0, 1])[CODES], Y, SUBSETS, 3), before, rtol=1e-10)
    assert torch.allclose(influence(CODES[order], Y[order], SUBSETS, 3), before, rtol=1e-10)


def test_a_useless_variable_lowers_the_score_and_a_constant_is_dropped():
    codes = torch.cartesian_prod(*[torch.arange(2)] * 3)
    y = codes[:, 0] ^ codes[:, 1]
    alone, with_noise = influence(codes, y, torch.tensor([[0, 1, -1], [0, 1, 2]]))
    assert alone == pytest.approx(2 * float(with_noise))
    codes[:, 2] = 0
    assert backward_dropping(codes, y, torch.tensor([[2, 0, 1]]))[0].tolist() == [[0, 1, -1]]
    assert best_subsets(codes, y, torch.tensor([[2, 0, 1]]))[0].tolist() == [[0, 1, -1]]


def test_r_squared_of_one_variable():
    """For equal cells I is n_j times the share of variance between cells (scikit-learn's R² of a tree with one leaf a cell)."""
    tree = pytest.importorskip("sklearn.tree").DecisionTreeRegressor(random_state=0)
    codes = torch.arange(4).repeat(15)[:, None]
    r2 = tree.fit(codes.numpy(), Y.numpy()).score(codes.numpy(), Y.numpy())
    assert float(influence(codes, Y, torch.tensor([[0]]), 4)) == pytest.approx(15 * r2, rel=1e-5)


@pytest.mark.parametrize("how", ["median", "2-means"])
def test_cuts_ties_constants_and_neighbouring_floats(how):
    one = torch.tensor(1.0)
    x = torch.stack([torch.tensor([0.0, 1, 1, 1]), torch.full((4,), 3.0), torch.stack([one, one, one, one.nextafter(one + 1)])], 1)
    cuts = fit_cuts(x, how)
    assert cuts.isinf().tolist() == [False, True, False]
    assert digitise(x, cuts).T.tolist() == [[0, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 1]]
    assert digitise(x + 1e6, cuts)[:, 1].tolist() == [0] * 4


def test_two_means_is_the_exact_optimum():
    x = torch.randn(31, 4, generator=G, dtype=torch.float64) ** 3
    codes = digitise(x, fit_cuts(x, "2-means"))
    for column, code in zip(x.T, codes.T, strict=True):
        ordered = column.sort().values
        within = [sum(float((part - part.mean()).square().sum()) for part in (ordered[:i], ordered[i:])) for i in range(1, 31)]
        found = sum(float((part - part.mean()).square().sum()) for part in (column[code == 0], column[code == 1]))
        assert found == pytest.approx(min(within), rel=1e-10)


def test_dagger_gives_cell_means_the_global_mean_elsewhere_and_travels():
    codes, y = torch.tensor([[0, 0], [0, 1], [0, 1], [1, 0]]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    f = Dagger(2, 2).fit(codes, y, torch.tensor([[0, 1], [1, -1]]))
    assert torch.allclose(f(torch.tensor([[0, 0], [0, 1], [1, 1]])), torch.tensor([[1.0, 1], [0.5, 0.5], [0.75, 0.5]]))
    assert f.counts.tolist() == [[1, 1, 2, 0], [2, 2, 0, 0]]
    other = Dagger(2, 2)
    other.load_state_dict(f.state_dict())
    assert torch.equal(other(codes), f(codes))
    assert len(f(codes)[:, 0].unique()) <= 4


@pytest.mark.parametrize(
    ("codes", "y", "subsets", "says"),
    [
        (CODES, Y, torch.tensor([[0]]), r"codes: must lie in 0 … 1 \(levels 2\), got 0 … 2"),
        (CODES % 2, Y[:5], torch.tensor([[0]]), "y: one label|annotat|type-check"),
        (CODES % 2, torch.ones(60), torch.tensor([[0]]), "y: must not be constant, all are 1"),
        (CODES % 2, Y * torch.nan, torch.tensor([[0]]), "y: must be finite"),
        (CODES % 2, Y, torch.tensor([[6]]), "subsets: .* columns 0 … 5"),
        (CODES % 2, Y, torch.zeros(1, 17, dtype=torch.int64), "subsets: .* 65,536"),
    ],
)
def test_bad_input_is_refused(codes, y, subsets, says):
    with pytest.raises(Exception, match=says):
        influence(codes, y, subsets)


def test_bad_starts_cuts_and_sizes_are_refused():
    with pytest.raises(Refused, match="starts: each must name different columns"):
        backward_dropping(CODES, Y, torch.tensor([[0, 0]]), 3)
    with pytest.raises(Refused, match="at most 8 variables, got 9"):
        best_subsets(torch.zeros(3, 9, dtype=torch.int64), torch.arange(3), torch.arange(9)[None])
    with pytest.raises(Refused, match="how: unknown 'mean'"):
        fit_cuts(torch.zeros(3, 1), "mean")
    with pytest.raises(Refused, match="x: must be finite"):
        fit_cuts(torch.tensor([[0.0], [torch.nan]]))
    for score, counts, says in ((float("nan"), 1, "score, null_mean: must be finite"), (1.0, -1, "counts: must be 0 or more")):
        with pytest.raises(Refused, match=says):
            KeptGroup((0,), score, 1.0, torch.tensor([counts]), torch.ones(1))
    with pytest.raises(Refused, match="shuffles: must be at least 0, got -1"):
        ScoreScreen(shuffles=-1)
    with pytest.raises(Refused, match="every variable is constant"):
        ScoreScreen().fit(torch.ones(9, 3), torch.arange(9))
    with pytest.raises(Refused, match="fit must come first"):
        ScoreScreen().transform(torch.ones(9, 3))
    with pytest.raises(Refused, match="no window of 2 from 3 on fits into 4 × 4"):
        InteractionConv((4, 4), start=3)
    with pytest.raises(Refused, match=r"images: must be of shape \(n, 4, 4\)"):
        InteractionConv((4, 4))(torch.zeros(2, 4, 5))


def test_rule_of_thumb():
    assert hit_chance(30, 7, 3) == pytest.approx(7 * 6 * 5 / (30 * 29 * 28))
    assert rule_of_thumb(10**6, 784)[0] == 9 and rule_of_thumb(10**6, 784)[1] == 20_000
    assert rule_of_thumb(5, 1) == (1, 5)
    with pytest.raises(Refused, match="p, m, r"):
        hit_chance(3, 4, 1)


def test_screen_finds_a_parity_and_shows_its_cells():
    x = torch.randn(300, 15, generator=G)
    y = ((x[:, 4] > 0) ^ (x[:, 11] > 0)).float()
    screen = ScoreScreen(keep=4, seed=1).fit(x, y)
    first, *rest = screen.explanation.groups
    assert first.variables == (4, 11) and first.score > 3 * max(screen.explanation.shuffled)
    assert screen.explanation.above_chance == 1 and "top I on shuffled" in str(screen.explanation)
    assert int(first.counts.sum()) == 300 and len(first.means) == 4
    used = [v for group in (first, *rest) for v in group.variables]
    assert len(used) == len(set(used)) == len(screen.variables)
    saliency = screen.explanation.saliency()
    assert saliency.argsort(descending=True)[:2].sort().values.tolist() == [4, 11]
    assert screen.transform(x, raw=True).shape[1] == len(screen.explanation.groups) + len(used)


def test_screen_fits_on_training_rows_only():
    """Shuffled test labels or other test rows cannot change a feature; a new row gets a training cell's mean."""
    x, y = torch.randn(100, 8, generator=G), (torch.rand(100, generator=G) < 0.5).float()
    screen = ScoreScreen(keep=2, shuffles=0).fit(x, y)
    alone = torch.cat([screen.transform(row[None]) for row in x[:5]])
    assert torch.equal(alone, screen.transform(x)[:5])
    group = screen.explanation.groups[0]
    assert torch.isin(screen.transform(10 * torch.randn(50, 8))[:, 0], torch.cat([group.means, y.mean()[None]])).all()


def test_disjoint_skips_what_shares_a_variable():
    subsets, scores = disjoint(torch.tensor([[2, -1], [1, 2], [0, 1], [3, -1]]), torch.tensor([1.0, 2.0, 3.0, 0.5]), 3)
    assert subsets.tolist() == [[0, 1], [2, -1], [3, -1]] and scores.tolist() == [3.0, 1.0, 0.5]


def test_pooled_activations_of_a_site():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Dropout(0.5))
    net[0].eval()  # frozen, and stays so
    x = torch.randn(7, 1, 6, 6, generator=G)
    expected = net[:2](x).detach()
    assert torch.allclose(pooled_activations(net, "2", x, "mean", block=3), expected.mean((2, 3)))
    assert torch.allclose(pooled_activations(net, "2", x, "max"), expected.amax((2, 3)))
    assert torch.allclose(pooled_activations(net, "2", x, "flat"), expected.flatten(1))
    assert net.training
    with pytest.raises(Refused, match="pool: unknown 'sum'"):
        pooled_activations(net, "2", x, "sum")
    for bad in (x.expand(-1, 2, -1, -1), x.half()):
        with pytest.raises(Refused, match=f"x: the model does not take {bad.dtype} of shape"):
            pooled_activations(net, "2", bad)
    assert net.training and [part.training for part in net] == [False, True, True]


def test_sides_of_the_paper_and_no_window_overruns():
    assert InteractionConv((128, 128), start=12).out_shape == (58, 58)
    layer = InteractionConv((9, 7), window=3, stride=2, start=1)
    assert layer.out_shape == (3, 2)
    assert layer.windows[-1].tolist() == [
        5 * 7 + 3,
        5 * 7 + 4,
        5 * 7 + 5,
        6 * 7 + 3,
        6 * 7 + 4,
        6 * 7 + 5,
        7 * 7 + 3,
        7 * 7 + 4,
        7 * 7 + 5,
    ]


def test_layer_equals_its_definition_and_travels():
    images, y = torch.randn(80, 6, 6, generator=G), torch.randn(80, generator=G)
    layer = InteractionConv((6, 6)).fit(images, y)
    flat = digitise(images.flatten(1), layer.cuts)
    for window, out in ((0, (0, 0)), (5, (1, 2))):
        subset = layer.dagger.subsets[window]
        cell = cells(flat, subset[None])[0]
        expected = torch.stack([y[cell == c].mean() for c in cell])
        assert torch.allclose(layer(images)[:, out[0], out[1]], expected, atol=1e-6)
    other = InteractionConv((6, 6))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(images), layer(images))


def test_large_windows_are_dropped_and_layers_stack():
    images = torch.randint(2, (400, 9, 9), generator=G).float()
    y = (images[:, 3, 4] != images[:, 5, 5]).float()
    layer = InteractionConv((9, 9), window=3, stride=3).fit(images, y)
    assert layer.scores.argmax() == 4 and layer.dagger.subsets[4].tolist()[:3] == [3 * 9 + 4, 5 * 9 + 5, -1]
    net = InteractionNet((9, 9), windows=(3, 2), stride=3).fit_layers(images, y)
    assert net(images).shape == (400,) and net.trace(0)[4] == [31, 50] and 31 in net.trace(1)[0]
    twin = InteractionNet((9, 9), windows=(3, 2), stride=3)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(images), net(images))


def test_compiled_net_gives_the_same():
    code = (
        "import torch; from neuropil.interaction.interaction_conv import InteractionNet; "
        "x = torch.randint(2, (50, 8, 8)).float(); net = InteractionNet((8, 8)).fit_layers(x, x[:, 0, 0]).eval(); "
        "assert torch.allclose(torch.compile(net, backend='aot_eager', fullgraph=True)(x), net(x), atol=1e-6)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]


@pytest.mark.parametrize("claim", [*select("iscore"), *select("icnn")], ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(0 <= row[side] <= 1.5 for side in ("method", "baseline"))
