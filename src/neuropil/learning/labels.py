"""Labels as part of the input: a strip of C pixels that says the class, says nothing, or says a wrong one.

    x[at : at + C] ← s · onehot(y)        s: the image's largest |pixel|, so that the label is as bright as the image

For rules without an output layer, which learn that image and label belong together (Hinton 2022, arXiv:2212.13345). Pixels under
the strip are lost: compare with nets that see the same strip, but neutral.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import at_least, within


def overlay_label(
    x: Float[Tensor, "b *shape"], y: Int[Tensor, " b"], classes: int = 10, at: int = 0, scale: float | None = None
) -> Float[Tensor, "b *shape"]:
    """Write class y of each image over its pixels `at` … `at + classes - 1`, counted along the flat image; the rest stays.

    `scale` is the brightness of the label, by default the image's own largest |pixel| (a black image has a black label then).
    Any floating dtype, x is not changed; O(x) time and memory. `Refused` for labels outside 0 … classes - 1, or a strip that
    does not fit.

    >>> overlay_label(torch.tensor([[0.5, 0.2, 0.0, 2.0]]), torch.tensor([1]), classes=3)
    tensor([[0., 2., 0., 2.]])
    """
    if bool(((y < 0) | (y >= classes)).any()):
        raise Refused(f"y: labels must lie in 0 … {classes - 1}, got {int(y.min())} … {int(y.max())}")
    return _strip(x, (y[:, None] == torch.arange(classes, device=y.device)).to(x.dtype), at, scale)


def neutral_label(
    x: Float[Tensor, "b *shape"], classes: int = 10, at: int = 0, scale: float | None = None
) -> Float[Tensor, "b *shape"]:
    """The strip of `overlay_label` without a message: all classes alike, 1/C of the brightness each.

    >>> neutral_label(torch.tensor([[0.5, 0.2, 0.0, 2.0]]), classes=2)
    tensor([[1., 1., 0., 2.]])
    """
    at_least(1, classes=classes)
    return _strip(x, x.new_full((len(x), classes), 1 / classes), at, scale)


def wrong_labels(y: Int[Tensor, " b"], classes: int = 10, generator: torch.Generator | None = None) -> Int[Tensor, " b"]:
    """A random label for each, uniform over the classes - 1 wrong ones: never the true one. From torch's generator by default.

    >>> y = torch.arange(3).repeat(100)
    >>> bool((wrong_labels(y, classes=3) == y).any())
    False
    """
    if classes < 2:
        raise Refused(f"classes: a wrong label needs at least 2, got {classes}")
    within("y", y, classes)
    return (y + torch.randint(1, classes, y.shape, generator=generator, device=y.device)) % classes


def _strip(x: Tensor, values: Tensor, at: int, scale: float | None) -> Tensor:
    if x.ndim < 2:
        raise Refused(f"x: a batch (b, …) is needed, got shape {tuple(x.shape)}")
    flat, classes = x.flatten(1), values.shape[1]
    if not 0 <= at <= flat.shape[1] - classes:
        raise Refused(f"classes, at: a label of {classes} pixels from {at} on does not fit an input of {flat.shape[1]}")
    bright = flat.abs().amax(1, keepdim=True) if scale is None else scale
    return torch.cat([flat[:, :at], bright * values, flat[:, at + classes :]], 1).view_as(x)
