"""Classical binary Hopfield network: Hebbian weights, sign updates (Hopfield 1982). The baseline of the memory wing.

W = (1/d) Σ_i x_i x_iᵀ,  W_ii = 0;      s ← sign(W s),  a unit with no drive keeps its state
"""

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import numbers, same_kind


def hebb(patterns: Float[Tensor, "m d"]) -> Float[Tensor, "d d"]:
    """Hebbian weights of ±1 patterns, without self-connections. Time O(m·d²), memory O(d²).

    >>> hebb(torch.tensor([[1.0, -1.0]]))
    tensor([[ 0.0000, -0.5000],
            [-0.5000,  0.0000]])
    """
    if not bool((patterns.abs() == 1).all()):
        raise Refused("patterns: must be -1 or +1")
    return (patterns.T @ patterns / patterns.shape[1]).fill_diagonal_(0)


def settle(state: Float[Tensor, "b d"], weights: Float[Tensor, "d d"], sweeps: int = 10) -> Float[Tensor, "b d"]:
    """Asynchronous sign updates, unit after unit, until nothing changes or `sweeps` are done; all states at once.

    Unit after unit is the model's own definition (only then does its energy fall). Time O(sweeps·b·d²).

    >>> x = torch.tensor([[1.0, -1.0, 1.0, 1.0]])
    >>> settle(torch.tensor([[1.0, 1.0, 1.0, 1.0]]), hebb(x))
    tensor([[ 1., -1.,  1.,  1.]])
    """
    same_kind("weights", weights, state)
    numbers("state", state)
    numbers("weights", weights)
    state = state.clone()
    for _ in range(sweeps):
        before = state.clone()
        for unit in range(state.shape[1]):
            drive = state @ weights[unit]
            state[:, unit] = torch.where(drive == 0, state[:, unit], drive.sign())
        if torch.equal(before, state):
            break
    return state
