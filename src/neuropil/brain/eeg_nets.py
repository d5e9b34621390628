"""Small convolutional nets for EEG trials (n, channels, samples), by their papers' names.

IFNet    bands_r = BN(W_r x),  r = 1 … R;   y = GELU(Σ_r BN(depthwise_{k_r} ∗ bands_r));   mean of each half second; dropout; flat
         (Wang, Yao & Wang 2023, IEEE TNSRE 31:1900: k = 63 at 250 Hz, halved from band to band)
EEGNet   temporal conv, depthwise spatial conv, ELU, mean of 4; depthwise and pointwise temporal conv, ELU, mean of 8; flat
         (Lawhern et al. 2018, arXiv:1611.08024: F1 = 8, D = 2, F2 = 16, kernel of half a second)
"""

import math

from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.nn.checks import same_kind, suits


class IFNet(nn.Module):
    """Features (n, planes · (samples // pool)) of a trial.

    Args:
        channels: electrodes. samples: of a trial.
        planes: spatial filters of each band.
        kernel: of the first band, odd; halved from band to band (63, 31, …).
        bands: R, "radix" in the authors' code.
        pool: samples that are averaged (half a second); the last samples that do not fill one are left out.

    O(samples planes bands (channels + kernel)) time a trial. `features` tells the width of the output. `Refused` for sizes that do
    not fit, and trials of other channels or shorter than `pool`.

    >>> import torch
    >>> IFNet(8, samples=100, planes=4, kernel=15, pool=25)(torch.randn(2, 8, 100)).shape
    torch.Size([2, 16])
    """

    def __init__(
        self, channels: int, samples: int, planes: int = 64, kernel: int = 63, bands: int = 1, pool: int = 125, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if min(channels, planes, bands) < 1 or kernel < 1 or not 1 <= pool <= samples or kernel >> (bands - 1) < 1:
            given = f"{channels}, {samples}, {planes}, {kernel}, {bands} and {pool}"
            raise Refused(f"channels, samples, planes, kernel, bands, pool: must be positive, pool ≤ samples; got {given}")
        self.bands, self.pool, self.features = bands, pool, planes * (samples // pool)
        self.space = nn.Sequential(nn.Conv1d(channels, planes * bands, 1, bias=False), nn.BatchNorm1d(planes * bands))
        widths = [kernel >> r for r in range(bands)]
        self.time = nn.ModuleList(
            nn.Sequential(nn.Conv1d(planes, planes, k, padding=k // 2, groups=planes, bias=False), nn.BatchNorm1d(planes))
            for k in widths
        )
        self.rest = nn.Sequential(nn.GELU(), nn.AvgPool1d(pool, pool), nn.Dropout(dropout), nn.Flatten())
        for layer in self.modules():  # as published: small weights turn fast under batch norm
            if isinstance(layer, nn.Conv1d):
                nn.init.trunc_normal_(layer.weight, std=0.01)

    def forward(self, x: Float[Tensor, "n c t"]) -> Float[Tensor, "n f"]:
        """The features."""
        suits("x", x, self.space)
        _long_enough(x, self.pool)
        bands = [time(band) for time, band in zip(self.time, self.space(x).chunk(self.bands, 1), strict=True)]
        length = min(band.shape[-1] for band in bands)  # an even kernel gives one sample more
        total = bands[0][..., :length]
        for band in bands[1:]:
            total = total + band[..., :length]
        return self.rest(total)


class EEGNet(nn.Module):
    """Features (n, F2 · (samples // 32)) of a trial; `features` tells their number.

    The published limits on the norms of the spatial filters and of the last layer are not imposed. `Refused` for sizes that do not
    fit, and trials of other channels or shorter than both pools.

    >>> import torch
    >>> EEGNet(8, samples=128, rate=128.0)(torch.randn(2, 8, 128)).shape
    torch.Size([2, 64])
    """

    def __init__(
        self, channels: int, samples: int, rate: float, F1: int = 8, D: int = 2, F2: int = 16, dropout: float = 0.25,
        pools: tuple[int, int] = (4, 8),
    ) -> None:  # fmt: skip
        super().__init__()
        if channels < 1 or samples < pools[0] * pools[1] or not 0 < rate < math.inf:
            given = f"{channels}, {samples} and {rate}"
            raise Refused(f"channels, samples, rate: must be positive and finite, samples ≥ {pools[0] * pools[1]}; got {given}")
        self.channels, self.pool, self.features = channels, pools[0] * pools[1], F2 * (samples // pools[0] // pools[1])
        self.net = nn.Sequential(
            _same(max(2, int(rate // 2))),
            nn.Conv2d(1, F1, (1, max(2, int(rate // 2))), bias=False),
            nn.BatchNorm2d(F1),
            nn.Conv2d(F1, D * F1, (channels, 1), groups=F1, bias=False),
            nn.BatchNorm2d(D * F1),
            nn.ELU(),
            nn.AvgPool2d((1, pools[0])),
            nn.Dropout(dropout),
            _same(16),
            nn.Conv2d(D * F1, D * F1, (1, 16), groups=D * F1, bias=False),
            nn.Conv2d(D * F1, F2, 1, bias=False),
            nn.BatchNorm2d(F2),
            nn.ELU(),
            nn.AvgPool2d((1, pools[1])),
            nn.Dropout(dropout),
            nn.Flatten(),
        )

    def forward(self, x: Float[Tensor, "n c t"]) -> Float[Tensor, "n f"]:
        """The features."""
        if x.shape[1] != self.channels:
            raise Refused(f"x: must be (n, {self.channels} channels, samples), got {tuple(x.shape)}")
        same_kind("x", x, next(self.net.parameters()))
        _long_enough(x, self.pool)
        return self.net(x[:, None])


def _long_enough(x: Tensor, least: int) -> None:
    if x.shape[-1] < least:
        raise Refused(f"x: at least {least} samples are needed, got shape {tuple(x.shape)}")


def _same(kernel: int) -> nn.ZeroPad2d:
    """Zeros along time so that a convolution keeps the number of samples."""
    return nn.ZeroPad2d(((kernel - 1) // 2, kernel // 2, 0, 0))
