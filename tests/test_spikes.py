import math

import numpy as np
import pytest
import torch
from scipy.stats import poisson

from neuropil.brain.spikes import bits_per_spike, poisson_nll
from neuropil.errors import Refused


def test_poisson_nll_is_scipys():
    counts = torch.arange(12)
    rates = torch.linspace(0.1, 9, 12, dtype=torch.float64)
    assert np.allclose(poisson_nll(rates.log(), counts), -poisson.logpmf(counts.numpy(), rates.numpy()), atol=1e-12)


def test_bits_per_spike():
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(6, 50, 4, generator=generator) + 0.05
    counts = torch.poisson(rates, generator=generator)
    mean = counts.flatten(0, 1).mean(0)
    assert bits_per_spike(mean.log().expand_as(counts).contiguous(), counts) == pytest.approx(0, abs=1e-6)
    expected = (poisson.logpmf(counts, rates) - poisson.logpmf(counts, mean)).sum() / float(counts.sum()) / math.log(2)
    assert bits_per_spike(rates.log(), counts) == pytest.approx(expected, abs=1e-6)
    assert bits_per_spike(rates.log(), counts) > 0 > bits_per_spike(-rates, counts)


def test_a_silent_neuron_is_no_nan():
    counts = torch.tensor([[0, 1], [0, 3]])
    assert bits_per_spike(torch.tensor([[-30.0, 0.0], [-30.0, 1.0]]), counts) > 0


def test_refusals():
    with pytest.raises(Refused, match="counts: must have the shape"):
        poisson_nll(torch.zeros(2), torch.zeros(3))
    with pytest.raises(Refused, match="at least one spike"):
        bits_per_spike(torch.zeros(2, 2), torch.zeros(2, 2))
