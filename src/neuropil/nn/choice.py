"""Choices that gradients pass through: the straight-through one-hot, and the Gumbel-softmax law on the simplex.

    straight through    y = onehot(argmax p) forward, dy = dp backward            Bengio et al. 2013, arXiv:1308.3432
    Gumbel-softmax      a = softmax((log π + g) / τ),  g_i = −log E_i,  E_i ~ Exp(1)  Jang et al. 2017, arXiv:1611.01144;
                                                                                  Maddison et al. 2017, arXiv:1611.00712
    its density         log p(a) = log Γ(n) + (n − 1) log τ − n log Σ_i π_i a_i^−τ + Σ_i [log π_i − (τ + 1) log a_i]

The largest entry of a is i with probability π_i at any τ > 0; as τ → 0, a becomes one-hot. The density is that of the first n − 1
entries (the last is what they leave of 1). π need not be normalised: logits shifted by a number give the same law.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import one_hot

from neuropil.errors import Refused
from neuropil.nn.checks import some


def straight_through(soft: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """The one-hot of the largest entry (the first of equals), with the gradient of `soft`. O(n).

    >>> straight_through(torch.tensor([0.2, 0.5, 0.3]))
    tensor([0., 1., 0.])
    """
    some("soft", soft)
    hard = one_hot(soft.argmax(-1), soft.shape[-1]).to(soft)
    return hard + (soft - soft.detach())


def gumbel_simplex(
    logits: Float[Tensor, "*b n"], tau: float | Float[Tensor, ""], hard: bool = False, generator: torch.Generator | None = None
) -> Float[Tensor, "*b n"]:
    """A sample of the Gumbel-softmax law with ``π = softmax(logits)`` at temperature `tau`: n positive entries with sum 1.

    With `hard`: its one-hot, a sample of π itself, with the gradient of the soft sample. Where a logit is −inf the entry is 0.
    `tau` is a number or a scalar tensor (learnable). O(n) time and memory. `Refused` for a tau that is not positive and finite.

    >>> gumbel_simplex(torch.tensor([0.0, float("-inf"), 0.0]), tau=0.5, hard=True).sum()
    tensor(1.)
    """
    _check(tau)
    some("logits", logits)
    # float32 at least: in half precision an exponential can be 0
    noise = torch.empty_like(logits, dtype=torch.promote_types(logits.dtype, torch.float32)).exponential_(generator=generator)
    soft = ((logits - noise.log().to(logits)) / tau).softmax(-1)
    return straight_through(soft) if hard else soft


def gumbel_simplex_log_prob(
    sample: Float[Tensor, "*b n"], logits: Float[Tensor, "*#b n"], tau: float | Float[Tensor, ""]
) -> Float[Tensor, "*b"]:
    """log density of the Gumbel-softmax law at `sample`, points inside the simplex; in nats.

    Entries that have underflowed to 0 count as the smallest normal number. O(n). `Refused` for a tau that is not positive.

    >>> gumbel_simplex_log_prob(torch.tensor([0.3, 0.7]), torch.zeros(2), tau=1.0)  # for n = 2, π even, τ = 1: uniform
    tensor(0.)
    """
    _check(tau)
    some("sample", sample)
    n = sample.shape[-1]
    log_tau = tau.log() if isinstance(tau, Tensor) else math.log(tau)
    log_a, log_pi = sample.clamp_min(torch.finfo(sample.dtype).tiny).log(), logits.log_softmax(-1)
    norm = math.lgamma(n) + (n - 1) * log_tau - n * (log_pi - tau * log_a).logsumexp(-1)
    return norm + (log_pi - (tau + 1) * log_a).sum(-1)


def _check(tau: float | Tensor) -> None:
    """A tensor is looked at on the CPU only: elsewhere that would wait for the device."""
    if isinstance(tau, Tensor) and (tau.device.type != "cpu" or torch.compiler.is_compiling()):
        return
    given = float(tau.detach() if isinstance(tau, Tensor) else tau)
    if not 0 < given < math.inf:
        raise Refused(f"tau: must be positive and finite, got {given}")
