"""Binary sparse associative memories: Willshaw's, and its clustered form, the clique network.

    W_ij = max_μ x_i^μ x_j^μ,  W_ii = 0;      Willshaw:  a ← the k units of largest drive x_i + (W x)_i
                                              clique:    a ← the best of each cluster by s_i = a_i + Σ_{C ∌ i} max_{j ∈ C} W_ij a_j

A link is one bit and is never taken back. In the clique network no link runs inside a cluster, so a message of c symbols is a clique of c
units, and the sum of maxima counts each cluster once at most: s_i ≤ c. A cluster without an active unit starts with all of its units as
candidates. Ties stay ties: a message is recalled when no unit is tied with its own. After M random messages the share of links between
clusters of l units is

    d = 1 − (1 − 1/l²)^M

Willshaw, Buneman & Longuet-Higgins 1969; Gripon & Berrou 2011, arXiv:1102.4240. They are what noisy Hebbian learning is said to end
up with in Coyac et al. 2017, arXiv:1709.08367.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.memory.lookup import TopK, WinnerTakeAll
from neuropil.memory.sparse_codes import check_binary


def winners(drive: Float[Tensor, "*b n"], k: int) -> Float[Tensor, "*b n"]:
    """1 for the `k` units of largest drive above 0 and for all tied with the k-th, else 0. Time O(b n log k).

    >>> winners(torch.tensor([3.0, 1.0, 2.0, 2.0, 0.0]), 2)
    tensor([1., 0., 1., 1., 0.])
    """
    return ((TopK(k)(drive) > 0) & (drive > 0)).to(drive.dtype)


@dataclass(frozen=True)
class WillshawMemory:
    """A Willshaw memory of n units. Writing gives a new memory: O(m n²) for m messages; memory O(n²).

    >>> x = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0]])
    >>> WillshawMemory.empty(5).write(x).recall(torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]), k=3)
    tensor([[1., 1., 1., 0., 0.]])
    """

    links: Float[Tensor, "n n"]

    @classmethod
    def empty(cls, n: int) -> "WillshawMemory":
        """A memory without links."""
        return cls(torch.zeros(n, n))

    def write(self, messages: Float[Tensor, "m n"]) -> "WillshawMemory":
        """The memory with a link between all units that are active in one message; `Refused` unless messages are 0 and 1."""
        check_binary("messages", messages)
        together = (messages.T @ messages > 0).to(messages.dtype).fill_diagonal_(0)
        return replace(self, links=torch.maximum(self.links.to(messages), together))

    def recall(self, cue: Float[Tensor, "*b n"], k: int, steps: int = 5, gamma: float = 1.0) -> Float[Tensor, "*b n"]:
        """``a ← top-k of gamma·cue + W a``, `steps` times from the cue, ties kept. Time O(steps b n²).

        Raises `Refused` for k below 1 or fewer than one step.
        """
        if k < 1 or steps < 1:
            raise Refused(f"k, steps: at least 1 each, got {k} and {steps}")
        active = cue
        for _ in range(steps):
            active = winners(gamma * cue + active @ self.links, k)
        return active


@dataclass(frozen=True)
class CliqueMemory:
    """A clique network of `c` clusters of `l` units. Writing gives a new memory: O(m n²) for m messages, n = c·l; memory O(n²).

    >>> x = torch.tensor([[1.0, 0, 0, 1, 1, 0], [0, 1.0, 0, 1, 0, 1]])                        # 3 clusters of 2
    >>> CliqueMemory.empty(3, 2).write(x).recall(torch.tensor([[1.0, 0, 0, 1, 0, 0]]))        # the last cluster is erased
    tensor([[1., 0., 0., 1., 1., 0.]])
    """

    c: int
    l: int
    links: Float[Tensor, "n n"]

    @classmethod
    def empty(cls, c: int, l: int) -> "CliqueMemory":
        """A network without links; `Refused` for fewer than two clusters or no units."""
        if c < 2 or l < 1:
            raise Refused(f"c, l: needed are at least 2 clusters of at least 1 unit, got {c} of {l}")
        return cls(c, l, torch.zeros(c * l, c * l))

    @property
    def between(self) -> Bool[Tensor, "n n"]:
        """Where a link is allowed: between different clusters."""
        cluster = torch.arange(self.c * self.l, device=self.links.device) // self.l
        return cluster[:, None] != cluster

    def write(self, messages: Float[Tensor, "m n"]) -> "CliqueMemory":
        """The network with the cliques of `messages`; `Refused` unless each has exactly one active unit in every cluster."""
        check_binary("messages", messages)
        if messages.shape[1] != self.c * self.l or not bool((messages.unflatten(1, (self.c, self.l)).sum(-1) == 1).all()):
            raise Refused(f"messages: must have one active unit in each of {self.c} clusters of {self.l}")
        together = (messages.T @ messages > 0).to(messages.dtype)
        return replace(self, links=torch.maximum(self.links.to(messages), together) * self.between.to(messages))

    def density(self) -> float:
        """The share of possible links that exist."""
        return float(self.links.sum() / self.between.sum())

    def score(self, active: Float[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """The sum of maxima ``s_i``, at most c. Time O(b n²), memory O(b c n).

        >>> CliqueMemory.empty(2, 2).score(torch.ones(1, 4))
        tensor([[1., 1., 1., 1.]])
        """
        sources = active.unflatten(-1, (self.c, self.l)).transpose(0, 1)  # clusters, batch, units
        reached = (sources @ self.links.view(self.c, self.l, -1) > 0).to(active.dtype)
        return active + reached.sum(0)  # no link runs inside a cluster, so each of the others counts once

    def recall(self, cue: Float[Tensor, "b n"], steps: int = 5, block: int = 2**24) -> Float[Tensor, "b n"]:
        """The best-scoring units of every cluster, `steps` times from the cue; ties stay, and the cue is not held on.

        Takes the cues in slices of at most `block` numbers (b c n). Time O(steps b n²).
        """
        if steps < 1:
            raise Refused(f"steps: at least 1, got {steps}")
        check_binary("cue", cue)
        parts = []
        for active in cue.split(max(1, block // (self.c * self.links.numel() // len(self.links)))):
            clusters = active.unflatten(-1, (self.c, self.l))
            active = torch.where(clusters.any(-1, keepdim=True), clusters, 1).flatten(-2)
            for _ in range(steps):
                score = self.score(active).unflatten(-1, (self.c, self.l))
                active = (WinnerTakeAll()(score) > 0).to(cue.dtype).flatten(-2)
            parts.append(active)
        return torch.cat(parts)


def density(messages: int, l: int) -> float:
    """``d = 1 − (1 − 1/l²)^M``, the expected share of links after M random clustered messages; `Refused` for l below 1.

    >>> round(density(1000, 64), 3)
    0.217
    """
    if l < 1 or messages < 0:
        raise Refused(f"l, messages: needed are l of at least 1 and no negative number, got {l} and {messages}")
    return 1 - (1 - 1 / l**2) ** messages
