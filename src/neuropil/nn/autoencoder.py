"""Autoencoders F = D ∘ E of images through a bottleneck of k numbers: `mlp_autoencoder`, `conv_autoencoder`.

    z = E(x) ∈ ℝᵏ,     F(x) = D(z)

The code z is linear in the last hidden layer. Pixels are in [0, 1], so D ends in a sigmoid; ``output="identity"`` leaves it out.
"""

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused, choose
from neuropil.nn.checks import suits
from neuropil.nn.mlp import ACTIVATIONS, MLP


class Autoencoder(nn.Module):
    """A pair of modules: ``decoder(encoder(x))``.

    >>> import torch
    >>> F = Autoencoder(nn.Linear(5, 2), nn.Linear(2, 5))
    >>> F(torch.ones(3, 5)).shape, F.encoder(torch.ones(3, 5)).shape
    (torch.Size([3, 5]), torch.Size([3, 2]))
    """

    def __init__(self, encoder: nn.Module, decoder: nn.Module) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def forward(self, x: Float[Tensor, "b *i"]) -> Float[Tensor, "b *i"]:
        """The reconstruction of x. `Refused` unless x suits E."""
        suits("x", x, self.encoder)
        return self.decoder(self.encoder(x))


def mlp_autoencoder(
    shape: Sequence[int],
    k: int,
    hidden: Sequence[int] = (256, 256),
    activation: str = "gelu",
    output: str = "sigmoid",
    dropout: float = 0.0,
) -> Autoencoder:
    """Fully connected: E has widths (pixels, *hidden, k), D the same backwards. Images (n, *shape) to codes (n, k) and back.

    O(pixels · hidden) parameters and time per image. `Refused` for sizes below 1, or an unknown activation or output.

    >>> mlp_autoencoder((8, 8), 2, hidden=(32,)).decoder
    Sequential(
      (0): MLP(
        (0): Linear(in_features=2, out_features=32, bias=True)
        (1): GELU(approximate='none')
        (2): Linear(in_features=32, out_features=64, bias=True)
      )
      (1): Unflatten(dim=1, unflattened_size=(8, 8))
      (2): Sigmoid()
    )
    """
    out = ACTIVATIONS[choose("output", output, ("sigmoid", "identity"))]()
    if not shape or min(*shape, k) < 1:
        raise Refused(f"shape, k: at least 1 each, got {tuple(shape)} and {k}")
    pixels = math.prod(shape)
    E = nn.Sequential(nn.Flatten(), MLP([pixels, *hidden, k], activation, dropout))
    D = nn.Sequential(MLP([k, *reversed(hidden), pixels], activation, dropout), nn.Unflatten(1, tuple(shape)), out)
    return Autoencoder(E, D)


def conv_autoencoder(
    shape: tuple[int, int, int], k: int, width: int = 16, activation: str = "gelu", output: str = "sigmoid"
) -> Autoencoder:
    """Convolutional: two layers that halve the side (to `width`, then 2 `width` channels), a linear one to k; D mirrors it.

    Images (n, channels, height, width) with sides that 4 divides. O(9 · 2 width² · h w / 16) time per image and layer. `Refused`
    for other sides, sizes below 1, or an unknown activation or output.

    >>> import torch
    >>> conv_autoencoder((1, 28, 28), 8)(torch.rand(3, 1, 28, 28)).shape
    torch.Size([3, 1, 28, 28])
    """
    phi = ACTIVATIONS[choose("activation", activation, ACTIVATIONS)]
    out = ACTIVATIONS[choose("output", output, ("sigmoid", "identity"))]()
    c, h, w = shape
    if min(c, h, w, k, width) < 1 or h % 4 or w % 4:
        raise Refused(f"shape, k, width: at least 1 each, and sides that 4 divides, got {tuple(shape)}, {k} and {width}")
    small = (2 * width, h // 4, w // 4)
    E = nn.Sequential(
        nn.Conv2d(c, width, 3, 2, 1),
        phi(),
        nn.Conv2d(width, 2 * width, 3, 2, 1),
        phi(),
        nn.Flatten(),
        nn.Linear(math.prod(small), k),
    )
    D = nn.Sequential(
        nn.Linear(k, math.prod(small)),
        phi(),
        nn.Unflatten(1, small),
        nn.ConvTranspose2d(2 * width, width, 4, 2, 1),
        phi(),
        nn.ConvTranspose2d(width, c, 4, 2, 1),
        out,
    )
    return Autoencoder(E, D)
