"""S3IM against the authors' code (frozen numbers), a plain-loop SSIM on a photograph, and its own rules."""

import math

import numpy
import pytest
import torch

from neuropil import data
from neuropil.errors import Refused
from neuropil.fields.s3im import C1, C2, S3IM, orders, s3im, strided_ssim, window


def wave(*shape, phase=0.0):
    """Numbers in (0, 1) that need no generator."""
    return (0.5 + 0.5 * torch.sin(1 + phase + 1.7 * torch.arange(math.prod(shape), dtype=torch.float64))).reshape(shape)


def fixed_orders(b, m):
    """k ↦ (a_i k + i) mod b with a_i the i-th number prime to b: permutations that need no generator."""
    factors = [a for a in range(1, 400) if math.gcd(a, b) == 1]
    return torch.stack([torch.arange(b), *((torch.arange(b) * factors[i] + i) % b for i in range(1, m))])


# (h, w, K, s, M): loss, its gradient's first row and norm, by the authors' S3IM (Madaoer/S3IM-Neural-Fields, float64 inputs,
# float32 windows) for x = wave(B, 3), y = wave(B, 3, phase=0.8)² and their randperm replaced by `fixed_orders`.
FROZEN = {
    (8, 8, 4, 4, 1): (0.30375156204647, [-0.006850811957523127, 0.019919508096577054, 0.0034875912166211116], 0.14809817867804226),
    (8, 8, 4, 4, 3): (0.3525316586614371, [-0.0060178766962922636, 0.01708996429520076, 0.0022968467651102464], 0.1229120836457396),
    (16, 12, 4, 4, 10): (
        0.36642848388367644,
        [-0.0022978422342256138, 0.0039247487991299, 0.0008762051533127],
        0.08351977036166625,
    ),
    (16, 12, 5, 3, 4): (0.380037995756486, [-0.0016715955456545776, 0.004270551967309016, 0.0008179835499997], 0.07555237040618991),
    (32, 32, 4, 4, 10): (0.36910897066995285, [-0.0007150742981579, 0.0013847147732474591, 0.0002772594151979], 0.0364174947437627),
}


@pytest.mark.parametrize("case", FROZEN)
def test_equal_to_the_authors_loss_and_gradient(case):
    h, w, kernel, stride, m = case
    x, y = wave(h * w, 3).requires_grad_(), wave(h * w, 3, phase=0.8).square()
    loss = 1 - s3im(x, y, fixed_orders(h * w, m), (h, w), kernel, stride)
    loss.backward()
    value, row, norm = FROZEN[case]
    assert float(loss.detach()) == pytest.approx(value, abs=1e-7)
    assert x.grad[0].tolist() == pytest.approx(row, abs=1e-8)
    assert float(x.grad.norm()) == pytest.approx(norm, abs=1e-7)


def plain_ssim(x, y, kernel, stride):
    """The definition, window by window in float64: weighted moments of the picture padded with (K − 1)//2 zeros."""
    g = numpy.array([math.exp(-((i - kernel // 2) ** 2) / (2 * 1.5**2)) for i in range(kernel)])
    weight = numpy.outer(g, g) / g.sum() ** 2
    pad = (kernel - 1) // 2
    x, y = (numpy.pad(v, pad) for v in (x, y))
    values = []
    for i in range(0, x.shape[0] - kernel + 1, stride):
        for j in range(0, x.shape[1] - kernel + 1, stride):
            a, b = (v[i : i + kernel, j : j + kernel] for v in (x, y))
            ma, mb = (weight * a).sum(), (weight * b).sum()
            va, vb, cov = (weight * (a - ma) ** 2).sum(), (weight * (b - mb) ** 2).sum(), (weight * (a - ma) * (b - mb)).sum()
            values.append((2 * ma * mb + C1) * (2 * cov + C2) / ((ma**2 + mb**2 + C1) * (va + vb + C2)))
    return numpy.mean(values)


@pytest.mark.parametrize(("kernel", "stride"), [(4, 4), (11, 1)])
def test_one_order_is_the_strided_ssim_of_a_photograph(kernel, stride):
    photo = data.photographs("astronaut")[100:164, 200:248]
    worse = (photo + 0.1 * wave(*photo.shape).float()).clamp(0, 1)
    b = 64 * 48
    ours = s3im(worse.reshape(b, 3), photo.reshape(b, 3), orders(b, 1), (64, 48), kernel, stride)
    pair = [v.double().numpy() for v in (worse, photo)]
    reference = numpy.mean([plain_ssim(pair[0][..., c], pair[1][..., c], kernel, stride) for c in range(3)])
    assert 0.3 < reference < 0.99
    assert float(ours) == pytest.approx(reference, abs=1e-5)


def test_inner_windows_are_those_of_scikit_image():
    """Stride 1 and an odd window: the map is skimage's where no window touches the border."""
    metrics = pytest.importorskip("skimage.metrics")
    photo = data.photographs("camera")[100:164, 200:264].double()
    worse = (photo + 0.1 * wave(64, 64)).clamp(0, 1)
    options = {"gaussian_weights": True, "sigma": 1.5, "truncate": 5 / 1.5, "use_sample_covariance": False, "data_range": 1.0}
    _, theirs = metrics.structural_similarity(photo.numpy(), worse.numpy(), full=True, **options)
    ours = strided_ssim(photo, worse, kernel=(11, 11), stride=(1, 1))
    torch.testing.assert_close(ours[5:-5, 5:-5], torch.from_numpy(theirs)[5:-5, 5:-5], atol=1e-6, rtol=0)


def test_equal_rays_reach_one_and_nothing_exceeds_it():
    x, y, order = wave(64, 3), wave(64, 3, phase=2.0), orders(64, 10, torch.Generator().manual_seed(0))
    assert float(s3im(x, x, order, (8, 8))) == pytest.approx(1, abs=1e-12)
    assert float(s3im(x.float(), x.float(), order, (8, 8))) == pytest.approx(1, abs=1e-5)
    assert float(s3im(x, y, order, (8, 8))) < 0.9


def test_symmetric_in_its_arguments():
    x, y, order = wave(64, 3), wave(64, 3, phase=2.0), orders(64, 10, torch.Generator().manual_seed(0))
    torch.testing.assert_close(s3im(x, y, order, (8, 8)), s3im(y, x, order, (8, 8)))


@pytest.mark.parametrize("kernel", [1, 4])
def test_without_variance_the_luminance_is_left(kernel):
    """Windows of one pixel, or pictures of one colour each: σ = 0 makes the second factor 1."""
    x, y = (
        (wave(64, 3), wave(64, 3, phase=2.0)) if kernel == 1 else (torch.full((64, 3), v, dtype=torch.float64) for v in (0.3, 0.7))
    )
    expected = ((2 * x * y + C1) / (x * x + y * y + C1)).mean()
    if kernel == 4:  # windows inside only: the border's see the padding
        inner = strided_ssim(x.T.reshape(3, 8, 8), y.T.reshape(3, 8, 8))[:, 1:, 1:]
        torch.testing.assert_close(inner.mean(), expected)
    else:
        torch.testing.assert_close(s3im(x, y, orders(64, 3), (8, 8), kernel=1, stride=1), expected)


def test_the_expectation_does_not_know_the_order_of_rays():
    """Over many orders (without the identity), shuffled rays give the same mean; one order of them does not."""
    x, y = wave(64, 3), wave(64, 3, phase=0.8).square()
    shuffle = torch.randperm(64, generator=torch.Generator().manual_seed(5))

    def mean(rays, seed, m):
        return float(s3im(x[rays], y[rays], orders(64, m + 1, torch.Generator().manual_seed(seed))[1:], (8, 8)))

    straight, shuffled = mean(torch.arange(64), 1, 4000), mean(shuffle, 2, 4000)
    assert straight == pytest.approx(shuffled, abs=3e-3)
    assert abs(mean(torch.arange(64), 1, 1) - mean(shuffle, 2, 1)) > 3e-3


def test_orders_are_permutations_after_the_identity_and_follow_the_seed():
    order = orders(50, 4, torch.Generator().manual_seed(3))
    assert order[0].tolist() == list(range(50))
    assert (order.sort(1).values == torch.arange(50)).all()
    assert len({tuple(row.tolist()) for row in order}) == 4
    assert (order == orders(50, 4, torch.Generator().manual_seed(3))).all()


def test_module_uses_one_set_of_orders_and_keeps_no_state():
    loss, x, y = S3IM(8, 8), wave(64, 3), wave(64, 3, phase=2.0)
    order = orders(64, 10, torch.Generator().manual_seed(1))
    torch.testing.assert_close(loss(x, y, torch.Generator().manual_seed(1)), 1 - s3im(x, y, order, (8, 8)))
    assert float(loss(x, x)) == pytest.approx(0, abs=1e-12)
    assert not loss.state_dict()
    torch.manual_seed(0)
    first, second = loss(x, y), loss(x, y)
    assert first != second
    torch.manual_seed(0)
    assert loss(x, y) == first


def test_gradient_is_exact():
    x, y, order = wave(16, 2).requires_grad_(), wave(16, 2, phase=2.0), orders(16, 3, torch.Generator().manual_seed(0))
    assert torch.autograd.gradcheck(lambda v: s3im(v, y, order, (4, 4), kernel=2, stride=2), x)


def test_autocast_does_not_round_the_variances():
    x, y, order = wave(64, 3).float(), wave(64, 3, phase=2.0).float(), orders(64, 2)
    with torch.autocast("cpu", torch.bfloat16):
        half = s3im(x, y, order, (8, 8))
    assert half.dtype == torch.float32
    assert half == s3im(x, y, order, (8, 8))
    assert s3im(x.bfloat16(), y.bfloat16(), order, (8, 8)).dtype == torch.float32


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: window(0), "size"),
        (lambda: orders(0, 1), "count"),
        (lambda: orders(4, 0), "repeats"),
        (lambda: S3IM(8, 0), "height, width"),
        (lambda: S3IM(8, 8)(wave(63, 3), wave(63, 3)), "patch"),
        (lambda: strided_ssim(wave(1, 8), wave(1, 8)), "kernel"),
    ],
)
def test_bad_input_is_refused(call, name):
    with pytest.raises(Refused, match=name):
        call()
