"""Scores of firing rates against spike counts.

−log p(x | r) = r − x log r + log x!                       (Poisson; r, x per bin)
bits per spike = (log p(x | r) − log p(x | x̄)) / (Σ x · log 2),   x̄ the mean count of each neuron

On neurons that a model did not see the second is the "co-smoothing" of the Neural Latents Benchmark (Pei et al. 2021,
arXiv:2109.04463), on bins after the last it saw the "forward prediction".
"""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import nonnegative


def poisson_nll(log_rates: Float[Tensor, "*s"], counts: Shaped[Tensor, "..."]) -> Float[Tensor, "*s"]:
    """−log p(count) in nats, for each bin, of a Poisson law with rate exp(log_rate) a bin. O(n).

    `counts` are whole numbers ≥ 0 of any dtype. `Refused` if the shapes differ.

    >>> poisson_nll(torch.zeros(3), torch.tensor([0, 1, 2]))  # rate 1: e⁻¹/x!
    tensor([1.0000, 1.0000, 1.6931])
    """
    if log_rates.shape != counts.shape:
        raise Refused(f"counts: must have the shape of log_rates {tuple(log_rates.shape)}, got {tuple(counts.shape)}")
    if counts.is_complex():
        raise Refused(f"counts: must be real, got {counts.dtype}")
    nonnegative("counts", counts)
    counts = counts.to(log_rates.dtype)
    return log_rates.exp() - counts * log_rates + torch.lgamma(counts + 1)


def bits_per_spike(
    log_rates: Float[Tensor, "*s n"], counts: Shaped[Tensor, "*s n"], null: Float[Tensor, "..."] | None = None
) -> float:
    """How many bits a spike the rates tell beyond each neuron's mean rate: 0 for the mean itself, below 0 if worse.

    Args:
        log_rates: log of the expected count a bin, of n neurons; −20 is the least that is told apart from silence.
        counts: the spikes of the same bins.
        null: the rates to compare with, one a neuron or one a number of `counts`; default: each neuron's mean of `counts`, as the
            benchmark defines it.

    `Refused` if there is no spike at all.

    >>> counts = torch.tensor([[0, 1], [2, 1]])
    >>> bits_per_spike(torch.tensor([[1.0, 1.0], [1.0, 1.0]]).log(), counts)
    0.0
    """
    nonnegative("counts", counts)
    spikes = float(counts.sum())
    if not spikes > 0:
        raise Refused("counts: bits per spike need at least one spike, got none")
    x = counts.double()
    mean = x.flatten(0, -2).mean(0) if null is None else null.double()
    floor = torch.tensor(1e-9, dtype=torch.float64)
    by_rates = poisson_nll(log_rates.double().clamp(min=-20), x).sum()
    by_mean = poisson_nll(mean.maximum(floor).log().expand_as(x).contiguous(), x).sum()
    return float(by_mean - by_rates) / (spikes * math.log(2))
