"""Neural field classifiers: a field predicts the bits of an 8-bit colour, and is trained as 24 yes/no classifiers.

    encode   v = round(255 y),  b_j = bit j of v              203 ↦ 1 1 0 0 1 0 1 1
    render   p_j(ray) = Σ_k w_k p_j(x_k) + T p_j(background)  sigmoids at samples, composited as colours are
    loss     mean over rays and channels of Σ_j λ_j BCE(p_j, b_j),        λ_j = 2^j/255
    decode   y = Σ_j 2^j p_j / 255                            soft: never rounded

Yang, Xie, Zhou, Liu, Liu, Liu, Wang, Cai & Sun 2024, arXiv:2403.01058 (no code by the authors). Any field becomes a classifier
by a head of eight times the channels (`widened`) and this loss; density, sampler and regularisers stay.

Where the paper leaves it open: weights λ add up to 1, and logarithms read ``ε + (1 − 2ε) p`` with ε = 1e-5 instead of a clamped
p, so that a bit that is surely wrong keeps its gradient. Bits go channel by channel, highest first.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.data.cameras import Rays
from neuropil.errors import Refused
from neuropil.fields.radiance import RadianceModel, Rendered
from neuropil.nn.checks import numbers

BITS = 8
EPSILON = 1e-5


def places(like: Tensor) -> Float[Tensor, "8"]:
    """2^7 … 2^0 over 255: what each bit is worth in a colour in [0, 1], highest first."""
    if like.is_complex() or like.dtype == torch.bool:
        raise Refused(f"like: real numbers are needed, got {like.dtype}")
    return 2.0 ** torch.arange(BITS - 1, -1, -1, device=like.device, dtype=like.dtype) / 255


def encode(colour: Float[Tensor, "*b c"]) -> Float[Tensor, "*b 8*c"]:
    """The bits, 0.0 or 1.0, of colours in [0, 1] rounded to bytes, highest first, channel by channel.

    >>> encode(torch.tensor([203 / 255]))
    tensor([1., 1., 0., 0., 1., 0., 1., 1.])
    """
    numbers("colour", colour)
    value = (255 * colour.detach().float()).round().clamp(0, 255).int()
    shifts = torch.arange(BITS - 1, -1, -1, device=colour.device)
    return (value[..., None] >> shifts & 1).to(colour.dtype).flatten(-2)


def decode(bits: Float[Tensor, "*b n"]) -> Float[Tensor, "*b c"]:
    """The colour that probabilities of bits expect, ``Σ_j 2^j p_j / 255``; exact for hard bits.

    >>> (255 * decode(torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0]))).round()
    tensor([203.])
    """
    return (_by_channel("bits", bits) * places(bits)).sum(-1)


def _by_channel(name: str, bits: Float[Tensor, "*b n"]) -> Float[Tensor, "*b c 8"]:
    if bits.shape[-1] % BITS:
        raise Refused(f"{name}: eight numbers a channel are needed, got {bits.shape[-1]}")
    return bits.unflatten(-1, (-1, BITS))


def bit_loss(
    probability: Float[Tensor, "*b n"], bits: Float[Tensor, "*b n"], place: Float[Tensor, "8"] | None = None
) -> Float[Tensor, ""]:
    """``mean over rays and channels of Σ_j λ_j BCE(p_j, b_j)`` for composited probabilities and the target's bits.

    `place` are the weights λ_7 … λ_0, 2^j/255 by default; equal ones let the low bits, which are noise, dominate. Computed in
    float32 at least: half precision has no number between 1 − ε and 1.

    >>> sure, unsure = torch.tensor([[0.99] * 8, [0.5] * 8])
    >>> bool(bit_loss(sure, torch.ones(8)) < bit_loss(unsure, torch.ones(8)))
    True
    """
    if probability.shape != bits.shape:
        raise Refused(f"probability, bits: one shape is needed, got {tuple(probability.shape)} and {tuple(bits.shape)}")
    if not probability.numel():
        raise Refused(f"probability: must not be empty, got shape {tuple(probability.shape)}")
    p, b = (v if v.dtype == torch.float64 else v.float() for v in (probability, bits))
    p = EPSILON + (1 - 2 * EPSILON) * p
    surprise = -(b * p.log() + (1 - b) * (1 - p).log())
    weight = places(p) if place is None else place.to(p)
    return (_by_channel("probability", surprise) * weight).sum(-1).mean()


def colour_loss(probability: Float[Tensor, "*b n"], colour: Float[Tensor, "*b c"]) -> Float[Tensor, ""]:
    """`bit_loss` against the bits of a target colour: what a host's mean squared error is replaced by.

    >>> colour_loss(torch.full((4, 24), 0.5), torch.rand(4, 3))
    tensor(0.6931)
    """
    return bit_loss(probability, encode(colour))


def widened(layer: nn.Linear) -> nn.Linear:
    """A fresh last layer with eight outputs for each of `layer`'s, on its device; a sigmoid must follow it.

    >>> widened(nn.Linear(32, 3))
    Linear(in_features=32, out_features=24, bias=True)
    """
    where = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    return nn.Linear(layer.in_features, BITS * layer.out_features, bias=layer.bias is not None, **where)


class NeuralFieldClassifier(RadianceModel):
    """A radiance field of 24 channels in [0, 1] as one of 3: encoded backgrounds, decoded renderings, `colour_loss` as its loss.

    Wraps any `RadianceModel` whose `Rendered.colour` has eight channels for each of the targets'. Everything else (sampler,
    density, `update`, learning rates) is the field's own. A host whose loss has more terms than the colour's gives
    `colour_loss` to them itself. The wrapper has no parameters of its own; colour costs eight times the memory, density nothing
    more.

    >>> class Fog(RadianceModel):
    ...     def forward(self, rays, background=None):
    ...         half = torch.full((*rays.shape, 24), 0.5)
    ...         return Rendered(half, rays.near, rays.near)
    >>> rays = Rays(torch.zeros(2, 3), torch.eye(3)[:2], torch.zeros(2), torch.ones(2), torch.zeros(2, dtype=torch.int64))
    >>> NeuralFieldClassifier(Fog())(rays).colour.shape
    torch.Size([2, 3])
    """

    def __init__(self, field: RadianceModel) -> None:
        super().__init__()
        self.field = field

    def probabilities(self, rays: Rays, background: Float[Tensor, "#*b c"] | None = None) -> Rendered:
        """The field's rendering: composited probabilities of bits, over the bits of `background`."""
        return self.field(rays, None if background is None else encode(background))

    def forward(self, rays: Rays, background: Float[Tensor, "#*b c"] | None = None) -> Rendered:
        """What `rays` see, decoded."""
        out = self.probabilities(rays, background)
        return Rendered(decode(out.colour), out.depth, out.accumulation)

    def density(self, positions: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """The field's."""
        return self.field.density(positions)

    def loss(
        self, rays: Rays, target: Float[Tensor, "*b c"], background: Float[Tensor, "#*b c"] | None = None
    ) -> Float[Tensor, ""]:
        """`colour_loss` of the rendering."""
        return colour_loss(self.probabilities(rays, background).colour, target)

    def update(self, step: int) -> None:
        """The field's."""
        self.field.update(step)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """The field's."""
        return self.field.parameter_groups()
