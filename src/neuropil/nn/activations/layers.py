"""Activations with weights between the features: a gate of its own, and the maximum with a depthwise convolution."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class WeightedSigmoidGate(nn.Module):
    """WiG ``z · s(W z + b)`` over the last dimension (section 3.3); O(size²) parameters.

    >>> WeightedSigmoidGate(3)(torch.zeros(2, 3)).shape
    torch.Size([2, 3])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gate = nn.Linear(size, size)

    def forward(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Rows of `size` features."""
        return z * self.gate(z).sigmoid()


class DepthwiseMaximum(nn.Module):
    """SCAA (section 3.6.10) and FunReLU (4.2): ``max(z, depthwise 3 × 3 convolution of z)`` with zero padding; 10 weights each.

    >>> DepthwiseMaximum(3)(torch.zeros(2, 3, 5, 5)).shape
    torch.Size([2, 3, 5, 5])
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.around = nn.Conv2d(size, size, 3, padding=1, groups=size)

    def forward(self, z: Float[Tensor, "*b c h w"]) -> Float[Tensor, "*b c h w"]:
        """Images of `size` channels."""
        return torch.maximum(z, self.around(z))


LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "wig": WeightedSigmoidGate,
    "scaa": DepthwiseMaximum,
    "funrelu": DepthwiseMaximum,
}
