"""What the loaders give: frozen containers of tensors whose shapes and units are in their types and docstrings."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Images:
    """Images in [0, 1], dark to bright, grey (n, h, w) or colour (n, h, w, 3), and one class per image.

    >>> import torch
    >>> len(Images(torch.zeros(2, 8, 8), torch.tensor([0, 1])))
    2
    """

    pixels: Float[Tensor, "n h w"] | Float[Tensor, "n h w 3"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Bags:
    """Sets of up to m members of width d, one label each; `mask` is False where a smaller set is padded with zeros."""

    members: Float[Tensor, "n m d"]
    mask: Bool[Tensor, "n m"]
    labels: Int[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def split(self, *sizes: int) -> "tuple[Bags, ...]":
        """Cut into consecutive parts of these sizes.

        >>> import torch
        >>> bags = Bags(torch.zeros(5, 2, 3), torch.ones(5, 2, dtype=torch.bool), torch.arange(5))
        >>> [len(part) for part in bags.split(3, 2)]
        [3, 2]
        """
        parts = (x.split(sizes) for x in (self.members, self.mask, self.labels))
        return tuple(Bags(*part) for part in zip(*parts, strict=True))


@dataclass(frozen=True)
class Table:
    """A table for classification: columns of numbers as they are, columns of words one-hot, and one class per row."""

    features: Float[Tensor, "n d"]
    labels: Int[Tensor, " n"]
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Trials:
    """Trials of several channels in the recorder's units, one class per trial, `rate` in Hz; `classes` names the labels."""

    signals: Float[Tensor, "n c t"]
    labels: Int[Tensor, " n"]
    rate: float
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Bold:
    """BOLD of s subjects and r regions, their connectivity (streamline counts) and fibre `lengths` in mm.

    `tr`: seconds between two samples, None where the package does not state it.
    """

    signals: Float[Tensor, "s r t"]
    structural: Float[Tensor, "s r r"]
    lengths: Float[Tensor, "s r r"] | None
    tr: float | None


@dataclass(frozen=True)
class SpikeTrain:
    """Spike `times` in seconds (float64) and the `stimulus` that drove them, sampled at `rate` Hz from time 0."""

    times: Float[Tensor, " spikes"]
    stimulus: Float[Tensor, " t"]
    rate: float


@dataclass(frozen=True)
class Series:
    """One time series and what it is."""

    values: Float[Tensor, " t"]
    about: str
