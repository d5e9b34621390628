"""What a net on a hypergraph may be told about its nodes: their place in the structure, or who they are.

    degrees      D_v, number and mean size of the edges, log(1 + ·)
    return       (P^k)_vv,  P = D_v⁻¹ H W D_e⁻¹ Hᵀ              k-step return of the walk node → edge → member        O(n p k)
    spectral     top eigenvectors of D_v^{−½} H W D_e⁻¹ Hᵀ D_v^{−½}, the HGNN operator
    clustering   share of a node's pairs of neighbours that meet, in the clique graph
    order        WHATsNet: in each edge, the share of members that are no more central than v    Choe et al. 2023, arXiv:2306.03032
    identity     a learned vector a node

After the survey's section on features (Kim et al. 2024, arXiv:2404.01039); external features are whatever the user has, and the
features of an edge are by default the mean of its members'. Features made from all edges leak those that are to be predicted: make
them from the edges for training.
"""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.interaction.hypergraph import Hypergraph
from neuropil.interaction.message_passing import coefficients, covers, smooth
from neuropil.nn.checks import at_least, numbers
from neuropil.nn.segments import segment_reduce

BLOCK = 256  # starts of the walk that are followed at once
DENSE = 512  # nodes up to which all eigenvectors are computed


def degree_features(h: Hypergraph) -> Float[Tensor, "n 3"]:
    """log(1 + D_v), log(1 + number of edges), log(1 + mean size of the edges). O(p).

    >>> degree_features(Hypergraph.from_lists([[0, 1, 2]], nodes=4)).exp().sub(1).round().tolist()[::3]
    [[1.0, 1.0, 3.0], [0.0, 0.0, 0.0]]
    """
    size = segment_reduce(h.sizes[h.edge].to(h.weights.dtype), h.node, h.nodes, "mean")
    return torch.stack([h.degrees, h.counts.to(size.dtype), size], -1).log1p()


def return_probabilities(h: Hypergraph, steps: int) -> Float[Tensor, "n {steps}"]:
    """The chance that the walk node → edge (by weight) → member (evenly) is back after 1 … `steps` steps. O(n p steps) time.

    >>> return_probabilities(Hypergraph.from_lists([[0, 1]], nodes=3), 2)
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000],
            [0.0000, 0.0000]])
    """
    if steps < 1:
        raise Refused(f"steps: at least 1, got {steps}")
    found = h.weights.new_zeros(h.nodes, steps)
    for starts in torch.arange(h.nodes, device=h.node.device).split(BLOCK):
        walk = h.weights.new_zeros(h.nodes, len(starts))
        walk[starts, torch.arange(len(starts), device=starts.device)] = 1
        for k in range(steps):
            walk = smooth(walk, h, "hgnn+")  # column s: chance to be at s after k + 1 steps, by where the walk began
            found[starts, k] = walk[starts, torch.arange(len(starts), device=starts.device)]
    return found


def spectral_positions(h: Hypergraph, k: int) -> Float[Tensor, "n {k}"]:
    """The `k` eigenvectors of the HGNN operator with the largest eigenvalues, largest first, of unit norm.

    The sign is set so that the entry of largest size is positive. Up to 512 nodes by a dense solver, else by ARPACK, O(p k) a turn.

    >>> h = Hypergraph.from_lists([[0, 1], [2, 3]])
    >>> bool((smooth(spectral_positions(h, 2), h) - spectral_positions(h, 2)).abs().max() < 1e-6)
    True
    """
    n = h.nodes
    if not 1 <= k <= n:
        raise Refused(f"k: must lie in 1 … {n}, got {k}")
    if n <= DENSE or k > n // 2:
        matrix = smooth(torch.eye(n, dtype=torch.float64, device=h.node.device), h)
        vectors = torch.linalg.eigh((matrix + matrix.T) / 2).eigenvectors.flip(1)[:, :k]
    else:
        from scipy.sparse.linalg import LinearOperator, eigsh

        def times(x: np.ndarray) -> np.ndarray:
            return smooth(torch.from_numpy(x).view(n, -1).to(h.node.device), h).cpu().numpy()

        operator = LinearOperator((n, n), matvec=times, matmat=times, dtype=np.float64)
        values, found = eigsh(operator, k, which="LA", v0=np.full(n, n**-0.5))
        vectors = torch.from_numpy(found[:, np.argsort(-values)].copy()).to(h.node.device)
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    return (vectors * largest.sign()).to(h.weights.dtype)


def clustering(h: Hypergraph) -> Float[Tensor, "n"]:
    """How many of the pairs of neighbours of v in the clique graph are neighbours of each other; 0 below two neighbours.

    By scipy's sparse product: time and memory grow with the paths of two steps in the clique graph.

    >>> clustering(Hypergraph.from_lists([[0, 1, 2], [2, 3]]))
    tensor([1.0000, 1.0000, 0.3333, 0.0000])
    """
    from scipy.sparse import csr_array

    u, v, _ = h.clique()
    graph = csr_array((np.ones(len(u)), (u.cpu().numpy(), v.cpu().numpy())), shape=(h.nodes, h.nodes))
    triangles = np.asarray((graph @ graph).multiply(graph).sum(1)).ravel() / 2
    degree = np.asarray(graph.sum(1)).ravel()
    share = np.divide(2 * triangles, degree * (degree - 1), out=np.zeros(h.nodes), where=degree > 1)
    return torch.from_numpy(share).to(h.weights)


def order_in_edge(h: Hypergraph, centrality: Float[Tensor, "n"] | None = None) -> Float[Tensor, "p"]:
    """For every (node, edge) pair the share of the edge's members whose centrality (default: degree) is at most the node's.

    O(p log p).

    >>> order_in_edge(Hypergraph.from_lists([[0, 1, 2]]), torch.tensor([3.0, 1.0, 3.0]))
    tensor([1.0000, 0.3333, 1.0000])
    """
    if centrality is not None:
        if len(centrality) != h.nodes:
            raise Refused(f"centrality: the hypergraph has {h.nodes} nodes, got {len(centrality)} numbers")
        numbers("centrality", centrality)
    c = (h.degrees if centrality is None else centrality)[h.node]
    order = c.argsort(stable=True)
    order = order[h.edge[order].argsort(stable=True)]  # by edge, then centrality
    value, edge = c[order], h.edge[order]
    last = torch.ones_like(value, dtype=torch.bool)  # the last of every group of equals counts for all of the group
    last[:-1] = (value[1:] != value[:-1]) | (edge[1:] != edge[:-1])
    ends = last.nonzero().squeeze(1)
    group = last.cumsum(0) - last.int()
    rank = (ends[group] + 1 - h.links.ptr[edge]).to(c.dtype)
    return torch.empty_like(c).scatter(0, order, rank / h.sizes[edge])


def identities(h: Hypergraph, d: int) -> nn.Embedding:
    """A learned vector of `d` numbers for every node, called with node numbers. n d parameters; cannot speak of new nodes.

    >>> identities(Hypergraph.from_lists([[0, 1]]), 4)(torch.arange(2)).shape
    torch.Size([2, 4])
    """
    at_least(1, d=d)
    return nn.Embedding(h.nodes, d)


def edge_features(x: Float[Tensor, "n d"], h: Hypergraph) -> Float[Tensor, "m d"]:
    """The mean of the members' features; zeros for an empty edge. O(p d).

    >>> edge_features(torch.tensor([[1.0], [3.0]]), Hypergraph.from_lists([[0, 1], [1]]))
    tensor([[2.],
            [3.]])
    """
    covers("x", x, h)
    return h.links.sum(x, *coefficients(h, "mean")[0])
