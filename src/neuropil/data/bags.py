"""Bags: sets of members with one label each (multiple-instance learning), simulated or put together from real digits."""

import torch
from torch import Tensor

from neuropil.data.containers import Bags, Images
from neuropil.errors import Refused


def bit_pattern_bags(
    n: int, generator: torch.Generator, members: int = 16, bits: int = 8, signals: int = 8, signals_per_bag: int = 1
) -> Bags:
    """A simulator: `n` bags of random bit patterns, every second one (label 1) with
    `signals_per_bag` patterns out of a secret few.

    Members (n, members, bits) are 0 or 1, never all 0. The secret patterns are `signals` of the 2^bits − 1 and appear only in bags
    of label 1. O(n · members · bits). After the example of Ramsauer et al. 2021, arXiv:2008.02217. Raises `Refused` for sizes
    below 1 or more signals than fit.

    >>> bags = bit_pattern_bags(6, torch.Generator().manual_seed(0))
    >>> bags.members.shape, bags.labels.tolist()
    (torch.Size([6, 16, 8]), [0, 1, 0, 1, 0, 1])
    """
    if not 1 <= signals < 2**bits - 1:
        raise Refused(f"signals: must lie between 1 and 2^bits - 2 = {2**bits - 2}, got {signals}")
    if not 1 <= signals_per_bag <= members:
        raise Refused(f"signals_per_bag: must lie between 1 and members={members}, got {signals_per_bag}")
    codes = 1 + torch.randperm(2**bits - 1, generator=generator)
    drawn = codes[signals:][_randint(len(codes) - signals, (n, members), generator)]
    labels = torch.arange(n) % 2
    places = torch.rand(n, members, generator=generator).argsort(1)[:, :signals_per_bag]
    secret = codes[:signals][_randint(signals, (n, signals_per_bag), generator)]
    drawn = torch.where(labels[:, None] == 1, drawn.scatter(1, places, secret), drawn)
    patterns = (drawn[..., None] >> torch.arange(bits)) & 1
    return Bags(patterns.float(), torch.ones(n, members, dtype=torch.bool), labels)


def digit_bags(images: Images, n: int, generator: torch.Generator, target: int = 9, mean: float = 10.0, std: float = 2.0) -> Bags:
    """`n` bags of digits, round(N(mean, std²)) in each; every second bag holds the digit `target` at least once (label 1).

    Members (n, most, h · w) are zero where `mask` is False. The others are drawn with replacement, in bags of label 1 from all
    digits, else from all but the target. O(n · most · h · w). After the MNIST bags of Ilse et al. 2018, arXiv:1802.04712. Raises
    `Refused` if no image, or every image, is of the target.
    """
    (positive,) = torch.where(images.labels == target)
    (negative,) = torch.where(images.labels != target)
    if not len(positive) or not len(negative):
        raise Refused(f"target: images of digit {target} and of others are needed, got {len(positive)} and {len(negative)}")
    lengths = (mean + std * torch.randn(n, generator=generator)).round().clamp(min=1).long()
    most, labels = int(lengths.max()), torch.arange(n) % 2
    anything = _randint(len(images), (n, most), generator)
    anything[:, 0] = positive[_randint(len(positive), (n,), generator)]  # a bag is a set: the place does not matter
    drawn = torch.where(labels[:, None] == 1, anything, negative[_randint(len(negative), (n, most), generator)])
    mask = torch.arange(most) < lengths[:, None]
    return Bags(images.pixels.flatten(1)[drawn] * mask[..., None], mask, labels)


def _randint(high: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(high, shape, generator=generator)
