"""Made tasks with known answers for nets with a memory (simulators). Time comes first; each draws from a given generator."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.data.loaders import digits
from neuropil.errors import Refused


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


def _positive(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise Refused(f"{name}: must be at least 1, got {value}")
