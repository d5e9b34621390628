"""Synchrony of pairs of units as a read-out: how much two units rose and fell together over all the time so far.

    S_ij(t) = Σ_{τ ≤ t} r_ij^{t−τ} z_i(τ) z_j(τ) / √(Σ_{τ ≤ t} r_ij^{t−τ}),        r_ij = exp(−max(0, λ_ij)), λ learned from 0

as a recurrence with α = β = 0 before the first step:

    α ← r α + z_i z_j        β ← r β + 1        S = α / √β

Darlow, Regan, Risi, Seely & Jones 2025, arXiv:2505.05522 (Continuous Thought Machines). λ is kept in
[0, 15] by projection. The authors write the projected value over the parameter before each forward pass; here the parameter stays
as the optimizer left it, the projected value is used, and gradients that point out of the interval are dropped: nothing changes
in a forward pass, and λ can leave the edge at 0 where it starts.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuropil.errors import Refused, choose

CHOICES = ("pairs", "first", "last", "grid")
MOST = 15.0  # the largest λ


def pairs(
    choice: str, units: int, n: int, generator: torch.Generator | None = None, selves: int = 0
) -> tuple[Int[Tensor, " p"], Int[Tensor, " p"]]:
    """Which units (i, j) are compared.

    - "pairs": n random pairs (the authors' default); the first `selves` of them are a unit with itself: p = n.
    - "first", "last": all pairs i ≤ j among the first or last n units, p = n (n + 1) / 2.
    - "grid": two random lists of n units, and of their n × n pairs the upper triangle, p = n (n + 1) / 2 (the authors' "random").

    Raises `Refused` for another choice, n < 1, more units than there are, or `selves` outside 0 … n (0 for the other choices).

    >>> [i.tolist() for i in pairs("last", units=5, n=2)]
    [[3, 3, 4], [3, 4, 4]]
    """
    choose("choice", choice, CHOICES)
    if n < 1 or (choice in ("first", "last") and n > units) or units < 1:
        raise Refused(f"n: at least 1 and, for first and last, at most units={units}, got {n}")
    if not 0 <= selves <= (n if choice == "pairs" else 0):
        raise Refused(f"selves: 0 … n for choice 'pairs', else 0, got {selves} for {choice!r}")
    if choice in ("pairs", "grid"):
        left, right = torch.randint(units, (2, n), generator=generator)
    else:
        left = right = torch.arange(n) + (units - n if choice == "last" else 0)
    if choice == "pairs":
        return left, torch.cat([left[:selves], right[selves:]])
    i, j = torch.triu_indices(n, n)
    return left[i], right[j]


class SynchronyState(NamedTuple):
    """The two decaying sums; β is the same for the whole batch."""

    alpha: Float[Tensor, "*b p"]
    beta: Float[Tensor, " p"]


class Synchrony(nn.Module):
    """``(z, state) → (S, state)`` for the pairs (left, right) of units. S grows like √t where two units agree.

    p numbers; O(p) time and memory a step and batch element. Raises `Refused` for lists of different lengths or none at all.

    >>> readout = Synchrony(*pairs("first", units=2, n=2))
    >>> z = torch.tensor([[1.0, 2.0]])
    >>> S, state = readout(z, readout.start(1))
    >>> readout(z, state)[0] / S  # a constant z: 2 z_i z_j / √2
    tensor([[1.4142, 1.4142, 1.4142]], grad_fn=...)
    """

    left: Tensor
    right: Tensor

    def __init__(self, left: Int[Tensor, " p"], right: Int[Tensor, " q"]) -> None:
        super().__init__()
        if len(left) != len(right) or not len(left):
            raise Refused(f"left, right: as many indices in each and at least one are needed, got {len(left)} and {len(right)}")
        self.register_buffer("left", left)
        self.register_buffer("right", right)
        self.decay = nn.Parameter(torch.zeros(len(left)))

    def __len__(self) -> int:
        """The number of pairs, p."""
        return len(self.decay)

    def start(self, *batch: int) -> SynchronyState:
        """Before the first step."""
        return SynchronyState(self.decay.new_zeros(*batch, len(self)), self.decay.new_zeros(len(self)))

    def rate(self) -> Float[Tensor, " p"]:
        """r = exp(−λ), λ projected to [0, 15]."""
        return torch.exp(-_Project.apply(self.decay))

    def forward(self, z: Float[Tensor, "*b n"], state: SynchronyState) -> tuple[Float[Tensor, "*b p"], SynchronyState]:
        """One step. `Refused` for another batch than the state's, or fewer units than the pairs are of."""
        if z.shape[:-1] != state.alpha.shape[:-1]:
            raise Refused(f"z: must be of the state's batch {tuple(state.alpha.shape[:-1])}, got {tuple(z.shape)}")
        r = self.rate()
        try:
            products = z.index_select(-1, self.left) * z.index_select(-1, self.right)
        except (IndexError, RuntimeError):  # to look before would cost as much as the step
            if z.shape[-1] > (last := int(torch.maximum(self.left, self.right).max())):
                raise
            raise Refused(f"z: the pairs need at least {last + 1} units, got shape {tuple(z.shape)}") from None
        alpha = r * state.alpha + products
        beta = r * state.beta + 1
        return alpha * beta.rsqrt(), SynchronyState(alpha, beta)


class _Project(torch.autograd.Function):
    """λ held in [0, 15]; of the gradient what would move λ further out is dropped, what moves it back passes."""

    @staticmethod
    def forward(decay: Tensor) -> Tensor:
        return decay.clamp(0, MOST)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Tensor:
        (decay,) = ctx.saved_tensors
        out = ((decay <= 0) & (grads[0] > 0)) | ((decay >= MOST) & (grads[0] < 0))
        return grads[0].masked_fill(out, 0)
