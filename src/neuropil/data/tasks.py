"""Made tasks with known answers (simulators). Each draws from a given generator; time comes first where there is time."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.data.loaders import digits
from neuropil.errors import Refused, choose


def copy_task(
    batch: int, delay: int, generator: torch.Generator, symbols: int = 8, length: int = 10
) -> tuple[Float[Tensor, "t b {symbols}+2"], Int[Tensor, "t b"]]:
    """Say `length` symbols again after `delay` blanks: one-hot inputs (blank 0, symbols 1 …, cue), and each step's class.

    The cue is the last of the blanks, so that T = 2·length + delay.
    (Hochreiter & Schmidhuber 1997; as in Arjovsky et al. 2016, arXiv:1511.06464.)

    >>> x, y = copy_task(2, 5, torch.Generator().manual_seed(0))
    >>> x.shape, y.shape, bool((y[-10:] == x[:10].argmax(-1)).all())
    (torch.Size([25, 2, 10]), torch.Size([25, 2]), True)
    """
    _positive(batch=batch, delay=delay, symbols=symbols, length=length)
    said = torch.randint(1, symbols + 1, (length, batch), generator=generator)
    inputs = torch.zeros(2 * length + delay, batch, dtype=torch.long)
    inputs[:length] = said
    inputs[length + delay - 1] = symbols + 1
    targets = torch.zeros_like(inputs)
    targets[-length:] = said
    return torch.nn.functional.one_hot(inputs, symbols + 2).float(), targets


def adding_task(batch: int, length: int, generator: torch.Generator) -> tuple[Float[Tensor, "t b 2"], Float[Tensor, " b"]]:
    """The sum of the two marked ones of `length` numbers in [0, 1], one mark in each half. Always saying 1 has an error of 1/6.

    (Hochreiter & Schmidhuber 1997; as in Le et al. 2015, arXiv:1504.00941.)

    >>> x, y = adding_task(3, 10, torch.Generator().manual_seed(0))
    >>> bool(torch.allclose((x[..., 0] * x[..., 1]).sum(0), y))
    True
    """
    _positive(batch=batch)
    if length < 2:
        raise Refused(f"length: two marks need at least 2 numbers, got {length}")
    values = torch.rand(length, batch, generator=generator)
    marks = torch.zeros(length, batch)
    half = length // 2
    for low, high in ((0, half), (half, length)):
        marks[torch.randint(low, high, (batch,), generator=generator), torch.arange(batch)] = 1
    return torch.stack([values, marks], -1), (values * marks).sum(0)


def parity_task(batch: int, length: int, generator: torch.Generator) -> tuple[Float[Tensor, "t b 1"], Int[Tensor, "t b"]]:
    """Random signs ±1 and, at each step, whether the number of −1 so far is odd.

    >>> parity_task(1, 3, torch.Generator().manual_seed(0))[1].shape
    torch.Size([3, 1])
    """
    _positive(batch=batch, length=length)
    signs = 2 * torch.randint(2, (length, batch), generator=generator) - 1
    return signs[..., None].float(), (signs < 0).cumsum(0) % 2


def digit_sequences(
    source: str = "mnist", split: str = "train", permuted: int | None = None
) -> tuple[Float[Tensor, "t n 1"], Int[Tensor, " n"]]:
    """Real digits read pixel by pixel, row by row, or in a fixed random order (`permuted`: its seed), and their classes.

    T = 784 for "mnist" (Le et al. 2015), 64 for "sklearn".

    >>> digit_sequences("sklearn")[0].shape[0]
    64
    """
    images = digits(source, split)
    pixels = images.pixels.flatten(1).T[..., None].contiguous()
    if permuted is not None:
        pixels = pixels[torch.randperm(len(pixels), generator=torch.Generator().manual_seed(permuted))]
    return pixels, images.labels


def same_different(
    batch: int,
    generator: torch.Generator,
    split: str = "train",
    source: str = "vectors",
    objects: int | None = None,
    d: int = 32,
    seed: int = 0,
) -> tuple[Float[Tensor, "b 2 _d"], Int[Tensor, " b"]]:
    """Pairs of objects, and 1 where both are the same one, 0 where they are two (even odds): a simulator without time.

    The objects of "test" are none of those of "train", so that only the relation itself, not a memory of objects, is right there.

    Args:
        source: "vectors", N(0, 1) in d dimensions, or "sklearn" or "mnist", flat images of real digits (d is theirs): the same
            image twice, or two images, of one class or not.
        objects: how many there are in each split, at least 2; None: a new vector each time, or all images of the split.
        seed: which objects they are.

    (As in Altabaa & Lafferty 2024, arXiv:2405.16727, and many before.)

    >>> x, y = same_different(100, torch.Generator().manual_seed(0), objects=8)
    >>> x.shape, bool(((x[:, 0] == x[:, 1]).all(-1) == y).all())
    (torch.Size([100, 2, 32]), True)
    """
    _positive(batch=batch, d=d)
    choose("split", split, ("train", "test"))
    choose("source", source, ("vectors", "sklearn", "mnist"))
    if objects is not None and objects < 2:
        raise Refused(f"objects: two different ones need at least 2, got {objects}")
    same = torch.randint(2, (batch,), generator=generator)
    if source == "vectors" and objects is None:
        pool, first, other = torch.randn(2 * batch, d, generator=generator), torch.arange(batch), torch.arange(batch) + batch
    else:
        pool = _objects(split, source, objects, d, seed)
        first = torch.randint(len(pool), (batch,), generator=generator)
        other = (first + torch.randint(1, len(pool), (batch,), generator=generator)) % len(pool)
    return pool[torch.stack([first, torch.where(same == 1, first, other)], 1)], same


def _objects(split: str, source: str, objects: int | None, d: int, seed: int) -> Tensor:
    own = torch.Generator().manual_seed(seed)
    if source == "vectors":
        train, test = torch.randn(2, objects or 0, d, generator=own)
        return train if split == "train" else test
    pixels = digits(source, split).pixels.flatten(1)
    if objects is None:
        return pixels
    if objects > len(pixels):
        raise Refused(f"objects: {source} has {len(pixels)} images to {split}, got {objects}")
    return pixels[torch.randperm(len(pixels), generator=own)[:objects]]


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise Refused(f"{name}: must be at least 1, got {value}")
