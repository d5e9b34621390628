"""Sparse hypergraphs: edges that join any number of nodes, kept as (node, edge) pairs, and the graphs they are made into.

    H ∈ {0, 1}^{n × m},  D_v = Σ_e w_e H_ve,  D_e = Σ_v H_ve            H is never built: 20,000 × 20,000 would be 1.6 GB

    clique   A = H W Hᵀ − diag            which nodes meet, how often; forgets who met together ({abc} ~ {ab, bc, ca})
    weighted A = H W D_e⁻¹ Hᵀ − diag      an edge of many members binds each pair less
    star     nodes and edges as the two sides of a graph, lossless
    line     Hᵀ H − diag                  which edges meet: the clique graph of the dual
    mediator HyperGCN: the two most different members of each edge, and the others joined to both, of total weight 1

Kim, Lee, Gao, Antelmi, Polato & Shin, "A Survey on Hypergraph Neural Networks", KDD 2024, arXiv:2404.01039; the mediator graph is
of Yadati et al. 2019, arXiv:1809.02589. A graph here is a `Pairs`: directed pairs (u, v), each direction on its own, with weights.
The survey's tensor form, which holds n^k numbers for edges of k members, is in `hypergraph_tensor`, by contraction.
"""

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import within
from neuropil.nn.segments import Links, segment_reduce

BLOCK = 1 << 22  # numbers of a block of distances


class Pairs(NamedTuple):
    """A graph as directed pairs: node `u[i]` sends to node `v[i]` with `weight[i]`; an undirected edge stands in it twice."""

    u: Int[Tensor, "q"]
    v: Int[Tensor, "q"]
    weight: Float[Tensor, "q"]


@dataclass(frozen=True, eq=False)
class Hypergraph:
    """n nodes, m weighted hyperedges, and the pairs (node, edge) in order of edge, then node.

    Make one by `from_pairs`, `from_edges`, `from_lists` or `knn`. It is never changed: `to`, `weighted` and the rest return a new
    one. Memory: 4 int64 a pair, no n × m anything. The coefficients of linear layers are kept with it once computed, unless
    `weights` carry a gradient: where these are trained, make a new one by `weighted` in each step.

    >>> h = Hypergraph.from_lists([[0, 1, 2], [2, 3]], nodes=5)
    >>> h.degrees.tolist(), h.sizes.tolist()
    ([1.0, 1.0, 2.0, 1.0, 0.0], [3, 2])
    """

    links: Links  # node → edge
    weights: Float[Tensor, "m"]

    @classmethod
    def from_pairs(
        cls,
        node: Int[Tensor, "p"],
        edge: Int[Tensor, "p"],
        nodes: int | None = None,
        edges: int | None = None,
        weights: Float[Tensor, "m"] | None = None,
        empty: bool = False,
    ) -> "Hypergraph":
        """From index pairs: `node[i]` is a member of hyperedge `edge[i]`, in any order. O(p log p), O(p) if sorted by edge.

        `nodes` and `edges` default to the largest index plus 1; isolated nodes are welcome. `Refused` for a node or edge out of
        range, a member named twice in an edge, and, unless `empty`, an edge without members; each says which.
        """
        node, edge = node.long(), edge.long()
        if node.ndim != 1 or node.shape != edge.shape:
            raise Refused(f"node, edge: must be two lists of one length, got shapes {tuple(node.shape)} and {tuple(edge.shape)}")
        n = nodes if nodes is not None else int(node.max()) + 1 if len(node) else 0
        m = edges if edges is not None else int(edge.max()) + 1 if len(edge) else 0
        for name, index, size in (("edge", edge, m), ("node", node, n)):
            if bool((wrong := (index < 0) | (index >= size)).any()):
                at = int(wrong.int().argmax())
                where = f" in hyperedge {int(edge[at])}" if name == "node" else f" at pair {at}"
                raise Refused(f"{name}: {int(index[at])}{where} is out of range 0 … {size - 1}")
        weights = torch.ones(m, device=node.device) if weights is None else weights
        if weights.shape != (m,):
            raise Refused(f"weights: one for each of the {m} hyperedges is needed, got shape {tuple(weights.shape)}")
        links = Links.of(node, edge, n, m)
        twice = (links.source[1:] == links.source[:-1]) & (links.target[1:] == links.target[:-1])
        if bool(twice.any()):
            at = int(twice.int().argmax())
            raise Refused(f"node: {int(links.source[at])} is named twice in hyperedge {int(links.target[at])}")
        if not empty and bool((none := links.ptr[1:] == links.ptr[:-1]).any()):
            raise Refused(f"edge: hyperedge {int(none.int().argmax())} has no members (empty=True allows that)")
        return cls(links, weights)

    @classmethod
    def from_edges(
        cls,
        members: Int[Tensor, "p"] | np.ndarray,
        sizes: Int[Tensor, "m"] | np.ndarray,
        nodes: int | None = None,
        weights: Float[Tensor, "m"] | None = None,
        empty: bool = False,
    ) -> "Hypergraph":
        """From flat arrays: the members of edge 0, of edge 1, … one after the other, and how many each has. No loop over edges.

        >>> Hypergraph.from_edges(torch.tensor([0, 1, 2, 2, 3]), torch.tensor([3, 2])).links.target.tolist()
        [0, 0, 0, 1, 1]
        """
        members, sizes = torch.as_tensor(members).long(), torch.as_tensor(sizes).long()
        if bool((sizes < 0).any()) or int(sizes.sum()) != len(members):
            raise Refused(f"sizes: must be ≥ 0 and add up to the {len(members)} members, got a sum of {int(sizes.sum())}")
        edge = torch.arange(len(sizes), device=sizes.device).repeat_interleave(sizes)
        return cls.from_pairs(members, edge, nodes, len(sizes), weights, empty)

    @classmethod
    def from_lists(
        cls,
        edges: Sequence[Iterable[int]],
        nodes: int | None = None,
        weights: Float[Tensor, "m"] | None = None,
        empty: bool = False,
    ) -> "Hypergraph":
        """From one list of members an edge; flattened by numpy, 0.1 s for a million members."""
        lists = [e if isinstance(e, Sequence) else list(e) for e in edges]
        sizes = np.fromiter(map(len, lists), np.int64, len(lists))
        members = np.fromiter(itertools.chain.from_iterable(lists), np.int64, int(sizes.sum()))
        return cls.from_edges(members, sizes, nodes, weights, empty)

    @classmethod
    def knn(cls, features: Float[Tensor, "n d"], k: int) -> "Hypergraph":
        """One hyperedge a node: itself and its `k` nearest others (Euclidean). O(n² d) time; distances in blocks of 16 MB.

        One thread takes 1.8 s for 5,000 nodes of 64 features. By a product of matrices it would take 0.4 s, and find wrong ones.

        >>> Hypergraph.knn(torch.tensor([[0.0], [1.0], [5.0]]), 1).links.source.tolist()
        [0, 1, 0, 1, 1, 2]
        """
        n = len(features)
        if not 1 <= k < n:
            raise Refused(f"k: must lie in 1 … {n - 1}, got {k}")
        own, near = torch.arange(n, device=features.device), []
        for rows in own.split(max(1, BLOCK // n)):
            # |x|² + |y|² − 2 ⟨x, y⟩ loses the near ones: of features around 10⁴, and, centred, of clusters that lie far apart.
            distance = torch.cdist(features[rows], features, compute_mode="donot_use_mm_for_euclid_dist")
            distance[torch.arange(len(rows), device=rows.device), rows] = -1  # itself first, also among equals
            near.append(distance.topk(k + 1, largest=False).indices)
        return cls.from_pairs(torch.cat(near).flatten(), own.repeat_interleave(k + 1), n, n)

    @property
    def nodes(self) -> int:
        """n."""
        return self.links.sources

    @property
    def edges(self) -> int:
        """m."""
        return self.links.targets

    @property
    def node(self) -> Int[Tensor, "p"]:
        """The node of each pair."""
        return self.links.source

    @property
    def edge(self) -> Int[Tensor, "p"]:
        """The hyperedge of each pair, rising."""
        return self.links.target

    @property
    def sizes(self) -> Int[Tensor, "m"]:
        """|e| of every hyperedge."""
        return self.links.ptr.diff()

    @property
    def degrees(self) -> Float[Tensor, "n"]:
        """``D_v = Σ_{e ∋ v} w_e``; the number of hyperedges of a node where all weights are 1."""
        return segment_reduce(self.weights[self.edge], self.node, self.nodes)

    @property
    def counts(self) -> Int[Tensor, "n"]:
        """In how many hyperedges each node is, whatever their weights."""
        return self.links.source_ptr.diff()

    def to(self, device: str | torch.device) -> "Hypergraph":
        """The same hypergraph on another device."""
        return Hypergraph(self.links.to(device), self.weights.to(device))

    def weighted(self, weights: Float[Tensor, "m"]) -> "Hypergraph":
        """The same edges with other weights, which may carry a gradient. O(1): the pairs are shared."""
        if weights.shape != (self.edges,):
            raise Refused(f"weights: one for each of the {self.edges} hyperedges is needed, got shape {tuple(weights.shape)}")
        return Hypergraph(self.links, weights)

    def dual(self) -> "Hypergraph":
        """Nodes become edges and edges nodes; all weights are 1. An isolated node becomes an edge without members."""
        return Hypergraph(self.links.reverse(), torch.ones(self.nodes, dtype=self.weights.dtype, device=self.weights.device))

    def keep(self, pairs: Tensor) -> "Hypergraph":
        """Only the (node, edge) pairs where `pairs` is True; node and edge numbers stay, an edge may become empty. O(p)."""
        links = Links.of(self.node[pairs], self.edge[pairs], self.nodes, self.edges)
        return Hypergraph(links, self.weights)

    def select(self, edges: Int[Tensor, "k"]) -> "Hypergraph":
        """The hyperedges named (each once), renumbered in that order, on the same nodes. O(p + m)."""
        new = edges.new_full((self.edges,), -1)
        new[edges] = torch.arange(len(edges), device=edges.device)
        kept = new[self.edge] >= 0
        links = Links.of(self.node[kept], new[self.edge[kept]], self.nodes, len(edges))
        return Hypergraph(links, self.weights[edges])

    # Graphs

    def _within(self) -> tuple[Tensor, Tensor]:
        """All ordered pairs (p, q) of pairs of the same edge, p = q too: two lists of Σ |e|² places."""
        many = self.sizes[self.edge]
        first = torch.arange(len(many), device=many.device).repeat_interleave(many)
        turn = torch.arange(len(first), device=many.device) - pointers_of(many)[first]
        return first, self.links.ptr[self.edge[first]] + turn

    def clique(self, weighted: bool = False) -> Pairs:
        """The clique graph ``H W Hᵀ − diag``, or with `weighted` ``H W D_e⁻¹ Hᵀ − diag``; O(Σ |e|²) time and memory.

        >>> one, three = Hypergraph.from_lists([[0, 1, 2]]), Hypergraph.from_lists([[0, 1], [1, 2], [2, 0]])
        >>> all(torch.equal(a, b) for a, b in zip(one.clique(), three.clique()))
        True
        """
        p, q = self._within()
        apart = p != q
        p, q = p[apart], q[apart]
        w = self.weights / self.sizes.clamp(min=1) if weighted else self.weights
        return merged(self.node[p], self.node[q], w[self.edge[p]], self.nodes)

    def star(self) -> Pairs:
        """The bipartite graph of n + m nodes: node v and node n + e are joined, both ways, where v is a member of e."""
        u, v = self.node, self.nodes + self.edge
        w = self.weights[self.edge]
        return Pairs(torch.cat([u, v]), torch.cat([v, u]), torch.cat([w, w]))

    def line(self) -> Pairs:
        """The line graph: hyperedges that meet, weighted by how many members they share. O(Σ_v count_v²)."""
        return self.dual().clique()

    def mediators(self, x: Float[Tensor, "n d"], direction: Float[Tensor, "d"] | None = None, mediate: bool = True) -> Pairs:
        """HyperGCN's graph for the features `x`: the two most different members i, j of every edge joined to each other and,
        if `mediate`, to every other member, each with weight w_e / (2 |e| − 3); without mediators i – j has w_e / |e|.

        "Most different" is the largest distance, O(Σ |e|² d); with a `direction` it is the largest and the smallest of ⟨x,
        direction⟩, O(p d), as the authors do with a random one. The choice carries no gradient. Edges of one member join nothing.
        """
        x, p = x.detach(), torch.arange(len(self.node), device=x.device)
        if direction is not None:
            score = (x @ direction)[self.node]
            i, j = (self._first(s, p, p) for s in (score, -score))
        else:
            first, second = self._within()
            places = torch.arange(len(first), device=x.device).split(max(1, BLOCK // max(1, x.shape[1])))
            far = torch.cat([(x[self.node[first[c]]] - x[self.node[second[c]]]).square().sum(-1) for c in places])
            i, j = self._first(far, first, first), self._first(far, first, second)
        ok = self.sizes > 1
        scale = (2 * self.sizes - 3 if mediate else self.sizes).clamp(min=1).to(self.weights.dtype)
        w = self.weights / scale
        a, b, e = self.node[i.clamp(min=0)], self.node[j.clamp(min=0)], torch.arange(self.edges, device=x.device)
        u, v, of = [a[ok]], [b[ok]], [e[ok]]
        if mediate:
            other = (p != i[self.edge]) & (p != j[self.edge]) & ok[self.edge]
            k, of_k = self.node[other], self.edge[other]
            u, v, of = [*u, a[of_k], b[of_k]], [*v, k, k], [*of, of_k, of_k]
        left, right, edge = torch.cat(u), torch.cat(v), torch.cat(of)
        return merged(torch.cat([left, right]), torch.cat([right, left]), w[edge].repeat(2), self.nodes)

    def _first(self, score: Tensor, of: Tensor, value: Tensor) -> Tensor:
        """For every edge the `value` at the first place where `score` (of the edges of pairs `of`) is largest; −1 if empty."""
        edge = self.edge[of]
        top = segment_reduce(score, edge, self.edges, "max")
        place = torch.arange(len(score), device=score.device)
        last = len(score)
        at = torch.full((self.edges,), last, device=score.device).scatter_reduce(
            0, edge, torch.where(score == top[edge], place, last), "amin"
        )
        return torch.cat([value, value.new_full((1,), -1)])[at]


def pointers_of(sizes: Int[Tensor, "m"]) -> Int[Tensor, "m"]:
    """Where each of segments of these sizes begins: 0, sizes₀, sizes₀ + sizes₁, …

    >>> pointers_of(torch.tensor([3, 2, 4]))
    tensor([0, 3, 5])
    """
    return sizes.cumsum(0) - sizes


def merged(u: Int[Tensor, "q"], v: Int[Tensor, "q"], weight: Float[Tensor, "q"], n: int) -> Pairs:
    """Pairs named more than once become one of the sum of their weights, in order of u, then v. O(q log q).

    >>> merged(torch.tensor([1, 0, 1]), torch.tensor([0, 1, 0]), torch.ones(3), 2)
    Pairs(u=tensor([0, 1]), v=tensor([1, 0]), weight=tensor([1., 2.]))
    """
    within("v", v, n)
    key, place = torch.unique(u * n + v, return_inverse=True)
    return Pairs(key // n, key % n, segment_reduce(weight, place, len(key)))
