"""Layer states that settle in an energy: what equilibrium propagation and contrastive Hebbian rules do before they learn.

    s_k ← s_k − rate ∂E(s_1 … s_K)/∂s_k        for all layers k that are not clamped, at once, `steps` times

Hopfield 1984; Scellier & Bengio 2017, arXiv:1602.05179 (eq. 5). Plain gradient descent: the energy says what the net is.
"""

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from neuropil.errors import Refused

Energy = Callable[[list[Tensor]], Tensor]


class Relaxed(NamedTuple):
    """States after the last step, and the energy before each step and after the last: (steps + 1,) or (steps + 1, batch)."""

    states: list[Tensor]
    energies: Tensor


def relax(energy: Energy, states: Sequence[Tensor], steps: int, rate: float, clamp: Collection[int] = ()) -> Relaxed:
    """Gradient descent of `energy` in the states, each sample of the batch on its own.

    Args:
        energy: list of states ↦ one number a sample (batch,), or one number in all. Samples must not mix, or a sample's states
            feel the energy of others; of a mean over the batch they feel only 1/batch, so give the sum.
        states: K tensors (batch, …), left as they are. Nothing is differentiated through the descent.
        steps: at least 1.
        rate: positive; above 2 / (largest curvature of E) the energy rises: look at its course.
        clamp: numbers of the states that are held, say 0 for an input.

    O(steps) gradients of the energy in time, memory of one. Raises `Refused` for steps below 1, a rate that is not positive, an
    energy of another shape, unknown states to clamp (or all of them), and an energy that leaves the finite numbers.

    >>> x, s = torch.tensor([[1.0], [3.0]]), torch.zeros(2, 1)
    >>> settled = relax(lambda s: (0.5 * (s[1] - s[0]) ** 2).sum(1), [x, s], steps=30, rate=0.5, clamp={0})
    >>> settled.states[1].T, settled.energies[:3, 0]
    (tensor([[1., 3.]]), tensor([0.5000, 0.1250, 0.0312]))
    """
    if steps < 1:
        raise Refused(f"steps: at least 1, got {steps}")
    if not rate > 0:
        raise Refused(f"rate: must be positive, got {rate}")
    free = [k for k in range(len(states)) if k not in clamp]
    if not free or not set(clamp) <= set(range(len(states))):
        raise Refused(f"clamp: some of the states 0 … {len(states) - 1}, not all, got {sorted(clamp)}")
    current, energies = [s.detach() for s in states], []
    for _ in range(steps):
        leaves = [s.detach().requires_grad_(k in free) for k, s in enumerate(current)]
        with torch.enable_grad():
            value = energy(leaves)
            if value.shape not in ((), (len(current[0]),)):
                raise Refused(f"energy: must give one number, or one a sample ({len(current[0])},), got {tuple(value.shape)}")
            slopes = torch.autograd.grad(value.sum(), [leaves[k] for k in free], materialize_grads=True)
        energies.append(value.detach())
        for k, slope in zip(free, slopes, strict=True):
            current[k] = current[k] - rate * slope
    with torch.no_grad():
        course = torch.stack([*energies, energy(list(current))])
    finite = course.reshape(steps + 1, -1).isfinite().all(1)
    if not finite[-1]:
        raise Refused(f"rate: with {rate} the energy left the finite numbers at step {int(finite.int().argmin())}; lower it")
    return Relaxed(current, course)
