"""S3IM: a loss that asks random rays to be structurally similar to their targets, several times in several random orders.

    S3IM(x, y) = mean over windows of SSIM(P(x), P(y))        P: the B rays in M orders π_1 = identity, π_2 … π_M,
                                                              each laid out as h×w, side by side: a picture of h × M w
    SSIM = (2 μ_x μ_y + C₁)(2 σ_xy + C₂) / ((μ_x² + μ_y² + C₁)(σ_x² + σ_y² + C₂))        C₁ = 0.01², C₂ = 0.03²
    L = L_host + λ (1 − S3IM)

Xie, Yang, Yang, Sun, Jiang, Wang, Cai & Sun 2023, arXiv:2308.07032. The windows are K×K Gaussians of σ = 1.5 at stride s = K,
each channel by itself; M = 10, K = 4 and patches of 64×64 in the paper, λ = 1 on its Replica scenes. A window mixes rays that
have nothing to do with one another, so one term couples distant pixels.

As in the authors' code the Gaussian is centred at K//2 and the picture is padded with (K − 1)//2 zeros, so that windows of an
even K are shifted and the last row may sit out: harmless in random order, wrong in a metric; use `neuropil.fields.metrics.ssim`
for that. Differs from their code: one set of orders serves prediction and target wherever they live, drawn on the CPU from one
generator, so that a seed gives the same orders on every device.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import conv2d

from neuropil.errors import Refused
from neuropil.nn.checks import some

C1, C2 = 0.01**2, 0.03**2


def window(size: int, sigma: float = 1.5) -> Float[Tensor, " k"]:
    """A Gaussian over k places, centred at k//2, whose sum is 1; float64.

    >>> window(4).round(decimals=2).tolist()
    [0.14, 0.27, 0.33, 0.27]
    """
    if size < 1 or not sigma > 0:
        raise Refused(f"size, sigma: at least 1 and positive are needed, got {size} and {sigma}")
    weight = torch.exp(-((torch.arange(size, dtype=torch.float64) - size // 2) ** 2) / (2 * sigma**2))
    return weight / weight.sum()


def strided_ssim(
    x: Float[Tensor, "*b h w"], y: Float[Tensor, "*b h w"], kernel: tuple[int, int] = (4, 4), stride: tuple[int, int] = (4, 4)
) -> Float[Tensor, "*b i j"]:
    """The SSIM of each window of pictures with values in [0, 1]: `kernel` its height and width, `stride` the step between windows.

    Computed in float32 at least, whatever autocast says: σ² = E x² − μ² is a difference of near numbers. O(h w k₁ k₂ / (s₁ s₂)).

    >>> x = torch.rand(3, 8, 8)
    >>> bool(torch.allclose(strided_ssim(x, x), torch.ones(3, 2, 2)))
    True
    """
    if x.shape != y.shape or min(x.shape[-2:]) < 1:
        raise Refused(f"x, y: pictures of one shape are needed, got {tuple(x.shape)} and {tuple(y.shape)}")
    _one_precision("y", y, x)
    if min(*kernel, *stride) < 1 or any(side + 2 * ((k - 1) // 2) < k for side, k in zip(x.shape[-2:], kernel, strict=True)):
        raise Refused(f"kernel, stride: windows must fit into {tuple(x.shape[-2:])}, got {kernel} and {stride}")
    with torch.autocast(x.device.type, enabled=False):
        x, y = (v if v.dtype == torch.float64 else v.float() for v in (x, y))
        planes = torch.stack([x, y, x * x, y * y, x * y]).flatten(0, -3)[:, None]
        g, gt = (window(k).to(x) for k in kernel)
        pad = [(k - 1) // 2 for k in kernel]
        means = conv2d(planes, (g[:, None] * gt)[None, None], stride=stride, padding=pad)
        mx, my, xx, yy, xy = means.reshape(5, *x.shape[:-2], *means.shape[-2:])
        luminance = (2 * mx * my + C1) / (mx * mx + my * my + C1)
        structure = (2 * (xy - mx * my) + C2) / (xx - mx * mx + yy - my * my + C2)
        return luminance * structure


def orders(count: int, repeats: int, generator: torch.Generator | None = None) -> Int[Tensor, "m b"]:
    """The identity and `repeats` − 1 permutations of `count` rays, on the CPU, from `generator` (torch's own by default).

    >>> orders(4, repeats=3, generator=torch.Generator().manual_seed(0)).shape
    torch.Size([3, 4])
    """
    if count < 1 or repeats < 1:
        raise Refused(f"count, repeats: must be at least 1, got {count} and {repeats}")
    return torch.stack([torch.arange(count), *(torch.randperm(count, generator=generator) for _ in range(repeats - 1))])


def s3im(
    predicted: Float[Tensor, "b c"],
    target: Float[Tensor, "b c"],
    order: Int[Tensor, "m b"],
    patch: tuple[int, int] = (64, 64),
    kernel: int = 4,
    stride: int = 4,
) -> Float[Tensor, ""]:
    """How alike the pictures are that rays make in these orders: at most 1, which equal rays reach.

    Args:
        predicted, target: colours in [0, 1], a row a ray, any number of channels.
        order: from `orders`; both sides are laid out by it.
        patch: (h, w) with h w = b. Drop or repeat rays yourself where the batch does not fill it.

    Raises `Refused` where shapes do not fit. O(M B c) time and memory, a small part of rendering B rays.

    >>> x, y = torch.rand(2, 64, 3)
    >>> order = orders(64, repeats=10)
    >>> bool(s3im(x, x, order, patch=(8, 8)) > s3im(x, y, order, patch=(8, 8)))
    True
    """
    b, (h, w), m = len(target), patch, len(order)
    if predicted.shape != target.shape or order.shape[1] != b:
        shapes = f"{tuple(predicted.shape)}, {tuple(target.shape)} and {tuple(order.shape)}"
        raise Refused(f"predicted, target, order: (b, c), (b, c) and (m, b) are needed, got {shapes}")
    _one_precision("target", target, predicted)
    some("predicted", predicted)
    some("order", order, 0)
    if h * w != b:
        raise Refused(f"patch: height times width must be the batch of {b} rays, got {h} x {w}")

    def pictures(rays: Tensor) -> Tensor:
        """(b, c) to (c, h, m w). The authors' code cuts the m b rays of a channel into rows of m w as they come; so do we."""
        return rays.T[:, order.to(rays.device)].reshape(-1, h, m * w)

    return strided_ssim(pictures(predicted), pictures(target), (kernel, kernel), (stride, stride)).mean()


def _one_precision(name: str, x: Tensor, like: Tensor) -> None:
    if (x.dtype == torch.float64) != (like.dtype == torch.float64):
        raise Refused(f"{name}: must be {like.dtype} as what it meets, got {x.dtype}; bring both to one with .to()")


class S3IM(nn.Module):
    """``1 − S3IM`` as a loss to add to a host's own: ``loss = mse + λ S3IM(h, w)(colour, target)``. No parameters, no state.

    `repeats` is the paper's M. Orders come from `generator` if given, else from torch's global generator, drawn on the CPU.

    >>> host = torch.rand(1024, 3, requires_grad=True)
    >>> S3IM(32, 32)(host, torch.rand(1024, 3)).backward()
    >>> host.grad.shape
    torch.Size([1024, 3])
    """

    def __init__(self, height: int = 64, width: int = 64, kernel: int = 4, stride: int = 4, repeats: int = 10) -> None:
        super().__init__()
        if min(height, width, kernel, stride, repeats) < 1:
            sizes = [height, width, kernel, stride, repeats]
            raise Refused(f"height, width, kernel, stride, repeats: must be at least 1, got {sizes}")
        self.patch, self.kernel, self.stride, self.repeats = (height, width), kernel, stride, repeats

    def forward(
        self, predicted: Float[Tensor, "b c"], target: Float[Tensor, "b c"], generator: torch.Generator | None = None
    ) -> Float[Tensor, ""]:
        """The loss of a batch of rays."""
        order = orders(len(target), self.repeats, generator)
        return 1 - s3im(predicted, target, order, self.patch, self.kernel, self.stride)

    def extra_repr(self) -> str:
        return f"{self.patch[0]}x{self.patch[1]}, kernel={self.kernel}, stride={self.stride}, repeats={self.repeats}"
