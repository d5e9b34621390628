"""Negatives of hyperedge prediction that a net makes, against the scorer that has to tell them from hyperedges.

    G(z, k): p = MLP(z) ∈ ℝⁿ; k different nodes drawn one after the other, each with chances ∝ exp(p / τ) among those left
    scorer:    min  −log σ(D(e)) − log(1 − σ(D(G(z))))           over hyperedges e, k drawn from their sizes
    generator: min  −log σ(D(G(z))), by ∇ = mean (loss − mean of the others' losses) ∇ log P(G(z) | z)          (REINFORCE)

H. Hwang, S. Lee, C. Park & K. Shin, "AHP: Learning to Negative Sample for Hyperedge Prediction", 2022, arXiv:2204.06353; one of the
four kinds of negatives in the survey of Kim et al. 2024, arXiv:2404.01039 (the other three: `interaction.hyperedge_prediction`).

Differs from the paper, which takes the k largest of p and lets the gradient pass through the scorer's features: here the sets are
drawn and the gradient is that of their chances, so that any scorer will do. The k largest of p / τ + Gumbel noise are such a draw.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot, softplus

from neuropil.errors import Refused
from neuropil.interaction.hyperedge_prediction import sets_as_edges
from neuropil.interaction.hypergraph import Hypergraph
from neuropil.nn.checks import within
from neuropil.nn.mlp import MLP

Scorer = Callable[[Tensor, Hypergraph], Tensor]


class NegativeGenerator(nn.Module):
    """Sets of nodes from noise. O(count n (hidden + k)) time, O(count n k) memory.

    Args:
        nodes: n.
        noise, hidden: widths of z and of the MLP.
        tau: how random the choice is, given z.

    >>> made, chance = NegativeGenerator(10)(torch.tensor([2, 3]))
    >>> made.shape, (made >= 0).sum(1).tolist(), chance.shape
    (torch.Size([2, 3]), [2, 3], torch.Size([2]))
    """

    def __init__(self, nodes: int, noise: int = 16, hidden: int = 64, tau: float = 1.0) -> None:
        super().__init__()
        if nodes < 2 or not tau > 0:
            raise Refused(f"nodes, tau: at least 2 nodes and tau > 0 are needed, got {nodes} and {tau}")
        self.nodes, self.noise, self.tau = nodes, noise, tau
        self.mlp = MLP([noise, hidden, nodes], "relu")

    def forward(
        self, sizes: Int[Tensor, "c"], generator: torch.Generator | None = None
    ) -> tuple[Int[Tensor, "c k"], Float[Tensor, "c"]]:
        """Rows of `sizes` different nodes in the order drawn, padded with −1; and log P of each row, given its z."""
        most = int(sizes.max())
        if int(sizes.min()) < 1 or most > self.nodes:
            raise Refused(f"sizes: must lie in 1 … {self.nodes} nodes, got {int(sizes.min())} … {most}")
        weight = next(self.parameters())
        # drawn on the CPU, so that a generator gives the same noise on any device
        z = torch.randn(len(sizes), self.noise, generator=generator).to(weight)
        noise = -torch.empty(len(sizes), self.nodes).exponential_(generator=generator).log().to(weight)
        p = self.mlp(z) / self.tau
        drawn = (p + noise).topk(most, -1).indices
        there = torch.arange(most, device=sizes.device) < sizes[:, None]
        return drawn.where(there, -1), (draw_log_prob(p, drawn) * there).sum(-1)


def draw_log_prob(p: Float[Tensor, "c n"], drawn: Int[Tensor, "c k"]) -> Float[Tensor, "c k"]:
    """log chance of each node in the order drawn: ``p_{v_i} − log Σ exp p`` over the nodes not drawn before (Plackett–Luce).

    >>> draw_log_prob(torch.zeros(1, 3), torch.tensor([[2, 0, 1]])).exp()
    tensor([[0.3333, 0.5000, 1.0000]])
    """
    within("drawn", drawn, p.shape[-1])
    gone = one_hot(drawn, p.shape[-1]).cumsum(1).roll(1, 1)
    gone[:, 0] = 0
    left = p[:, None].masked_fill(gone.bool(), -torch.inf)
    return p.gather(1, drawn) - left.logsumexp(-1)


def scorer_loss(scorer: Scorer, x: Float[Tensor, "n d"], positives: Hypergraph, sets: Int[Tensor, "c k"]) -> Float[Tensor, ""]:
    """``mean −log σ(D(e)) + mean −log(1 − σ(D(made)))``; any negatives will do.

    >>> D = lambda x, h: torch.zeros(h.edges)
    >>> scorer_loss(D, torch.rand(4, 2), Hypergraph.from_lists([[0, 1]]), torch.tensor([[2, 3]]))
    tensor(1.3863)
    """
    return softplus(-scorer(x, positives)).mean() + softplus(scorer(x, sets_as_edges(sets, len(x)))).mean()


def generator_loss(
    scorer: Scorer, x: Float[Tensor, "n d"], sets: Int[Tensor, "c k"], log_prob: Float[Tensor, "c"]
) -> tuple[Float[Tensor, ""], float]:
    """What to differentiate for the generator, whose gradient is that of ``E −log σ(D)``; and the mean of −log σ(D) itself.

    Each set's loss is taken less the mean of the others', which changes no expectation. `Refused` for fewer than 2 sets.

    >>> D = lambda x, h: torch.tensor([0.0, 50.0])
    >>> generator_loss(D, torch.rand(4, 2), torch.tensor([[2, 3], [0, 1]]), torch.tensor([-1.0, -2.0]))
    (tensor(0.3466), 0.3465735912322998)
    """
    c = len(sets)
    if c < 2:
        raise Refused(f"sets: at least 2 are needed, got {c}")
    with torch.no_grad():
        loss = softplus(-scorer(x, sets_as_edges(sets, len(x))))
        above = (loss - loss.mean()) * c / (c - 1)
    return (above * log_prob).mean(), float(loss.mean())


def play(
    made_by: NegativeGenerator,
    scorer: nn.Module,
    x: Float[Tensor, "n d"],
    h: Hypergraph,
    steps: int,
    batch: int = 64,
    lr: float = 1e-3,
    generator: torch.Generator | None = None,
) -> list[tuple[float, float]]:
    """Train both in turns on fixed node states `x`, a step of Adam each; the losses of scorer and generator by step.

    Three passes of the scorer and one of the generator a step. `Refused` if there are no hyperedges. Where an encoder makes the
    states, take the two losses into its own loop.

    >>> from neuropil.interaction.hyperedge_prediction import SetScorer
    >>> h = Hypergraph.from_lists([[0, 1, 2], [2, 3]])
    >>> len(play(NegativeGenerator(4), SetScorer(3, 8), torch.rand(4, 3), h, steps=2))
    2
    """
    if not h.edges:
        raise Refused("h: needs hyperedges to learn from")
    ours, theirs = (torch.optim.Adam(net.parameters(), lr) for net in (made_by, scorer))
    losses = []
    for _ in range(steps):
        chosen = torch.randint(h.edges, (batch,), generator=generator).to(h.node.device)
        sets, log_prob = made_by(h.sizes[chosen], generator)
        of_scorer = scorer_loss(scorer, x, h.select(chosen.unique()), sets)
        theirs.zero_grad()
        of_scorer.backward()
        theirs.step()
        of_generator, mean = generator_loss(scorer, x, sets, log_prob)
        ours.zero_grad()
        of_generator.backward()
        ours.step()
        losses.append((float(of_scorer.detach()), mean))
    return losses
