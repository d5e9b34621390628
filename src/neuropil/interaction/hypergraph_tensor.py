"""The tensor form of a hypergraph, by contraction: ``A x^{M−1}`` without the n^M numbers of A.

    A_{v₁ … v_M} = w_e |e| / α_|e|   where {v₁, …, v_M} = e as a set, else 0         M: the largest |e|
    α_s = Σ M! / (k₁! … k_s!) over k ≥ 1 with Σ k = M: how many ways M places are given to s members, none left out
    (A x^{M−1})_v = Σ_{e ∋ v} (w_e |e| / α_|e|) (M − 1)! [t^{M−1}] e^{t x_v} Π_{u ∈ e, u ≠ v} (e^{t x_u} − 1)

Where all edges have M members it is A = w_e / (M − 1)! and ``(A x^{M−1})_v = Σ_{e ∋ v} w_e Π_{u ≠ v} x_u`` (Cooper & Dutle 2012,
arXiv:1106.4856); for edges of several sizes the entries are those of Banerjee, Char & Mondal 2017, arXiv:1601.02136, and the
generating function is that of Aksoy, Amburg & Young 2024, arXiv:2306.17825. Always A 1^{M−1} = D_v: nothing is lost of a
hypergraph, unlike in its clique graph. In the survey (Kim et al. 2024, arXiv:2404.01039) it is one of the input structures.

`TensorLayer` sends messages by it: x_v ← φ(W x_v + U [(A x^{M−1})_v / D_v]), products of the other members, feature by feature.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.interaction.hyperedge_prediction import edge_sets
from neuropil.interaction.hypergraph import Hypergraph

DENSE = 1 << 24  # numbers of a dense tensor, at most


def surjections(places: int, members: int) -> int:
    """α: in how many ways `places` are given to `members`, none left out.

    >>> surjections(3, 2), surjections(3, 3)
    (6, 6)
    """
    return sum((-1) ** j * math.comb(members, j) * (members - j) ** places for j in range(members + 1))


def contract(h: Hypergraph, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """``(A x^{M−1})_v`` for each column of `x`. O(m M³ d) time and O(m M² d) memory: for edges of a few members, M ≤ 16.

    `Refused` where an edge has more members or there are none.

    >>> h = Hypergraph.from_lists([[0, 1, 2]])
    >>> contract(h, torch.tensor([[2.0], [3.0], [5.0]])).flatten()
    tensor([15., 10.,  6.])
    """
    M = _order(h)
    sets = edge_sets(h)  # m M
    member = (sets >= 0)[..., None]
    factorial = torch.tensor([math.factorial(k) for k in range(M)], dtype=x.dtype, device=x.device)
    power = torch.arange(M, device=x.device)
    e = x[sets.clamp(min=0)][..., None] ** power / factorial  # m M d t: the series of e^{t x}
    others = torch.where(member[..., None], e - (power == 0).to(e), (power == 0).to(e))  # absent ones multiply by 1
    start = (power == 0).to(e).expand_as(others[:, 0])
    before, after = [start], [start]
    for i in range(M - 1):  # products without v: all before it times all after it
        before.append(_product(before[-1], others[:, i]))
        after.append(_product(after[-1], others[:, M - 1 - i]))
    rest = _product(torch.stack(before, 1), torch.stack(after[::-1], 1))
    last = (rest * e.flip(-1)).sum(-1) * math.factorial(M - 1)  # m M d: the coefficient of t^{M−1}
    share = h.weights.to(x) * h.sizes / torch.tensor([1, *(surjections(M, s) for s in range(1, M + 1))], device=x.device)[h.sizes]
    sent = (share[:, None, None] * last)[member.squeeze(-1)]
    return torch.zeros_like(x).index_add(0, sets[member.squeeze(-1)], sent)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """The product of two series of t, cut after as many terms."""
    terms = a.shape[-1]
    padded = torch.nn.functional.pad(b.flip(-1), (0, terms - 1))  # b_{T−1} … b_0 0 … 0
    shifted = padded.unfold(-1, terms, 1).flip(-2)  # row k: b_k … b_0 0 … 0
    return (shifted * a.unsqueeze(-2)).sum(-1)


def adjacency_tensor(h: Hypergraph) -> Tensor:
    """A itself, of shape (n, …, n), float32: to look at, and to test by. n^M numbers; `Refused` above 2²⁴.

    >>> adjacency_tensor(Hypergraph.from_lists([[0, 1], [1, 2]])).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    M, n = _order(h), h.nodes
    if n**M > DENSE:
        raise Refused(f"h: its tensor has {n}^{M} numbers, more than {DENSE}; `contract` needs none of them")
    index = torch.cartesian_prod(*[torch.arange(n)] * M).view(-1, M)
    present = torch.zeros(len(index), n).scatter(1, index, 1.0)  # which nodes each entry names
    incidence = torch.zeros(h.edges, n)
    incidence[h.edge.cpu(), h.node.cpu()] = 1.0
    both = present @ incidence.T  # how many of an edge's members an entry names
    same = (both == incidence.sum(1)) & (both == present.sum(1, keepdim=True))
    value = h.weights.cpu() * h.sizes.cpu() / torch.tensor([max(1, surjections(M, int(s))) for s in h.sizes])
    return (same * value).sum(1).view(*[n] * M).to(h.weights)


def _order(h: Hypergraph) -> int:
    M = int(h.sizes.max()) if h.edges else 0
    if not 2 <= M <= 16:
        raise Refused(f"h: its largest hyperedge must have 2 … 16 members, got {M}")
    return M


class TensorLayer(nn.Module):
    """``x_v ← W x_v + U s((A y^{M−1})_v / D_v)``, y = tanh(V x), s(z) = sign(z) |z|^{1/(M−1)}: one message of M-wise products.

    y lies within ±1, and s takes the scale of a product of M − 1 factors back to that of one. Isolated nodes get W x_v.
    O(m M³ d) time, O(m M² d) memory.

    >>> TensorLayer(4, 8)(torch.randn(3, 4), Hypergraph.from_lists([[0, 1, 2]])).shape
    torch.Size([3, 8])
    """

    def __init__(self, d: int, out: int) -> None:
        super().__init__()
        self.own, self.inner, self.outer = nn.Linear(d, out), nn.Linear(d, d), nn.Linear(d, out, bias=False)

    def forward(self, x: Float[Tensor, "n d"], h: Hypergraph) -> Float[Tensor, "n e"]:
        """New features of the nodes."""
        z = contract(h, torch.tanh(self.inner(x))) / h.degrees.to(x).clamp_min(1)[:, None]
        root = z.sign() * (z.abs() + 1e-6) ** (1 / (_order(h) - 1))  # the root has no finite slope at 0
        return self.own(x) + self.outer(root)
