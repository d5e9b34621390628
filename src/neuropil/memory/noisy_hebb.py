"""Consolidated Hebbian learning under noise: how a binary sparse associative memory may come to be by itself.

    x̃ = insert_erase(x)                        noise: active units erased (p_e), silent ones inserted (p_i)
    a ← x̃,  then  a ← the E units with the largest γ x̃ + W a > 0,  `steps` times         E: the energy limit
    c_ij ← c_ij + a_i a_j                       at each presentation
    W_ij ← 1 for good once c_ij ≥ θ             and c_ij ← 0.9 c_ij once an epoch for links that are not permanent yet

With θ = 1 a link is made at the first co-activity: plain Hebbian learning, which under noise links nearly everything. The Willshaw
matrix of the clean messages (`neuropil.memory.willshaw`) is what the consolidated rule should arrive at.

"Robust Associative Memories Naturally Occuring From Recurrent Hebbian Networks Under Noise", 2017, arXiv:1709.08367. The abstract
fixes the ingredients (noise, limited energy, permanent links after repeated evidence); the update is our reading of it, and all
its constants are arguments. Units that tie with the E-th stay active, so the limit can be exceeded by ties.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.stats import binom
from torch import Tensor

from neuropil.errors import Refused
from neuropil.memory.willshaw import active, insert_erase
from neuropil.nn.checks import at_least, finite, some


@dataclass(frozen=True)
class Learned:
    """Permanent links W, counters of the others, and the mean number of active units in every epoch."""

    W: Float[Tensor, "n n"]
    counters: Float[Tensor, "n n"]
    activity: list[float]


@dataclass(frozen=True)
class ConsolidatedHebb:
    """The rule and its constants: `theta` co-activities make a link, `decay` of counters per epoch, `energy` limit on active units.

    `steps` recurrent updates with input gain `gamma` come before each learning step (none: the activity is the input). Without a
    limit, every unit with any drive is active. A gain above the number of active units lets the net choose among its inputs, but
    not override them.

    >>> from neuropil.memory.willshaw import sparse_messages, willshaw
    >>> generator = torch.Generator().manual_seed(0)
    >>> messages = sparse_messages(150, 400, 8, generator)
    >>> learned = ConsolidatedHebb().learn(messages, epochs=12, p_i=0.01, p_e=0.1, generator=generator)
    >>> precision, recall = agreement(learned.W, willshaw(messages))
    >>> precision > 0.97 and recall > 0.95
    True
    """

    theta: float = 4.0
    decay: float = 0.9
    energy: int | None = None
    steps: int = 0
    gamma: float = 10.0

    def __post_init__(self) -> None:
        if self.theta < 1 or not 0 <= self.decay <= 1 or self.steps < 0 or (self.energy is not None and self.energy < 1):
            raise Refused(f"theta >= 1, 0 <= decay <= 1, steps >= 0, energy >= 1 or None are needed, got {self}")

    def settle(self, x: Float[Tensor, "*m n"], W: Float[Tensor, "n n"]) -> Float[Tensor, "*m n"]:
        """The activity that input `x` calls up through `W`."""
        a = x
        for _ in range(self.steps):
            a = active(self.gamma * x + a @ W, self.energy or x.shape[-1])
        return a

    def learn(
        self,
        messages: Float[Tensor, "m n"],
        epochs: int,
        p_i: float = 0.0,
        p_e: float = 0.0,
        generator: torch.Generator | None = None,
        start: Learned | None = None,
    ) -> Learned:
        """`epochs` presentations of every message with fresh noise, in random order, one after the other (`start`: go on from
        there).

        What is learned changes the dynamics of what comes next, so presentations are sequential by definition; each costs O(steps
        n²) for the dynamics and O(active²) for learning. Memory O(n² + m n).
        """
        some("messages", messages, 0)
        finite("messages", messages)
        m, n = messages.shape
        nothing = messages.new_zeros(n, n)
        W, counters = (x.clone() for x in ((nothing, nothing) if start is None else (start.W, start.counters)))
        activity = list(start.activity) if start else []
        for _ in range(epochs):
            noisy = insert_erase(messages, p_i, p_e, generator)
            total = 0
            for index in torch.randperm(m, generator=generator).tolist():
                units = self.settle(noisy[index], W).nonzero().flatten()
                rows, columns = units[:, None], units
                seen = counters[rows, columns] + 1
                counters[rows, columns] = seen
                W[rows, columns] = torch.maximum(W[rows, columns], (seen >= self.theta).to(W))
                W[units, units] = 0
                total += len(units)
            counters = torch.where(W > 0, counters, self.decay * counters)
            activity.append(total / m)
        return Learned(W, counters.fill_diagonal_(0), activity)


def theta_bound(presentations: int, p_i: float, k: int, n: int, wrong: float = 0.01) -> int:
    """The least θ at which a pair of units that no message joins becomes a link with probability at most `wrong`.

    A pair is active together by noise alone with at most ``q = 2 p_i (k/n + p_i)`` a presentation: one unit inserted, the other in
    the message or inserted too, for either unit. Counts are binomial. So θ follows from the noise and not from the result; the
    decay is left out, which makes the bound safe.

    >>> theta_bound(presentations=12 * 150, p_i=0.01, k=8, n=400)
    5
    """
    at_least(1, n=n)
    at_least(0, presentations=presentations, k=k, wrong=wrong)
    q = 2 * p_i * (k / n + p_i)
    if not (p_i >= 0 and q <= 1):
        raise Refused(f"p_i: must be at least 0, and 2 p_i (k/n + p_i) at most 1, got {p_i}")
    return next(theta for theta in range(1, presentations + 2) if binom.sf(theta - 1, presentations, q) <= wrong)


def agreement(W: Float[Tensor, "n n"], target: Float[Tensor, "n n"]) -> tuple[float, float]:
    """Precision and recall of the links in `W` against those of `target` (1 where there is nothing to be wrong about).

    >>> agreement(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    (0.5, 1.0)
    """
    both = float((W * target).sum())
    made, wanted = float(W.sum()), float(target.sum())
    return both / made if made else 1.0, both / wanted if wanted else 1.0
