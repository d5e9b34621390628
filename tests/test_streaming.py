"""Streaming statistics and detection: equal to the whole, whatever the batches; ties and edges exact."""

import numpy
import pytest
import scipy.stats
import torch

from neuropil.errors import Refused
from neuropil.numerics.detection import auroc, fpr_at
from neuropil.numerics.streaming import Gram, Histogram, Moments, Pearson, uniform_edges

SPLITS = [[97], [1] * 97, [40, 0, 57], [3, 90, 4]]


def data(d=4):
    x = torch.randn(97, d) ** 3 + 100
    x[:, 0] = 0.1  # a dead unit
    return x


@pytest.mark.parametrize("split", SPLITS)
def test_moments_are_those_of_the_whole(split):
    x = data()
    m = sum(Moments.of(part) for part in x.split(split))
    whole = x.double().numpy()
    assert m.count == 97
    numpy.testing.assert_allclose(m.mean, whole.mean(0), rtol=1e-12)
    numpy.testing.assert_allclose(m.var[1:], whole.var(0, ddof=1)[1:], rtol=1e-10)
    numpy.testing.assert_allclose(m.skew[1:], scipy.stats.skew(whole[:, 1:]), rtol=1e-8)
    numpy.testing.assert_allclose(m.kurtosis[1:], scipy.stats.kurtosis(whole[:, 1:], fisher=False), rtol=1e-8)
    assert torch.equal(m.low, x.amin(0).double()) and torch.equal(m.high, x.amax(0).double())
    assert torch.equal(m.share_active, (x > 0).double().mean(0))
    assert m.var[0] == m.skew[0] == m.kurtosis[0] == 0  # exactly, not rounding errors divided by one another


@pytest.mark.parametrize("split", SPLITS)
def test_gram_and_pearson_are_those_of_the_whole(split):
    x, y = data(), data(3)
    y[:, 1] = 2 * x[:, 1] - 7
    g = sum(Gram.of(part) for part in x.split(split))
    torch.testing.assert_close(g.gram, x.double().T @ x.double())
    torch.testing.assert_close(g.covariance[1:, 1:], x.double().T.cov()[1:, 1:])
    r = sum(Pearson.of(a, b) for a, b in zip(x.split(split), y.split(split), strict=True)).correlation
    whole = torch.cat([x, y], 1).double().T.corrcoef()
    torch.testing.assert_close(r[1:, 1:], whole[1:4, 5:], rtol=0, atol=1e-6)
    torch.testing.assert_close(g.correlation[1:, 1:], whole[1:4, 1:4], rtol=0, atol=1e-6)
    assert abs(r[1, 1] - 1) < 1e-9 and (r[0] == 0).all() and (r[:, 0] == 0).all() and (g.correlation[0] == 0).all()


def test_permuting_units_permutes_correlations_and_single_precision_is_enough_for_large_means():
    x, order = torch.randn(200, 5) + 1e4, torch.randperm(5)
    r = sum(Pearson.of(a, a) for a in x.split(13)).correlation
    permuted = sum(Pearson.of(a[:, order], a) for a in x.split(50)).correlation
    torch.testing.assert_close(permuted, r[order])
    torch.testing.assert_close(r, x.double().T.corrcoef(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("split", SPLITS)
def test_histogram_counts_as_numpy_does(split):
    x = torch.rand(97, 3)
    x[:5, 0], x[:3, 1] = 1.0, 0.0
    edges = torch.tensor([0.0, 0.1, 0.35, 0.8, 1.0])
    h = sum(Histogram.of(part, edges) for part in x.split(split))
    assert torch.equal(h.counts, torch.stack([torch.from_numpy(numpy.histogram(c.double(), edges.double())[0]) for c in x.T]))
    assert (h.outside == 0).all() and h.counts.sum() == x.numel()
    assert torch.equal(h.at(x.reshape(1, 97, 3)), h.at(x)[None])
    index = (x[..., None].double() >= edges.double()[:-1]).sum(-1) - 1
    assert torch.equal(h.at(x), h.counts.T.gather(0, index))


def test_values_at_borders_outside_and_nan():
    h = Histogram.of(
        torch.tensor([[0.0], [0.25], [0.5], [1.0], [1.0001], [-1e-9], [float("nan")], [float("inf")]]), uniform_edges(0, 1, 4)
    )
    assert h.counts.tolist() == [[1, 1, 1, 1]] and h.outside.tolist() == [4]
    torch.testing.assert_close(h.density, torch.ones(1, 4).double())
    assert h.at(torch.tensor([[1.0], [2.0], [float("nan")]])).tolist() == [[1], [0], [0]]
    for split in ([0, 2], [2]):
        empty = sum(Histogram.of(torch.ones(n, 2), uniform_edges(0, 1, 2)) for n in split)
        assert empty.counts.tolist() == [[0, 2], [0, 2]]


def test_merges_that_do_not_fit_are_refused():
    x, edges = torch.rand(3, 2), uniform_edges(0, 1, 2)
    for a, b in [
        (Moments.of(x), Moments.of(x[:, :1])),
        (Gram.of(x), Gram.of(x[:, :1])),
        (Pearson.of(x, x), Pearson.of(x, x[:, :1])),
        (Histogram.of(x, edges), Histogram.of(x, uniform_edges(0, 1, 3))),
        (Histogram.of(x, edges), Histogram.of(x[:, :1], edges)),
        (Histogram.of(x, edges), Histogram.of(x, uniform_edges(0, 2, 2))),
    ]:
        with pytest.raises(Refused, match="merge"):
            a + b
    with pytest.raises(TypeError):
        Moments.of(x) + Gram.of(x)
    with pytest.raises(Refused, match="edges"):
        Histogram.of(x, torch.tensor([0.0, 0.0]))
    with pytest.raises(Refused, match="as many rows"):
        Pearson.of(x, x[:2])


def test_auroc_is_sklearns_also_with_ties():
    metrics = pytest.importorskip("sklearn.metrics")
    positive, negative = torch.randint(6, (3, 50)).float() + 1, torch.randint(6, (3, 70)).float()
    labels = numpy.r_[numpy.ones(50), numpy.zeros(70)]
    expected = [metrics.roc_auc_score(labels, torch.cat(pair).numpy()) for pair in zip(positive, negative, strict=True)]
    numpy.testing.assert_allclose(auroc(positive, negative), expected, rtol=1e-12)
    for p, n, fpr in zip(positive, negative, fpr_at(positive, negative, 0.9), strict=True):
        fprs, tprs, _ = metrics.roc_curve(labels, torch.cat([p, n]).numpy(), drop_intermediate=False)
        assert abs(fprs[tprs >= 0.9].min() - fpr) < 1e-12


def test_detection_extremes():
    low, high = torch.arange(10.0), torch.arange(10.0) + 100
    assert auroc(high, low) == 1 and auroc(low, high) == 0 and auroc(low, low) == 0.5
    assert fpr_at(high, low) == 0 and fpr_at(low, high) == 1
    assert fpr_at(torch.arange(100.0), torch.arange(100.0) + 0.5) == 0.95  # threshold 5: exactly 95 of 100 reach it
    assert auroc(torch.tensor([float("inf")]), low) == 1
    for bad, message in ((torch.tensor([]), "at least one"), (torch.tensor([float("nan")]), "1 are NaN")):
        with pytest.raises(Refused, match=message):
            auroc(low, bad)
    with pytest.raises(Refused, match="tpr"):
        fpr_at(low, high, 0.0)
