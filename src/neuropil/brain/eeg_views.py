"""Views of an EEG trial that leave its meaning: of time, frequency and space.

    flip        X ← −X                                          scale and noise: X ← (1 + s) X + σ std(X) ε
    shift       X ← Re(analytic(X) · e^{2πi f t})               every frequency moved by f
    surrogate   phases of the spectrum turned by random angles, the same for all channels
    reflect     left and right electrodes swapped, and with them the labels left and right

(As used by MVCNet, Wang et al. 2025, arXiv:2502.17482; Rommel et al. 2022, arXiv:2206.14483; channel reflection: Wang et al. 2024.)
Trials are (n, channels, samples).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import transformable, within


def flip(x: Float[Tensor, "n c t"]) -> Float[Tensor, "n c t"]:
    """−X: electrodes measure a difference whose sign is a convention.

    >>> flip(torch.ones(1, 1, 2))
    tensor([[[-1., -1.]]])
    """
    return -x


def scale_and_noise(
    x: Float[Tensor, "n c t"], scale: float = 0.05, noise: float = 0.25, generator: torch.Generator | None = None
) -> Float[Tensor, "n c t"]:
    """(1 + s) X + noise · std · ε, with s uniform in ±scale for each trial and std that of each channel. O(n c t).

    `Refused` for fewer than 2 samples, or numbers that are not finite.

    >>> x = torch.randn(2, 3, 4)
    >>> torch.equal(scale_and_noise(x, 0.0, 0.0), x)
    True
    """
    if not (math.isfinite(scale) and math.isfinite(noise)):
        raise Refused(f"scale, noise: must be finite, got {scale} and {noise}")
    if x.shape[-1] < 2:
        raise Refused(f"x: a standard deviation needs at least 2 samples, got shape {tuple(x.shape)}")
    s = scale * (2 * torch.rand(len(x), 1, 1, generator=generator) - 1).to(x)
    return (1 + s) * x + noise * x.std(-1, keepdim=True) * torch.randn(x.shape, generator=generator).to(x)


def analytic(x: Float[Tensor, "*b t"]) -> Tensor:
    """The analytic signal: positive frequencies doubled, negative ones gone. O(t log t). `Refused` for nothing, or half precision.

    >>> wave = torch.cos(2 * math.pi * torch.arange(16) / 4)
    >>> torch.allclose(analytic(wave).abs(), torch.ones(16), atol=1e-6)
    True
    """
    transformable("x", x)
    t = x.shape[-1]
    keep = torch.zeros(t, dtype=x.dtype, device=x.device)
    keep[0] = 1
    keep[1 : (t + 1) // 2] = 2
    if t % 2 == 0:
        keep[t // 2] = 1
    return torch.fft.ifft(torch.fft.fft(x) * keep)


def frequency_shift(
    x: Float[Tensor, "n c t"], rate: float, most: float = 2.0, shift: Float[Tensor, " n"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "n c t"]:  # fmt: skip
    """Every frequency of a trial moved by the same number of Hz, uniform in ±`most`, or as `shift` says for each trial.

    `Refused` for a rate that is not above 0, and as `analytic`.

    >>> x = torch.cos(2 * math.pi * 5 * torch.arange(100) / 100)[None, None]
    >>> moved = frequency_shift(x, rate=100.0, shift=torch.tensor([3.0]))
    >>> int(torch.fft.rfft(moved)[0, 0].abs().argmax())
    8
    """
    if not rate > 0:
        raise Refused(f"rate: must be above 0 Hz, got {rate}")
    f = most * (2 * torch.rand(len(x), generator=generator) - 1) if shift is None else shift
    turn = 2 * math.pi * f.to(x)[:, None, None] * torch.arange(x.shape[-1], dtype=x.dtype, device=x.device) / rate
    return (analytic(x) * torch.polar(torch.ones_like(turn), turn)).real


def surrogate(x: Float[Tensor, "n c t"], share: float = 0.5, generator: torch.Generator | None = None) -> Float[Tensor, "n c t"]:
    """Phases turned by angles uniform in ±share · π, the same for all channels of a trial: spectra and their relations stay.

    `Refused` as `analytic`.

    >>> x = torch.randn(1, 2, 16)
    >>> torch.allclose(torch.fft.rfft(surrogate(x)).abs(), torch.fft.rfft(x).abs(), atol=1e-4)
    True
    """
    transformable("x", x)
    t = x.shape[-1]
    angle = share * math.pi * (2 * torch.rand(len(x), 1, t // 2 + 1, generator=generator) - 1).to(x)
    angle[..., 0] = 0  # the mean and, of an even number of samples, the last mode have no phase
    if t % 2 == 0:
        angle[..., -1] = 0
    return torch.fft.irfft(torch.fft.rfft(x) * torch.polar(torch.ones_like(angle), angle), n=t)


def reflection(channels: Sequence[str]) -> Int[Tensor, " c"]:
    """For each channel the place of its mirror image: C3 ↔ C4, FC1 ↔ FC2; names that end in z, or have no partner, stay.

    In the 10–20 system odd numbers are left, even ones right; 1 ↔ 2, 3 ↔ 4 and so on.

    >>> reflection(["C3", "Cz", "C4"]).tolist()
    [2, 1, 0]
    """
    place = {name.upper(): i for i, name in enumerate(channels)}
    if len(place) != len(channels):
        raise Refused(f"channels: names must differ, got {list(channels)}")

    def partner(name: str) -> str:
        head = name.rstrip("0123456789")
        number = name[len(head) :]
        return f"{head}{int(number) + (1 if int(number) % 2 else -1)}" if number else name

    return torch.tensor([place.get(partner(name.upper()), i) for i, name in enumerate(channels)])


def reflect(
    x: Float[Tensor, "n c t"], labels: Int[Tensor, " n"], mirror: Int[Tensor, " c"], swap: tuple[int, int] | None = (0, 1)
) -> tuple[Float[Tensor, "n c t"], Int[Tensor, " n"]]:
    """The head seen in a mirror: channels by `reflection`, and the labels of left and right hand (`swap`) exchanged; None: kept.

    >>> x, y = reflect(torch.tensor([[[1.0], [2.0]]]), torch.tensor([0]), torch.tensor([1, 0]))
    >>> x.flatten().tolist(), y.tolist()
    ([2.0, 1.0], [1])
    """
    within("mirror", mirror, x.shape[1])
    if len(mirror) != x.shape[1] or not torch.equal(mirror[mirror], torch.arange(len(mirror), device=mirror.device)):
        raise Refused(f"mirror: an involution of the {x.shape[1]} channels is needed, got {mirror.tolist()}")
    if swap is None:
        return x[:, mirror], labels
    left, right = swap
    return x[:, mirror], torch.where(labels == left, right, torch.where(labels == right, left, labels))
