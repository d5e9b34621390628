"""The ground of the interpret wing: Jacobians, resampling, probes, attribution; and every instrument on every kind of net."""

import math

import numpy
import pytest
import scipy.stats
import torch
from torch import nn

from neuropil.dynamics.wave_rnn import Reader, WaveCell
from neuropil.errors import Refused
from neuropil.interpret.attribution import gradient_times_input, integrated_gradients
from neuropil.interpret.probes import logistic, probe
from neuropil.nn.mlp import MLP
from neuropil.nn.sites import downstream, override, record, replace, scale
from neuropil.nn.transformer import GPT
from neuropil.numerics.detection import auroc, fpr_at
from neuropil.numerics.jacobians import jacobian, spectral_norm, spectral_radius
from neuropil.numerics.resampling import bootstrap, permutation_test
from neuropil.numerics.ridge import ridge
from neuropil.numerics.streaming import Gram, Histogram, Moments, Pearson, uniform_edges
from neuropil.training.small_nets import CNN, ViT
from neuropil.training.trained import trained


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- Jacobians -----------------------------------------------------------------------------------------------------------------


def test_jacobian_is_torchs_for_each_sample():
    f, x = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Tanh()), torch.randn(4, 2, 3, 3)
    expected = torch.stack([torch.autograd.functional.jacobian(lambda a: f(a[None])[0], a) for a in x])
    for chunk in (None, 1, 5):
        found = jacobian(f, x, chunk)
        assert found.shape == (4, 3, 2, 2, 2, 3, 3) and not found.requires_grad
        torch.testing.assert_close(found, expected)


def test_spectral_norm_is_the_largest_singular_value():
    f, x = MLP([6, 20, 4], "tanh").double(), torch.randn(5, 6, dtype=torch.float64)
    exact = torch.linalg.svdvals(jacobian(f, x))[:, 0]
    torch.testing.assert_close(spectral_norm(f, x, steps=500, tolerance=1e-12, generator=generator()), exact, rtol=1e-6, atol=0)
    assert (spectral_norm(f, x, steps=2) <= exact * (1 + 1e-9)).all()
    assert (spectral_norm(lambda x: 0 * x, x) == 0).all()


def test_spectral_radius_exact_and_krylov():
    A = torch.randn(3, 12, 12, dtype=torch.float64)
    A[0, 1:] = 0  # rank one: the Krylov space ends early
    f = lambda x: torch.einsum("bij,bj->bi", A, x)  # noqa: E731
    x, exact = torch.zeros(3, 12, dtype=torch.float64), torch.linalg.eigvals(A).abs().amax(-1)
    torch.testing.assert_close(spectral_radius(f, x), exact)
    torch.testing.assert_close(spectral_radius(f, x, krylov=12), exact)
    torch.testing.assert_close(spectral_radius(f, x, krylov=99), exact)
    # 0.99 and a rotation by a right angle at 0.5: the largest is found from few products
    big = torch.diag(torch.linspace(0, 0.6, 200, dtype=torch.float64))
    big[:2, :2], big[5, 5] = torch.tensor([[0.0, -0.5], [0.5, 0.0]]), 0.99
    torch.testing.assert_close(
        spectral_radius(lambda x: x @ big, torch.zeros(2, 200).double(), krylov=15), torch.full((2,), 0.99).double()
    )


def test_jacobians_of_attention_and_refusals():
    gpt = GPT(7, d=8, heads=2, layers=2, context=6, hidden=16)
    z, f = downstream(gpt, "embed", torch.randint(7, (3, 5)))
    last = lambda z: f(z)[:, -1]  # noqa: E731
    J = jacobian(last, z)
    assert J.shape == (3, 7, 5, 8)
    torch.testing.assert_close(
        spectral_norm(last, z, steps=300, tolerance=1e-7), torch.linalg.svdvals(J.flatten(2))[:, 0], rtol=1e-3, atol=0
    )
    x, other = torch.randn(3, 4), torch.randn(3, 4, requires_grad=True)
    for bad, message in (
        (lambda: jacobian(lambda x: x.sum(), x), "f: must give a tensor of 3 samples"),
        (lambda: jacobian(lambda x: x.detach(), x), "does not depend on x"),
        (lambda: jacobian(lambda _: other, x), "does not depend on x"),
        (lambda: spectral_norm(lambda _: other, x), "does not depend on x"),
        (lambda: spectral_radius(lambda _: other, x, krylov=2), "does not depend on x"),
        (lambda: spectral_radius(lambda x: x[:, :2], x), "must give the shape that it takes"),
        (lambda: spectral_radius(lambda x: x[:, :2], x, krylov=2), "must give the shape that it takes"),
        (lambda: spectral_norm(lambda x: x, x, steps=0), "steps"),
        (lambda: spectral_radius(lambda x: torch.nan * x, x), "^Jacobian at x: must be finite"),
        (lambda: spectral_radius(lambda x: torch.nan * x, x, krylov=2), "^Jacobian at x, on its Krylov space: must be finite"),
    ):
        with pytest.raises(Refused, match=message):
            bad()


# --- resampling ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alternative", ["two-sided", "greater", "less"])
def test_permutation_test_exact_is_scipys(alternative):
    a, b = torch.randn(3, 8, dtype=torch.float64) + 0.7, torch.randn(3, 8, dtype=torch.float64)
    a[2] = b[2] = 1.0  # all alike
    found = permutation_test(a, b, alternative=alternative, memory=100)
    for p, x, y in zip(found, a.numpy(), b.numpy(), strict=True):
        test = scipy.stats.permutation_test(
            (x, y), lambda x, y: x.mean() - y.mean(), permutation_type="samples", n_resamples=numpy.inf, alternative=alternative
        )
        assert abs(test.pvalue - p) < 1e-12
    assert found[2] == 1


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_rounding_does_not_break_ties(shift):
    """a and b hold the same values: T is 0, and 10 of the 16 swaps come to 0 or more, counted in whole numbers."""
    a, b = (shift + torch.tensor(x, dtype=torch.float64) for x in ([0.3, 0.1, 0.7, 0.5], [0.7, 0.1, 0.5, 0.3]))
    for alternative, p in (("greater", 0.625), ("less", 0.625), ("two-sided", 1.0)):
        assert permutation_test(a, b, alternative=alternative) == p


def test_permutation_test_random_comes_near_the_exact_and_is_reproducible():
    a, b = torch.randn(12) + 0.5, torch.randn(12)
    exact = permutation_test(a, b, resamples=2**12)
    for memory in (2**24, 500):
        near = permutation_test(a, b, resamples=4000, generator=generator(), memory=memory)
        assert abs(near - exact) < 0.03
    assert permutation_test(a, b, resamples=99, generator=generator(1)) == permutation_test(
        a, b, resamples=99, generator=generator(1)
    )
    assert permutation_test(a + 100, b, paired=False, resamples=999, generator=generator()) == 2 / 1000
    welch = permutation_test(a, b[:9], paired=False, resamples=4000, generator=generator())
    assert abs(welch - scipy.stats.ttest_ind(a, b[:9]).pvalue) < 0.05


def test_under_the_null_p_is_uniform():
    a, b = torch.randn(400, 15, generator=generator()), torch.randn(400, 15, generator=generator(1))
    for paired in (True, False):
        p = permutation_test(a, b, paired=paired, resamples=999, generator=generator())
        assert scipy.stats.kstest(p.numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_is_scipys(method):
    x = torch.randn(40, dtype=torch.float64, generator=generator()).exp()
    y = x + torch.randn(40, dtype=torch.float64, generator=generator(1))
    correlation = lambda x, y, axis: scipy.stats.pearsonr(x, y, axis=axis).statistic  # noqa: E731

    def ours(x, y):
        x, y = (z - z.mean(-1, keepdim=True) for z in (x, y))
        return (x * y).sum(-1) / (x.square().sum(-1) * y.square().sum(-1)).sqrt()

    for samples, mine, theirs in (((x,), None, numpy.mean), ((x, y), ours, correlation)):
        found = bootstrap(*samples, statistic=mine, method=method, generator=generator(), memory=10_000)
        expected = scipy.stats.bootstrap(
            [s.numpy() for s in samples], theirs, paired=True, vectorized=True, method=method, rng=numpy.random.default_rng(0)
        ).confidence_interval
        width = expected.high - expected.low
        assert abs(found.low - expected.low) < 0.05 * width and abs(found.high - expected.high) < 0.05 * width


def test_bootstrap_covers_and_batches():
    x = torch.randn(500, 30, generator=generator())
    found = bootstrap(x, resamples=999, generator=generator())
    covered = ((found.low <= 0) & (found.high >= 0)).double().mean()
    assert found.value.shape == (500,) and 0.90 < covered < 0.97
    constant = bootstrap(torch.ones(5), method="bca", resamples=99)
    assert constant.low == constant.high == 1
    unpaired = bootstrap(x[0], x[1, :20], paired=False, resamples=99)
    assert unpaired.low < x[0].mean() - x[1, :20].mean() < unpaired.high
    for bad, message in (
        (lambda: bootstrap(x[0], x[1, :20]), "pairs need as many values"),
        (lambda: bootstrap(torch.ones(0)), "at least one value"),
        (lambda: bootstrap(x[0], level=1.0), "level"),
        (lambda: bootstrap(x[0], x[1], paired=False, method="bca"), "'bca' is for paired"),
        (lambda: bootstrap(x[0], method="bias"), "method: unknown 'bias'"),
        (lambda: permutation_test(x[0], x[1], alternative="two"), "alternative: unknown"),
        (lambda: permutation_test(x[0], x[1], resamples=0), "resamples"),
    ):
        with pytest.raises(Refused, match=message):
            bad()


# --- probes --------------------------------------------------------------------------------------------------------------------


def test_ridge_and_logistic_are_sklearns():
    linear = pytest.importorskip("sklearn.linear_model")
    x, y, labels = torch.randn(60, 5).double(), torch.randn(60, 2).double(), torch.randint(3, (60,))
    for n in (60, 4):  # also fewer samples than features
        W, b = ridge(x[:n], y[:n], torch.full((2,), 2.0).double())
        theirs = linear.Ridge(alpha=2.0).fit(x[:n].numpy(), y[:n].numpy())
        numpy.testing.assert_allclose(W.T, theirs.coef_, rtol=1e-6, atol=1e-9)
        numpy.testing.assert_allclose(b, theirs.intercept_, rtol=1e-6, atol=1e-9)
    W, b = logistic(x, labels, 0.5)
    theirs = linear.LogisticRegression(C=2.0, tol=1e-10, max_iter=5000).fit(x.numpy(), labels.numpy())
    numpy.testing.assert_allclose(W.T, theirs.coef_, atol=1e-5)
    numpy.testing.assert_allclose((b - b.mean()), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-5)


@pytest.mark.parametrize("kind", ["ridge", "logistic"])
def test_a_probe_reads_what_is_there_and_its_control_nothing(kind):
    x = torch.randn(400, 10, generator=generator()) * 100 + 7
    x[:, 9] = 3.0  # a dead unit
    labels = x[:, :3].argmax(1)
    found = probe(x, labels, kind, generator=generator())
    assert found.score > 0.85 and found.control < 0.5 and found.selectivity == found.score - found.control
    assert (found(x).argmax(-1) == labels).double().mean() > 0.85
    assert probe(torch.randn(400, 10, generator=generator(5)), labels, kind, generator=generator()).selectivity < 0.15
    again = probe(x, labels, kind, generator=generator())
    assert torch.equal(again.weights, found.weights) and again.control == found.control


def test_a_probe_of_numbers_and_of_groups():
    x = torch.randn(300, 6, generator=generator())
    y = x @ torch.randn(6, 2) + 1
    found = probe(x, y, penalty=1e-6, generator=generator())
    assert found.score > 0.999 and found.control < 0.2
    torch.testing.assert_close(found(x), y.double(), rtol=1e-4, atol=1e-4)
    # rows are near copies within a group, labels are drawn by group: without groups the probe "knows" held-out rows
    groups = torch.arange(20).repeat_interleave(15)
    codes, labels = torch.randn(20, 30, generator=generator(2)), torch.randint(2, (20,), generator=generator(3))
    x = codes[groups] + 0.01 * torch.randn(300, 30, generator=generator(4))
    leaky, honest = (probe(x, labels[groups], groups=g, generator=generator()).score for g in (None, groups))
    assert leaky == 1 and honest < 0.9
    for bad, message in (
        (lambda: probe(x, y, "logistic"), "needs integer labels"),
        (lambda: probe(x, groups, held_out=0.0), "leaves one empty"),
        (lambda: probe(x, groups, penalty=0.0), "penalty"),
        (lambda: probe(x, groups, kind="lasso"), "kind: unknown"),
    ):
        with pytest.raises(Refused, match=message):
            bad()


# --- attribution ---------------------------------------------------------------------------------------------------------------


def filled(model):
    """Weights from a formula, so that the frozen numbers hold anywhere."""
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.copy_((torch.arange(p.numel(), dtype=torch.float64) * (1.3 + k)).sin().reshape(p.shape) * 0.5)
    return model.double()


def test_attributions_are_captums():
    """Numbers of captum 0.9.0 on the same nets and inputs."""
    mlp = filled(nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3), nn.Softmax(-1)))
    cnn = filled(nn.Sequential(nn.Conv2d(1, 2, 2), nn.SiLU(), nn.Flatten(), nn.Linear(8, 3)))
    x = (torch.arange(8, dtype=torch.float64) * 0.7).cos().reshape(2, 4)
    image = (torch.arange(9, dtype=torch.float64) * 0.9).sin().reshape(1, 1, 3, 3)
    target = torch.tensor([2, 0])
    expected = [[1.8836099109e-02, 2.2988907503e-02, 9.8112370220e-05, 3.4200711855e-02]]
    expected += [[1.6815695241e-02, 3.8518109386e-02, 2.4162944120e-03, -1.9502468181e-03]]
    for chunk in (None, 7):
        found = integrated_gradients(mlp, x, torch.full_like(x, 0.25), target, chunk=chunk)
        numpy.testing.assert_allclose(found, expected, atol=1e-10)
    expected = [
        [0.0281359049, 0.0285595444, -0.0013867373, 0.0210548130],
        [0.0125118097, 0.0139645426, -0.0025989200, 0.0033102553],
    ]
    numpy.testing.assert_allclose(gradient_times_input(mlp, x, target), expected, atol=1e-10)
    expected = [
        [0.0, 0.2282980739, -0.1792267715],
        [0.0684414422, 0.0104309557, 0.0274538841],
        [-0.1212723492, -0.0034010303, 0.0112830869],
    ]
    numpy.testing.assert_allclose(integrated_gradients(cnn, image, target=1)[0, 0], expected, atol=1e-9)
    expected = [
        [0.0, 0.2280073367, -0.1777173931],
        [0.0672204089, 0.0097421570, 0.0311867208],
        [-0.1229490791, -0.0034184210, 0.0125336540],
    ]
    numpy.testing.assert_allclose(integrated_gradients(cnn, image, target=1, steps=20, rule="left")[0, 0], expected, atol=1e-9)


def test_attribution_leaves_no_gradients_and_refuses():
    net, x = MLP([4, 6, 3]), torch.randn(2, 4)
    integrated_gradients(net, x, target=1, rule="midpoint")
    assert all(p.grad is None for p in net.parameters())
    for bad, message in (
        (lambda: gradient_times_input(net, x), r"f: must give \(2,\), or \(2, c\) with a target, got \(2, 3\)"),
        (lambda: gradient_times_input(lambda x: x.sum(1), x, target=0), "nothing to choose"),
        (lambda: integrated_gradients(net, x, target=0, steps=0), "steps"),
        (lambda: integrated_gradients(net, x, target=0, rule="right"), "rule: unknown"),
    ):
        with pytest.raises(Refused, match=message):
            bad()


# --- any instrument on any net -------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    """A wave net over batch-first sequences."""

    def __init__(self):
        super().__init__()
        self.reader = Reader(WaveCell(3, units=4, rings=2, phi="tanh", init="random", source="noise"), 8, 5, last=True)

    def forward(self, x):
        return self.reader(x.transpose(0, 1))


class LastLogits(nn.Module):
    """The logits of a transformer at the last position."""

    def __init__(self):
        super().__init__()
        self.gpt = GPT(5, d=8, heads=2, layers=2, context=6, hidden=16)

    def forward(self, tokens):
        return self.gpt(tokens)[:, -1]


def mlp():
    return MLP([6, 8, 8, 5], "tanh")


def cnn():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5))


def digit_net():
    return CNN(width=2, side=8, classes=5)


def vit():
    return ViT(patch=3, d=8, heads=2, layers=2, side=6, classes=5, hidden=16)


# how to make the net, a batch of n, the site to look at (one that runs once), another that may run often
NETS = {
    "MLP": (mlp, lambda n: torch.randn(n, 6), "1", "2"),
    "CNN": (cnn, lambda n: torch.randn(n, 1, 6, 6), "2", "3"),
    "CNN of digits": (digit_net, lambda n: torch.randn(n, 8, 8), "2", "5"),
    "ViT": (vit, lambda n: torch.randn(n, 6, 6), "layers.0", "layers.1.attention.pattern"),
    "transformer": (LastLogits, lambda n: torch.randint(5, (n, 6)), "gpt.layers.0", "gpt.layers.1.attention.pattern"),
    "recurrent": (Recurrent, lambda n: torch.randn(n, 7, 3), "reader.read:in", "reader.cell[1]"),
}


@pytest.mark.parametrize("kind", NETS)
def test_every_instrument_on_every_net(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path))
    make, inputs, site, often = NETS[kind]

    def train(model, keep):
        optimizer = torch.optim.SGD(model.parameters(), 0.01)
        keep(0)
        loss = nn.functional.cross_entropy(model(inputs(16)), torch.arange(16) % 5)
        loss.backward()
        optimizer.step()
        return loss.item()

    net = trained("any", make, train, seed=0).model
    again = trained("any", make, train, seed=0)
    x = inputs(24)
    plain = net(x)
    assert again.note == "loaded" and torch.equal(again.model(x), plain) and not torch.equal(again.at(0)(x), plain)

    # record, with statistics in pieces; override; everything as before afterwards
    with torch.no_grad(), record(net, site) as whole, record(net, often) as frequent:
        net(x)
    [h], rows = whole[site], whole[site][0].flatten(1)
    parts = []
    with torch.no_grad(), record(net, site, keep=lambda h: h.flatten(1)) as seen:
        for piece in x.split(7):
            net(piece)
    parts = seen[site]
    torch.testing.assert_close(sum(map(Moments.of, parts)).mean, rows.double().mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(sum(map(Gram.of, parts)).covariance, rows.double().T.cov(), rtol=1e-3, atol=1e-6)
    rho = sum(Pearson.of(part, part) for part in parts).correlation
    assert torch.allclose(rho.diagonal(), (rows.std(0) > 0).double(), atol=1e-6)
    edges = uniform_edges(float(rows.min()) - 1, float(rows.max()) + 1, 9)
    assert torch.equal(sum(Histogram.of(part, edges) for part in parts).counts, Histogram.of(rows, edges).counts)
    for name, values in ((site, whole[site]), (often, frequent[often])):
        states = iter(values)
        with override(net, {name: lambda _, states=states: next(states)}):
            torch.testing.assert_close(net(x), plain, rtol=1e-4, atol=1e-5)
    unit = torch.zeros(h.shape[1:], dtype=torch.bool)
    unit.view(-1)[-1] = True
    with override(net, {site: replace(3.0, unit)}), record(net, site) as changed:
        assert not torch.allclose(net(x), plain)
    [c] = changed[site]
    assert (c[:, unit] == 3).all() and torch.equal(c[:, ~unit], h[:, ~unit])
    with override(net, {often: scale(0.5)}):
        assert not torch.allclose(net(x), plain)
    assert torch.equal(net(x), plain)

    # the rest of the net from the site on: Jacobian, norms, attributions
    z, f = downstream(net, site, x)
    J = jacobian(f, z).flatten(2)
    torch.testing.assert_close(spectral_norm(f, z, steps=300, tolerance=1e-7), torch.linalg.svdvals(J)[:, 0], rtol=5e-3, atol=1e-6)
    back = lambda z: z + torch.tensordot(f(z), torch.ones(5, *z.shape[1:]), 1)  # noqa: E731
    torch.testing.assert_close(spectral_radius(back, z, krylov=J.shape[2]), spectral_radius(back, z), rtol=1e-2, atol=1e-3)
    target = plain.argmax(1)
    total = integrated_gradients(f, z, target=target, steps=100, chunk=30).flatten(1).sum(1)
    gap = (f(z) - f(torch.zeros_like(z))).gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(total, gap, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        gradient_times_input(f, z, target).flatten(1), J[range(24), target] * z.flatten(1), rtol=1e-3, atol=1e-5
    )

    # what can be read there, and how sure that is
    for how in ("ridge", "logistic"):
        assert 0 <= probe(rows, target, how, generator=generator()).score <= 1
    confidence, other = plain.softmax(-1).amax(1).detach(), torch.rand(24)
    assert 0 <= auroc(confidence, other) <= 1 and 0 <= fpr_at(confidence, other) <= 1
    interval = bootstrap(confidence, resamples=199)
    assert interval.low <= interval.value <= interval.high
    assert 0 < permutation_test(confidence, other, resamples=199) <= 1 and math.isfinite(float(interval.high))
