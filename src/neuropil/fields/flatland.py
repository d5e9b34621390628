"""The flatland test bed: a grid of density and colour in the plane, rendered along rays, with any loss and any head.

    σ(x) = softplus(s(x) + s₀)/h        c(x) = sigmoid(k(x))        Ĉ = Σ_i w_i c_i + (1 − Σ_i w_i) c_bg

with s, k bilinear on 96×96 vertices of spacing h over [−1, 1]², and s₀ = −7, so that a cell of a new field stops a thousandth of
the light. This is a direct voxel field (Sun et al. 2022, arXiv:2111.11215, DVGO) in two dimensions; see
`neuropil.data.flatland` for what it is fitted to. What is compared on it is the loss or the head: `Head` says how many channels
are composited and what they mean. s₀ was chosen for the regression baseline, on a seed that no claim uses: with 24 cameras MSE
reaches 30.3, 30.6, 31.0 and 31.0 dB for s₀ = −5, −6, −7, −8.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import mse_loss, softplus

from neuropil.data.flatland import Flatland, FlatPictures
from neuropil.errors import Refused
from neuropil.fields.grids import DenseGrid
from neuropil.fields.metrics import psnr
from neuropil.fields.rendering import weights
from neuropil.nn.checks import at_least, fits


def _same(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class Head:
    """What composited channels mean: ``loss(channels, target colour)``, and the way between colours and channels.

    Attributes:
        loss: of (b, channels) and (b, 3).
        channels: numbers a sample, each in (0, 1).
        encode: colours (…, 3) to (…, channels); used for the background.
        decode: channels back to colours.
    """

    loss: Callable[[Tensor, Tensor], Tensor] = mse_loss
    channels: int = 3
    encode: Callable[[Tensor], Tensor] = _same
    decode: Callable[[Tensor], Tensor] = _same


class FlatField(nn.Module):
    """Density and `channels` numbers in (0, 1) on a grid of `vertices` an axis over [−1, 1]², rendered with `samples` a ray.

    Rays are sampled evenly over their chord of the unit circle. First values come from torch's generator. Colours are read only
    where a sample gives more than `least` of the ray's light (DVGO does so, too): a field that starts with less never learns.
    O(rays samples) time for density and O(rays (samples seen) channels) for colour.

    >>> field = FlatField(channels=24)
    >>> out = field(torch.tensor([[2.5, 0.0]]), torch.tensor([[-1.0, 0.0]]), torch.zeros(24))
    >>> out.shape
    torch.Size([1, 24])
    """

    def __init__(self, channels: int = 3, vertices: int = 96, samples: int = 64, least: float = 1e-4) -> None:
        super().__init__()
        if min(channels, samples) < 1 or vertices < 2:
            raise Refused(f"channels, samples, vertices: at least 1, 1 and 2, got {channels}, {samples} and {vertices}")
        self.samples, self.least = samples, least
        self.spacing = 2 / (vertices - 1)
        self.shift = -7.0
        self.s = DenseGrid(2, 1, vertices - 1)
        self.k = DenseGrid(2, channels, vertices - 1)

    def density(self, points: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b"]:
        """σ in 1/length."""
        return softplus(self.s(points)[..., 0] + self.shift) / self.spacing

    def forward(
        self, origins: Float[Tensor, "b 2"], directions: Float[Tensor, "b 2"], background: Float[Tensor, " c"]
    ) -> Float[Tensor, "b c"]:
        """The composited channels of rays. In training mode samples are jittered by torch's global generator."""
        fits("background", background, self.k.width)
        middle = -(origins * directions).sum(-1, keepdim=True)
        half = (1 - (origins + middle * directions).square().sum(-1, keepdim=True)).clamp_min(0).sqrt()
        shift = torch.rand(len(origins), self.samples) if self.training else torch.full((self.samples,), 0.5)
        u = (torch.arange(self.samples) + shift).to(origins) / self.samples
        points = origins[:, None] + (middle + half * (2 * u - 1))[..., None] * directions[:, None]
        w = weights(self.density(points), (2 * half / self.samples).expand_as(u.expand(len(origins), -1)))
        ray, sample = (w > self.least).nonzero(as_tuple=True)
        light = w[ray, sample]
        seen = light[:, None] * torch.sigmoid(self.k(points[ray, sample]))
        return torch.zeros(len(w), seen.shape[1]).to(seen).index_add(0, ray, seen) + (1 - w.sum(1, keepdim=True)) * background


def fit(
    field: FlatField,
    train: FlatPictures,
    head: Head,
    steps: int = 400,
    lr: float = 0.1,
    batch: int = 1024,
    draw: Callable[[int, int], Tensor] | None = None,
) -> Float[Tensor, " steps"]:
    """Fit the field to pictures by Adam on `batch` rays a step, in place; gives the loss of each step.

    ``draw(pictures, rays)`` gives the numbers ``picture · rays + pixel`` of a step's rays, for losses that need neighbours; by
    default they are drawn at random from torch's global generator. `Refused` for numbers that are not positive.
    """
    if steps < 1 or batch < 1 or not lr > 0:
        raise Refused(f"steps, batch, lr: must be positive, got {steps}, {batch} and {lr}")
    origins, directions, colours = (x.flatten(0, 1) for x in (train.origins, train.directions, train.colours))
    background = head.encode(train.background)
    optimizer = torch.optim.Adam(field.parameters(), lr)
    losses = torch.empty(steps)
    field.train()
    for step in range(steps):
        pick = torch.randint(len(origins), (batch,)) if draw is None else draw(*train.pixels.shape[:2])
        loss = head.loss(field(origins[pick], directions[pick], background), colours[pick])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses[step] = loss.detach()
    return losses


@torch.no_grad()
def rendered(field: FlatField, pictures: FlatPictures, head: Head) -> Float[Tensor, "n r 3"]:
    """The field's own pictures from the same cameras, decoded, without jitter."""
    field.eval()
    rays = pictures.origins.flatten(0, 1), pictures.directions.flatten(0, 1)
    return head.decode(field(*rays, head.encode(pictures.background))).reshape(pictures.pixels.shape)


def score(field: FlatField, pictures: FlatPictures, head: Head) -> float:
    """PSNR of `rendered` in dB."""
    return float(psnr(rendered(field, pictures, head), pictures.colours))


@dataclass(frozen=True)
class Tuned:
    """A head at its own best learning rate: the rate, its field, and PSNR in dB on validation (that chose) and test by rate."""

    rate: float
    field: FlatField
    validation: dict[float, float]
    test: dict[float, float]

    @property
    def best(self) -> float:
        """Test PSNR at the chosen rate."""
        return self.test[self.rate]


def tuned(
    world: Flatland,
    head: Head,
    rates: Sequence[float],
    seed: int,
    steps: int = 400,
    batch: int = 1024,
    draw: Callable[[int, int], Tensor] | None = None,
) -> Tuned:
    """Fit anew with each of `rates`, from the same seed of torch's global generator; cameras of `validation` choose among them."""
    fields, validation, test = {}, {}, {}
    for rate in rates:
        torch.manual_seed(seed)
        fields[rate] = FlatField(head.channels)
        fit(fields[rate], world.train, head, steps, rate, batch, draw)
        validation[rate], test[rate] = (score(fields[rate], pictures, head) for pictures in (world.validation, world.test))
    best = max(validation, key=validation.__getitem__)
    return Tuned(best, fields[best], validation, test)


@torch.no_grad()
def from_above(field: FlatField, head: Head, size: int = 192) -> Float[Tensor, "size size 3"]:
    """The plane as the field has it, y upward: colours over white by the opacity ``1 − exp(−σ h)`` of a cell."""
    points = plane(size)
    opacity = -torch.expm1(-field.density(points) * field.spacing)[..., None]
    return opacity * head.decode(torch.sigmoid(field.k(points))) + 1 - opacity


def plane(size: int) -> Float[Tensor, "size size 2"]:
    """Points of [−1, 1]² as a picture's pixels lie, y upward.

    >>> plane(2)[0, 0]
    tensor([-0.5000,  0.5000])
    """
    at_least(1, size=size)
    at = (2 * torch.arange(size) + 1) / size - 1
    y, x = torch.meshgrid(-at, at, indexing="ij")
    return torch.stack([x, y], -1)
