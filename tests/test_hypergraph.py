"""Hypergraphs: the card's exact invariants, every layer, DeepHypergraph's numbers on the same weights, drawing of negatives."""

import math
import subprocess
import sys

import networkx
import numpy as np
import pytest
import torch

from neuropil.errors import Refused
from neuropil.interaction import hyperedge_prediction as hp
from neuropil.interaction import hypergraph_features as hf
from neuropil.interaction import hypergraph_layers as hl
from neuropil.interaction.hypergraph import Hypergraph, Pairs
from neuropil.interaction.message_passing import gcn_links, smooth
from neuropil.lab.claims import select
from neuropil.lab.run import measure

EDGES = [[0, 1, 2], [2, 3], [1, 3, 4, 5], [0, 5]]
LAYERS = {
    "HGNN": lambda d, o: hl.HGNN(d, o),
    "HGNNPlus": lambda d, o: hl.HGNNPlus(d, o),
    "HyperGCN": lambda d, o: hl.HyperGCN(d, o),
    "HNHN": lambda d, o: hl.HNHN(d, o, alpha=0.5, beta=-0.5),
    "HypergraphAttention": lambda d, o: hl.HypergraphAttention(d, o, heads=2),
    "UniGCN": lambda d, o: hl.UniGCN(d, o),
    "UniGAT": lambda d, o: hl.UniGAT(d, o, heads=2),
    "UniSAGE": lambda d, o: hl.UniSAGE(d, o),
    "UniGIN": lambda d, o: hl.UniGIN(d, o, train_eps=True),
    "AllDeepSets": lambda d, o: hl.AllDeepSets(d, o, hidden=8),
    "AllSetTransformer": lambda d, o: hl.AllSetTransformer(d, o, heads=2),
    "EDHNN": lambda d, o: hl.EDHNN(d, o, hidden=8),
    "WHATsNet": lambda d, o: hl.WHATsNet(d, o, heads=2),
}
OWN = {"HyperGCN", "UniSAGE", "UniGIN"}  # whose isolated nodes keep their own features
LINEAR = ["HGNN", "HGNNPlus"]


def wave(*shape: int) -> torch.Tensor:
    """Numbers that need no generator: sin 1, sin 2, …"""
    return torch.sin(torch.arange(1, math.prod(shape) + 1, dtype=torch.float32)).view(shape)


@pytest.fixture
def h() -> Hypergraph:
    return Hypergraph.from_lists(EDGES, nodes=7, weights=torch.tensor([1.0, 2.0, 0.5, 1.5]))


def dense(h: Hypergraph) -> tuple[torch.Tensor, ...]:
    """H, W, D_v, D_e as matrices, float64."""
    H = torch.zeros(h.nodes, h.edges, dtype=torch.float64)
    H[h.node, h.edge] = 1
    W = h.weights.double().diag()
    return H, W, (H @ W).sum(1).diag(), H.sum(0).diag()


def random_hypergraph(n: int, m: int, sizes: tuple[int, int], seed: int) -> Hypergraph:
    g = torch.Generator().manual_seed(seed)
    size = torch.randint(*sizes, (m,), generator=g)
    rows = torch.rand(m, n, generator=g).argsort(1)
    return Hypergraph.from_edges(rows[torch.arange(n) < size[:, None]], size, nodes=n)


# Structure


def test_all_ways_of_building_agree(h):
    members, sizes = np.concatenate(EDGES), np.array([len(e) for e in EDGES])
    shuffled = torch.randperm(len(members), generator=torch.Generator().manual_seed(0))
    node, edge = torch.from_numpy(members)[shuffled], torch.arange(4).repeat_interleave(torch.from_numpy(sizes))[shuffled]
    for other in (Hypergraph.from_edges(members, sizes, 7), Hypergraph.from_pairs(node, edge, 7)):
        assert torch.equal(other.node, h.node)
        assert torch.equal(other.edge, h.edge)
    H, _, D_v, D_e = dense(h)
    assert torch.allclose(h.degrees.double(), D_v.diagonal())
    assert torch.equal(h.sizes, D_e.diagonal().long())
    assert torch.equal(h.counts, H.sum(1).long())
    assert h.to("cpu").edges == 4


def test_bad_hyperedges_are_named():
    with pytest.raises(Refused, match="node: 9 in hyperedge 1 is out of range 0 … 3"):
        Hypergraph.from_lists([[0, 1], [2, 9]], nodes=4)
    with pytest.raises(Refused, match="hyperedge 1 has no members"):
        Hypergraph.from_lists([[0, 1], [], [2]])
    with pytest.raises(Refused, match="node: 1 is named twice in hyperedge 0"):
        Hypergraph.from_lists([[1, 0, 1]])
    with pytest.raises(Refused, match="sizes: must be ≥ 0 and add up to the 3 members, got a sum of 4"):
        Hypergraph.from_edges(torch.tensor([0, 1, 2]), torch.tensor([2, 2]))
    with pytest.raises(Refused, match="edge: 5 at pair 0 is out of range 0 … 1"):
        Hypergraph.from_pairs(torch.tensor([0]), torch.tensor([5]), edges=2)
    with pytest.raises(Refused, match="weights: one for each of the 1"):
        Hypergraph.from_lists([[0, 1]], weights=torch.ones(2))
    with pytest.raises(Refused, match="the hypergraph has 2 nodes, got 3 rows"):
        hl.HGNN(1, 1)(torch.ones(3, 1), Hypergraph.from_lists([[0, 1]]))
    with pytest.raises(Refused, match="heads"):
        hl.UniGAT(2, 3, heads=2)
    with pytest.raises(Refused, match="bias"):
        hl.HGNN(2, 3, bias="beside")


def as_matrix(graph: Pairs, n: int) -> torch.Tensor:
    return torch.zeros(n, n, dtype=torch.float64).index_put((graph.u, graph.v), graph.weight.double(), accumulate=True)


def test_expansions_are_their_matrices(h):
    H, W, _, D_e = dense(h)
    for graph, matrix in ((h.clique(), H @ W @ H.T), (h.clique(weighted=True), H @ W @ D_e.inverse() @ H.T)):
        assert torch.allclose(as_matrix(graph, 7), matrix - matrix.diagonal().diag())
    line = H.T @ H
    assert torch.allclose(as_matrix(h.line(), 4), line - line.diagonal().diag())
    star = as_matrix(h.star(), 11)
    assert torch.allclose(star[:7, 7:], H @ W)
    assert torch.allclose(star, star.T)
    assert (star[:7, :7] == 0).all()


def test_mediators_join_the_two_most_different_with_total_weight_one():
    h = Hypergraph.from_lists([[0, 1, 2, 3], [4], [1, 2]], nodes=6)
    x = torch.tensor([[0.0], [5.0], [1.0], [2.0], [0.0], [0.0]])
    graph = as_matrix(h.mediators(x), 6)
    wanted = torch.zeros(6, 6, dtype=torch.float64)
    for u, v in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3)):
        wanted[u, v] = wanted[v, u] = 1 / 5
    wanted[1, 2] = wanted[2, 1] = 1 / 5 + 1
    assert torch.allclose(graph, wanted)
    assert torch.equal(graph, as_matrix(h.mediators(x, direction=torch.tensor([1.0])), 6))
    assert h.mediators(x, mediate=False).weight.tolist() == [0.25, 0.25, 0.5, 0.5]


def test_nearest_neighbours():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0))
    h = Hypergraph.knn(x, 4)
    near = torch.cdist(x, x).argsort(1)[:, :5]
    assert torch.equal(h.node.view(50, 5), near.sort(1).values)
    far = torch.arange(100.0)[:, None] + 1e4  # |x|² is of the order of 10⁸: its last bit is larger than the distances
    for line in (far, torch.cat([far, -far])):  # the second cannot be helped by taking the mean away
        h = Hypergraph.knn(line, 1)
        u, v = h.node.view(-1, 2).T
        assert (line[u] - line[v]).abs().max() == 1
    same = Hypergraph.knn(torch.zeros(4, 1), 1)
    assert ((same.node == same.edge).view(4, 2).sum(1) == 1).all()  # itself is a member even among equals


# The card's invariants


def test_a_graph_cannot_tell_one_group_from_three_pairs():
    """{abc} and {ab, bc, ca}: the same clique graph, so GCN on it is equal to the last bit; everything on the star differs."""
    one, three = Hypergraph.from_lists([[0, 1, 2]]), Hypergraph.from_lists([[0, 1], [1, 2], [2, 0]])
    x = wave(3, 4)
    for a, b in zip(one.clique(), three.clique(), strict=True):
        assert torch.equal(a, b)
    steps = [links.sum(x, w) for links, w in (gcn_links(g.clique(), 3) for g in (one, three))]
    assert torch.equal(*steps)
    for name, make in LAYERS.items():
        torch.manual_seed(0)
        layer = make(4, 4)
        assert not torch.allclose(layer(x, one), layer(x, three), atol=1e-4), name


def test_hgnn_on_pairs_is_half_identity_half_normalised_adjacency():
    graph = networkx.gnm_random_graph(12, 25, seed=1)
    h = Hypergraph.from_lists(list(graph.edges), nodes=12)
    A = torch.from_numpy(networkx.to_numpy_array(graph))
    root = A.sum(1).rsqrt()
    wanted = (torch.eye(12, dtype=torch.float64) + root[:, None] * A * root) / 2
    assert torch.allclose(smooth(torch.eye(12, dtype=torch.float64), h), wanted, atol=1e-7)


def test_hgnn_is_its_matrix_with_eigenvalues_between_0_and_1(h):
    H, W, D_v, D_e = dense(h)
    root = D_v.diagonal().rsqrt().nan_to_num(posinf=0).diag()
    wanted = root @ H @ W @ D_e.inverse() @ H.T @ root
    found = smooth(torch.eye(7, dtype=torch.float64), h)
    assert torch.allclose(found, wanted, atol=1e-7)
    for seed in range(3):
        operator = smooth(torch.eye(30, dtype=torch.float64), random_hypergraph(30, 20, (1, 8), seed))
        values = torch.linalg.eigvalsh(operator)
        assert values.min() > -1e-7
        assert values.max() < 1 + 1e-7
    rows = smooth(torch.ones(7, 1), h, "hgnn+").squeeze()
    assert torch.allclose(rows, (H.sum(1) > 0).float())


@pytest.mark.parametrize("name", LAYERS)
def test_relabelling_permutes_and_isolated_nodes_and_empty_edges_give_zeros(name, h):
    torch.manual_seed(0)
    layer, x = LAYERS[name](3, 4), wave(7, 3)
    y = layer(x, h)
    perm, edges = torch.tensor([4, 6, 0, 3, 1, 5, 2]), torch.tensor([2, 0, 3, 1])
    moved = Hypergraph.from_pairs(perm[h.node], edges[h.edge], 7, 4, h.weights[edges.argsort()])
    assert torch.allclose(layer(x[perm.argsort()], moved)[perm], y, atol=1e-5)
    if name not in OWN:
        assert (y[6] == 0).all()
    bare = Hypergraph.from_pairs(h.node, h.edge * 2, 9, 8, empty=True)  # edges 1, 3, 5, 7 are empty, 7 and 8 isolated
    if name != "HyperGCN":
        out, z = layer.states(wave(9, 3), bare)
        assert (z[1::2] == 0).all() or name == "EDHNN"
    out = layer(wave(9, 3), bare)
    out.square().sum().backward()
    assert out.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", LINEAR)
def test_a_doubled_edge_is_a_doubled_weight(name, h):
    layer = LAYERS[name](3, 4)
    twice = Hypergraph.from_lists([*EDGES, EDGES[2]], nodes=7, weights=torch.tensor([1.0, 2.0, 0.5, 1.5, 0.5]))
    heavy = h.weighted(torch.tensor([1.0, 2.0, 1.0, 1.5]))
    assert torch.allclose(layer(wave(7, 3), twice), layer(wave(7, 3), heavy), atol=1e-6)


def test_where_the_bias_stands_makes_a_difference(h):
    before, after = hl.HGNN(3, 4), hl.HGNN(3, 4, bias="after")
    after.load_state_dict(before.state_dict())
    assert torch.equal(before(wave(7, 3), h), after(wave(7, 3), h))  # a bias of zero
    for layer in (before, after):
        layer.theta.bias.data.fill_(1.0)
    shift = after(wave(7, 3), h) - before(wave(7, 3), h)
    assert torch.allclose(shift, 1 - smooth(torch.ones(7, 1), h).expand(7, 4), atol=1e-6)


def test_trained_edge_weights_get_their_gradient(h):
    x = wave(7, 3).double()
    w = h.weights.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda w: smooth(x, h.weighted(w)), w)


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_and_gradients(name, h):
    layer, other, x = LAYERS[name](3, 4), LAYERS[name](3, 4), wave(7, 3)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(layer(x, h), other(x, h))
    layer, x = layer.double(), x.double().requires_grad_()
    if name != "HyperGCN":  # which graph it takes jumps with x
        assert torch.autograd.gradcheck(lambda x: layer(x, h), x, atol=1e-4)


# The layers' own formulas


def test_hnhn_with_powers_is_a_weighted_mean(h):
    layer, x = hl.HNHN(3, 2, alpha=0.7, beta=-0.4).double(), wave(7, 3).double()
    H, *_ = dense(h)
    members = H.T * (H.sum(1).clamp(min=1) ** -0.4)
    z = ((members / members.sum(1, keepdim=True)) @ layer.theta_ve(x)).relu()
    edges = H * H.sum(0) ** 0.7
    wanted = (edges / edges.sum(1, keepdim=True).clamp(min=1e-9)) @ layer.theta_ev(z)
    assert torch.allclose(layer(x, h), wanted, atol=1e-10)


def test_edhnn_lets_the_message_depend_on_who_listens(h):
    """Two members of the same edges get the same from AllDeepSets, not from ED-HNN; and its ρ is an MLP of [x_v; z_e]."""
    twins = Hypergraph.from_lists([[0, 1, 2]])
    torch.manual_seed(0)
    same, other, x = hl.AllDeepSets(3, 4, hidden=8)(wave(3, 3), twins), hl.EDHNN(3, 4, hidden=8), wave(3, 3)
    assert torch.allclose(same[0], same[1])
    assert not torch.allclose(other(x, twins)[0], other(x, twins)[1], atol=1e-4)
    z = other.phi(x).sum(0)
    rho = other.rho((other.rho_x(x) + other.rho_z(z)).relu())
    assert torch.allclose(other(x, twins), other.psi(rho), atol=1e-6)
    mixed = hl.EDHNN(3, 4, hidden=8, alpha=1.0, d0=2)
    x0 = wave(7, 2)
    assert torch.allclose(mixed(wave(7, 3), h, x0), mixed.psi(mixed.start(x0)), atol=1e-6)
    with pytest.raises(Refused, match="alpha"):
        hl.EDHNN(3, 4, 8, alpha=2.0)


def test_attention_is_a_softmax_over_the_edges_of_a_node(h):
    layer, x = hl.UniGAT(3, 4, heads=2), wave(7, 3)
    t = layer.theta(x)
    a = layer.attention(t, layer.f_VE(t, h), h)
    assert torch.allclose(torch.zeros(7, 2).index_add(0, h.node, a), (h.counts > 0).float()[:, None].expand(7, 2))
    flat = hl.HypergraphAttention(3, 4)
    flat.a_v.data.zero_()
    flat.a_e.data.zero_()  # even attention is 1 / number of edges, both ways
    share = 1 / h.counts.clamp(min=1)[h.node]
    z = h.links.sum(flat.theta(x), share / h.sizes[h.edge])
    wanted = h.links.back(z, share * h.weights[h.edge] / h.degrees.clamp(min=1e-9)[h.node])
    assert torch.allclose(flat(x, h), wanted, atol=1e-6)


def test_set_pooling_is_attention_of_the_learned_query(h):
    """`MultiHead`-like attention of θ over the members of one edge, by torch's own function."""
    pool, x = hl.SetPool(3, 4, heads=2), wave(7, 3)
    members = x[EDGES[2]]
    k, v = (w(members).view(-1, 2, 2).transpose(0, 1) for w in (pool.key, pool.value))
    read = torch.nn.functional.scaled_dot_product_attention(pool.theta[:, None], k, v, scale=1.0).flatten()
    y = pool.norm_1(pool.theta.flatten() + read)
    assert torch.allclose(pool(x, h, back=False)[2], pool.norm_2(y + pool.mlp(y)), atol=1e-6)


def test_whatsnet_gives_a_node_different_roles(h):
    torch.manual_seed(0)
    layer = hl.WHATsNet(3, 4, heads=2)
    x = wave(7, 3)
    member = layer.within_e(x[h.node] + layer.order_ve(hf.order_in_edge(h)[:, None]), h.edge, h.edges)
    of_5 = member[h.node == 5]
    assert len(of_5) == 2 and not torch.allclose(of_5[0], of_5[1], atol=1e-3)
    # One edge alone, by the same module: what other edges hold plays no part in it.
    alone = layer.within_e(x[EDGES[3]] + layer.order_ve(hf.order_in_edge(h)[h.edge == 3][:, None]), torch.zeros(2).long(), 1)
    assert torch.allclose(member[h.edge == 3], alone, atol=1e-6)


# DeepHypergraph 0.9.7 on the same weights

PEER = {  # six nodes of two numbers
    "HGNN": [1.00945, 0.75623, 0.86711, 0.97754, 0.97638, 0.77599, 0.74916, 1.10072, 0.45247, 0.92084, 0.78222, 1.08096],
    "HGNNPlus": [1.00945, 0.75623, 0.7887, 0.96799, 0.97638, 0.77599, 0.67074, 1.09117, 0.48305, 1.28317, 0.70381, 1.07141],
    "HNHN": [3.98854, 1.1738, 3.99872, 0.88668, 3.97375, 1.14437, 4.01785, 0.72188, 4.04282, 0.46419, 4.03264, 0.75131],
    "UniGCN": [1.00945, 0.75623, 0.80537, 1.01229, 0.97638, 0.77599, 0.68742, 1.13546, 0.36515, 0.96998, 0.72048, 1.11571],
    "UniSAGE": [3.63778, 1.64766, 1.64476, 3.63045, 3.54955, 1.68073, 1.46156, 3.85191, 1.99757, 1.46766, 1.63787, 3.72693],
    "UniGIN": [4.12344, 1.68822, 1.66497, 4.13879, 4.02858, 1.71936, 1.49758, 4.35278, 2.45192, 1.52301, 1.70694, 4.20217],
    "UniGAT": [1.01227, 0.7528, 0.7887, 0.96799, 0.98303, 0.76905, 0.67074, 1.09117, 0.48305, 1.28317, 0.70381, 1.07141],
    "HyperGCN": [0.96563, 0.88289, 0.62841, 1.12943, 1.10454, 0.64236, 0.61231, 1.15597, 1.22358, 0.44871, 0.64161, 1.09684],
}
DIRECTION = torch.tensor([0.8302518725395203, 0.12611091136932373])


def same_as_peer(name: str) -> torch.nn.Module:
    """Our layer with the weights sin 1, sin 2, … times ½, 1, … in the order of the peer's parameters."""
    extra = {"UniGAT": {"clamp": (0.001, 5.0)}, "UniGIN": {"eps": 0.3}, "HyperGCN": {"mediate": False}}
    layer = getattr(hl, name)(3, 2, **extra.get(name, {}))
    if name == "HNHN":
        parameters = [p for lin in (layer.theta_ve, layer.theta_ev) for p in (lin.weight, lin.bias)]
    else:
        parameters = [layer.theta.weight, layer.theta.bias]
    with torch.no_grad():
        for i, p in enumerate(parameters):
            p.copy_(wave(*p.shape) * (i + 1) / 2)
        if name == "UniGAT":
            layer.a_e.copy_(torch.tensor([[1.0, 0.5]]))
            layer.a_v.copy_(torch.tensor([[0.5, -1.0]]))
    return layer


@pytest.mark.parametrize("name", PEER)
def test_equals_the_numbers_of_deephypergraph(name):
    h = Hypergraph.from_lists(EDGES, nodes=7)
    extra = {"direction": DIRECTION} if name == "HyperGCN" else {}
    with torch.no_grad():
        found = same_as_peer(name)(wave(7, 3), h, **extra)
    assert torch.allclose(found[:6], torch.tensor(PEER[name]).view(6, 2), atol=1e-5)


def test_equals_an_installed_deephypergraph():
    """On 200 nodes and 300 weighted hyperedges, to 1e-5, HGNN and the other linear layers."""
    dhg = pytest.importorskip("dhg")
    h = random_hypergraph(200, 300, (2, 9), 0)
    lists = [e[e >= 0].tolist() for e in hp.edge_sets(h)]
    x = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    peer = dhg.Hypergraph(200, lists)
    names = {"HGNN": "HGNNConv", "HGNNPlus": "HGNNPConv", "UniGCN": "UniGCNConv", "UniSAGE": "UniSAGEConv", "UniGIN": "UniGINConv"}
    for name, theirs in names.items():
        layer, other = getattr(hl, name)(16, 8), getattr(dhg.nn, theirs)(16, 8, drop_rate=0.0, is_last=True)
        layer.theta.weight.data.copy_(other.theta.weight.data)
        layer.theta.bias.data.copy_(other.theta.bias.data)
        assert torch.allclose(layer(x, h), other(x, peer), atol=1e-5), name


def test_compiles_whole():
    lines = [
        "import torch; from neuropil.interaction.hypergraph import *; from neuropil.interaction import hypergraph_layers as L",
        "h = Hypergraph.from_lists([[0, 1, 2], [2, 3]], nodes=5); x = torch.randn(5, 3)",
        "for f in (L.HGNN(3, 4), L.UniGAT(3, 4, heads=2)):",
        "    torch.testing.assert_close(torch.compile(f, backend='eager', fullgraph=True)(x, h), f(x, h))",
        "    with torch.autocast('cpu', torch.bfloat16): f(x, h).float().sum().backward()",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


# Features


def test_return_probabilities_and_clustering_against_matrices_and_networkx(h):
    H, W, D_v, D_e = dense(h)
    P = D_v.diagonal().reciprocal().nan_to_num(posinf=0).diag() @ H @ W @ D_e.inverse() @ H.T
    found = hf.return_probabilities(h, 3)
    for k in range(3):
        assert torch.allclose(found[:, k].double(), torch.linalg.matrix_power(P, k + 1).diagonal(), atol=1e-6)
    graph = networkx.Graph(list(zip(*(t.tolist() for t in h.clique()[:2]), strict=True)))
    graph.add_nodes_from(range(7))
    assert hf.clustering(h).tolist() == pytest.approx([networkx.clustering(graph, v) for v in range(7)])


def test_spectral_positions_are_eigenvectors_by_both_solvers(monkeypatch):
    h = random_hypergraph(60, 80, (2, 6), 0)
    direct = hf.spectral_positions(h, 5)
    monkeypatch.setattr(hf, "DENSE", 10)
    assert torch.allclose(hf.spectral_positions(h, 5), direct, atol=1e-4)
    value = (direct * smooth(direct, h)).sum(0)
    assert torch.allclose(smooth(direct, h), value * direct, atol=1e-5)
    assert value[0] == pytest.approx(1, abs=1e-5)
    assert (value.diff() <= 1e-6).all()
    with pytest.raises(Refused, match="k: must lie in"):
        hf.spectral_positions(h, 61)


def test_order_in_edge_counts_those_no_more_central(h):
    c = torch.tensor([2.0, 1.0, 2.0, 0.0, 1.0, 1.0, 5.0])
    wanted = [float((c[EDGES[e]] <= c[v]).float().mean()) for v, e in zip(h.node, h.edge, strict=True)]
    assert hf.order_in_edge(h, c).tolist() == pytest.approx(wanted)
    assert hf.degree_features(h).shape == (7, 3)
    assert torch.allclose(hf.edge_features(wave(7, 2), h)[1], wave(7, 2)[EDGES[1]].mean(0))


# Prediction of hyperedges


def sets_of(rows: torch.Tensor) -> list[frozenset[int]]:
    return [frozenset(int(v) for v in row if v >= 0) for row in rows]


@pytest.mark.parametrize("kind", hp.KINDS)
def test_negatives_are_what_their_kind_says(kind):
    h = random_hypergraph(40, 60, (3, 6), 1)
    found = sets_of(hp.negatives(h, kind, 200, torch.Generator().manual_seed(0)))
    true = sets_of(hp.edge_sets(h))
    assert len(found) == 200
    assert not set(found) & set(true)
    assert all(3 <= len(s) <= 5 for s in found) or kind == "MNS"
    graph = networkx.Graph(list(zip(*(t.tolist() for t in h.clique()[:2]), strict=True)))
    if kind == "MNS":
        assert all(len(s) > 1 and networkx.is_connected(graph.subgraph(s)) for s in found)
    if kind == "CNS":
        for s in found:
            swaps = [(t, t - s, s - t) for t in true if len(t) == len(s) and len(t - s) == 1]
            assert any(all(graph.has_edge(new, v) for v in t & s) for t, _, (new,) in swaps)
    again = sets_of(hp.negatives(h, kind, 200, torch.Generator().manual_seed(0)))
    assert again == found


def test_sets_with_equal_probability_under_sns():
    """All pairs but the hyperedges are drawn as often: 4 of 6 pairs of 4 nodes, 2,000 draws."""
    h = Hypergraph.from_lists([[0, 1], [2, 3]])
    counts = torch.bincount(hp.negatives(h, "SNS", 2000, torch.Generator().manual_seed(0)).sort(1).values @ torch.tensor([4, 1]))
    assert (counts > 0).sum() == 4
    assert (counts[counts > 0] - 500).abs().max() < 80  # 4 standard deviations


def test_bad_negatives_are_refused(h):
    with pytest.raises(Refused, match="kind: unknown 'CMS'"):
        hp.negatives(h, "CMS", 3)
    with pytest.raises(Refused, match="found only 0 of 2 negatives of kind CNS"):
        hp.negatives(Hypergraph.from_lists([[0, 1], [1, 2]]), "CNS", 2)
    with pytest.raises(Refused, match="needs a hyperedge of at least 2"):
        hp.negatives(Hypergraph.from_lists([[0]]), "SNS", 2)


def test_contrast_is_cross_entropy_both_ways():
    a, b = wave(50, 8), wave(50, 8).roll(1, 1)
    unit = [torch.nn.functional.normalize(x, dim=1) for x in (a, b)]
    p = (unit[0] @ unit[1].T / 0.3).exp()
    by_hand = -((p.diag() / p.sum(1)).log().mean() + (p.diag() / p.sum(0)).log().mean()) / 2
    torch.testing.assert_close(hp.info_nce(a, b, 0.3), by_hand)


def test_views_masks_and_held_out_edges(h):
    g = torch.Generator().manual_seed(0)
    big = random_hypergraph(300, 500, (2, 6), 0)
    train, held = hp.hold_out(big, 0.2, g)
    assert (train.edges, held.edges) == (400, 100)
    both = sets_of(hp.edge_sets(train)) + sets_of(hp.edge_sets(held))
    assert sorted(map(sorted, both)) == sorted(map(sorted, sets_of(hp.edge_sets(big))))
    for view in (hp.drop_members(big, 0.3, g), hp.drop_edges(big, 0.3, g)):
        assert 0.6 < len(view.node) / len(big.node) < 0.8
        assert (view.nodes, view.edges) == (300, 500)
    assert set(hp.drop_edges(big, 0.3, g).sizes.tolist()) <= {0, 2, 3, 4, 5}
    left, edges, hidden = hp.mask_members(h, g)
    for e, v in zip(edges.tolist(), hidden.tolist(), strict=True):
        assert sorted([*left.node[left.edge == e].tolist(), v]) == EDGES[e]
    assert len(edges) == 4
    x = wave(50, 8)
    assert hp.info_nce(x, x, 0.1) < hp.info_nce(x, x.roll(1, 0), 0.1)
    z = torch.randn(4, 8, generator=g)
    assert hp.fill_loss(x[:7], z, edges, hidden).isfinite()
    assert hp.membership_loss(x[:7], z, h, g).isfinite()
    assert (hp.drop_features(x, 0.5, g) == 0).all(0).sum() in range(1, 8)
    with pytest.raises(Refused, match="share"):
        hp.drop_edges(h, 1.0)
    with pytest.raises(Refused, match="share"):
        hp.hold_out(h, 0.0)


@pytest.mark.parametrize("claim", select("hypergraph-survey"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(0 <= row[side] <= 1 for side in ("method", "baseline"))
