"""Modern Hopfield network: continuous states, log-sum-exp energy, one update is softmax attention.

    E(ξ) = −lse(β, Xᵀξ) + ½ ξᵀξ + β⁻¹ log N + ½ M²,      ξ ← X softmax(β Xᵀξ)

Ramsauer et al., "Hopfield Networks is All You Need", ICLR 2021, arXiv:2008.02217. Patterns are rows here, columns there.
`retrieve` works on raw patterns: no projection, no normalisation. Patterns of unequal norm favour the longest one; centre and
normalise them first if that is not wanted.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.memory.lookup import Softmax, lookup
from neuropil.nn.checks import finite, numbers, same_kind, some


def retrieve(
    query: Float[Tensor, "*b d"], patterns: Float[Tensor, "m d"], beta: float = 1.0, steps: int = 1
) -> Float[Tensor, "*b d"]:
    """Modern Hopfield update ``ξ ← X softmax(β Xᵀξ)``, `steps` times (eq. 3). Time O(steps·b·m·d), memory O(b·d + m·d).

    Raises `Refused` for NaN, integers, other widths, ``beta`` not positive or ``steps`` below 1.

    >>> X = torch.randn(1000, 64, generator=torch.Generator().manual_seed(0))   # raw patterns
    >>> noisy = X[:5] + 0.3 * torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    >>> bool(torch.allclose(retrieve(noisy, X), X[:5], atol=1e-4))
    True
    """
    if not 0 < beta < math.inf:
        raise Refused(f"beta: must be positive and finite, got {beta}")
    if steps < 1:
        raise Refused(f"steps: at least 1, got {steps}")
    finite("patterns", patterns)
    some("query", query)
    same_kind("patterns", patterns, query)
    for _ in range(steps):
        query = lookup(query, patterns, separation=Softmax(beta))
    return query


def lse(beta: float, z: Float[Tensor, "*b m"]) -> Float[Tensor, "*b"]:
    """``β⁻¹ log Σ exp(β z)``.

    >>> lse(1.0, torch.zeros(4)).exp()
    tensor(4.)
    """
    if not 0 < beta < math.inf:
        raise Refused(f"beta: must be positive and finite, got {beta}")
    some("z", z)
    return torch.logsumexp(beta * z, dim=-1) / beta


def energy(state: Float[Tensor, "*b d"], patterns: Float[Tensor, "m d"], beta: float = 1.0) -> Float[Tensor, "*b"]:
    """``E(ξ)`` (eq. 2); never rises under `retrieve`. Time and memory O(b·m).

    >>> bool(energy(torch.ones(2), torch.eye(2)) >= 0)
    True
    """
    some("patterns", patterns, 0)
    same_kind("state", state, patterns)
    constant = math.log(len(patterns)) / beta + patterns.square().sum(-1).max() / 2
    return -lse(beta, state @ patterns.T) + state.square().sum(-1) / 2 + constant


def separation(patterns: Float[Tensor, "m d"]) -> Float[Tensor, "m"]:
    """``Δ_i = x_iᵀx_i − max_{j≠i} x_iᵀx_j``: how far every pattern stands from the next one. Memory O(m²).

    >>> separation(torch.eye(3))
    tensor([1., 1., 1.])
    """
    if len(patterns) < 2:
        raise Refused(f"patterns: at least two are needed, got {len(patterns)}")
    gram = patterns @ patterns.T
    own = gram.diagonal().clone()
    return own - gram.fill_diagonal_(-math.inf).amax(-1)


def mass_count(weights: Float[Tensor, "*b m"], mass: float = 0.9) -> Tensor:
    """How many keys carry `mass` of the attention: few is a single pattern, many is a global average.

    >>> mass_count(torch.tensor([0.05, 0.9, 0.05]))
    tensor(1)
    """
    numbers("weights", weights)
    total = weights.sort(dim=-1, descending=True).values.cumsum(-1)
    return (total < mass - 1e-6).sum(-1) + 1
