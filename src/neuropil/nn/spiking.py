"""Leaky integrate-and-fire units as a pure step, with a surrogate for the slope of the spike.

    u ← λ u + (W x + b) (the caller's drive)       s = H(u − θ)       u ← u − θ s  (soft reset)  or  u (1 − s)  (hard reset)
    ∂s/∂u := σ'(u − θ), a bump around the threshold, in place of the derivative of the step function H, which is 0 nearly everywhere

Neftci, Mostafa & Zenke 2019, arXiv:1901.09948 (surrogate gradients). State in, state out: `nn.scan` runs it over time.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused, choose


class _Spike(torch.autograd.Function):
    """H(v), with the slope of `kind` at steepness α."""

    @staticmethod
    def forward(v: Tensor, kind: str, alpha: float) -> Tensor:
        return (v >= 0).to(v.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str, float], output: Tensor) -> None:
        v, ctx.kind, ctx.alpha = inputs
        ctx.save_for_backward(v)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        (v,) = ctx.saved_tensors
        return grads[0] * SURROGATES[ctx.kind](v, ctx.alpha), None, None


SURROGATES = {
    "sigmoid": lambda v, a: a * torch.sigmoid(a * v) * torch.sigmoid(-a * v),
    "fast_sigmoid": lambda v, a: 1 / (1 + a * v.abs()) ** 2,
    "arctan": lambda v, a: a / 2 / (1 + (math.pi / 2 * a * v) ** 2),
    "box": lambda v, a: (v.abs() < 1 / (2 * a)).to(v.dtype) * a,
}


def spike(v: Float[Tensor, "*b"], surrogate: str = "sigmoid", alpha: float = 4.0) -> Float[Tensor, "*b"]:
    """1 where v ≥ 0, else 0; its gradient is the surrogate's ("sigmoid", "fast_sigmoid", "arctan" or "box") of steepness `alpha`.

    >>> v = torch.tensor([-1.0, 0.5], requires_grad=True)
    >>> s = spike(v, "box", 1.0)
    >>> s.sum().backward()
    >>> s.tolist(), v.grad.tolist()
    ([0.0, 1.0], [0.0, 0.0])
    """
    choose("surrogate", surrogate, SURROGATES)
    if not alpha > 0:
        raise Refused(f"alpha: must be above 0, got {alpha}")
    return _Spike.apply(v, surrogate, alpha)


class LIF(nn.Module):
    """A layer of leaky integrate-and-fire units: ``(drive, u) → (spikes, u)``. It has no weights; put a linear map in front.

    Args:
        decay: λ in [0, 1), what is left of u after a step (exp(−dt/τ)).
        threshold: θ > 0.
        reset: "soft" subtracts θ, "hard" sets u to 0.

    O(1) time and memory a unit and step. Raises `Refused` for values outside these ranges.

    >>> from neuropil.nn.scan import scan
    >>> spikes, u = scan(LIF(decay=0.5), torch.full((5, 1), 0.6), torch.zeros(1))
    >>> spikes[:, 0].tolist()
    [0.0, 0.0, 1.0, 0.0, 0.0]
    """

    def __init__(
        self, decay: float = 0.9, threshold: float = 1.0, reset: str = "soft", surrogate: str = "sigmoid", alpha: float = 4.0
    ) -> None:
        super().__init__()
        if not 0 <= decay < 1 or not threshold > 0 or not alpha > 0:
            raise Refused(
                f"decay, threshold, alpha: 0 ≤ decay < 1 and positive others are needed, got {decay}, {threshold}, {alpha}"
            )
        self.decay, self.threshold, self.alpha = decay, threshold, alpha
        self.reset, self.surrogate = choose("reset", reset, ("soft", "hard")), choose("surrogate", surrogate, SURROGATES)

    def forward(self, drive: Float[Tensor, "*b"], u: Float[Tensor, "*b"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"]]:
        """One step of every unit."""
        u = self.decay * u + drive
        s = spike(u - self.threshold, self.surrogate, self.alpha)
        # the reset is no path for the gradient: it would undo the surrogate's
        u = u - self.threshold * s.detach() if self.reset == "soft" else u * (1 - s.detach())
        return s, u
