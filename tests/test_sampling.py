"""Samplers, the losses of their histograms, and learned poses."""

import numpy
import pytest
import torch
from torch.nn.functional import normalize

from neuropil.data.cameras import Rays
from neuropil.errors import Refused
from neuropil.fields.encodings import SphericalHarmonics
from neuropil.fields.losses import distortion, interlevel, orientation, predicted_normals
from neuropil.fields.poses import PoseCorrection, align, so3_exp
from neuropil.fields.rendering import weights
from neuropil.fields.sampling import SPACINGS, clip_to_box, propose, resample, spaced

G = torch.Generator().manual_seed(0)
NEAR, FAR = torch.tensor([0.05, 0.2, 0.5]), torch.tensor([3.0, 20.0, 100.0])
# nerfstudio's own borders for 5 intervals between these (its SpacedSampler classes in eval mode)
THEIRS = {
    "uniform": "0.05 0.64 1.23 1.82 2.41 3 0.2 4.16 8.12 12.08 16.04 20 0.5 20.4 40.3 60.2 80.1 100",
    "disparity": "0.05 0.0622407 0.0824176 0.1219512 0.234375 3 0.2 0.2493766 0.3311258 0.4926108"
    " 0.9615385 20 0.5 0.6242197 0.8305648 1.2406949 2.4509807 100",
    "sqrt": "0.05 0.2759355 0.6839032 1.2739031 2.0459354 3 0.2 1.568 4.232 8.1920004"
    " 13.4480019 20 0.5 6.5827422 19.5741119 39.4741135 66.2827377 100",
    "log": "0.05 0.1133967 0.257176 0.5832581 1.3227904 3 0.2 0.5023773 1.2619147 3.1697869"
    " 7.9621453 20 0.5 1.4426999 4.162766 12.0112467 34.6572418 100",
    "piecewise": "0.05 0.3733333 0.6966667 1.0204082 1.5228428 3 0.2 0.55 0.9 1.3333335"
    " 2.5000002 20 0.5 0.798 1.1061946 1.6501652 3.2467537 100",
}
HISTOGRAM = [0.6365797, 0.2361794, 0.0593396, 0.0127362, 0.0054065, 0.3486758, 0.4083147, 0.1868831, 0.0527157, 0.0034107]
HISTOGRAM = torch.tensor([*HISTOGRAM, 4.9e-06, 0.2155735, 0.5734661, 0.2100054, 0.00095]).reshape(3, 5)
FINAL = torch.tensor(
    [
        [0.2652143, 0.08101, 0.0018767, 0.117802],
        [0.4090934, 0.301158, 0.1333083, 0.0751502],
        [0.0408518, 0.0493949, 0.3233022, 0.5503247],
    ]
)


def rays(*shape: int) -> Rays:
    o, d = torch.randn(*shape, 3, generator=G), normalize(torch.randn(*shape, 3, generator=G), dim=-1)
    return Rays(o, d, torch.full(shape, 0.5), torch.full(shape, 6.0), torch.zeros(shape, dtype=torch.long))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_every_scale_equals_nerfstudio(spacing):
    borders = spaced(NEAR, FAR, 5, spacing).borders
    torch.testing.assert_close(borders.flatten(), torch.tensor([float(t) for t in THEIRS[spacing].split()]), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("jitter", ["none", "ray", "sample"])
def test_borders_rise_within_the_ray_for_any_batch_axes(spacing, jitter):
    for shape in ((), (3,), (2, 3)):
        samples = spaced(
            NEAR.expand(*shape[:-1], 3) if shape else NEAR[0], FAR.expand(*shape[:-1], 3) if shape else FAR[0], 9, spacing, jitter
        )
        assert samples.borders.shape == (*shape, 10)
        assert (samples.delta > 0).all()
        assert (samples.borders >= samples.near[..., None] - 1e-5).all()
        assert (samples.borders <= samples.far[..., None] * (1 + 1e-4)).all()


def test_piecewise_is_half_uniform_to_one_and_half_in_disparity():
    samples = spaced(torch.tensor(0.0), torch.tensor(1e6), 64, "piecewise")
    torch.testing.assert_close(samples.borders[:33], torch.linspace(0, 1, 33))
    torch.testing.assert_close((1 / samples.borders[32:64]).diff(), torch.full((31,), -1 / 32), atol=1e-5, rtol=1e-3)


def test_jitter_moves_borders_by_half_an_interval_and_is_uniform():
    torch.manual_seed(0)
    near, far = torch.zeros(20_000), torch.ones(20_000)
    for jitter in ("ray", "sample"):
        u = spaced(near, far, 4, jitter=jitter).u
        offset = (u[:, 1:4] - torch.tensor([0.25, 0.5, 0.75])) * 4
        assert offset.abs().max() <= 0.5
        torch.testing.assert_close(offset.var(0), torch.full((3,), 1 / 12), rtol=0.05, atol=0)
        together = torch.corrcoef(offset.T)[0, 1]
        assert (together > 0.999) if jitter == "ray" else (together.abs() < 0.03)


def test_pdf_equals_nerfstudio():
    before = spaced(NEAR, FAR, 5, "piecewise")
    theirs = [0.1000188, 0.2000564, 0.300094, 0.4437179, 0.7314449, 0.3024602, 0.5073807, 0.6891619, 0.864867, 1.2479275]
    theirs += [0.9234958, 1.1581633, 1.3224355, 1.5410103, 2.296782]
    new = resample(before, HISTOGRAM, 4)
    torch.testing.assert_close(new.borders.flatten(), torch.tensor(theirs), rtol=1e-4, atol=1e-5)
    kept = resample(before, HISTOGRAM, 4, keep=True).borders
    torch.testing.assert_close(kept, torch.cat([before.borders, new.borders], -1).sort(-1).values, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("jitter", ["none", "ray", "sample"])
def test_a_one_hot_histogram_keeps_its_samples_in_its_bin(jitter):
    before = spaced(torch.zeros(2, 3), torch.full((2, 3), 8.0), 8)
    for bin_ in (0, 3, 7):
        hot = torch.zeros(2, 3, 8)
        hot[..., bin_] = 0.7
        new = resample(before, hot, 50, padding=0.0, jitter=jitter).borders
        assert new.min() >= bin_ - 1e-5 and new.max() <= bin_ + 1 + 1e-5


def test_samples_follow_the_histogram():
    torch.manual_seed(0)
    before = spaced(torch.zeros(50), torch.ones(50), 10)
    histogram = torch.rand(10, generator=G) + 0.1
    u = resample(before, histogram.expand(50, -1), 999, padding=0.0, jitter="sample").u
    share = torch.histc(u, 10, 0, 1) / u.numel()
    torch.testing.assert_close(share, histogram / histogram.sum(), atol=2e-3, rtol=0)
    padded = resample(before, torch.zeros(50, 10), 9, padding=0.01).u[0]
    torch.testing.assert_close(padded, (torch.arange(10) + 0.5) / 10)  # nothing seen: all alike
    assert resample(before, torch.zeros(50, 10), 9, padding=0.0).u.isfinite().all()


def test_no_gradient_flows_into_drawn_borders():
    w = torch.rand(3, 5, generator=G, requires_grad=True)
    assert not resample(spaced(NEAR, FAR, 5), w, 4).borders.requires_grad


def test_proposals_find_the_wall():
    """A wall at distance 3 gets nearly all of the last samples after two rounds; with anneal = 0 none is preferred."""
    bundle = rays(2, 4)

    def wall(points):
        return 50.0 * (((points - bundle.origins[..., None, :]).norm(dim=-1) - 3).abs() < 0.15)

    samples, rounds = propose(bundle, [wall, wall], [32, 16], 24, "uniform")
    assert [tuple(w.shape) for _, w in rounds] == [(2, 4, 32), (2, 4, 16)]
    assert ((samples.middle - 3).abs() < 0.25).float().mean() > 0.8
    flat, _ = propose(bundle, [wall, wall], [32, 16], 24, "uniform", anneal=0.0)
    assert ((flat.middle - 3).abs() < 0.25).float().mean() < 0.2
    plain, none = propose(bundle, [], [], 24, "uniform")
    assert torch.equal(plain.u, spaced(bundle.near, bundle.far, 24).u) and none == []


def test_rays_are_cut_to_the_box():
    bundle = rays(200)
    cut = clip_to_box(bundle, half=0.8)
    hit = cut.near < cut.far
    assert 0 < int(hit.sum()) < 200
    t = cut.near + (cut.far - cut.near) * torch.rand(200, generator=G)
    assert (bundle.origins + t[:, None] * bundle.directions)[hit].abs().max() <= 0.8 + 1e-5
    t = 0.5 + 5.5 * torch.rand(400, 200, generator=G)
    inside = ((bundle.origins + t[..., None] * bundle.directions).abs() < 0.8).all(-1)
    assert ((t >= cut.near - 1e-5) & (t <= cut.far + 1e-5))[inside].all()
    assert not inside[:, ~hit].any()


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: spaced(NEAR, FAR, 0), "count"),
        (lambda: spaced(NEAR, FAR, 4, "linear"), "spacing"),
        (lambda: spaced(NEAR, FAR, 4, jitter="all"), "jitter"),
        (lambda: spaced(0 * NEAR, FAR, 4, "log"), "near, far"),
        (lambda: spaced(NEAR, FAR * torch.inf, 4, "piecewise"), "near, far"),
        (lambda: resample(spaced(NEAR, FAR, 5), HISTOGRAM, 0), "count"),
        (lambda: propose(rays(2), [], [3], 4), "counts"),
        (lambda: propose(rays(2), [], [], 4, anneal=2.0), "anneal"),
        (lambda: clip_to_box(rays(2), 0.0), "half"),
        (lambda: PoseCorrection(0), "pictures"),
        (lambda: align(torch.zeros(2, 3), torch.zeros(2, 3)), "source, target"),
        (lambda: predicted_normals(FINAL, torch.zeros(3, 4, 3), torch.zeros(2, 4, 3)), "predicted"),
    ],
)
def test_bad_input_names_the_argument(call, name):
    with pytest.raises(Exception, match=name) as caught:
        call()
    assert isinstance(caught.value, Refused) or "predicted" in name


def quadratic_distortion(w, t):
    m = (t[..., 1:] + t[..., :-1]) / 2
    between = (w[..., :, None] * w[..., None, :] * (m[..., :, None] - m[..., None, :]).abs()).sum((-1, -2))
    return between + (w**2 * t.diff()).sum(-1) / 3


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 3, 6)])
def test_linear_distortion_equals_the_double_sum(shape):
    w = torch.rand(shape, generator=G, dtype=torch.float64, requires_grad=True)
    t = torch.rand((*shape[:-1], shape[-1] + 1), generator=G, dtype=torch.float64).sort(-1).values.requires_grad_()
    torch.testing.assert_close(distortion(w, t), quadratic_distortion(w, t))
    ours = torch.autograd.grad(distortion(w, t).sum(), (w, t))
    torch.testing.assert_close(ours, torch.autograd.grad(quadratic_distortion(w, t).sum(), (w, t)))


def test_distortion_of_a_single_bin_is_a_third_of_its_width():
    torch.testing.assert_close(distortion(torch.ones(1), torch.tensor([0.2, 0.5])), torch.tensor(0.1))
    hot = torch.tensor([0.0, 1.0, 0.0])
    torch.testing.assert_close(distortion(hot, torch.tensor([0.0, 0.2, 0.5, 1.0])), torch.tensor(0.1))


def test_losses_equal_nerfstudio():
    """Their loss functions on the borders and weights above."""
    before = spaced(NEAR, FAR, 5, "piecewise")
    after = resample(before, HISTOGRAM, 4)
    close = {"rtol": 2e-4, "atol": 1e-6}
    torch.testing.assert_close(distortion(FINAL, after.u), torch.tensor([0.026183, 0.105397, 0.0855687]), **close)
    excess = interlevel(FINAL, after.u, 0.3 * HISTOGRAM, before.u)
    torch.testing.assert_close(excess, torch.tensor([0.0279931, 0.2457244, 0.2513976]), **close)
    n = normalize(torch.sin(torch.arange(1.0, 37)).reshape(3, 4, 3), dim=-1)
    predicted = normalize(torch.cos(torch.arange(1.0, 37)).reshape(3, 4, 3), dim=-1)
    d = normalize(torch.tensor([[1.0, 2, 3], [-1, 0.5, 2], [0.3, -0.2, -0.9]]), dim=-1)
    torch.testing.assert_close(orientation(FINAL, n, d), torch.tensor([0.1171117, 0.1572696, 0.5659776]), **close)
    torch.testing.assert_close(predicted_normals(FINAL, n, predicted), torch.tensor([0.4796858, 0.894242, 0.9184238]), **close)


def test_interlevel_is_zero_where_the_proposal_bounds_and_trains_it_alone():
    fine, coarse = torch.linspace(0, 1, 9).expand(3, -1), torch.linspace(0, 1, 5).expand(3, -1)
    w = torch.rand(3, 8, generator=G) / 8
    bound = w.reshape(3, 4, 2).sum(-1)
    assert interlevel(w, fine, bound, coarse).abs().max() < 1e-8
    proposed = (0.2 * bound).requires_grad_()
    w.requires_grad_()
    loss = interlevel(w, fine, proposed, coarse).sum()
    (g,) = torch.autograd.grad(loss, proposed)
    assert (g < 0).all()  # a larger proposal would lower it
    with pytest.raises(RuntimeError, match=r"unused|not have been used"):
        torch.autograd.grad(interlevel(w, fine, proposed, coarse).sum(), w)


def test_rotations():
    omega = torch.randn(50, 3, generator=G, dtype=torch.float64)
    cross = torch.zeros(50, 3, 3, dtype=torch.float64)
    cross[:, 0, 1], cross[:, 0, 2], cross[:, 1, 2] = -omega[:, 2], omega[:, 1], -omega[:, 0]
    torch.testing.assert_close(so3_exp(omega), torch.linalg.matrix_exp(cross - cross.mT))
    zero = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(so3_exp, zero)  # smooth at the identity, where training starts
    theirs = [0.7140753, -0.6196565, -0.325764, 0.432165, 0.7562609, -0.4912258, 0.5507539, 0.2099885, 0.8078212]
    torch.testing.assert_close(so3_exp(torch.tensor([0.4, -0.5, 0.6])).flatten(), torch.tensor(theirs), rtol=1e-5, atol=1e-6)


def test_pose_correction_moves_rays_as_it_moves_cameras():
    pose = PoseCorrection(4)
    with torch.no_grad():
        pose.shift.normal_(0, 0.1), pose.rotation.normal_(0, 0.1)
    c2w = torch.cat([so3_exp(torch.randn(4, 3, generator=G)), torch.randn(4, 3, 1, generator=G)], -1)
    camera, local = torch.tensor([[0, 1], [3, 3]]), normalize(torch.randn(2, 2, 3, generator=G), dim=-1)
    ones = torch.ones(2, 2)

    def shot(matrices):
        return Rays(matrices[camera, :, 3], torch.einsum("...ij,...j->...i", matrices[camera][..., :3], local), ones, ones, camera)

    moved, expected = pose(shot(c2w)), shot(pose.corrected(c2w))
    torch.testing.assert_close(moved.origins, expected.origins)
    torch.testing.assert_close(moved.directions, expected.directions)
    assert pose.penalty() > 0 and PoseCorrection(4).penalty() == 0


def test_alignment_undoes_a_similarity():
    x = torch.randn(20, 3, generator=G)
    turn, shift = so3_exp(torch.tensor([0.3, -1.0, 2.0])), torch.tensor([1.0, -2.0, 0.5])
    s, r, t = align(x, 1.7 * x @ turn.T + shift)
    assert abs(s - 1.7) < 1e-4
    torch.testing.assert_close(r, turn, atol=1e-5, rtol=0)
    torch.testing.assert_close(t, shift, atol=1e-4, rtol=0)


def test_harmonics_of_unit_directions_are_orthonormal():
    """By quadrature on the sphere; the same directions moved to [0, 1]³, as for a fused kernel, would not be."""
    z = torch.from_numpy(numpy.stack(numpy.polynomial.legendre.leggauss(16)))
    azimuth = torch.arange(32, dtype=torch.float64) * torch.pi / 16
    r = (1 - z[0] ** 2).sqrt()[:, None]
    d = torch.stack([r * azimuth.cos(), r * azimuth.sin(), z[0][:, None].expand(-1, 32)], -1)
    area = z[1][:, None] * (torch.pi / 16)
    y = SphericalHarmonics(4)(d)
    torch.testing.assert_close(torch.einsum("ab,abi,abj->ij", area.expand(-1, 32), y, y), torch.eye(16, dtype=torch.float64))
    theirs = [0.2820948, 0.261169, 0.3917535, 0.1305845, 0.1560783, 0.468235, 0.2928635, 0.2341175, 0.1170588, 0.022528]
    theirs += [0.3310921, 0.5409527, 0.0641156, 0.2704763, 0.2483191, 0.1239038]  # nerfstudio's, whose odd orders have no sign
    one = SphericalHarmonics(4)(normalize(torch.tensor([1.0, 2.0, 3.0]), dim=-1))
    torch.testing.assert_close(one.abs(), torch.tensor(theirs), rtol=1e-5, atol=1e-6)
    moved = SphericalHarmonics(4)((d + 1) / 2)
    assert not torch.allclose(torch.einsum("ab,abi,abj->ij", area.expand(-1, 32), moved, moved), torch.eye(16).double(), atol=0.1)


def test_weights_of_samples():
    samples = spaced(NEAR, FAR, 6, "piecewise")
    assert weights(torch.ones(3, 6), samples.delta).sum(-1).max() <= 1 + 1e-6
