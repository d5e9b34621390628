"""Feature-wise linear modulation: ``h ↦ (1 + g(z)) h + b(z)`` (Perez et al. 2018, arXiv:1709.07871)."""

from jaxtyping import Float
from torch import Tensor, nn

from neuropil.nn.checks import fits
from neuropil.nn.mlp import MLP


class FiLM(nn.Module):
    """``(1 + g(z)) h + b(z)``, g and b MLPs of one hidden layer (SiLU, `hidden` wide) of the condition z.

    O(d_z hidden + hidden d) parameters and time a row.

    >>> import torch
    >>> FiLM(8, d_z=3, hidden=16)(torch.randn(5, 8), torch.randn(5, 3)).shape
    torch.Size([5, 8])
    """

    def __init__(self, d: int, d_z: int, hidden: int) -> None:
        super().__init__()
        self.g = MLP([d_z, hidden, d], activation="silu")
        self.b = MLP([d_z, hidden, d], activation="silu")

    def forward(self, h: Float[Tensor, "*b d"], z: Float[Tensor, "*#b z"]) -> Float[Tensor, "*b d"]:
        """`h` modulated by `z`, whose leading axes broadcast."""
        fits("h", h, self.g[-1].out_features, self.g[-1].weight)  # type: ignore[arg-type]
        fits("z", z, self.g[0].in_features, self.g[0].weight)  # type: ignore[arg-type]
        return (1 + self.g(z)) * h + self.b(z)
