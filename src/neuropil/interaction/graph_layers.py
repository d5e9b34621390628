"""Two layers that see of a hypergraph only its clique graph: who meets whom, and how often, but not in which group.

    GCN  x' = D̃^{−½} (A + I) D̃^{−½} X Θ                              Kipf & Welling 2017, arXiv:1609.02907
    GAT  x_v' = Σ_u softmax_u(LeakyReLU(a·t_v + b·t_u)) t_u,  t = Θ x    Veličković et al. 2018, arXiv:1710.10903

They are what layers on hypergraphs are measured against.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.interaction.hypergraph import Hypergraph
from neuropil.interaction.message_passing import covers, gcn_links
from neuropil.nn.segments import Links, segment_reduce


class GCN(nn.Module):
    """``D̃^{−½} (A + I) D̃^{−½} X Θ`` on the clique graph, edges weighted by how often two nodes meet. O(q out) for q neighbours.

    `Refused` for features that do not fit the hypergraph or the weights.

    >>> GCN(3, 4)(torch.ones(3, 3), Hypergraph.from_lists([[0, 1], [1, 2]])).shape
    torch.Size([3, 4])
    """

    def __init__(self, d: int, out: int) -> None:
        super().__init__()
        self.theta = nn.Linear(d, out)

    def forward(self, x: Float[Tensor, "n d"], h: Hypergraph) -> Float[Tensor, "n o"]:
        """The new nodes."""
        covers("x", x, h, self.theta.weight)
        links, weights = gcn_links(h.clique(), h.nodes)
        return links.sum(self.theta(x), weights)


class GAT(nn.Module):
    """``Σ_u softmax_u(LeakyReLU(a·t_v + b·t_u)) t_u`` over the neighbours u of v in the clique graph and v itself; one head.

    O(q out) for q neighbours. `Refused` as `GCN`.

    >>> GAT(3, 4)(torch.ones(3, 3), Hypergraph.from_lists([[0, 1], [1, 2]])).shape
    torch.Size([3, 4])
    """

    def __init__(self, d: int, out: int) -> None:
        super().__init__()
        self.theta, self.a, self.b = nn.Linear(d, out), nn.Linear(out, 1), nn.Linear(out, 1)

    def forward(self, x: Float[Tensor, "n d"], h: Hypergraph) -> Float[Tensor, "n o"]:
        """The new nodes."""
        covers("x", x, h, self.theta.weight)
        graph, own = h.clique(), torch.arange(h.nodes, device=x.device)
        links = Links.of(torch.cat([graph.u, own]), torch.cat([graph.v, own]), h.nodes, h.nodes)
        t = self.theta(x)
        score = (self.a(t)[links.target] + self.b(t)[links.source]).squeeze(-1)
        return links.sum(t, segment_reduce(nn.functional.leaky_relu(score, 0.2), links.target, h.nodes, "softmax"))
