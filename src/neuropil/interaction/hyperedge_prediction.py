"""Training without node labels: which sets are hyperedges, which two views are of one thing, who is missing from an edge.

Negatives of hyperedge prediction, from easy to hard (Patil, Sharma & Murty 2020, "Negative sampling for hyperlink prediction"):
    SNS  sized: a size drawn from the edges' sizes, then members at random
    MNS  motif: grown from a node by joining, step by step, a random neighbour (in the clique graph) of a random member
    CNS  clique: a hyperedge, one of whose members is swapped for a node that meets all the others
Random negatives make the task look solved: report more than one. No negative is itself a hyperedge.

Contrast (Lee & Shin 2023, TriCL, arXiv:2206.04739): two views with members, edges and features dropped; node against node, edge
against edge, node against edge of its own. Generation: one member of every edge is hidden and has to be named again.
The survey's adversarial generator of negatives is in `adversarial_negatives`.

Sets are rows of node numbers padded with −1: (count, largest size).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from neuropil.errors import Refused, choose
from neuropil.interaction.hypergraph import Hypergraph
from neuropil.interaction.message_passing import covers
from neuropil.nn import contrastive
from neuropil.nn.checks import at_least, fits, same_kind, some, within
from neuropil.nn.mlp import MLP
from neuropil.nn.segments import segment_reduce

KINDS = ("SNS", "MNS", "CNS")
TRIES = 50  # rounds of drawing anew what was refused, before giving up


def edge_sets(h: Hypergraph) -> Int[Tensor, "m k"]:
    """The hyperedges as rows of node numbers, padded with −1. O(m · largest size).

    >>> edge_sets(Hypergraph.from_lists([[0, 1, 2], [2, 3]]))
    tensor([[ 0,  1,  2],
            [ 2,  3, -1]])
    """
    rows = h.node.new_full((h.edges, int(h.sizes.max()) if h.edges else 0), -1)
    place = torch.arange(len(h.node), device=h.node.device) - h.links.ptr[h.edge]
    rows[h.edge, place] = h.node
    return rows


def sets_as_edges(sets: Int[Tensor, "c k"], nodes: int) -> Hypergraph:
    """Padded rows as the hyperedges of a hypergraph. O(c k)."""
    row, column = (sets >= 0).nonzero(as_tuple=True)
    return Hypergraph.from_pairs(sets[row, column], row, nodes, len(sets), empty=True)


def negatives(h: Hypergraph, kind: str, count: int, generator: torch.Generator | None = None) -> Int[Tensor, "{count} k"]:
    """`count` sets of at least 2 members that are no hyperedges of `h`, drawn as the kind says; all rows at once, on the CPU.

    Edges of one member are not drawn from. `Refused` for an unknown kind, and where no such sets are found (CNS needs an edge whose
    members but one have another common neighbour).

    >>> h = Hypergraph.from_lists([[0, 1, 2], [1, 2, 3], [0, 3, 4]])
    >>> negatives(h, "CNS", 20).sort(1).values.unique(dim=0)
    tensor([[0, 1, 3],
            [0, 2, 3]])
    """
    choose("kind", kind, KINDS)
    at_least(0, count=count)
    if not h.edges or int(h.sizes.max()) < 2:
        raise Refused("h: needs a hyperedge of at least 2 members to draw negatives like it")
    draw = _Draw(h, generator)
    found, missing = [], count
    for _ in range(TRIES):
        sets = {"SNS": draw.sized, "MNS": draw.motif, "CNS": draw.clique}[kind](2 * missing)
        sets = sets[draw.is_new(sets)][:missing]
        found.append(sets)
        missing -= len(sets)
        if not missing:
            return torch.cat(found)
    raise Refused(f"kind: found only {count - missing} of {count} negatives of kind {kind} in this hypergraph")


class _Draw:
    """What drawing negatives needs of a hypergraph: its edges as rows, their hashes, and neighbours in the clique graph."""

    def __init__(self, h: Hypergraph, generator: torch.Generator | None) -> None:
        self.n, self.g = h.nodes, generator
        self.edges = edge_sets(h)
        # A set's hash is the sum of its members' random 64-bit numbers: two sets of the data agree with chance 2⁻⁶⁴.
        self.code = torch.randint(-(2**62), 2**62, (h.nodes + 1,), generator=torch.Generator().manual_seed(176))
        self.code[-1] = 0  # of the padding −1
        self.known = self.code[self.edges].sum(1)
        u, v, _ = h.clique()
        self.pairs = u * self.n + v  # sorted
        self.neighbours, self.degree = v, torch.bincount(u, minlength=self.n)
        self.begin = self.degree.cumsum(0) - self.degree
        self.drawn = (h.sizes > 1).nonzero().squeeze(1)
        self.sizes = h.sizes

    def uniform(self, below: Tensor) -> Tensor:
        """A whole number in 0 … below − 1 for each entry; 0 where `below` is 0."""
        return (torch.rand(below.shape, generator=self.g, dtype=torch.float64) * below).long().clamp(max=(below - 1).clamp(min=0))

    def some_edges(self, count: int) -> Tensor:
        """Numbers of random hyperedges of at least two members."""
        return self.drawn[torch.randint(len(self.drawn), (count,), generator=self.g)]

    def is_new(self, sets: Tensor) -> Tensor:
        """Rows whose members differ, of at least 2 members, that are no hyperedge."""
        ordered = sets.sort(1).values
        twice = ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any(1)
        return ~twice & ((sets >= 0).sum(1) > 1) & ~torch.isin(self.code[sets].sum(1), self.known)

    def meet(self, u: Tensor, v: Tensor) -> Tensor:
        """Whether u and v are neighbours in the clique graph."""
        key = u * self.n + v
        place = torch.searchsorted(self.pairs, key).clamp(max=len(self.pairs) - 1)
        return self.pairs[place] == key

    def sized(self, count: int) -> Tensor:
        """SNS. A row with a node twice is thrown away by `is_new`, which leaves all sets of a size as likely."""
        size = self.sizes[self.some_edges(count)]
        sets = torch.randint(self.n, (count, self.edges.shape[1]), generator=self.g)
        return sets.where(torch.arange(sets.shape[1]) < size[:, None], -1)

    def motif(self, count: int) -> Tensor:
        """MNS: all rows grow by one member a step. A row whose draw fails 8 times stays smaller than wanted."""
        size = self.sizes[self.some_edges(count)]
        sets = torch.full((count, self.edges.shape[1]), -1)
        start = self.degree.nonzero().squeeze(1)
        sets[:, 0] = start[torch.randint(len(start), (count,), generator=self.g)]
        for step in range(1, sets.shape[1]):
            grow = size > step
            for _ in range(8):
                todo = (grow & (sets[:, step] < 0)).nonzero().squeeze(1)
                member = sets[todo].gather(1, self.uniform(torch.full((len(todo), 1), step))).squeeze(1)
                member = member.where(member >= 0, sets[todo, 0])
                new = self.neighbours[self.begin[member] + self.uniform(self.degree[member])]
                fresh = (sets[todo] != new[:, None]).all(1)
                sets[todo[fresh], step] = new[fresh]
        return sets

    def clique(self, count: int) -> Tensor:
        """CNS: a neighbour of one of those who stay is taken if it meets them all; 8 tries a row, the failed rows are left out."""
        sets = self.edges[self.some_edges(count)].clone()
        size = (sets >= 0).sum(1)
        leaves = self.uniform(size)[:, None]
        sets = sets.scatter(1, leaves, -1)  # the others stay where they are
        stays = sets >= 0
        done = torch.zeros(count, dtype=torch.bool)
        for _ in range(8):
            anchor = sets.gather(1, stays.double().multinomial(1, generator=self.g)).squeeze(1)
            new = self.neighbours[self.begin[anchor] + self.uniform(self.degree[anchor])]
            fits = (self.meet(new[:, None].expand_as(sets), sets.clamp(min=0)) | ~stays).all(1) & (sets != new[:, None]).all(1)
            swapped = sets.scatter(1, leaves, new[:, None])
            take = fits & ~done & self.is_new(swapped)
            sets[take], done = swapped[take], done | take
        return sets[done]


class SetScorer(nn.Module):
    """How much a set of nodes looks like a hyperedge: ``MLP([mean_v x_v ; max_v x_v − min_v x_v])`` (Yadati et al. 2020's pooling).

    O(pairs d + sets hidden d). The sets come as the hyperedges of `h` (see `sets_as_edges`).

    >>> SetScorer(4, 8)(torch.rand(5, 4), Hypergraph.from_lists([[0, 1], [2, 3, 4]])).shape
    torch.Size([2])
    """

    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.mlp = MLP([2 * d, hidden, 1], "relu")

    def forward(self, x: Float[Tensor, "n d"], h: Hypergraph) -> Float[Tensor, "m"]:
        """A logit for each hyperedge."""
        covers("x", x, h)
        fits("x", x, self.mlp[0].in_features // 2, self.mlp[0].weight)  # type: ignore[operator, arg-type]
        member = x[h.node]
        mean, most, least = (segment_reduce(member, h.edge, h.edges, how) for how in ("mean", "max", "min"))
        return self.mlp(torch.cat([mean, most - least], -1)).squeeze(-1)


def hold_out(h: Hypergraph, share: float, generator: torch.Generator | None = None) -> tuple[Hypergraph, Hypergraph]:
    """Hyperedges for training and the `share` held out, both on all nodes. Messages and edge features must use the first only.

    >>> [part.edges for part in hold_out(Hypergraph.from_lists([[0, 1], [1, 2], [2, 3], [0, 3]]), 0.25)]
    [3, 1]
    """
    if not 0 < share < 1:
        raise Refused(f"share: must lie in (0, 1), got {share}")
    order = torch.randperm(h.edges, generator=generator).to(h.node.device)
    held = round(share * h.edges)
    return h.select(order[held:].sort().values), h.select(order[:held].sort().values)


def drop_members(h: Hypergraph, share: float, generator: torch.Generator | None = None) -> Hypergraph:
    """Each (node, edge) pair goes with chance `share`; an edge may become empty, which gives zeros. O(p).

    >>> drop_members(Hypergraph.from_lists([[0, 1, 2]]), 0.0).sizes
    tensor([3])
    """
    return h.keep(_kept(len(h.node), share, generator).to(h.node.device))


def drop_edges(h: Hypergraph, share: float, generator: torch.Generator | None = None) -> Hypergraph:
    """Each hyperedge loses all its members with chance `share`; edge numbers stay. O(p).

    >>> drop_edges(Hypergraph.from_lists([[0, 1, 2]]), 0.0).sizes
    tensor([3])
    """
    return h.keep(_kept(h.edges, share, generator).to(h.node.device)[h.edge])


def drop_features(x: Float[Tensor, "n d"], share: float, generator: torch.Generator | None = None) -> Float[Tensor, "n d"]:
    """Each column is set to zero for all nodes with chance `share`. O(n d).

    >>> drop_features(torch.ones(2, 3), 0.0)
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    return x * _kept(x.shape[1], share, generator).to(x)


def _kept(count: int, share: float, generator: torch.Generator | None) -> Bool[Tensor, "{count}"]:
    if not 0 <= share < 1:
        raise Refused(f"share: must lie in [0, 1), got {share}")
    return torch.rand(count, generator=generator) >= share


def info_nce(a: Float[Tensor, "n d"], b: Float[Tensor, "m e"], tau: float = 0.5) -> Float[Tensor, ""]:
    """`contrastive.info_nce`, the mean of both ways: row i of one view has to find row i of the other among all rows. O(n² d).

    >>> bool(info_nce(torch.eye(4), torch.eye(4), 0.01) < 1e-6)
    True
    """
    return (contrastive.info_nce(a, b, tau) + contrastive.info_nce(b, a, tau)) / 2


def membership_loss(
    x: Float[Tensor, "n d"], z: Float[Tensor, "m d"], h: Hypergraph, generator: torch.Generator | None = None
) -> Float[Tensor, ""]:
    """Node and edge states of true pairs have to agree (⟨x_v, z_e⟩ > 0), those of a random other edge not. O(p d).

    >>> membership_loss(torch.zeros(3, 2), torch.zeros(1, 2), Hypergraph.from_lists([[0, 1]], nodes=3))
    tensor(1.3863)
    """
    if len(x) != h.nodes or len(z) != h.edges:
        raise Refused(f"x, z: {h.nodes} nodes and {h.edges} edges are needed, got {len(x)} and {len(z)} rows")
    same_kind("z", z, x)
    other = torch.randint(h.edges, (len(h.edge),), generator=generator).to(h.edge.device)
    true, false = h.links.dot(z, x), (x[h.node] * z[other]).sum(-1)
    one, zero = torch.ones_like(true), torch.zeros_like(false)
    return binary_cross_entropy_with_logits(true, one) + binary_cross_entropy_with_logits(false, zero)


def mask_members(h: Hypergraph, generator: torch.Generator | None = None) -> tuple[Hypergraph, Int[Tensor, "k"], Int[Tensor, "k"]]:
    """Hide one random member of every hyperedge of at least two: what is left, those edges, and the hidden nodes. O(p).

    >>> left, edges, hidden = mask_members(Hypergraph.from_lists([[0, 1, 2], [3]]))
    >>> left.sizes.tolist(), edges.tolist()
    ([2, 1], [0])
    """
    edges = (h.sizes > 1).nonzero().squeeze(1)
    u = torch.rand(len(edges), generator=generator).to(h.node.device)
    place = h.links.ptr[edges] + (u * h.sizes[edges]).long().clamp(max=h.sizes[edges] - 1)
    stays = torch.ones(len(h.node), dtype=torch.bool, device=h.node.device)
    stays[place] = False
    return h.keep(stays), edges, h.node[place]


def fill_loss(
    x: Float[Tensor, "n d"], z: Float[Tensor, "m d"], edges: Int[Tensor, "k"], hidden: Int[Tensor, "k"]
) -> Float[Tensor, ""]:
    """−log softmax over all nodes of ⟨z_e, x_v⟩ at the hidden member, for states made without it. O(k n d).

    >>> fill_loss(torch.zeros(4, 2), torch.zeros(1, 2), torch.tensor([0]), torch.tensor([3])).exp()
    tensor(4.)
    """
    some("edges", edges, 0)
    within("edges", edges, len(z))
    within("hidden", hidden, len(x))
    same_kind("z", z, x)
    return cross_entropy(z[edges] @ x.T, hidden)
