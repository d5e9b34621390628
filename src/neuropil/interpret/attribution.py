"""What an input, or a value inside, contributes to a number that a network puts out: gradient × input, integrated gradients.

    gradient × input       aᵢ = xᵢ ∂F/∂xᵢ(x)                                 Shrikumar et al. 2016, arXiv:1605.01713
    integrated gradients   aᵢ = (xᵢ − bᵢ) ∫₀¹ ∂F/∂xᵢ(b + t (x − b)) dt       Sundararajan et al. 2017, arXiv:1703.01365

Completeness: integrated gradients sum to F(x) − F(b), up to the error of the quadrature. f maps a batch to F of each sample, and
may be any module; for a value inside, such as the embedding of tokens, it is the rest of the model (`nn.sites.downstream`):

    z, f = downstream(model, "embed", tokens)
    integrated_gradients(lambda z: f(z)[:, -1], z, target=answer)

Differs from the paper: Gauss–Legendre points instead of a Riemann sum by default, with far fewer steps for the same error.
"""

from collections.abc import Callable

import numpy
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.errors import Refused, choose

Function = Callable[[Tensor], Tensor]
Target = int | Int[Tensor, "b"] | None


def gradient_times_input(f: Function, x: Float[Tensor, "b *i"], target: Target = None) -> Float[Tensor, "b *i"]:
    """``x ∂F/∂x`` of each sample. One forward and one backward pass.

    F is f's output (b,), or column `target` (one for all, or one a sample) of an output (b, c). `Refused` if it is neither.

    >>> gradient_times_input(lambda x: x.square(), torch.tensor([[3.0, 1.0]]), target=0)
    tensor([[18.,  0.]])
    """
    return x.detach() * _gradient(f, x, target)


def integrated_gradients(
    f: Function,
    x: Float[Tensor, "b *i"],
    baseline: Float[Tensor, "#b *i"] | None = None,
    target: Target = None,
    *,
    steps: int = 50,
    rule: str = "gauss-legendre",
    chunk: int | None = None,
) -> Float[Tensor, "b *i"]:
    """Gradients integrated along the line from `baseline` (default: zeros) to x, times x − baseline.

    `rule`: "gauss-legendre", "midpoint" or "left" (the Riemann sum of some papers: t = 0, 1/m, …, which leaves out the end). One
    forward and one backward pass of `steps` · b samples, `chunk` points at once (default: all): f must treat samples one by one and
    take several copies of the batch one after another. `target` as in `gradient_times_input`. `Refused` for steps below 1.

    >>> integrated_gradients(lambda x: x.square(), torch.tensor([[3.0, 1.0]]), target=0).round(decimals=4)
    tensor([[9., 0.]])
    """
    points, weights = _rule(rule, steps)
    x = x.detach()
    baseline = torch.zeros_like(x) if baseline is None else baseline.detach().expand_as(x)
    total = torch.zeros_like(x)
    for t, w in zip(points.to(x).split(chunk or steps), weights.to(x).split(chunk or steps), strict=True):
        along = baseline + t.reshape(-1, *[1] * x.ndim) * (x - baseline)  # points b *i
        repeated = target.repeat(len(t)) if isinstance(target, Tensor) else target
        gradient = _gradient(f, along.flatten(0, 1), repeated).unflatten(0, (len(t), len(x)))
        total += torch.tensordot(w, gradient, 1)
    return (x - baseline) * total


def _gradient(f: Function, x: Tensor, target: Target) -> Tensor:
    """∂F/∂x of each sample."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        y = f(x)
        if y.ndim == 2 and target is not None:
            y = y.gather(1, torch.as_tensor(target, device=y.device).reshape(-1, 1).expand(len(y), 1))[:, 0]
        elif y.ndim == 1 and target is not None:
            raise Refused(f"target: f gives one number a sample, there is nothing to choose; got {target}")
        if y.shape != x.shape[:1]:
            raise Refused(f"f: must give ({len(x)},), or ({len(x)}, c) with a target, got {tuple(y.shape)}")
        return torch.autograd.grad(y.sum(), x)[0]


def _rule(rule: str, steps: int) -> tuple[Tensor, Tensor]:
    """Points in [0, 1] and weights that sum to 1."""
    if steps < 1:
        raise Refused(f"steps: at least 1, got {steps}")
    if choose("rule", rule, ("gauss-legendre", "midpoint", "left")) == "gauss-legendre":
        points, weights = map(torch.from_numpy, numpy.polynomial.legendre.leggauss(steps))
        return (points + 1) / 2, weights / 2
    points = (torch.arange(steps, dtype=torch.float64) + (0.5 if rule == "midpoint" else 0.0)) / steps
    return points, torch.full_like(points, 1 / steps)
