"""Random tokens, repeated after a random number of them (a simulator): what comes next can only be known from the context.

    t_i = r_{i mod p},   r_0 … r_{p−1} drawn evenly from the vocabulary, p evenly from a range, both anew for each sequence

The first copy cannot be foreseen: its loss is ln(vocabulary) at best. Since p is not known, a head that looks back by a fixed
distance gains nothing: it takes one that finds where the present token stood before. With whole segments in several copies it is
the test of Olsson et al. 2022, arXiv:2209.11895.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuropil.errors import Refused


@dataclass(frozen=True)
class Repeats:
    """Sequences of tokens, and the length p of the segment that each repeats."""

    tokens: Int[Tensor, "b n"]
    period: Int[Tensor, "b"]

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def predictable(self) -> Bool[Tensor, "b m"]:
        """For each token but the first: whether it and the one before it are repeated, so that it could be known.

        >>> Repeats(torch.tensor([[5, 6, 5, 6]]), torch.tensor([2])).predictable
        tensor([[False, False,  True]])
        """
        return torch.arange(1, self.tokens.shape[1], device=self.period.device) > self.period[:, None]

    def split(self, losses: Float[Tensor, "b m"]) -> tuple[float, float]:
        """Mean loss of the tokens that cannot be known, and of those that can, given that of each token but the first.

        `Refused` for losses of other sequences.

        >>> Repeats(torch.tensor([[5, 6, 5, 6]]), torch.tensor([2])).split(torch.tensor([[3.0, 5.0, 1.0]]))
        (4.0, 1.0)
        """
        known = self.predictable
        if losses.shape != known.shape:
            raise Refused(
                f"losses: must have shape {tuple(known.shape)}, one for each token but the first, got {tuple(losses.shape)}"
            )
        return float(losses[~known].mean()), float(losses[known].mean())


def repeats(count: int, length: int, vocabulary: int, period: tuple[int, int], generator: torch.Generator | None = None) -> Repeats:
    """`count` sequences of `length` tokens; each repeats a random segment whose length is even in `period` = (least, most).

    Without a generator, torch's global one. O(count length). `Refused` for no sequences, fewer than 2 tokens, or a range outside
    1 … length − 2 (at least one token of each sequence must be predictable).

    >>> made = repeats(3, 12, vocabulary=64, period=(4, 6), generator=torch.Generator().manual_seed(0))
    >>> made.tokens.shape, bool((made.tokens[0, made.period[0]:] == made.tokens[0, :-made.period[0]]).all())
    (torch.Size([3, 12]), True)
    """
    least, most = period
    if count < 1 or vocabulary < 2:
        raise Refused(f"count, vocabulary: at least 1 sequence of 2 tokens is needed, got {count} and {vocabulary}")
    if not 1 <= least <= most <= length - 2:
        raise Refused(f"period: a range within 1 … length − 2 = {length - 2} is needed, got {period}")
    p = torch.randint(least, most + 1, (count,), generator=generator)
    segment = torch.randint(vocabulary, (count, most), generator=generator)
    return Repeats(segment.gather(1, torch.arange(length) % p[:, None]), p)
