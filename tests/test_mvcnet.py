import math

import pytest
import torch

from neuropil.brain import covariances as cov
from neuropil.brain import eeg_views
from neuropil.brain.eeg_nets import EEGNet, IFNet
from neuropil.brain.mvcnet import ChannelTransformer, MVCNet
from neuropil.data.loaders import trials
from neuropil.data.motor_imagery import ELECTRODES, FEW, FINGERS, filtered, finger_movements, imagery, lead_field, on_sphere
from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.contrastive import info_nce, nt_xent

WIDE = torch.float64


def randn(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=WIDE)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_nt_xent_is_the_slow_loop(n):
    a, b, tau = randn(n, 4), randn(n, 4, seed=1), 0.2
    rows = torch.cat([a, b])
    total = 0.0
    for i in range(2 * n):
        s = [float(torch.nn.functional.cosine_similarity(rows[i], row, dim=0)) / tau for row in rows]
        total -= s[(i + n) % (2 * n)] - math.log(sum(math.exp(v) for k, v in enumerate(s) if k != i))
    assert float(nt_xent(a, b, tau)) == pytest.approx(total / (2 * n))


def test_nt_xent_is_least_when_views_coincide():
    a = torch.linalg.qr(randn(4, 4)).Q
    least = float(nt_xent(a, a))
    assert all(float(nt_xent(a, torch.nn.functional.normalize(a + 0.3 * randn(4, 4, seed=s), dim=1))) > least for s in range(5))


def test_info_nce_by_hand():
    a, b = randn(3, 5), randn(3, 5, seed=1)
    s = torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1) / 0.5
    assert torch.allclose(info_nce(a, b, 0.5), -(s.diag() - s.logsumexp(1)).mean())


def test_alignment_whitens_each_recording():
    x = randn(30, 5, 200) * torch.arange(1.0, 6.0, dtype=WIDE)[:, None]
    aligned = cov.euclidean_align(x)
    assert torch.allclose(cov.covariances(aligned).mean(0), torch.eye(5, dtype=WIDE), atol=1e-10)
    R = cov.covariances(x[:20]).mean(0)
    assert torch.allclose(cov.euclidean_align(x[20:], R), cov.spectral(R, "inverse sqrt") @ x[20:])


def test_csp_is_mnes_up_to_scale():
    mne = pytest.importorskip("mne")
    x, y = randn(60, 6, 300), torch.arange(60) % 2
    x[y == 0, 1] *= 3
    x[y == 1, 4] *= 2
    x = randn(6, 6, seed=3) @ x
    x = x - x.mean(-1, keepdim=True)
    x = x / cov.covariances(x).diagonal(dim1=-2, dim2=-1).sum(-1).sqrt()[:, None, None]
    W = torch.nn.functional.normalize(cov.csp(x, y, 6), dim=1)
    theirs = mne.decoding.CSP(n_components=6, norm_trace=False, cov_est="epoch").fit(x.numpy(), y.numpy())
    theirs = torch.nn.functional.normalize(torch.from_numpy(theirs.filters_), dim=1)
    assert torch.allclose((W @ theirs.T).abs().max(1).values, torch.ones(6, dtype=WIDE), atol=1e-6)


def test_the_tangent_space_keeps_distances_from_its_base():
    A = randn(6, 4, 9)
    C = A @ A.mT
    base = C[0]
    found = cov.tangent_space(C, base).norm(dim=1)
    logs = [torch.linalg.eigvals(torch.linalg.solve(base, c)).real.log().norm() for c in C]
    assert torch.allclose(found, torch.stack(logs), atol=1e-8)
    off = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=WIDE)  # its logarithm is ½ log 3 everywhere
    assert float(cov.tangent_space(off[None], torch.eye(2, dtype=WIDE))[0, 1]) == pytest.approx(
        math.log(3) / math.sqrt(2), rel=1e-12
    )


def test_views():
    x = randn(3, 4, 101)
    assert torch.allclose(eeg_views.frequency_shift(x, 100.0, shift=torch.zeros(3)), x, atol=1e-12)
    from scipy.signal import hilbert

    assert torch.allclose(eeg_views.analytic(x), torch.from_numpy(hilbert(x.numpy())), atol=1e-12)
    moved = eeg_views.frequency_shift(x, 100.0, most=2.0, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(moved, x, atol=0.1)
    turned = eeg_views.surrogate(x, 1.0, torch.Generator().manual_seed(0))
    spectra = torch.fft.rfft(x), torch.fft.rfft(turned)
    assert torch.allclose(spectra[0].abs(), spectra[1].abs(), atol=1e-9)
    # what one channel says of another stays: cross spectra are the same
    cross = [s[:, 1:] * s[:, :1].conj() for s in spectra]
    assert torch.allclose(cross[0], cross[1], atol=1e-9)


def test_reflection_is_an_involution_and_midline_channels_stay():
    names = tuple(ELECTRODES)
    mirror = eeg_views.reflection(names)
    x, y = randn(4, 22, 5), torch.tensor([0, 1, 1, 2])
    once = eeg_views.reflect(x, y, mirror)
    assert once[1].tolist() == [1, 0, 0, 2]
    twice = eeg_views.reflect(*once, mirror)
    assert torch.equal(twice[0], x)
    assert torch.equal(twice[1], y)
    for i, name in enumerate(names):
        assert (mirror[i] == i) == name.endswith("z")
    assert eeg_views.reflection(["C3", "C5"]).tolist() == [0, 1]  # no partner here
    assert torch.equal(eeg_views.reflect(x, y, mirror, swap=None)[1], y)


def test_the_transformer_is_not_needed_to_classify():
    torch.manual_seed(0)
    net = MVCNet(4, 80, rate=40.0, names=["C3", "C4", "Cz", "Pz"]).eval()
    x = torch.randn(5, 4, 80)
    before = net(x)
    net.transformer = None
    assert torch.equal(net(x), before)
    assert {k.split(".")[0] for k in net.state_dict()} == {"cnn", "head", "mirror"}
    fused = MVCNet(4, 80, rate=40.0, fused=True).eval()
    assert not torch.equal(fused(x), fused(x.flip(0)).flip(0) + 1)
    assert fused.head.in_features == 2 * fused.cnn.features


def test_the_loss_is_the_sum_of_its_parts():
    torch.manual_seed(0)
    net = MVCNet(4, 80, rate=40.0, names=["C3", "C4", "Cz", "Pz"]).eval()
    x, y = torch.randn(6, 4, 80), torch.tensor([0, 1, 0, 1, 1, 0])
    views = net.views(x, y, torch.Generator().manual_seed(1))
    assert len(views) == 4
    f, z = [net.cnn(v) for v, _ in views], [net.transformer(v) for v, _ in views]
    parts = [sum(torch.nn.functional.cross_entropy(net.head(a), label) for a, (_, label) in zip(f, views, strict=True))]
    pairs = [torch.cat(pair) for pair in zip(f, z, strict=True)]
    parts.append(sum(nt_xent(pairs[0], other) for other in pairs[1:]) / 3)
    parts.append(nt_xent(torch.cat(f), torch.cat(z)))
    expected = parts[0] + 0.1 * parts[1] + 0.1 * parts[2]
    assert torch.allclose(net.loss(x, y, torch.Generator().manual_seed(1)), expected, atol=1e-5)


@pytest.mark.parametrize("samples", [80, 93])
def test_nets_take_batches_of_any_size(samples):
    for net in (IFNet(4, samples, planes=6, kernel=9, bands=2, pool=20), EEGNet(4, samples, rate=40.0)):
        for n in (1, 3):
            assert net.eval()(torch.randn(n, 4, samples)).shape == (n, net.features)
    assert ChannelTransformer(4, samples, 5)(torch.randn(3, 4, samples)).abs().max() <= 1


def test_ifnet_is_the_authors():
    """wzwvv/MVCNet, models.IFNet.Stem, evaluated with the same weights: a pointwise and a depthwise convolution, and so on."""
    torch.manual_seed(0)
    net = IFNet(5, 101, planes=4, kernel=7, bands=2, pool=25).double().eval()
    x = randn(2, 5, 101)
    bands = net.space[1](torch.einsum("oc,nct->not", net.space[0].weight[..., 0], x)).split(4, 1)
    total = 0
    for band, k, time in zip(bands, (7, 3), net.time, strict=True):
        windows = torch.nn.functional.pad(band, (k // 2, k // 2)).unfold(-1, k, 1)
        total = total + time[1]((windows * time[0].weight).sum(-1))
    expected = torch.nn.functional.gelu(total)[..., :100].unflatten(-1, (4, 25)).mean(-1).flatten(1)
    assert torch.allclose(net(x), expected, atol=1e-12)


def test_the_loss_is_the_authors():
    """Numbers from wzwvv/MVCNet (IFNet, encoder, projector, NTXentLoss, freq_shift, cr_transform), same weights and trials."""
    net = MVCNet(4, 64, 250.0, names=["C3", "Cz", "C4", "Pz"], cnn=IFNet(4, 64, planes=6, kernel=7, pool=16)).double().eval()
    with torch.no_grad():
        for i, p in enumerate([*net.cnn.parameters(), *net.transformer.parameters(), *net.head.parameters()]):
            p.copy_((torch.sin(torch.arange(p.numel(), dtype=WIDE) * 1.7 + i) / p.shape[-1] ** 0.5).view_as(p))
    x = torch.cos(torch.arange(768, dtype=WIDE) * 0.9).view(3, 4, 64) * torch.arange(1.0, 4.0, dtype=WIDE)[:, None, None]
    y = torch.tensor([0, 1, 1])
    assert net.cnn(x)[0, :3].tolist() == pytest.approx([-0.1340203048834512, -0.1311997285134875, -0.1317696969590058])
    assert net.transformer(x)[0, :3].tolist() == pytest.approx([-0.02870868554642242, 0.09588443212561515, 0.38807357928409386])
    shifted = net.views(x, y)[2][0]
    assert shifted[0, 0, :3].tolist() == pytest.approx([1.0, 0.6192305035841748, -0.23268924597975066])
    assert float(net.loss(x, y).detach()) == pytest.approx(3.7045571003511486)
    net.weights = (0.1, 0.0)
    assert float(net.loss(x, y).detach()) == pytest.approx(2.8108343513639884 + 0.16180598167546913)


def test_the_view_of_time_may_keep_the_sign():
    x, y = torch.randn(5, 4, 80), torch.zeros(5, dtype=torch.long)
    flipped, kept = (
        MVCNet(4, 80, 40.0, time=time).views(x, y, torch.Generator().manual_seed(0))[1][0] for time in ("flip", "noise")
    )
    assert torch.equal(flipped, -x)
    assert torch.nn.functional.cosine_similarity(kept.flatten(1), x.flatten(1)).min() > 0.9
    assert not torch.equal(kept, x)


def test_finger_movements_are_put_together_again():
    """The archive's rows overlap: each starts 28 samples after the one before, where 50 would be right."""
    file, found = trials("FingerMovements", "test"), finger_movements("test")
    assert torch.equal(file.signals[:, 1:, :22], file.signals[:, :-1, 28:])
    assert found.trials.signals.shape == (100, 16, 50)
    assert found.names == FINGERS
    assert torch.equal(found.trials.signals[:, 0], file.signals[:, 0])
    assert torch.equal(found.trials.signals[:, 14, :], file.signals[:, 25])  # 28 · 25 = 50 · 14
    x = found.trials.signals - found.trials.signals.mean((0, 2), keepdim=True)
    alike = torch.corrcoef(x.transpose(0, 1).flatten(1))
    near = alike[FINGERS.index("C3")]
    assert near[FINGERS.index("C1")] > 0.95 > near[FINGERS.index("F4")]
    assert near[FINGERS.index("C5")] > near[FINGERS.index("FC5")]


def test_filters_are_their_gains():
    x = randn(3, 80)
    assert torch.allclose(filtered(x, 40.0, torch.ones_like), x, atol=1e-12)
    low, high = filtered(x, 40.0, lambda hz: hz < 7), filtered(x, 40.0, lambda hz: hz >= 7)
    assert torch.allclose(low + high, x, atol=1e-12)
    assert float((low * high).sum()) == pytest.approx(0, abs=1e-9)
    assert filtered(torch.zeros(3, 80, device="meta"), 40.0, lambda hz: hz < 7).device.type == "meta"


def test_training_learns_the_hand():
    torch.manual_seed(0)
    options = {"subjects": 1, "trials": 160, "seconds": 2.0, "rate": 64.0, "names": FEW, "noise": 0.3, "depth": (0.8, 0.9)}
    data = imagery(torch.Generator().manual_seed(0), **options)
    x, y = cov.euclidean_align(data.trials.signals) * 11, data.trials.labels
    net = MVCNet(8, 128, rate=64.0, names=FEW, cnn=IFNet(8, 128, planes=16, kernel=17, pool=32), weights=(0.0, 0.0))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    for _ in range(30):
        loss = net.loss(x[:80], y[:80])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float((net.eval()(x[80:]).argmax(1) == y[80:]).float().mean()) > 0.75


def test_the_lead_field_is_its_series():
    """A radial dipole: V = 1/(4πσR²) Σ (2n + 1) (r₀/R)^{n−1} P_n(cos θ); and no net potential over the sphere."""
    from numpy.polynomial.legendre import leggauss, legval

    f, (nodes, weights) = 0.6, leggauss(60)
    cos = torch.from_numpy(nodes)
    electrodes = torch.stack([(1 - cos**2).sqrt(), torch.zeros_like(cos), cos], 1)
    found = lead_field(electrodes, torch.tensor([[0.0, 0.0, f]], dtype=WIDE))[:, 0, 2]
    series = torch.from_numpy(legval(nodes, [0] + [(2 * n + 1) * f ** (n - 1) for n in range(1, 80)])) / (4 * math.pi)
    assert torch.allclose(found, series, atol=1e-10)
    assert float((found * torch.from_numpy(weights)).sum()) == pytest.approx(0, abs=1e-10)


def test_rhythms_fade_opposite_to_the_hand():
    data = imagery(torch.Generator().manual_seed(0), subjects=3, trials=40, seconds=4.0, rate=100.0, noise=0.2)
    x, names = data.trials.signals, list(data.names)
    power = torch.fft.rfft(x[..., 150:]).abs().square()
    band = (torch.fft.rfftfreq(250, 0.01) > 7) & (torch.fft.rfftfreq(250, 0.01) < 14)
    mu = power[..., band].mean(-1)
    balance = (mu[:, names.index("C3")] / mu[:, names.index("C4")]).log()
    left, right = (balance[data.trials.labels == k].mean() for k in (0, 1))
    assert left > right + 0.3  # left hand imagined: C4 fades
    assert int((data.trials.labels == 0).sum()) == 60
    assert torch.allclose(on_sphere(-46, 0), on_sphere(46, 0) * torch.tensor([-1.0, 1, 1]))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: nt_xent(torch.zeros(2, 3), torch.zeros(3, 3)), "a, b"),
        (lambda: nt_xent(torch.zeros(2, 3), torch.zeros(2, 3), tau=0.0), "tau"),
        (lambda: cov.euclidean_align(torch.zeros(0, 2, 3)), "at least one trial"),
        (lambda: cov.csp(torch.randn(4, 3, 9), torch.zeros(4, dtype=torch.long), 2), "both classes"),
        (lambda: cov.csp(torch.randn(4, 3, 9), torch.arange(4) % 2, filters=4), "filters"),
        (lambda: cov.csp(torch.zeros(4, 3, 9), torch.arange(4) % 2, 2), "^covariance of x, of unit trace: must be finite"),
        (lambda: cov.csp_features(torch.zeros(4, 3, 1), torch.eye(3)), "^x: a variance needs at least 2 samples"),
        (lambda: cov.csp_features(torch.zeros(4, 3, 9), torch.eye(3).double()), "^W: must be torch.float32"),
        (lambda: cov.euclidean_align(torch.full((4, 3, 9), math.nan)), "^covariance of x: must be finite"),
        (lambda: cov.euclidean_align(torch.zeros(4, 3, 9).half()), "^x: float64 or float32"),
        (lambda: cov.spectral(torch.full((3, 3), math.inf), "log"), "^C: must be finite"),
        (lambda: cov.tangent_space(torch.eye(3)[None], torch.eye(3).double()), "^C: must be torch.float64"),
        (lambda: eeg_views.analytic(torch.zeros(2, 0)), "^x: must not be empty"),
        (lambda: eeg_views.surrogate(torch.zeros(1, 2, 8).half()), "^x: float32 or float64"),
        (lambda: eeg_views.scale_and_noise(torch.zeros(1, 2, 1)), "^x: a standard deviation"),
        (lambda: eeg_views.scale_and_noise(torch.zeros(1, 2, 8), math.nan), "^scale, noise: must be finite, got nan"),
        (lambda: eeg_views.reflect(torch.zeros(1, 1, 2), torch.zeros(1).long(), torch.tensor([1])), "^mirror: must lie in 0 … 0"),
        (lambda: IFNet(3, 20, pool=10)(torch.zeros(2, 4, 20)), r"^x: must be \(b, 3, \*grid\)"),
        (lambda: IFNet(3, 20, pool=10)(torch.zeros(2, 3, 9)), "^x: at least 10 samples"),
        (lambda: EEGNet(3, 64, rate=math.inf), "rate: must be positive and finite"),
        (lambda: EEGNet(3, 64, rate=64.0)(torch.zeros(2, 4, 64)), r"^x: must be \(n, 3 channels, samples\)"),
        (lambda: EEGNet(3, 64, rate=64.0)(torch.zeros(2, 3, 64).half()), "^x: must be torch.float32"),
        (lambda: EEGNet(3, 64, rate=64.0)(torch.zeros(2, 3, 31)), "^x: at least 32 samples"),
        (lambda: ChannelTransformer(3, 1, 4), "^samples: must be at least 2, got 1"),
        (lambda: ChannelTransformer(3, 10, 4)(torch.zeros(2, 3, 9)), r"^x: must be \(n, 3 channels, at least 10 samples\)"),
        (lambda: MVCNet(3, 100, math.nan), "^rate: must be above 0 Hz and finite"),
        (lambda: eeg_views.reflection(["C3", "c3"]), "channels"),
        (lambda: eeg_views.reflect(torch.zeros(1, 3, 2), torch.zeros(1).long(), torch.tensor([1, 2, 0])), "mirror"),
        (lambda: eeg_views.frequency_shift(torch.zeros(1, 1, 4), rate=0.0), "rate"),
        (lambda: IFNet(3, 20, pool=30), "pool"),
        (lambda: EEGNet(3, 20, rate=100.0), "samples"),
        (lambda: MVCNet(3, 100, 50.0, names=["C3"]), "names"),
        (lambda: MVCNet(3, 100, 50.0, weights=(-1.0, 0.0)), "weights"),
        (lambda: MVCNet(3, 100, 50.0, time="mirror"), "time"),
        (lambda: imagery(torch.Generator(), names=("C3", "X9")), "unknown electrodes"),
        (lambda: imagery(torch.Generator(), rate=20.0), "rate"),
        (lambda: lead_field(torch.eye(3), torch.zeros(1, 3)), "places"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(Refused, match=words):
        make()


@pytest.mark.parametrize("claim", select("mvcnet"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert 0 <= row["method"] <= 100


@pytest.mark.parametrize("f", ["sqrt", "inverse sqrt", "log"])
def test_a_silent_recording_has_a_finite_spectrum(f):
    assert cov.spectral(torch.zeros(2, 2), f).isfinite().all()
