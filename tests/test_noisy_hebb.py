"""Sparse binary memories and the rule that learns them."""

import pytest
import torch

from neuropil.errors import Refused
from neuropil.memory.noisy_hebb import ConsolidatedHebb, agreement, theta_bound
from neuropil.memory.willshaw import (
    active,
    cliques,
    clustered_messages,
    density,
    erase_clusters,
    insert_erase,
    recall,
    recall_clique,
    sparse_messages,
    sum_of_max,
    willshaw,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_plain_hebb_without_noise_is_willshaws_matrix():
    messages = sparse_messages(40, 100, 5, seeded())
    learned = ConsolidatedHebb(theta=1.0).learn(messages, epochs=1, generator=seeded())
    assert torch.equal(learned.W, willshaw(messages))


@pytest.mark.parametrize("rule", [ConsolidatedHebb(), ConsolidatedHebb(steps=2, energy=6)])
def test_links_are_symmetric_without_self_links_and_permanent(rule):
    messages = sparse_messages(40, 100, 5, seeded())
    early = rule.learn(messages, 4, 0.02, 0.1, seeded())
    late = rule.learn(messages, 4, 0.02, 0.1, seeded(1), start=early)
    for W in (early.W, late.W):
        assert torch.equal(W, W.T) and not W.diagonal().any()
    assert (late.W >= early.W).all() and late.W.sum() > early.W.sum()
    assert len(late.activity) == 8


def test_a_link_needs_theta_co_activities_and_decay_comes_once_an_epoch():
    message = torch.tensor([[1.0, 1.0, 0.0]])
    rule = ConsolidatedHebb(theta=4.0, decay=0.9)
    counts = [float(rule.learn(message.repeat(2, 1), epochs).counters[0, 1]) for epochs in (1, 2)]
    assert counts == pytest.approx([2 * 0.9, (2 * 0.9 + 2) * 0.9], rel=1e-5)
    assert not rule.learn(message.repeat(2, 1), 2).W.any()  # 3.8 co-activities are fewer than 4
    assert rule.learn(message.repeat(2, 1), 3).W.sum() == 2


def test_interrupted_learning_goes_on_as_if_it_had_not_been():
    messages, rule = sparse_messages(30, 80, 5, seeded()), ConsolidatedHebb()
    generator = seeded(3)
    whole = rule.learn(messages, 6, 0.02, 0.1, seeded(3))
    half = rule.learn(messages, 3, 0.02, 0.1, generator)
    assert torch.equal(rule.learn(messages, 3, 0.02, 0.1, generator, start=half).W, whole.W)


def test_noise_has_the_given_rates():
    x = torch.zeros(200, 500)
    x[:, :250] = 1
    noisy = insert_erase(x, p_i=0.02, p_e=0.3, generator=seeded())
    assert float(noisy[:, :250].mean()) == pytest.approx(0.7, abs=0.01)
    assert float(noisy[:, 250:].mean()) == pytest.approx(0.02, abs=0.003)


def test_ties_stay_ties():
    assert active(torch.tensor([1.0, 1.0, 1.0, 0.0]), 1).tolist() == [1, 1, 1, 0]
    W = cliques(torch.tensor([[1.0, 0, 1, 0], [1.0, 0, 0, 1]]), c=2)  # unit 0 is linked to both units of the other cluster
    assert recall_clique(torch.tensor([[1.0, 0, 0, 0]]), W, c=2, steps=1).tolist() == [[1, 0, 1, 1]]


def test_recall_does_not_hold_the_cue():
    """A wrong unit of the cue is dropped."""
    messages = sparse_messages(5, 60, 6, seeded())
    cue = messages.clone()
    cue[torch.arange(5), (messages == 0).int().argmax(1)] = 1
    assert torch.equal(recall(cue, willshaw(messages), 6), messages)


def test_cliques_have_no_links_inside_a_cluster_and_follow_the_density():
    W = cliques(clustered_messages(500, 4, 16, seeded()), c=4)
    inside = torch.block_diag(*[torch.ones(16, 16)] * 4)
    assert not (W * inside).any() and torch.equal(W, W.T)
    assert float(W.sum() / (1 - inside).sum()) == pytest.approx(density(500, 16), abs=0.02)


def test_sum_of_max_counts_each_cluster_once():
    messages = clustered_messages(300, 5, 8, seeded())
    score = sum_of_max(torch.ones(1, 40), cliques(messages, 5), 5, gamma=0.0)
    assert score.max() <= 4
    own = sum_of_max(messages, cliques(messages, 5), 5)
    assert (own[messages > 0] == 5).all()  # four other clusters and the unit itself


def test_cliques_complete_erased_clusters():
    messages = clustered_messages(50, 8, 32, seeded())
    cues = erase_clusters(messages, 8, 3, seeded(1))
    assert cues.sum() == 50 * 5
    assert torch.equal(recall_clique(cues, cliques(messages, 8), 8), messages)


def test_what_is_learned_is_of_the_messages_kind():
    messages = sparse_messages(10, 30, 4, seeded())
    one, other = (ConsolidatedHebb(steps=1, theta=1.0).learn(x, 2, generator=seeded()) for x in (messages, messages.double()))
    assert other.W.dtype == other.counters.dtype == torch.float64 and torch.equal(other.W, one.W.double())


def test_theta_bound_grows_with_noise():
    bounds = [theta_bound(1800, p, 8, 400) for p in (0.0, 0.01, 0.05)]
    assert bounds[0] == 1 and bounds[0] < bounds[1] < bounds[2]


def test_agreement_counts_links():
    W, target = torch.tensor([[0.0, 1], [1, 0]]), torch.tensor([[0.0, 1], [1, 0]])
    assert agreement(W, target) == (1.0, 1.0)
    assert agreement(torch.zeros(2, 2), target) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: sparse_messages(3, 4, 5), "k:"),
        (lambda: clustered_messages(3, 0, 5), "c, l"),
        (lambda: insert_erase(torch.zeros(1, 2), 1.5, 0.0), "p_i"),
        (lambda: willshaw(torch.tensor([[0.5, 1.0]])), "messages"),
        (lambda: cliques(torch.zeros(1, 5), 2), "c:"),
        (lambda: erase_clusters(torch.zeros(1, 6), 3, 4), "erased"),
        (lambda: ConsolidatedHebb(theta=0.0), "theta"),
    ],
)
def test_bad_input_names_the_argument(make, name):
    with pytest.raises(Refused, match=name):
        make()
