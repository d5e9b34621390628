"""Sparse distributed memory: overlaps against brute force and a second formula, caps against other integrals, reading."""

import itertools
import math
from fractions import Fraction

import pytest
import torch
from scipy.special import betainc, ndtr
from scipy.stats import binom
from torch.nn.functional import normalize, scaled_dot_product_attention

from neuropil.errors import Refused
from neuropil.memory import sdm
from neuropil.memory.lookup import lookup
from neuropil.memory.sdm import (
    SDM,
    Overlap,
    ball_fraction,
    best_radius,
    cap_intersection,
    circle_intersection,
    critical_distance,
    fit_beta,
    log_overlap,
    radius,
    sdm_attention,
)


@pytest.mark.parametrize("n", [5, 8])
def test_overlap_is_the_number_of_points_in_both_balls(n):
    points = torch.tensor(list(itertools.product((0, 1), repeat=n)))
    for dv in range(n + 1):
        other = (torch.arange(n) < dv).long()
        first, second = points.sum(1), (points != other).sum(1)
        for d in range(n + 1):
            assert circle_intersection(n, d, dv) == int(((first <= d) & (second <= d)).sum())


def test_overlap_equals_kanervas_lune_formula():
    """Kanerva 1988, appendix B: the ball less the lune, Σ over odd j ≤ dv of C(j − 1, (j − 1)/2) C(n − j, d − (j − 1)/2)."""
    n, d = 64, 11
    for dv in range(2 * d + 1):
        lune = sum(math.comb(j - 1, (j - 1) // 2) * math.comb(n - j, d - (j - 1) // 2) for j in range(1, dv + 1, 2))
        assert circle_intersection(n, d, dv) == circle_intersection(n, d, 0) - lune


def test_overlap_starts_at_the_ball_never_rises_and_survives_large_n():
    assert circle_intersection(1000, 451, 0) == sum(math.comb(1000, k) for k in range(452))
    logs = log_overlap(300, 120)
    assert logs.isfinite().tolist() == [True] * 241 + [False] * 60  # the balls meet up to dv = 2 d
    assert (logs[:241].diff() <= 0).all()


@pytest.mark.parametrize(
    ("d", "beta", "r2"), [(5, 31, 0.934), (11, 14.9, 0.976), (15, 9.7, 0.985), (19, 6.1, 0.988), (23, 3.6, 0.990)]
)
def test_fitted_betas_are_those_of_the_card(d, beta, r2):
    fit = fit_beta(64, d)
    assert fit.beta == pytest.approx(beta, rel=0.02)
    assert fit.r2 == pytest.approx(r2, abs=0.001)


def test_a_single_cap_is_the_incomplete_beta_function():
    for n, c in ((3, 0.5), (64, 0.4), (1000, 0.1)):
        share = 0.5 * betainc((n - 1) / 2, 0.5, 1 - c * c)
        assert float(cap_intersection(n, c, torch.tensor(1.0))) == pytest.approx(math.log(share), abs=1e-6)


def test_two_caps_match_a_sample_and_vanish_apart():
    generator = torch.Generator().manual_seed(0)
    x = normalize(torch.randn(400_000, 8, generator=generator), dim=1)
    other = torch.zeros(8)
    other[0], other[1] = 0.6, 0.8
    share = float(((x[:, 0] >= 0.3) & (x @ other >= 0.3)).float().mean())
    assert float(cap_intersection(8, 0.3, torch.tensor(0.6)).exp()) == pytest.approx(share, rel=0.03)
    assert cap_intersection(8, 0.9, torch.tensor([0.0])).item() == -math.inf


def test_radius_is_the_binomial_quantile():
    d = radius(64, 0.01)
    assert ball_fraction(64, d - 1) < 0.01 <= ball_fraction(64, d)


def test_signal_is_best_where_kanerva_says():
    """Kanerva: the best share of neurons is p = (2 m r)^(−1/3)."""
    d = best_radius(256, 1e6, 10_000)
    assert abs(d - radius(256, (2 * 1e4 * 1e6) ** (-1 / 3))) <= 1


@pytest.mark.parametrize(("n", "d", "r", "m"), [(64, 15, 2.0**64, 1024), (20, 5, 1e3, 1), (64, 15, 1e200, 50)])
def test_critical_distance_in_exact_numbers(n, d, r, m):
    """Also where the square of o is no float."""
    o = [Fraction(r) * circle_intersection(n, d, dv) / 2**n for dv in range(n + 1)]
    crosstalk = (m - 1) * sum(Fraction(math.comb(n, k), 2**n) * (o[k] ** 2 + o[k]) for k in range(n + 1))
    snr = [math.sqrt(o[dv] ** 2 / (o[dv] + crosstalk)) if o[dv] else 0.0 for dv in range(n // 2 + 1)]
    away = (dv - 1 for dv in range(1, n // 2 + 1) if n * float(ndtr(-snr[dv])) >= dv)
    assert critical_distance(n, d, r, m) == next(away, n // 2) > 0


def test_critical_distance_of_more_bits_than_a_float_has_powers_of_two(monkeypatch):
    """With o(dv) = r exp(−dv/20) by decree; the true overlaps of so many bits take a minute."""
    n, r, m = 1100, 1e6, 200
    monkeypatch.setattr(sdm, "log_overlap", lambda n, d: n * math.log(2) - torch.arange(n + 1.0, dtype=torch.float64) / 20)
    o = r * (-torch.arange(n + 1.0, dtype=torch.float64) / 20).exp()
    crosstalk = (m - 1) * (torch.from_numpy(binom.pmf(range(n + 1), n, 0.5)) * (o**2 + o)).sum()
    wrong = n * ndtr(-o / (o + crosstalk).sqrt())
    assert critical_distance(n, 500, r, m) == int((wrong[1:] >= torch.arange(1, n + 1)).int().argmax()) > 0


def test_nothing_is_read_without_neurons():
    assert critical_distance(32, 8, 0.0, 10) == critical_distance(32, 8, 0.0, 1) == 0


def test_mean_weight_of_finite_memories_is_the_overlap():
    """The number of neurons that both write and read, over 40 memories, against (r / 2ⁿ) I within 3 standard errors."""
    n, d, r, dv = 16, 5, 2000, 4
    generator = torch.Generator().manual_seed(1)
    pattern = torch.ones(1, n)
    query = torch.where(torch.arange(n) < dv, -1.0, 1.0)[None]
    weights = [float(SDM.random(r, n, d, generator, width=1).write(pattern, torch.ones(1, 1)).read(query)) for _ in range(40)]
    found = torch.tensor(weights)
    expected = r / 2**n * circle_intersection(n, d, dv)
    assert abs(float(found.mean()) - expected) <= 3 * float(found.std()) / 40**0.5


def test_more_neurons_come_nearer_to_infinitely_many():
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(2, (20, 32), generator=generator) * 2.0 - 1
    exact = lookup(patterns, patterns, similarity="hamming", separation=Overlap(32, 9))
    misses = []
    for r in (500, 50_000):
        read = SDM.random(r, 32, 9, generator).write(patterns, patterns).read(patterns)
        misses.append(float((normalize(read, dim=1) - normalize(exact, dim=1)).norm(dim=1).mean()))
    assert misses[1] < misses[0] / 3


def test_writing_leaves_the_old_memory_as_it_was_and_adds_up():
    memory = SDM.random(500, 16, 6, torch.Generator().manual_seed(0))
    patterns = torch.eye(16)[:3] * 2 - 1
    both = memory.write(patterns[:1], patterns[:1]).write(patterns[1:], patterns[1:])
    assert not memory.stores.any()
    assert torch.equal(both.stores, memory.write(patterns, patterns).stores)


def test_sdm_attention_is_torch_attention_of_unit_vectors():
    q, k, v = torch.randn(4, 8), torch.randn(6, 8), torch.randn(6, 3)
    expected = scaled_dot_product_attention(14.9 * normalize(q, dim=1), normalize(k, dim=1), v, scale=1.0)
    torch.testing.assert_close(sdm_attention(q, k, v, 14.9), expected)
    torch.testing.assert_close(sdm_attention(q, 100 * k, v, 14.9), expected)


@pytest.mark.parametrize("d", [11, 15, 19, 23])
def test_read_out_of_the_memory_and_of_attention_agree(d):
    """What SDM and the fitted softmax read from 100 random patterns, 0 to 16 wrong bits: R² of at least 0.95."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randint(2, (100, 64), generator=generator) * 2.0 - 1
    true = patterns.repeat(5, 1)
    flips = torch.arange(0, 17, 4).repeat_interleave(100)[:, None]
    query = torch.where(torch.rand(true.shape, generator=generator).argsort(1) < flips, -true, true)
    memory = lookup(query, patterns, similarity="hamming", separation=Overlap(64, d))
    attention = sdm_attention(query, patterns, patterns, fit_beta(64, d).beta)
    assert torch.corrcoef(torch.stack([memory.flatten(), attention.flatten()]))[0, 1] ** 2 >= 0.95


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: circle_intersection(8, 9, 0), "d:"),
        (lambda: circle_intersection(8, 3, 9), "dv:"),
        (lambda: cap_intersection(8, 1.5, torch.ones(1)), "n, c"),
        (lambda: best_radius(8, 10.0, 10, "signl"), "goal"),
        (lambda: SDM.random(10, 8, 3).read(torch.zeros(1, 8)), "query"),
        (lambda: SDM.random(10, 8, 9), "radius"),
        (lambda: radius(8, 0.0), "p:"),
    ],
)
def test_bad_input_names_the_argument(make, name):
    with pytest.raises(Refused, match=name):
        make()
