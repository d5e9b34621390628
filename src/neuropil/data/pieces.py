"""Text in pieces longer than a character: byte-pair encoding over `texts.ALPHABET`, learned from a text.

    the commonest pair of neighbouring pieces within words becomes a piece of its own, until there are as many as asked for

R. Sennrich, B. Haddow & A. Birch, "Neural machine translation of rare words with subword units", 2016, arXiv:1508.07909. A word is
a run of letters with the blank before it; other characters stay by themselves.
"""

import itertools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from neuropil.data.texts import ALPHABET, encode
from neuropil.errors import Refused

_WORD = re.compile(r" ?[a-z]+|[^a-z]")


@dataclass(frozen=True)
class Pieces:
    """What each code stands for, and the code that a pair of codes is merged into. Lower codes were merged earlier."""

    names: tuple[str, ...]
    merges: Mapping[tuple[int, int], int]

    def __len__(self) -> int:
        return len(self.names)

    def encode(self, text: str) -> Int[Tensor, "n"]:
        """The codes of a text, int64: in each word the earliest merge first, as they were learned.

        O(characters), and O(length²) a different word. `Refused` for characters outside `ALPHABET`.
        """
        known: dict[str, list[int]] = {}
        codes: list[int] = []
        for word in _WORD.findall(text):
            if word not in known:
                known[word] = self._merged(encode(word).tolist())
            codes += known[word]
        return torch.tensor(codes, dtype=torch.long)

    def decode(self, codes: Int[Tensor, "n"]) -> str:
        """The text of codes."""
        return "".join(self.names[code] for code in codes.tolist())

    def _merged(self, codes: list[int]) -> list[int]:
        while True:
            found = [(self.merges[pair], i) for i, pair in enumerate(itertools.pairwise(codes)) if pair in self.merges]
            if not found:
                return codes
            code, i = min(found)
            codes = [*codes[:i], code, *codes[i + 2 :]]


def learn_pieces(text: str, count: int) -> Pieces:
    """`count` pieces: the characters of `ALPHABET`, and the merges learned from `text`, fewer if no pair of pieces is left.

    O(count · letters of its different words), 1 s for 100 pieces from 2 million characters. `Refused` for fewer than ALPHABET has.

    >>> pieces = learn_pieces("a rose is a rose is a rose", 60)
    >>> pieces.names[48:52], pieces.decode(pieces.encode("is a rose")), len(pieces.encode("is a rose"))
    ((' r', 'os', ' ros', ' rose'), 'is a rose', 4)
    """
    if count < len(ALPHABET):
        raise Refused(f"count: at least the {len(ALPHABET)} characters of ALPHABET are needed, got {count}")
    words = {word: times for word, times in Counter(_WORD.findall(text)).items() if len(word) > 1}
    # all different words in a row, a −1 after each; how often each of them was seen at every place
    codes = torch.cat([torch.zeros(0).long(), *(x for word in words for x in (encode(word), torch.tensor([-1])))]).numpy()
    times = np.repeat(list(words.values()), [len(word) + 1 for word in words]) if words else np.zeros(0, int)
    names, merges = list(ALPHABET), {}
    for new in range(len(ALPHABET), count):
        pair = np.where((codes[:-1] >= 0) & (codes[1:] >= 0), codes[:-1] * count + codes[1:], count * count)
        seen = np.bincount(pair, times[:-1], count * count + 1)[:-1]
        if not seen.any():
            break
        a, b = divmod(int(seen.argmax()), count)
        merges[a, b] = new
        names.append(names[a] + names[b])
        at = np.flatnonzero(pair == a * count + b)
        if a == b:  # of three in a row, the first two
            run = np.flatnonzero(np.diff(at, prepend=-2) != 1)
            at = at[(np.arange(len(at)) - np.repeat(run, np.diff(run, append=len(at)))) % 2 == 0]
        codes[at] = new
        codes, times = np.delete(codes, at + 1), np.delete(times, at + 1)
    return Pieces(tuple(names), merges)
