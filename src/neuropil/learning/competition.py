"""Competition among units: the k most active ones stay, lateral inhibition takes from all others.

    y = m ⊙ x + (1 - s) (1 - m) ⊙ x        m = 1 for the k largest of x, else 0;  s: strength of the inhibition, 1 silences

k-winner-take-all (Majani, Erlanson & Abu-Mostafa 1988). `neuropil.nn.activations.activation("kwta")` keeps all that tie with the
k-th; here there are exactly k winners, the first in order among equals, as counts of winners and pairs of winners need.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused


def k_winners(x: Float[Tensor, "*shape"], k: int, dim: int = -1, strength: float = 1.0) -> Float[Tensor, "*shape"]:
    """Keep the k largest of x along `dim` and scale the others by 1 - strength.

    The gradient goes straight through the winners (and, scaled by 1 - strength, the others): the choice itself has none.
    Exactly min(k, n) winners; among equals the first. O(n log n) time a row. `Refused` for k < 1, a strength outside [0, 1], or an
    axis that x has not.

    >>> k_winners(torch.tensor([3.0, 1.0, 2.0, 2.0]), k=2)
    tensor([3., 0., 2., 0.])
    >>> k_winners(torch.tensor([3.0, 1.0]), k=1, strength=0.5)
    tensor([3.0000, 0.5000])
    """
    _check(k, strength)
    if not -x.ndim <= dim < x.ndim:
        raise Refused(f"dim: must be an axis of x, of shape {tuple(x.shape)}, got {dim}")
    first = x.detach().argsort(dim=dim, descending=True, stable=True).narrow(dim, 0, min(k, x.shape[dim]))
    return x * torch.full_like(x, 1 - strength).scatter(dim, first, 1.0)


class KWinners(nn.Module):
    """`k_winners` as a layer without parameters; `dim` 1 lets the channels of a convolution compete at each pixel.

    >>> KWinners(1)(torch.tensor([[0.0, 2.0], [5.0, 4.0]]))
    tensor([[0., 2.],
            [5., 0.]])
    """

    def __init__(self, k: int, dim: int = -1, strength: float = 1.0) -> None:
        super().__init__()
        _check(k, strength)
        self.k, self.dim, self.strength = k, dim, strength

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """The winners of x."""
        return k_winners(x, self.k, self.dim, self.strength)

    def extra_repr(self) -> str:
        return f"{self.k}, dim={self.dim}, strength={self.strength}"


def _check(k: int, strength: float) -> None:
    if k < 1 or not 0 <= strength <= 1:
        raise Refused(f"k, strength: k ≥ 1 and a strength in [0, 1] are needed, got {k} and {strength}")
