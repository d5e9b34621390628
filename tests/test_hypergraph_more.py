"""The tensor form against the dense tensor, negatives made by a generator, and what the layers' two stages refuse."""

import itertools
import math

import pytest
import torch
from torch import nn

from neuropil.errors import Refused
from neuropil.interaction import hypergraph_layers as hl
from neuropil.interaction.adversarial_negatives import NegativeGenerator, draw_log_prob, generator_loss, play, scorer_loss
from neuropil.interaction.hyperedge_prediction import SetScorer, negatives, sets_as_edges
from neuropil.interaction.hypergraph import Hypergraph
from neuropil.interaction.hypergraph_tensor import TensorLayer, adjacency_tensor, contract, surjections


def mixed():
    weights = torch.tensor([1.0, 2.0, 0.5, 1.5])
    return Hypergraph.from_lists([[0, 1, 2], [1, 3], [0, 2, 3, 4], [4]], nodes=6, weights=weights)


def test_surjections_are_counted():
    for places, members in itertools.product(range(1, 6), range(1, 5)):
        ways = sum(len(set(to)) == members for to in itertools.product(range(members), repeat=places))
        assert surjections(places, members) == ways


def test_contraction_is_that_of_the_dense_tensor():
    h, x = mixed(), torch.randn(6, 3)
    A = adjacency_tensor(h)
    assert A.shape == (6,) * 4
    torch.testing.assert_close(contract(h, x), torch.einsum("abcd,bx,cx,dx->ax", A, x, x, x))
    for order in itertools.permutations(range(4)):
        assert torch.equal(A.permute(*order), A)
    torch.testing.assert_close(contract(h, torch.ones(6, 1)).squeeze(1), h.degrees)  # A 1^{M−1} = D_v
    torch.testing.assert_close(A.sum((1, 2, 3)), h.degrees)


def test_uniform_edges_multiply_the_others():
    h, x = Hypergraph.from_lists([[0, 1, 2], [1, 2, 3]]), torch.randn(4, 2)
    expected = torch.stack([x[1] * x[2], x[0] * x[2] + x[2] * x[3], x[0] * x[1] + x[1] * x[3], x[1] * x[2]])
    torch.testing.assert_close(contract(h, x), expected)
    assert adjacency_tensor(h)[0, 1, 2] == 0.5  # 1 / (M − 1)!
    graph = Hypergraph.from_lists([[0, 1], [1, 2]])
    torch.testing.assert_close(contract(graph, x[:3]), adjacency_tensor(graph) @ x[:3])


def test_a_group_differs_from_its_pairs():
    group, pairs = Hypergraph.from_lists([[0, 1, 2]]), Hypergraph.from_lists([[0, 1], [1, 2], [0, 2]])
    x = torch.randn(3, 2)
    torch.testing.assert_close(contract(pairs, x), x.sum(0) - x)
    assert not torch.allclose(contract(group, x), contract(pairs, x))
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(contract(group, x[order]), contract(group, x)[order])


def test_products_of_signs_and_gradients_of_the_layer():
    g = torch.Generator().manual_seed(0)
    h = Hypergraph.from_edges(
        torch.stack([torch.randperm(30, generator=g)[:3] for _ in range(40)]).flatten(), torch.full((40,), 3), 30
    )
    x = torch.randn(30, 2, requires_grad=True)
    layer = TensorLayer(2, 3)
    out = layer(x, h)
    out.square().sum().backward()
    assert out.shape == (30, 3) and x.grad.isfinite().all() and all(p.grad.abs().sum() > 0 for p in layer.parameters())
    signs = torch.randint(2, (30, 1), generator=g) * 2.0 - 1
    parity = contract(h, signs).squeeze(1)
    by_hand = torch.zeros(30)
    for e in range(40):
        members = h.node[h.edge == e]
        for v in members:
            by_hand[v] += math.prod(float(signs[u]) for u in members if u != v)
    torch.testing.assert_close(parity, by_hand)


def test_tensor_refusals():
    with pytest.raises(Refused, match=r"h: its largest hyperedge must have 2 … 16 members, got 17"):
        contract(Hypergraph.from_lists([list(range(17))]), torch.ones(17, 1))
    with pytest.raises(Refused, match=r"h: its tensor has 300\^3 numbers"):
        adjacency_tensor(Hypergraph.from_lists([[0, 1, 2]], nodes=300))


def blocks(groups=6, size=8, edges=120, seed=0):
    """Hyperedges of 3 or 4 members within groups, and states that tell the groups apart."""
    g = torch.Generator().manual_seed(seed)
    lists = []
    for _ in range(edges):
        first = int(torch.randint(groups, (), generator=g)) * size
        lists.append((first + torch.randperm(size, generator=g)[: 3 + int(torch.randint(2, (), generator=g))]).tolist())
    x = torch.eye(groups).repeat_interleave(size, 0) + 0.1 * torch.randn(groups * size, groups, generator=g)
    return Hypergraph.from_lists(lists, nodes=groups * size), x


def test_made_sets_and_their_chances():
    maker = NegativeGenerator(10)
    sizes = torch.tensor([2, 5, 10])
    sets, log_prob = maker(sizes, torch.Generator().manual_seed(1))
    assert (sets >= 0).sum(1).tolist() == [2, 5, 10]
    assert all(len(set(row[row >= 0].tolist())) == n for row, n in zip(sets, sizes.tolist(), strict=True))
    assert torch.equal(sets, maker(sizes, torch.Generator().manual_seed(1))[0])
    p = torch.tensor([0.5, -1.0, 0.2, 0.0])
    orders = torch.tensor(list(itertools.permutations(range(4), 2)))
    chance = draw_log_prob(p.expand(12, 4), orders).sum(1).exp()
    assert float(chance.sum()) == pytest.approx(1, abs=1e-6)
    nn.init.zeros_(maker.mlp[-1].weight)
    maker.mlp[-1].bias.data = torch.cat([p, torch.full((6,), -torch.inf)])
    drawn = maker(torch.full((20_000,), 2), torch.Generator().manual_seed(2))[0]
    seen = (drawn[:, None] == orders).all(-1).double().mean(0)  # frequencies are the chances
    assert (seen - chance).abs().max() < 4 * 0.5 / math.sqrt(20_000)
    maker = NegativeGenerator(10)
    sets, log_prob = maker(sizes)
    generator_loss(SetScorer(4, 8), torch.randn(10, 4), sets, log_prob)[0].backward()
    assert all(p.grad.abs().sum() > 0 for p in maker.parameters())
    with pytest.raises(Refused, match="sets: at least 2"):
        generator_loss(SetScorer(4, 8), torch.randn(10, 4), sets[:1], log_prob[:1])
    for call, says in (
        (lambda: NegativeGenerator(1), "nodes, tau: at least 2 nodes"),
        (lambda: maker(torch.tensor([11])), "sizes: must lie in 1 … 10 nodes, got 11 … 11"),
    ):
        with pytest.raises(Refused, match=says):
            call()


def test_the_generator_learns_to_look_like_edges():
    """A scorer that was taught by sized negatives takes learned ones for hyperedges far more often."""
    h, x = blocks()
    g = torch.Generator().manual_seed(2)
    scorer, maker = SetScorer(6, 16), NegativeGenerator(48)
    step = torch.optim.Adam(scorer.parameters(), 1e-2)
    for _ in range(100):
        step.zero_grad()
        scorer_loss(scorer, x, h, negatives(h, "SNS", 64, g)).backward()
        step.step()

    def taken(sets):
        with torch.no_grad():
            return float(scorer(x, sets_as_edges(sets, 48)).sigmoid().mean())

    sizes = h.sizes[torch.randint(h.edges, (200,), generator=g)]
    assert taken(negatives(h, "SNS", 200, g)) < 0.2
    before = taken(maker(sizes, g)[0])
    learn = torch.optim.Adam(maker.parameters(), 1e-2)
    for _ in range(200):
        learn.zero_grad()
        generator_loss(scorer, x, *maker(sizes, g))[0].backward()
        learn.step()
    after = taken(maker(sizes, g)[0])
    assert before < 0.2 and after > 0.8


def test_playing_in_turns():
    h, x = blocks()
    torch.manual_seed(3)
    losses = play(NegativeGenerator(48), SetScorer(6, 16), x, h, steps=100, lr=1e-2, generator=torch.Generator().manual_seed(3))
    assert len(losses) == 100 and all(math.isfinite(a) and math.isfinite(b) for a, b in losses)
    scorer = [a for a, _ in losses]
    assert min(scorer) < scorer[0] - 0.3  # it learns
    with pytest.raises(Refused, match="h: needs hyperedges"):
        play(NegativeGenerator(4), SetScorer(2, 4), torch.ones(4, 2), Hypergraph.from_lists([], nodes=4), steps=1)


H, ONES = Hypergraph.from_lists([[0, 1], [1, 2, 3]]), torch.ones  # 4 nodes, 2 edges, 5 pairs
OWNER = torch.tensor([0, 0, 1, 1, 1])


@pytest.mark.parametrize(
    ("says", "call"),
    [
        ("t: the hypergraph has 4 nodes, got 5 rows", lambda: hl.HGNN(3, 2).f_VE(ONES(5, 2), H)),
        ("t: the hypergraph has 4 nodes, got 1 rows", lambda: hl.UniSAGE(3, 2).f_EV(ONES(1, 2), ONES(2, 2), H)),
        ("t: the last axis must have 2 numbers", lambda: hl.UniSAGE(3, 2).f_EV(ONES(4, 1), ONES(2, 2), H)),
        ("z: the hypergraph has 2 edges, got 3 rows", lambda: hl.HGNN(3, 2).f_EV(ONES(4, 2), ONES(3, 2), H)),
        ("z: must be torch.float32", lambda: hl.HNHN(3, 2).f_EV(ONES(4, 2), ONES(2, 2).half(), H)),
        ("z: the last axis must have 4 numbers", lambda: hl.UniGAT(3, 4, heads=2).f_EV(ONES(4, 4), ONES(2, 2), H)),
        ("t = x: must be torch.float32", lambda: hl.AllDeepSets(3, 2, hidden=8)(ONES(4, 3).double(), H)),
        ("t = x: the last axis must have 3 numbers", lambda: hl.AllSetTransformer(3, 4)(ONES(4, 2), H)),
        ("t = x: the last axis must have 3 numbers", lambda: hl.WHATsNet(3, 4)(ONES(4, 2), H)),
        ("x0: the last axis must have 5 numbers", lambda: hl.EDHNN(3, 2, 8, 0.5, d0=5)(ONES(4, 3), H, ONES(4, 4))),
        ("s: the hypergraph has 2 edges, got 4 rows", lambda: hl.SetPool(3, 4, 2)(ONES(4, 3), H, back=True)),
        ("query: must be that of all n = 2 sets", lambda: hl.MAB(3, 3, 4, 2).pool(ONES(3, 1, 3), ONES(5, 3), OWNER, 2)),
        ("owner, n: .* got 1 at place 2", lambda: hl.MAB(3, 3, 4, 2).pool(ONES(1, 1, 3), ONES(5, 3), OWNER, 1)),
        (r"owner: must lie in 0 … 0", lambda: hl.MAB(3, 3, 4, 2).look(ONES(5, 3), ONES(1, 2, 3), OWNER)),
        ("key: the last axis must have 3 numbers", lambda: hl.MAB(3, 3, 4, 2).look(ONES(5, 3), ONES(2, 2, 1), OWNER)),
    ],
)
def test_what_does_not_fit_a_stage_is_named(says, call):
    with pytest.raises(Refused, match=f"^{says}"):
        call()


def test_a_look_in_inference_mode_does_not_hinder_training():
    net, x = hl.HGNN(3, 2), torch.randn(H.nodes, 3)
    fresh = Hypergraph(H.links, H.weights)
    with torch.inference_mode():
        seen = net(x, fresh)
    y = net(x, fresh)
    y.square().sum().backward()
    assert torch.equal(seen, y) and all(p.grad is not None for p in net.parameters())
