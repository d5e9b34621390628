"""Classes named anew in every sequence (a simulator): what a class is called can only be read from the context.

    x₁ l₁ x₂ l₂ … x_q        each x an exemplar of a class; x_q is of the class of one of the others; its label is to be said

The classes of a sequence differ, and so do their labels, which are drawn for each sequence ("relabelled"): weights can store
neither. Of the pairs of labels some can be held out; so can classes, and exemplars of the classes trained on.

The task of A. K. Singh et al. 2024, arXiv:2404.07129, after S. C. Y. Chan et al. 2022, arXiv:2205.05055. There exemplars are
ResNet's features of Omniglot; here they are random unit vectors, or real digits.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.data.loaders import digits
from neuropil.errors import Refused


@dataclass(frozen=True)
class FewShot:
    """Sequences of p named exemplars and one to be named.

    `x` are the p + 1 exemplars, the last one the query, `labels` the names of the first p, `correct` says which of these is of the
    query's class.
    """

    x: Float[Tensor, "b q d"]
    labels: Int[Tensor, "b p"]
    correct: Int[Tensor, " b"]

    def __len__(self) -> int:
        return len(self.x)

    @property
    def target(self) -> Int[Tensor, " b"]:
        """The query's label.

        >>> FewShot(torch.zeros(1, 3, 4), torch.tensor([[7, 9]]), torch.tensor([1])).target
        tensor([9])
        """
        return self.labels.gather(1, self.correct[:, None])[:, 0]

    def to(self, device: str | torch.device) -> "FewShot":
        """The same on another device."""
        return FewShot(self.x.to(device), self.labels.to(device), self.correct.to(device))


def few_shot(
    count: int, exemplars: Float[Tensor, "c e d"], names: Int[Tensor, "m p"], generator: torch.Generator | None = None
) -> FewShot:
    """`count` sequences over the classes of `exemplars` (class, exemplar, feature), labelled by rows of `names` in random order.

    Which p classes, which exemplar each time and which row are drawn evenly. Without a generator, torch's global one. Time
    O(count (c + p d)). `Refused` for no sequences, no names, or fewer classes than a row has names.

    >>> generator = torch.Generator().manual_seed(0)
    >>> made = few_shot(100, unit_exemplars(50, 1, 8, generator=generator), torch.tensor([[0, 1], [2, 4]]), generator)
    >>> made.x.shape, made.labels[0].tolist(), bool((made.x[range(100), made.correct] == made.x[:, -1]).all())
    (torch.Size([100, 3, 8]), [4, 2], True)
    """
    (classes, each, _), (rows, p) = exemplars.shape, names.shape
    if count < 1 or rows < 1 or classes < p:
        raise Refused(f"count, names, exemplars: 1 sequence, 1 row and {p} classes are the least, got {count}, {rows}, {classes}")
    shuffled = torch.rand(count, classes, generator=generator).topk(p).indices  # p classes, none twice, in random order
    correct = torch.randint(p, (count,), generator=generator)
    shown = torch.cat([shuffled, shuffled.gather(1, correct[:, None])], 1)
    which = torch.randint(each, shown.shape, generator=generator)
    named = names[torch.randint(rows, (count,), generator=generator)]
    named = named.gather(1, torch.rand(named.shape, generator=generator).argsort(1))
    return FewShot(exemplars[shown, which], named, correct)


def label_pairs(
    labels: int, held_out: float = 0.2, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, "m 2"], Int[Tensor, "k 2"]]:
    """The pairs of `labels` labels, without order, to train on, and those held out; each label is in some pair to train on.

    A random order of all pairs is cut in two. If that leaves a label without, random pairs of all labels come first in the order.
    O(labels³) time. `Refused` for fewer than 2 labels, or a share that leaves too few pairs for all labels.

    >>> train, held = label_pairs(5, generator=torch.Generator().manual_seed(0))
    >>> len(train), len(held), len(train.unique())
    (8, 2, 5)
    """
    pairs = torch.combinations(torch.arange(labels))
    kept = len(pairs) - int(held_out * len(pairs) + 1e-9)
    if labels < 2 or not 0 <= held_out < 1 or 2 * kept < labels:
        raise Refused(f"labels, held_out: at least 2 labels, each in a pair that is kept, got {labels} and {held_out}")
    order = torch.randperm(len(pairs), generator=generator)
    if len(pairs[order[:kept]].unique()) < labels:
        mates = torch.randperm(labels, generator=generator)  # as few pairs as have all labels: drawing anew might never find any
        mates = torch.cat([mates, mates[: labels % 2]]).view(-1, 2).sort(-1).values
        first = (pairs[order][:, None] == mates).all(-1).any(-1)
        order = torch.cat([order[first], order[~first]])
    return pairs[order[:kept]], pairs[order[kept:]]


def unit_exemplars(
    classes: int, each: int, d: int = 512, spread: float = 0.5, generator: torch.Generator | None = None
) -> Float[Tensor, "{classes} {each} {d}"]:
    """Random classes: ``x = (μ + s ε) / ‖μ + s ε‖``, μ a random unit vector, ε Gaussian with mean square length 1, s the `spread`.

    So the cosine of two exemplars of one class is 1 / (1 + s²) or so, of two classes 0. The first exemplar of each is μ itself.

    >>> x = unit_exemplars(50, 3, generator=torch.Generator().manual_seed(0))
    >>> round(float((x[:, 1] * x[:, 2]).sum(-1).mean()), 1), bool((x[:25, 1] * x[25:, 1]).sum(-1).mean().abs() < 0.05)
    (0.8, True)
    """
    if min(classes, each, d) < 1:
        raise Refused(f"classes, each, d: must be at least 1, got {classes}, {each}, {d}")
    mean = torch.nn.functional.normalize(torch.randn(classes, 1, d, generator=generator), dim=-1)
    noise = torch.randn(classes, each, d, generator=generator) * d**-0.5
    noise[:, 0] = 0.0
    return torch.nn.functional.normalize(mean + spread * noise, dim=-1)


def digit_exemplars(source: str = "sklearn", split: str | None = "train", each: int | None = None) -> Float[Tensor, "10 e d"]:
    """Real digits as exemplars of ten classes: the first `each` of each class (default: as many as the rarest has).

    Flat images, less the mean of all that are loaded, of length 1. `source` and `split` as in `data.digits`. `Refused` if a class
    has fewer.

    >>> digit_exemplars("sklearn", each=5).shape
    torch.Size([10, 5, 64])
    """
    images = digits(source, split)
    pixels = images.pixels.flatten(1)
    pixels = torch.nn.functional.normalize(pixels - pixels.mean(0), dim=-1)
    most = int(images.labels.bincount().min())
    each = most if each is None else each
    if not 1 <= each <= most:
        raise Refused(f"each: 1 to {most} images of each digit are there, got {each}")
    return torch.stack([pixels[images.labels == digit][:each] for digit in range(10)])
