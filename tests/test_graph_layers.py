"""GCN and GAT on the clique graph against their formulas written with full matrices."""

import pytest
import torch
from torch.nn.functional import leaky_relu

from neuropil.errors import Refused
from neuropil.interaction.graph_layers import GAT, GCN
from neuropil.interaction.hypergraph import Hypergraph
from neuropil.interaction.hypergraph_data import school

H = Hypergraph.from_lists([[0, 1, 2], [1, 2], [3, 4]], nodes=6)  # 1 and 2 meet twice, 5 nobody


def adjacency():
    A = torch.zeros(6, 6)
    for edge in ([0, 1, 2], [1, 2], [3, 4]):
        for v in edge:
            for u in edge:
                A[v, u] += float(u != v)
    return A


def test_gcn_is_the_normalised_matrix_times_a_linear_map():
    layer, x = GCN(3, 4), torch.randn(6, 3)
    A = adjacency() + torch.eye(6)
    root = A.sum(1).rsqrt()
    torch.testing.assert_close(layer(x, H), root[:, None] * A * root @ layer.theta(x))


def test_gat_is_attention_masked_by_who_meets_whom():
    layer, x = GAT(3, 4), torch.randn(6, 3)
    t = layer.theta(x)
    score = leaky_relu(layer.a(t) + layer.b(t).T, 0.2).masked_fill((adjacency() + torch.eye(6)) == 0, -torch.inf)
    torch.testing.assert_close(layer(x, H), score.softmax(1) @ t)


@pytest.mark.parametrize("layer", [GCN, GAT])
def test_what_does_not_fit_is_refused(layer):
    with pytest.raises(Refused, match="x: the hypergraph has 6 nodes, got 5 rows"):
        layer(3, 4)(torch.ones(5, 3), H)
    with pytest.raises(Refused, match="x: the last axis must have 3 numbers"):
        layer(3, 4)(torch.ones(6, 2), H)


def test_the_school_is_the_one_of_the_paper():
    h, classes = school()
    assert (h.nodes, h.edges, len(h.node)) == (327, 7818, 18192)
    assert classes.shape == (327,) and classes.unique().tolist() == list(range(9)) and int(h.sizes.max()) == 5
