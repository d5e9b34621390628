"""The switching GLM: history without the present, one state is a plain GLM, EM that never loses, the authors' numbers."""

import itertools
import math

import pytest
import torch
from torch.nn.functional import softplus

from neuropil.brain.hmm_glm import HMMGLM, GaussianCouplings, OneHotCouplings, expected_log_likelihood, history, transition_from
from neuropil.brain.spikes import poisson_nll
from neuropil.data.spike_simulators import (
    ACTIVATIONS,
    SwitchingNetwork,
    coupled_poisson,
    exponential_kernel,
    stay_or_switch,
    switching_network,
    switching_spikes,
)
from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.choice import gumbel_simplex_log_prob
from neuropil.numerics.hidden_markov import forward_backward
from neuropil.numerics.matching import match_labels

AUTHORS_PRIOR = -42.44892120361328
AUTHORS_RATES = [
    [[0.5249792, 0.450166, 0.5744425], [0.4321889, 0.3594903, 0.5744425], [0.4780985, 0.4774958, 0.3463461]],
    [[0.5249792, 0.450166, 0.5744425], [0.4702578, 0.2620176, 0.5744425], [0.4974353, 0.2404224, 0.3515193]],
]  # (state, bins 0, 1 and 7, neuron)


@pytest.fixture(scope="module")
def spikes():
    generator = torch.Generator().manual_seed(5)
    network = switching_network(6, 2, generator, stay=0.97)
    return network, *switching_spikes(network, 6, 300, generator)


def test_history_does_not_see_the_present():
    x, kernel = torch.poisson(torch.ones(2, 20, 3)), exponential_kernel(4)
    past = history(x, kernel)
    changed = x.clone()
    changed[:, 9:] += 1.0
    later = history(changed, kernel)
    assert torch.equal(past[:, :10], later[:, :10])  # bin 9 is before bin 10 and not before itself
    assert (past[:, 10] != later[:, 10]).all()
    by_hand = sum(kernel[k - 1] * x[:, 12 - k] for k in range(1, 5))
    assert torch.allclose(past[:, 12], by_hand)
    assert (past[:, 0] == 0).all()


def test_rates_of_the_simulator_are_those_of_the_model(spikes):
    network, *_ = spikes
    states = torch.randint(2, (3, 40))
    x, f = coupled_poisson(network, states, torch.Generator().manual_seed(0))
    drive = torch.einsum("btnm,btm->btn", network.weights[states], history(x, network.kernel)) + network.bias
    assert torch.allclose(f, drive.sigmoid(), atol=1e-6)
    long, rates = coupled_poisson(network, torch.zeros(50, 400, dtype=torch.long), torch.Generator().manual_seed(0))
    assert torch.allclose(long.mean((0, 1)), rates.mean((0, 1)), rtol=0.03)


def test_networks_follow_the_law():
    net = switching_network(60, 4, torch.Generator().manual_seed(0))
    share = torch.bincount(net.adjacency.flatten() + 1, minlength=3) / net.adjacency.numel()
    assert torch.allclose(share, torch.tensor([0.1, 0.8, 0.1]), atol=0.02)
    together = ((net.adjacency[0] == 1) & (net.adjacency[1] == 1)).float().mean()
    assert (
        abs(float(together) - 0.04) < 0.015
    )  # E π² of Dirichlet(0.2, 1.6, 0.2) is 0.2 · 1.2 / (2 · 3); without sharing it were 0.01
    strength = net.weights[net.adjacency != 0].abs()
    assert float(strength.max()) <= math.log(4) + 1e-6
    assert abs(float(strength.mean()) - (4 * math.log(4) - 3) / 3) < 0.03  # mean of log(1 + 3u)
    assert (net.bias.abs() <= 0.05).all()


def test_numbers_of_the_authors_code():
    """JerrySoybean/onehot-hmmglm: `firing_rates` ("hard") of deprecated/model.py, and the density of distributions.py.

    The former's `adjacency_prior_log_likelihood` gives −37.9176 here: it hands on π where its density takes log π.
    """
    i = torch.arange(18.0).view(2, 3, 3)
    made = OneHotCouplings(2, 3, tau=0.2, temperature=0.2)
    with torch.no_grad():
        made.adjacency.copy_(torch.stack([(i * 1.3).sin(), (i * 0.7).cos(), (i * 2.1).sin()], -1))
        made.w.copy_((i * 0.9).cos())
        made.prior.copy_(torch.stack([i[0].cos(), i[0].sin(), 0 * i[0]], -1))
    assert abs(float(made.log_prior().detach()) - AUTHORS_PRIOR) < 1e-4
    as_demo = gumbel_simplex_log_prob(made.adjacency.detach().softmax(-1), made.prior.detach().softmax(-1), 0.2)
    assert abs(float(as_demo.sum()) + 37.917633) < 1e-4
    x = torch.tensor([[[(3 * t + 5 * n + t * n) % 4 // 2 for n in range(3)] for t in range(8)]], dtype=torch.float32)
    drive = history(x, exponential_kernel(5))[0] @ made.weights().mT + torch.tensor([0.1, -0.2, 0.3])
    assert torch.allclose(drive.sigmoid()[:, [0, 1, 7]], torch.tensor(AUTHORS_RATES), atol=1e-6)


@pytest.mark.parametrize("activation", ["sigmoid", "softplus"])
def test_expected_log_likelihood_and_its_gradient(activation):
    m, s, n = 3000, 3, 4  # more than one block of rows
    w, b = (0.5 * torch.randn(s, n, n)).double().requires_grad_(), torch.randn(s, n).double().requires_grad_()
    h, x, gamma = torch.rand(m, n).double(), torch.poisson(torch.ones(m, n)).double(), torch.randn(m, s).double().softmax(-1)
    rate = ACTIVATIONS[activation](torch.einsum("tm,snm->tsn", h, w) + b)
    plain = (gamma[..., None] * (x[:, None] * rate.log() - rate)).sum()
    ours = expected_log_likelihood(w, b, h, x, gamma, activation)
    assert torch.isclose(ours, plain)
    for found, wanted in zip(
        torch.autograd.grad(ours, (w, b), torch.tensor(2.0).double()), torch.autograd.grad(2 * plain, (w, b)), strict=True
    ):
        assert torch.allclose(found, wanted)


def test_one_state_is_a_plain_poisson_glm(spikes):
    """Its likelihood is the sum over bins, and its optimum that of a solver which knows nothing of hidden states."""
    network, x = spikes[0], spikes[1][:3]
    model = HMMGLM(1, "naive", sweeps=1, steps=250, lr=0.05).fit(x)
    past = history(x, network.kernel).double().flatten(0, 1)
    w, b = torch.zeros(6, 6, dtype=torch.float64, requires_grad=True), torch.zeros(6, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([w, b], max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        solver.zero_grad()
        value = poisson_nll((past @ w.T + b).sigmoid().log(), x.flatten(0, 1)).mean()
        value.backward()
        return value

    solver.step(loss)
    assert abs(-float(loss().detach()) * x.numel() / float(model.log_likelihood(x).sum()) - 1) < 1e-4
    assert torch.allclose(model.weights_[0].double(), w.detach(), atol=0.02)
    assert torch.allclose(model.bias_[0].double(), b.detach(), atol=0.02)
    assert (model.predict_proba(x) == 1).all()
    assert torch.equal(model.transition_, torch.ones(1, 1))
    assert abs(model.score(x) - float(model.log_likelihood(x).sum() / x.sum())) < 1e-6


def test_em_with_an_exact_m_step_never_lowers_the_likelihood():
    """Static rates: r_s = Σ γ x / Σ γ and P ∝ ξ are the exact maximum."""
    z = torch.randint(3, (4, 10)).repeat_interleave(20, 1)
    x = torch.poisson(torch.tensor([0.3, 1.0, 4.0])[z]).double()
    rates, p = torch.tensor([0.5, 0.9, 1.1], dtype=torch.float64), stay_or_switch(3, 0.5).double()
    found = []
    for _ in range(40):
        post = forward_backward(-poisson_nll(rates.log().expand(4, 200, 3).contiguous(), x[..., None].expand(4, 200, 3)), p)
        found.append(float(post.log_likelihood.sum()))
        rates, p = (post.gamma * x[..., None]).sum((0, 1)) / post.gamma.sum((0, 1)), transition_from(post.xi.sum(0), -700.0)
    assert all(after >= before - 1e-9 for before, after in itertools.pairwise(found))
    assert found[-1] > found[0] + 50
    assert torch.allclose(rates.sort().values, torch.tensor([0.3, 1.0, 4.0], dtype=torch.float64), rtol=0.3)


def test_the_density_of_the_prior_integrates_to_one():
    """On a grid in the logits of the simplex: da = a_1 a_2 a_3 dl, as near to the corners as the density reaches."""
    u = torch.linspace(-60, 60, 601, dtype=torch.float64)
    logits = torch.stack([*torch.meshgrid(u, u, indexing="ij"), torch.zeros(601, 601, dtype=torch.float64)], -1)
    a = logits.softmax(-1)
    log_density = gumbel_simplex_log_prob(a, torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64).log(), 0.5)
    total = (log_density + logits.log_softmax(-1).sum(-1)).exp().sum() * 0.04
    assert abs(float(total) - 1) < 1e-3


def test_the_guard_halves_extreme_logits():
    made = OneHotCouplings(1, 1, 0.2, 0.2)
    with torch.no_grad():
        made.adjacency.copy_(torch.tensor([0.0, 30.0, 0.0]))
        made.prior.copy_(torch.tensor([0.0, 8.0, -8.0]))
    made.guard()
    assert made.adjacency.flatten().tolist() == [0, 15, 0]
    assert made.prior.flatten().tolist() == [0, 8, -8]


@pytest.mark.parametrize("prior", ["naive", "gaussian", "one-hot"])
def test_known_states_give_the_weights_back(spikes, prior):
    network, x, z = spikes
    start = torch.nn.functional.one_hot(z, 2).float()
    model = HMMGLM(2, prior, sweeps=3, steps=80, lr=0.05, seed=1).fit(x, start=start)
    names = match_labels(z, model.predict(x), 2)
    assert names.tolist() == [0, 1]
    assert float((model.predict(x) == z).float().mean()) > 0.7
    error = (model.weights_ - network.weights).square().mean()
    assert float(error) < 0.5 * float(network.weights.square().mean())
    assert torch.allclose(model.predict_proba(x).sum(-1), torch.ones(6, 300), atol=1e-5)
    assert model.log_likelihoods_[-1] > HMMGLM(1, "naive", sweeps=1, steps=100, lr=0.05).fit(x).log_likelihoods_[-1]


def test_the_gaussian_prior_ties_the_states(spikes):
    made = GaussianCouplings(2, 1, sigma=0.5)
    with torch.no_grad():
        made.w.copy_(torch.tensor([[[1.0]], [[2.0]]]))
    assert abs(float(made.log_prior().detach()) - 2 * (-math.log(0.5) - 0.5 * math.log(2 * math.pi) - 0.5)) < 1e-6
    start = torch.nn.functional.one_hot(spikes[2], 2).float()
    apart = [
        float(HMMGLM(2, "gaussian", sigma=sigma, sweeps=1, steps=60, lr=0.05).fit(spikes[1], start=start).weights_.std(0).mean())
        for sigma in (1.0, 0.01)
    ]
    assert apart[1] < 0.2 * apart[0]


def test_a_fit_goes_on_from_another(spikes):
    """It begins with that one's weights, up to none for small ones where the prior is one-hot."""
    _, x, _ = spikes
    first = HMMGLM(2, "gaussian", sweeps=2).fit(x)
    same = HMMGLM(2, "naive", sweeps=1, steps=1, lr=1e-9).fit(x, start=first)
    assert torch.allclose(same.weights_, first.weights_, atol=1e-6)
    cut = HMMGLM(2, "one-hot", sweeps=1, steps=1, lr=1e-9).fit(x, start=first)
    half = 0.5 * math.log(2)
    assert torch.equal(cut.adjacency_, (first.weights_ > half).long() - (first.weights_ < -half).long())
    assert torch.allclose(cut.weights_, first.weights_ * (first.weights_.abs() > half), atol=1e-5)


def test_ragged_trials_are_as_alone(spikes):
    """What stands in bins that were not seen does not matter, in fitting or scoring."""
    _, x, _ = spikes
    mask = torch.arange(300) < torch.tensor([300, 120, 300, 40, 1, 299])[:, None]
    dirty = torch.where(mask[..., None], x, torch.full_like(x, 9.0))
    options = {"states": 2, "prior": "gaussian", "sweeps": 2, "steps": 10}
    one, other = (HMMGLM(**options).fit(counts, mask=mask) for counts in (x, dirty))
    assert torch.equal(one.weights_, other.weights_)
    short = one.log_likelihood(x[1:2, :120])
    assert torch.allclose(one.log_likelihood(dirty, mask)[1:2], short)
    assert torch.equal(one.predict(dirty, mask)[1, :120], one.predict(x[1:2, :120])[0])
    assert not torch.equal(one.weights_, HMMGLM(**options).fit(x).weights_)


def test_self_coupling_and_bias_options(spikes):
    _, x, _ = spikes
    model = HMMGLM(2, self_coupling=False, bias="state", sweeps=2, steps=5).fit(x)
    assert (model.weights_.diagonal(dim1=1, dim2=2) == 0).all()
    assert (model.adjacency_.diagonal(dim1=1, dim2=2) == 0).all()
    assert not torch.equal(model.bias_[0], model.bias_[1])
    shared = HMMGLM(2, sweeps=2, steps=5).fit(x)
    assert torch.equal(shared.bias_[0], shared.bias_[1])


def test_a_seed_gives_the_same_fit_and_restarts_keep_the_best(spikes):
    _, x, _ = spikes
    options = {"states": 2, "sweeps": 2, "steps": 5, "seed": 3}
    one, again = (HMMGLM(**options).fit(x) for _ in range(2))
    assert torch.equal(one.weights_, again.weights_)
    assert HMMGLM(restarts=3, **options).fit(x).log_likelihoods_[-1] >= one.log_likelihoods_[-1]
    copy = OneHotCouplings(2, 6, 0.2, 0.2)
    copy.load_state_dict(one.couplings_.state_dict())
    assert torch.equal(copy.weights(), one.weights_)


def test_scikit_learns_manner(spikes):
    _, x, _ = spikes
    model = HMMGLM(2, "naive", sweeps=1, steps=2)
    assert model.get_params()["prior"] == "naive"
    assert model.set_params(prior="gaussian").prior == "gaussian"
    assert isinstance(model.fit(x.numpy()).score(x.numpy()), float)
    base = pytest.importorskip("sklearn.base")
    assert base.clone(model).get_params() == model.get_params()


def test_transitions_in_closed_form():
    pairs = torch.tensor([[90.0, 10.0, 0.0], [5.0, 5.0, 10.0], [0.0, 0.0, 0.0]])
    p = transition_from(pairs)
    assert torch.allclose(p.sum(1), torch.ones(3))
    assert torch.allclose(p[0], torch.tensor([0.9, 0.1, math.exp(-8)]) / (1 + math.exp(-8)))
    assert torch.allclose(p[2], torch.full((3,), 1 / 3))


def test_bad_input_is_refused(spikes):
    network, x, z = spikes
    for options, message in (
        ({"prior": "onehot"}, "prior: unknown 'onehot'; did you mean 'one-hot'"),
        ({"activation": "relu"}, "activation: unknown"),
        ({"bias": "none"}, "bias: unknown"),
        ({"states": 0}, "states: at least 1, got 0"),
        ({"sweeps": 0}, "sweeps: at least 1"),
        ({"lr": -1.0}, "lr: must be positive"),
        ({"tau": 0.0}, "tau: must be positive"),
        ({"stay": 1.5}, "stay"),
    ):
        with pytest.raises(Refused, match=message):
            HMMGLM(**options).fit(x)
    fitted = HMMGLM(2, sweeps=1, steps=1).fit(x)
    with pytest.raises(Refused, match=r"counts: must be \(trials, bins, neurons\)"):
        fitted.predict(x[0])
    with pytest.raises(Refused, match="counts: must not be negative, got -1"):
        fitted.predict(x - 1)
    with pytest.raises(Refused, match="counts: the model knows 6 neurons, got 5"):
        fitted.score(x[..., :5])
    with pytest.raises(Refused, match=r"^counts: log_emission: chain 0 has probability 0"):
        HMMGLM(2, sweeps=1, steps=1).fit(1e30 * x)
    with pytest.raises(Refused, match=r"^pairs: must not be empty"):
        transition_from(torch.zeros(0, 0))
    with pytest.raises(Refused, match="counts: contains NaN"):
        fitted.fit(x * torch.nan)
    with pytest.raises(Refused, match="at least one spike"):
        fitted.score(0 * x)
    with pytest.raises(Refused, match=r"start: must have shape \(6, 300, 2\)"):
        fitted.fit(x, start=torch.ones(6, 300, 3))
    with pytest.raises(Refused, match="start: a model of 2 states and 6 neurons is needed"):
        fitted.fit(x, start=HMMGLM(3, sweeps=1, steps=1).fit(x))
    with pytest.raises(Refused, match="mask: must have shape"):
        fitted.predict(x, mask=torch.ones(6, 30, dtype=torch.bool))
    with pytest.raises(Refused, match="states: must lie in 0 … 1, got 0 … 5"):
        coupled_poisson(network, z * 5, torch.Generator())
    with pytest.raises(Refused, match="bins"):
        exponential_kernel(0)
    with pytest.raises(Refused, match="states, stay"):
        stay_or_switch(2, 1.5)
    with pytest.raises(Refused, match="activation"):
        switching_network(2, 2, torch.Generator(), activation="relu")


def test_it_runs_in_the_network_s_own_words():
    """Strengths near 0 and rates near 0 stay finite: a silent neuron, softplus."""
    x = torch.poisson(torch.full((2, 100, 3), 0.2))
    x[..., 0] = 0
    model = HMMGLM(2, activation="softplus", sweeps=3, steps=50, lr=0.5).fit(x)
    assert model.weights_.isfinite().all()
    assert math.isfinite(model.score(x))
    quiet = SwitchingNetwork(
        -50 * softplus(torch.ones(1, 2, 2)),
        -torch.ones(1, 2, 2).long(),
        torch.zeros(2),
        torch.ones(1, 1),
        exponential_kernel(2),
        "softplus",
    )
    counts, rates = coupled_poisson(quiet, torch.zeros(1, 50, dtype=torch.long), torch.Generator().manual_seed(0))
    assert counts.isfinite().all()
    assert rates.isfinite().all()


@pytest.mark.parametrize("claim", select("onehot-hmm-glm"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(math.isfinite(row[side]) for side in ("method", "baseline"))
