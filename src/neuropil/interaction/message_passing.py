"""The core of all nets on hypergraphs: members tell their edge, edges tell their members.

    z_e  = f_VE({x_v : v ∈ e})            nodes to edges
    x_v' = f_EV({z_e : e ∋ v})            edges to nodes, perhaps seeing x_v

A layer is a choice of the two (`hypergraph_layers`). Here are the fixed weightings that linear layers choose from, with D_v, D_e,
W as in `hypergraph`; 1/0 counts as 0, so that an isolated node and an empty edge give zeros:

    HGNN    X' = D_v^{−½} H W D_e⁻¹ Hᵀ D_v^{−½} X          symmetric, eigenvalues in [0, 1]       Feng et al. 2019, arXiv:1809.09401
    HGNN+   X' = D_v⁻¹ H W D_e⁻¹ Hᵀ X                      rows add up to 1                       Gao et al. 2022
    UniGCN  X' = D_v^{−½} H D̄_e^{−½} D_e⁻¹ Hᵀ X            D̄_e: mean degree of members           Huang & Yang 2021, arXiv:2105.00956
    GCN     X' = D̃^{−½} (A + I) D̃^{−½} X                  on a graph (clique, mediators)     Kipf & Welling 2017, arXiv:1609.02907

Coverage of the survey's four components (files beside this one, tests in tests/test_hypergraph.py and …_more.py):

    features      external                     the caller's
                  degree, clustering           hypergraph_features.degree_features, clustering       …_clustering_against_matrices_…
                  random walk, spectral        .return_probabilities, .spectral_positions            …_by_both_solvers
                  order within the edge        .order_in_edge                                        test_order_in_edge_…
                  identity; edge features      .identities; .edge_features                           doctests
    structure     clique, weighted clique      hypergraph.Hypergraph.clique                          test_expansions_are_…
                  star, line                   .star, .line                                          test_expansions_are_…
                  adaptive (mediators)         .mediators                                            test_mediators_…
                  k-NN hyperedges              .knn                                                  test_nearest_neighbours
                  tensor, by contraction       hypergraph_tensor.contract, .TensorLayer              test_contraction_is_…
    messages      fixed weights                hypergraph_layers.HGNN, HGNNPlus, HyperGCN, UniGCN, UniSAGE, UniGIN
                                                                                                     test_equals_the_numbers_of_…
                  learned                      .HNHN, .AllDeepSets, .EDHNN                           test_hnhn_…, test_edhnn_…
                  attention                    .HypergraphAttention, .UniGAT                         test_attention_…
                                               .AllSetTransformer                                    test_set_pooling_…
                  depends on the receiver      .EDHNN, .WHATsNet                                     test_edhnn_…, test_whatsnet_…
    training      negatives SNS, MNS, CNS      hyperedge_prediction.negatives                        test_negatives_…
                  adversarial negatives        adversarial_negatives.NegativeGenerator, .play        test_the_generator_learns_…
                  contrastive                  .drop_*, .info_nce, .membership_loss                  test_views_masks_…
                  generative                   .mask_members, .fill_loss                             test_views_masks_…
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.interaction.hypergraph import Hypergraph, Pairs
from neuropil.nn.checks import fits
from neuropil.nn.segments import Links, segment_reduce

WEIGHTINGS = ("sum", "mean", "hgnn", "hgnn+", "unigcn")


class TwoStage(nn.Module):
    """``x' = f_EV(t, f_VE(t, h), h)`` with ``t = transform(x)``: what every layer on a hypergraph is. Subclasses say the three.

    All layers return states before any activation, (n, out), and refuse features that do not fit the hypergraph or their weights.
    """

    def transform(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n k"]:
        """What is done to each node before anything is told to anybody."""
        return x

    def f_VE(self, t: Float[Tensor, "n k"], h: Hypergraph) -> Float[Tensor, "m l"]:
        """States of the edges from those of their members."""
        raise NotImplementedError

    def f_EV(self, t: Float[Tensor, "n k"], z: Float[Tensor, "m l"], h: Hypergraph) -> Float[Tensor, "n o"]:
        """States of the nodes from those of their edges."""
        raise NotImplementedError

    def states(self, x: Float[Tensor, "n d"], h: Hypergraph) -> tuple[Float[Tensor, "n o"], Float[Tensor, "m l"]]:
        """The new nodes and the edges that told them: (n, out), (m, hidden)."""
        covers("x", x, h)
        t = self.transform(x)
        z = self.f_VE(t, h)
        return self.f_EV(t, z, h), z

    def forward(self, x: Float[Tensor, "n d"], h: Hypergraph) -> Float[Tensor, "n o"]:
        """The new nodes."""
        return self.states(x, h)[0]


def covers(name: str, x: Tensor, h: Hypergraph, weight: Tensor | None = None, side: str = "nodes") -> None:
    """`Refused` unless `x` has one row for each of the "nodes" (or "edges") of `h`, and such as a `weight` (out, in) takes.

    >>> covers("z", torch.zeros(3, 2), Hypergraph.from_lists([[0, 1], [1, 2]]), side="edges")
    Traceback (most recent call last):
    neuropil.errors.Refused: z: the hypergraph has 2 edges, got 3 rows
    """
    count = h.nodes if side == "nodes" else h.edges
    if len(x) != count:
        raise Refused(f"{name}: the hypergraph has {count} {side}, got {len(x)} rows")
    if weight is not None:
        fits(name, x, weight.shape[1], weight)


Weights = tuple[Tensor, Tensor] | tuple[()]  # of all pairs, in the order of the edges and of the nodes; (): all 1


def kept(h: Hypergraph, name: str, find: Callable[[], tuple[Tensor | None, Tensor | None]]) -> tuple[Weights, Weights]:
    """The numbers of all pairs, there and back, that `find` finds (None: all 1), in both orders; found once and kept with `h`.

    Not kept where the hypergraph's weights carry a gradient, nor while compiling or in inference mode, whose tensors do not train.
    """
    if (found := h.__dict__.get(f"_kept_{name}")) is None:
        order = h.links.by_source
        there, back = (() if w is None else (w, w[order]) for w in find())
        found = there, back
        if not (h.weights.requires_grad or torch.compiler.is_compiling() or torch.is_inference_mode_enabled()):
            h.__dict__[f"_kept_{name}"] = found
    return found


def coefficients(h: Hypergraph, weighting: str) -> tuple[Weights, Weights]:
    """What each (node, edge) pair is multiplied with on the way to the edge and on the way back. O(p), kept with `h`.

    "mean" is the mean of the members and then of the edges, whatever the edges' weights; "sum" the mean and then the sum.
    """
    choose("weighting", weighting, WEIGHTINGS)
    node, edge = h.node, h.edge

    def find() -> tuple[Tensor, Tensor | None]:
        mean = inverse(h.sizes.to(h.weights.dtype))[edge]
        counts = h.counts.to(mean.dtype)
        if weighting == "hgnn":
            root = inverse(h.degrees).sqrt()[node]
            return mean * root, h.weights[edge] * root
        if weighting == "hgnn+":
            return mean, h.weights[edge] * inverse(h.degrees)[node]
        if weighting == "unigcn":
            typical = segment_reduce(counts[node], edge, h.edges, "mean")
            return mean * inverse(typical).sqrt()[edge], inverse(counts).sqrt()[node]
        return mean, inverse(counts)[node] if weighting == "mean" else None

    return kept(h, weighting, find)


def inverse(x: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """1 / x, and 0 where x is 0; its derivative is 0 there, too.

    >>> inverse(torch.tensor([2.0, 0.0]))
    tensor([0.5000, 0.0000])
    """
    return torch.where(x == 0, 0, 1 / torch.where(x == 0, 1, x))


def smooth(x: Float[Tensor, "n d"], h: Hypergraph, weighting: str = "hgnn") -> Float[Tensor, "n d"]:
    """One linear round to the edges and back, by one of `WEIGHTINGS`. O(p d) time, O((n + m) d) memory.

    >>> smooth(torch.eye(3), Hypergraph.from_lists([[0, 1]], nodes=3))
    tensor([[0.5000, 0.5000, 0.0000],
            [0.5000, 0.5000, 0.0000],
            [0.0000, 0.0000, 0.0000]])
    """
    covers("x", x, h)
    to, fro = coefficients(h, weighting)
    return h.links.back(h.links.sum(x, *to), *fro)


def gcn_links(graph: Pairs, n: int) -> tuple[Links, Tensor]:
    """``D̃^{−½} (A + I) D̃^{−½}`` of a graph as links with weights: `links.sum(x, weights)` is one GCN step. O(q log q)."""
    own = torch.arange(n, device=graph.u.device)
    u, v = torch.cat([graph.u, own]), torch.cat([graph.v, own])
    w = torch.cat([graph.weight, graph.weight.new_ones(n)])
    root = segment_reduce(w, v, n).rsqrt()
    w = root[u] * w * root[v]
    links = Links.of(u, v, n, n)
    return links, w[(v * n + u).argsort(stable=True)]
