import math

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from neuropil.brain.scores import (
    cka,
    dissimilarity,
    explained_variance,
    group_splits,
    noise_ceiling,
    pearson,
    permutation_control,
    require_varying,
    rsa,
)
from neuropil.errors import Refused


def test_pearson_is_scipys():
    a, b = torch.randn(50, 4), torch.randn(50, 4) * 1e-6 + 3.0
    expected = [pearsonr(x, y).statistic for x, y in zip(a.T.double().numpy(), b.T.double().numpy(), strict=True)]
    assert np.allclose(pearson(a.double(), b.double()), expected, atol=1e-10)
    a[:, 2] = 0.1
    assert pearson(a, b)[2] == 0 and pearson(b, a)[2] == 0


def test_explained_variance():
    y = torch.randn(30, 3)
    assert explained_variance(y, y).allclose(torch.ones(3)) and explained_variance(y.mean(0).expand_as(y), y).abs().max() < 1e-6
    assert (explained_variance(y + 5, y) < -1).all()
    half = torch.full((3,), 0.5)
    assert explained_variance(y, y, half).allclose(torch.full((3,), 2.0))
    with pytest.raises(Refused, match="ceiling: one for each of 3 columns"):
        explained_variance(y, y, half[:2])
    half[1] = 0
    with pytest.raises(Refused, match=r"ceiling: 1 of 3 columns is no signal above their noise \(the first: 1\)"):
        explained_variance(y, y, half)
    y[:, 1:] = 2.0
    with pytest.raises(Refused, match=r"measured: 2 of 3 columns are constant \(the first: 1\); leave them out"):
        explained_variance(y, y)


def test_noise_ceiling_is_the_share_of_signal():
    signal = torch.randn(1, 5000, 3) * torch.tensor([1.0, 0.5, 0.0])
    repeats = signal + torch.randn(3, 5000, 3)
    expected = torch.tensor([1 / (1 + 1 / 3), 0.25 / (0.25 + 1 / 3), 0.0])
    assert noise_ceiling(repeats).allclose(expected, atol=0.03)
    # The best model, the signal itself, reaches it: r² with the mean over repeats.
    assert (pearson(signal[0], repeats.mean(0)).square() - expected)[:2].abs().max() < 0.03
    noise, mean = repeats.var(0).mean(0), repeats.mean(0).var(0)
    ncsnr2 = (mean - noise / 3) / noise
    assert noise_ceiling(repeats)[:2].allclose((ncsnr2 / (ncsnr2 + 1 / 3))[:2], atol=1e-5)  # as NSD writes it


def test_noise_ceiling_at_its_ends():
    x = torch.randn(1, 20, 2).repeat(3, 1, 1)
    x[..., 1] = 4.2
    assert noise_ceiling(x).allclose(torch.tensor([1.0, 0.0]), atol=1e-5)
    with pytest.raises(Refused, match="at least 2 repeats"):
        noise_ceiling(x[:1])
    x[1, 3, 0] = math.nan
    with pytest.raises(Refused, match=r"not finite \(the first at \[1, 3, 0\]\)"):
        noise_ceiling(x)


def test_rsa():
    x, y = torch.randn(8, 20), torch.randn(8, 30)
    for metric, full in (
        ("correlation", lambda z: 1 - np.corrcoef(z)),
        ("euclidean", lambda z: np.linalg.norm(z[:, None] - z[None], axis=-1)),
    ):
        triangles = [full(z.numpy())[np.triu_indices(8, 1)] for z in (x, y)]
        assert np.allclose(dissimilarity(x, metric), triangles[0], atol=1e-5)
        assert rsa(x, y, metric) == pytest.approx(spearmanr(*triangles).statistic, abs=1e-6)
    with pytest.raises(Refused, match="8 stimuli of a, got 7"):
        rsa(x, y[:7])
    with pytest.raises(Refused, match="metric: unknown 'cosin'"):
        rsa(x, y, "cosin")
    x[2] = 1.0
    with pytest.raises(Refused, match=r"1 of 8 columns is constant \(the first: 2\)"):
        dissimilarity(x)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("unbiased", [False, True])
def test_cka_knows_no_rotation_and_no_scale(kernel, unbiased):
    x, y = torch.randn(30, 6), torch.randn(30, 4)
    turned = x @ torch.linalg.qr(torch.randn(6, 6)).Q * 5
    assert cka(x, turned, kernel, unbiased) == pytest.approx(1, abs=1e-5)
    assert cka(x, y, kernel, unbiased) == pytest.approx(cka(y, turned, kernel, unbiased), abs=1e-5) != 1


def test_cka_formulas():
    x, y = (torch.randn(12, d).double() for d in (5, 3))
    a, b = x - x.mean(0), y - y.mean(0)
    linear = (a.T @ b).square().sum() / ((a.T @ a).norm() * (b.T @ b).norm())  # Kornblith et al. 2019, eq. of the features
    assert cka(x, y) == pytest.approx(float(linear), abs=1e-12)

    def hsic(K, L):  # the sum over four different stimuli that the unbiased one estimates, on a small set by hand
        n, total = len(K), 0.0
        for i in range(n):
            for j in range(n):
                for q in range(n):
                    for r in range(n):
                        if len({i, j, q, r}) == 4:
                            total += K[i, j] * (L[i, j] + L[q, r] - 2 * L[i, q])
        return total / (n * (n - 1) * (n - 2) * (n - 3))

    K, L = ((z[:7] @ z[:7].T).numpy() for z in (a, b))
    a7, b7 = x[:7], y[:7]
    expected = hsic(K, L) / math.sqrt(hsic(K, K) * hsic(L, L))
    assert cka(a7, b7, unbiased=True) == pytest.approx(expected, abs=1e-9)


def test_unbiased_cka_of_independent_data_is_about_zero():
    scores = [(cka(x, y, unbiased=True), cka(x, y)) for x, y in (torch.randn(2, 20, 200) for _ in range(20))]
    unbiased, plain = np.mean(scores, axis=0)
    assert abs(unbiased) < 0.05 < 0.8 < plain


def test_cka_refuses():
    x = torch.randn(5, 3)
    for refused, words in (
        (lambda: cka(x, x, "poly"), "kernel: unknown"),
        (lambda: cka(x, x[:4]), "5 stimuli of a, got 4"),
        (lambda: cka(x[:3], x[:3], unbiased=True), "at least 4"),
        (lambda: cka(x, torch.ones(5, 2)), "the same for all stimuli"),
        (lambda: cka(x, torch.ones(5, 2), "rbf"), "b: more than half"),
        (lambda: cka(x, x, "rbf", width=0.0), "width: must be above 0"),
        (lambda: cka(x / 0, x), "a: .* not finite"),
    ):
        with pytest.raises(Refused, match=words):
            refused()


def test_group_splits_share_no_group():
    labels, groups = torch.arange(24) % 2, torch.arange(24) // 4
    for folds, number in ((3, 3), (None, 6)):
        splits = group_splits(labels, groups, folds)
        assert len(splits) == number and torch.cat([test for _, test in splits]).sort().values.equal(torch.arange(24))
        for train, test in splits:
            assert not set(groups[train].tolist()) & set(groups[test].tolist()) and len(train) + len(test) == 24
    assert all(labels[test].float().mean() == 0.5 for _, test in group_splits(labels, None, 4))
    for arguments, words in (
        ((labels, groups, 7), "6 different ones cannot make 7 folds"),
        ((labels, groups[:3], 2), "groups: one for each of 24"),
        ((labels[:6], None, 4), "rarest class has 3 rows"),
        ((labels, None, None), "folds: "),
        ((labels, groups, 1), "folds: at least 2"),
    ):
        with pytest.raises(Refused, match=words):
            group_splits(*arguments)


def test_permutation_control():
    x = torch.arange(12.0)
    groups = torch.tensor([2, 0, 1] * 4)
    seen = []

    def score(order):
        seen.append(order)
        return float((x * x[order]).sum())

    control = permutation_control(score, torch.arange(12), 50, torch.Generator().manual_seed(1), groups)
    assert control.p == 1 / 51 and control.null.shape == (50,) and control.score == float((x * x).sum())
    assert all(order.sort().values.equal(torch.arange(12)) and groups[order].equal(groups) for order in seen)
    assert len({tuple(order.tolist()) for order in seen}) > 45
    again = permutation_control(score, torch.arange(12), 50, torch.Generator().manual_seed(1), groups)
    assert again.null.equal(control.null)


def test_p_of_nothing_is_uniform():
    generator = torch.Generator().manual_seed(0)

    def p_of_noise():
        x = torch.randn(10, generator=generator)
        return permutation_control(lambda y: float(x @ y), torch.arange(10.0), 19, generator).p

    p = [p_of_noise() for _ in range(300)]
    assert abs(np.mean(p) - 0.525) < 0.05 and 0.02 < np.mean(np.array(p) <= 0.05) < 0.09


def test_permutation_refuses():
    for arguments, words in (
        ((torch.arange(4), 0), "times: at least 1"),
        ((torch.ones(4), 5), "the same in all 4 rows: no shuffle"),
        ((torch.tensor([0, 0, 1, 1]), 5, None, torch.tensor([3, 3, 5, 5])), "in all 4 rows of each group"),
        ((torch.arange(4), 5, None, torch.zeros(3, dtype=torch.int64)), "groups: one for each of 4"),
    ):
        with pytest.raises(Refused, match=words):
            permutation_control(lambda order: 0.0, *arguments)


def test_shapes_and_values_are_checked():
    for a, b, words in (
        (torch.zeros(1, 2), torch.zeros(1, 2), "at least 2 rows"),
        (torch.zeros(3, 2), torch.full((3, 2), math.inf), "b: 6 of 6 values are not finite"),
    ):
        with pytest.raises(Refused, match=words):
            pearson(a, b)
    require_varying(torch.eye(2), "x")
