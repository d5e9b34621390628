"""Hidden Markov chains against the sum and the maximum over all paths, the authors' numbers, and gradients."""

import itertools
import math

import pytest
import torch

from neuropil.errors import Refused
from neuropil.numerics import hidden_markov
from neuropil.numerics.hidden_markov import forward_backward, log_likelihood, sample_chain, viterbi
from neuropil.numerics.matching import hungarian_match, match_labels

AUTHORS_GAMMA = [
    [0.742610569463999, 0.0363141897910201, 0.22107524074498092],
    [0.2500180483391603, 0.4025721280561853, 0.34740982360465444],
    [0.01574006131052728, 0.0010991540518889883, 0.9831607846375837],
]
AUTHORS_XI = [
    [0.1309225333080065, 0.15859082456772228, 0.8532458383426444],
    [0.0036802085196205986, 0.44239516281469377, 0.6560452476259234],
    [0.2812859462372742, 0.4659195958386908, 3.0079146427454244],
]
AUTHORS_PATH = [0, 2, 2, 1, 1, 2, 2]


@pytest.fixture(params=["compiled", "plain"])
def way(request, monkeypatch):
    """Every test on both ways: the compiled loop, where numba is installed, and tensors through `nn.scan`."""
    if request.param == "plain":
        monkeypatch.setattr(hidden_markov, "_compiled", lambda log_b: False)
    elif not hidden_markov.numba_is_there():
        pytest.skip("numba is not installed")


def made(b: int, t: int, s: int, spread: float = 2.0):
    log_b = spread * torch.randn(b, t, s, dtype=torch.float64)
    return log_b, torch.rand(s, s, dtype=torch.float64).softmax(-1), torch.rand(s, dtype=torch.float64).softmax(-1)


def by_paths(log_b, p, start):
    """Of one chain: log p(x), gamma, xi, the best path and its log-probability, from all s^t paths."""
    t, s = log_b.shape
    paths = torch.tensor(list(itertools.product(range(s), repeat=t)))
    steps = p[paths[:, :-1], paths[:, 1:]].log().sum(1)
    each = start[paths[:, 0]].log() + steps + log_b[torch.arange(t), paths].sum(1)
    weight = each.softmax(0)
    one = torch.nn.functional.one_hot(paths, s).double()
    gamma = torch.einsum("p,pts->ts", weight, one)
    xi = torch.einsum("p,pti,ptj->tij", weight, one[:, :-1], one[:, 1:])
    return each.logsumexp(0), gamma, xi, paths[each.argmax()], each.max()


@pytest.mark.parametrize(("s", "t"), [(2, 6), (3, 5), (3, 1), (1, 4)])
def test_the_sum_over_all_paths(way, s, t):
    log_b, p, start = made(4, t, s)
    found, (path, best) = forward_backward(log_b, p, start, xi="full"), viterbi(log_b, p, start)
    for b in range(4):
        total, gamma, xi, path_b, best_b = by_paths(log_b[b], p, start)
        assert torch.isclose(found.log_likelihood[b], total, rtol=1e-12)
        assert torch.allclose(found.gamma[b], gamma, atol=1e-12)
        assert torch.allclose(found.xi[b], xi, atol=1e-12)
        assert torch.equal(path[b], path_b)
        assert torch.isclose(best[b], best_b, rtol=1e-12)
    assert torch.allclose(forward_backward(log_b, p, start).xi, found.xi.sum(1), atol=1e-12)
    assert torch.allclose(log_likelihood(log_b, p, start), found.log_likelihood)


def test_gamma_and_xi_are_probabilities(way):
    log_b, p, start = made(5, 400, 4, spread=50.0)
    found = forward_backward(log_b, p, start, xi="full")
    assert torch.allclose(found.gamma.sum(-1), torch.ones(5, 400, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(found.xi.sum((-1, -2)), torch.ones(5, 399, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(found.xi.sum(-1), found.gamma[:, :-1], atol=1e-9)
    assert torch.allclose(found.xi.sum(-2), found.gamma[:, 1:], atol=1e-9)


def test_chains_of_different_lengths(way):
    log_b, p, start = made(3, 9, 3)
    lengths = [9, 4, 1]
    mask = torch.arange(9) < torch.tensor(lengths)[:, None]
    dirty = log_b.masked_fill(~mask[..., None], 77.0)  # what stands in bins that were not seen must not matter
    found, (path, best) = forward_backward(dirty, p, start, mask), viterbi(dirty, p, start, mask)
    for b, n in enumerate(lengths):
        alone = forward_backward(log_b[b : b + 1, :n], p, start)
        assert torch.allclose(found.gamma[b, :n], alone.gamma[0], atol=1e-12)
        assert (found.gamma[b, n:] == 0).all()
        assert torch.allclose(found.xi[b], alone.xi[0], atol=1e-12)
        assert torch.isclose(found.log_likelihood[b], alone.log_likelihood[0])
        path_b, best_b = viterbi(log_b[b : b + 1, :n], p, start)
        assert torch.equal(path[b, :n], path_b[0])
        assert (path[b, n:] == 0).all()
        assert torch.isclose(best[b], best_b[0])


def test_a_gap_inside_is_a_bin_that_says_nothing(way):
    log_b, p, start = made(1, 6, 2)
    mask = torch.tensor([[True, True, False, False, True, True]])
    found = forward_backward(log_b, p, start, mask, xi="full")
    total, gamma, xi, *_ = by_paths(log_b[0].masked_fill(~mask[0, :, None], 0.0), p, start)
    assert torch.isclose(found.log_likelihood[0], total)
    assert torch.allclose(found.gamma[0], gamma, atol=1e-12)
    assert torch.allclose(found.xi[0], xi, atol=1e-12)


def test_states_a_hundred_thousand_nats_apart_do_not_underflow(way):
    log_b = torch.tensor([[[0.0, -1e5], [-1e5, 0.0], [0.0, -1e5]]], dtype=torch.float64)
    left_to_right = torch.tensor([[0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    found = forward_backward(log_b, left_to_right)
    best = max(-1e5 + 2 * math.log(0.5), -1e5 + math.log(0.5))  # once in the wrong state, whichever
    assert found.gamma.isfinite().all()
    assert abs(float(found.log_likelihood) - best) < 2
    assert torch.allclose(found.gamma.sum(-1), torch.ones(1, 3, dtype=torch.float64))


def test_the_gradient_of_the_likelihood_is_gamma():
    log_b, p, start = made(2, 7, 3)
    log_b.requires_grad_()
    log_likelihood(log_b, p, start).sum().backward()
    assert torch.allclose(log_b.grad, forward_backward(log_b, p, start).gamma, atol=1e-12)


def test_numbers_of_the_authors_code(way):
    """inference.py of JerrySoybean/onehot-hmmglm ("logsumexp", "viterbi") on these very arrays, even start, float64."""
    t = torch.arange(7, dtype=torch.float64)
    log_b = 4 * torch.stack([-t.sin().square(), -(0.3 * t - 1).square(), -(t * 1.7).cos()], -1)[None]
    p = torch.tensor([[0.9, 0.06, 0.04], [0.1, 0.8, 0.1], [0.25, 0.05, 0.7]], dtype=torch.float64)
    found = forward_backward(log_b, p)
    assert torch.allclose(found.gamma[0, [0, 3, 6]], torch.tensor(AUTHORS_GAMMA, dtype=torch.float64), atol=1e-9)
    assert torch.allclose(found.xi[0], torch.tensor(AUTHORS_XI, dtype=torch.float64), atol=1e-9)
    assert viterbi(log_b, p)[0][0].tolist() == AUTHORS_PATH


def test_hmmlearn_agrees(way):
    hmm = pytest.importorskip("hmmlearn.hmm")
    rates, p = torch.tensor([[0.5], [4.0]]), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    counts = torch.poisson(torch.full((40, 1), 2.0))
    model = hmm.PoissonHMM(2)
    model.startprob_, model.transmat_, model.lambdas_ = torch.full((2,), 0.5).numpy(), p.double().numpy(), rates.double().numpy()
    log_b = torch.distributions.Poisson(rates[:, 0].double()).log_prob(counts.double())[None]
    likely, gamma = model.score_samples(counts.long().numpy())
    found = forward_backward(log_b, p)
    assert abs(float(found.log_likelihood) - likely) < 1e-5
    assert torch.allclose(found.gamma[0], torch.from_numpy(gamma), atol=1e-5)


def test_sampled_chains_follow_p():
    p = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.0, 0.4, 0.6]])
    z = sample_chain(200, 500, p, torch.tensor([0.0, 0.25, 0.75]), torch.Generator().manual_seed(1))
    pairs = torch.bincount((z[:, :-1] * 3 + z[:, 1:]).flatten(), minlength=9).view(3, 3).float()
    assert torch.allclose(pairs / pairs.sum(1, keepdim=True), p, atol=0.01)
    assert pairs[0, 2] == pairs[2, 0] == 0
    assert torch.allclose(torch.bincount(z[:, 0], minlength=3) / 200, torch.tensor([0.0, 0.25, 0.75]), atol=0.1)
    assert torch.equal(z, sample_chain(200, 500, p, torch.tensor([0.0, 0.25, 0.75]), torch.Generator().manual_seed(1)))


def test_bad_input_is_refused(way):
    log_b, p, start = made(2, 4, 2)
    with pytest.raises(Refused, match="transition, start: each row"):
        forward_backward(log_b, 2 * p, start)
    with pytest.raises(Refused, match="transition, start: each row"):
        viterbi(log_b, p, -start)
    with pytest.raises(Refused, match="mask: chain 1 has no bin seen"):
        forward_backward(log_b, p, start, torch.tensor([[True] * 4, [False] * 4]))
    with pytest.raises(Refused, match="chain 1 has probability 0"):
        forward_backward(log_b.index_fill(0, torch.tensor(1), -torch.inf), p, start)
    with pytest.raises(Refused, match="chain 0 has probability 0, or values that are no numbers"):
        viterbi(log_b.index_fill(0, torch.tensor(0), torch.nan), p, start)
    log_b[1, 2, 0] = torch.nan  # one alone
    for find in (forward_backward, viterbi):
        with pytest.raises(Refused, match="chain 1 has probability 0, or values that are no numbers"):
            find(log_b, p, start)
        find(log_b, p, start, torch.tensor([[True] * 4, [True, True, False, True]]))  # where nobody looks
    log_b[1, 2, 0] = 0.0
    with pytest.raises(Refused, match="xi: unknown 'all'"):
        forward_backward(log_b, p, start, xi="all")
    with pytest.raises(Refused, match="at least one chain of one bin"):
        forward_backward(log_b[:, :0], p, start)
    with pytest.raises(Refused, match="transition: must not be empty"):
        log_likelihood(log_b[..., :0], p[:0, :0])
    with pytest.raises(Refused, match="chains, length"):
        sample_chain(0, 4, p)


def test_matching_finds_the_renaming():
    truth = torch.randint(5, (300,))
    names = torch.tensor([3, 0, 4, 1, 2])  # the found label of each true one
    found = names[truth]
    found[:20] = 0  # some are wrong
    matched = match_labels(truth, found, 5)
    assert torch.equal(matched, names)
    assert (matched.argsort()[found] == truth).float().mean() > 0.9
    cost = torch.rand(4, 6)
    best = min(sum(float(cost[i, c]) for i, c in enumerate(columns)) for columns in itertools.permutations(range(6), 4))
    assert abs(float(cost[torch.arange(4), hungarian_match(cost)].sum()) - best) < 1e-6
    with pytest.raises(Refused, match="found: labels must lie in 0 … 4, got 0 … 7"):
        match_labels(truth, found.where(found != 4, 7), 5)
    with pytest.raises(Refused, match="cost: finite numbers"):
        hungarian_match(cost.T)
