"""PSNR and SSIM: values known by hand, invariances, refusals."""

import pytest
import torch

from neuropil.errors import Refused
from neuropil.fields.metrics import psnr, ssim


def test_psnr_by_hand():
    x = torch.zeros(5, 4, 3)
    assert float(psnr(x, x + 0.1)) == pytest.approx(20, abs=1e-4)
    assert float(psnr(x, x + 0.01)) == pytest.approx(40, abs=1e-4)
    assert float(psnr(x, x)) == torch.inf


def test_ssim_of_equal_shifted_and_unrelated_pictures():
    g = torch.Generator().manual_seed(0)
    x, noise = torch.rand(32, 40, 3, generator=g), torch.rand(32, 40, 3, generator=g)
    assert ssim(x, x) == pytest.approx(1.0)
    assert ssim(x, x.flip(0)) < 0.2 and abs(ssim(x, noise)) < 0.2
    assert 0.7 < ssim(x, (x + 0.1 * noise).clamp(0, 1)) < 1
    assert ssim(x[..., 0], x[..., 0]) == pytest.approx(1.0)


def test_ssim_of_flat_pictures_is_its_luminance_term():
    """Wang et al. 2004, eq. 6 with C1 = 0.01²: no structure to compare."""
    a, b = 0.3, 0.5
    found = ssim(torch.full((20, 20), a), torch.full((20, 20), b))
    assert found == pytest.approx((2 * a * b + 1e-4) / (a * a + b * b + 1e-4), abs=1e-6)


def test_refuses():
    with pytest.raises(Refused, match="predicted, target"):
        psnr(torch.zeros(3), torch.zeros(4))
    with pytest.raises(Refused, match="predicted, target"):
        ssim(torch.zeros(3, 4), torch.zeros(4, 3))
    with pytest.raises(Refused, match="predicted, target"):
        ssim(torch.zeros(8, 20), torch.zeros(8, 20))
