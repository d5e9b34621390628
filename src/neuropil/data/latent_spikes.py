"""Simulators of neural populations that are driven by a few hidden variables: spikes whose true rates are known.

    ẋ = σ (y − x),  ẏ = x (ρ − z) − y,  ż = x y − β z            Lorenz, σ = 10, ρ = 28, β = 8/3
    q̈_i = −ω² (q_i − ½ (q_{i−1} + q_{i+1}))  − ω² ¼ q_i          a ring of coupled oscillators

    log rate_n(t) = C_n · latent(t) + b_n,      counts ~ Poisson(rate)

Latents are standardised over all conditions and bins; C has unit rows times `gain`; b sets each neuron's mean to `mean` spikes
a bin. A condition is a starting point; its trials share the latents and differ in their spikes. (The Lorenz population is the
test bed of LFADS, Sussillo et al. 2016, arXiv:1608.06315, with the numbers of neurons and conditions used since.)
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.errors import Refused, choose
from neuropil.numerics.integrate import odeint

SYSTEMS = ("lorenz", "oscillators")


@dataclass(frozen=True)
class LatentSpikes:
    """Counts and true rates, spikes a bin; the `latents` behind them; the `condition` of each trial."""

    counts: Int[Tensor, "trials t n"]
    rates: Float[Tensor, "trials t n"]
    latents: Float[Tensor, "trials t d"]
    condition: Int[Tensor, " trials"]

    def __len__(self) -> int:
        return len(self.counts)


def latent_spikes(
    system: str,
    generator: torch.Generator,
    *,
    conditions: int = 65,
    trials: int = 20,
    bins: int = 70,
    neurons: int = 30,
    mean: float = 0.2,
    gain: float = 1.0,
    pace: float | None = None,
) -> LatentSpikes:
    """A population of `neurons` driven by "lorenz" (3 latents) or "oscillators" (a ring of 6: 12 latents).

    Args:
        conditions, trials: starting points, and repeats of each; trials of a condition are neighbours.
        bins: length of a trial.
        mean: spikes a bin and neuron, on average.
        gain: standard deviation of a log rate.
        pace: time of the system a bin (default .03 for Lorenz, .25 for oscillators of frequency ω = 1).

    O(conditions · bins · (neurons · trials + steps of the integrator)). `Refused` for sizes below 1 or numbers not above 0.

    >>> data = latent_spikes("lorenz", torch.Generator().manual_seed(0), conditions=2, trials=3, bins=10)
    >>> data.counts.shape, data.latents.shape, data.condition.tolist()
    (torch.Size([6, 10, 30]), torch.Size([6, 10, 3]), [0, 0, 0, 1, 1, 1])
    """
    choose("system", system, SYSTEMS)
    for name, value in (("conditions", conditions), ("trials", trials), ("bins", bins), ("neurons", neurons)):
        if value < 1:
            raise Refused(f"{name}: must be at least 1, got {value}")
    pace = {"lorenz": 0.03, "oscillators": 0.25}[system] if pace is None else pace
    if not (mean > 0 and gain > 0 and pace > 0):
        raise Refused(f"mean, gain, pace: must be above 0, got {mean}, {gain} and {pace}")

    def normal(*size: int) -> Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64)

    times = torch.arange(bins, dtype=torch.float64) * pace
    if system == "lorenz":
        settled = odeint(
            _lorenz, normal(conditions, 3) * 5 + torch.tensor([0.0, 0.0, 25.0]), torch.tensor([0.0, 10.0]), substeps=1000
        )
        x = odeint(_lorenz, settled[-1], times, substeps=max(1, round(pace / 0.01)))
    else:
        x = odeint(_ring, normal(conditions, 12), times, substeps=max(1, round(pace / 0.05)))
    x = x.transpose(0, 1)
    x = (x - x.mean((0, 1))) / x.std((0, 1))
    C = gain * torch.nn.functional.normalize(normal(neurons, x.shape[-1]), dim=-1)
    rates = (x @ C.T).exp()
    rates = rates * (mean / rates.mean((0, 1)))
    counts = torch.poisson(rates.repeat_interleave(trials, 0), generator=generator).long()
    rates, x = (v.float().repeat_interleave(trials, 0) for v in (rates, x))
    return LatentSpikes(counts, rates, x, torch.arange(conditions).repeat_interleave(trials))


def _lorenz(t: Tensor, y: Tensor) -> Tensor:
    a, b, c = y.unbind(-1)
    return torch.stack([10 * (b - a), a * (28 - c) - b, a * b - 8 / 3 * c], -1)


def _ring(t: Tensor, y: Tensor) -> Tensor:
    q, speed = y.chunk(2, -1)
    return torch.cat([speed, -(1.25 * q - 0.5 * (q.roll(1, -1) + q.roll(-1, -1)))], -1)
