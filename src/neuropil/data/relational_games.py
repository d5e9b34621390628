"""Relational games: rows of objects, and whether a relation holds among them (simulators).

    same      2 objects     both are the same one                                (as `tasks.same_different`)
    occurs    4 objects     the first is among the other three
    order     2 objects     ⟨u, x_1⟩ < ⟨u, x_2⟩ for a fixed u: an asymmetric relation
    match     6 objects     both triples have the same pattern, of ABC, AAB, ABA, ABB: a relation of relations
    SET       3 cards       in each of 4 attributes, all three are equal or all three differ     (`set_game`)

The objects of "test" are none of those of "train", so that only relations carry over (order: and u).

(occurs, match: after Shanahan et al. 2020, arXiv:1905.10307, whose 36 × 36 images of a grid these rows of objects replace, and
whose objects the "shapes" follow: coloured pentominoes to train, hexominoes to test. SET, order: as in Altabaa et al. 2024,
arXiv:2304.00195.)
"""

import functools

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.data.loaders import digits
from neuropil.errors import Refused, choose

GAMES = {"same": 2, "occurs": 4, "order": 2, "match": 6}  # objects in a row
SOURCES = ("vectors", "shapes", "digits")
PATTERNS = ((0, 1, 2), (0, 0, 1), (0, 1, 0), (0, 1, 1))
COLOURS = ((1.0, 0.2, 0.2), (0.2, 1.0, 0.2), (0.3, 0.3, 1.0), (1.0, 1.0, 0.2), (1.0, 0.2, 1.0), (0.2, 1.0, 1.0))
SIDE = 6  # cells of an image of a shape


def relational_game(
    game: str, batch: int, generator: torch.Generator, split: str = "train", source: str = "vectors", d: int = 32, seed: int = 0
) -> tuple[Float[Tensor, "b n _d"], Int[Tensor, " b"]]:
    """Rows of n objects of a `game`, and 1 where its relation holds, 0 where not (even odds).

    Args:
        game: one of `GAMES`.
        source: "vectors", N(0, 1) in d dimensions, new in each row; "shapes", images of coloured polyominoes (3 · 6 · 6 numbers in
            [0, 1]: 378 pentominoes train, 1,296 hexominoes test); or "digits", scikit-learn's images of real digits (64 numbers).
        seed: which u ("order").

    O(batch · (objects + n d)) time and memory. `Refused` for an unknown game, split or source, or sizes below 1.

    >>> x, y = relational_game("occurs", 100, torch.Generator().manual_seed(0))
    >>> x.shape, bool(((x[:, :1] == x[:, 1:]).all(-1).any(-1) == y).all())
    (torch.Size([100, 4, 32]), True)
    """
    n = GAMES[choose("game", game, GAMES)]
    choose("split", split, ("train", "test"))
    choose("source", source, SOURCES)
    for name, value in (("batch", batch), ("d", d)):
        if value < 1:
            raise Refused(f"{name}: must be at least 1, got {value}")
    if source == "vectors":
        objects = torch.randn(batch, n, d, generator=generator)
    else:
        pool = _pool(split, source)
        objects = pool[torch.rand(batch, len(pool), generator=generator).topk(n).indices]
    if game == "order":
        u = torch.randn(objects.shape[-1], generator=torch.Generator().manual_seed(seed))
        key = objects @ u
        return objects, (key[:, 0] < key[:, 1]).long()
    y = torch.randint(2, (batch,), generator=generator)
    which = _rows(game, y, generator)
    return objects.gather(1, which[..., None].expand_as(objects)), y


def _rows(game: str, y: Tensor, generator: torch.Generator) -> Tensor:
    """For each row, which of its n different objects stands where."""
    n = GAMES[game]
    which = torch.arange(n).repeat(len(y), 1)
    if game == "match":
        patterns = torch.tensor(PATTERNS)
        first = torch.randint(4, y.shape, generator=generator)
        second = (first + (1 - y) * torch.randint(1, 4, y.shape, generator=generator)) % 4
        return torch.cat([patterns[first], 3 + patterns[second]], 1)
    spot = torch.randint(1, n, y.shape, generator=generator)  # where the first one comes again, if it does
    again = (torch.arange(n) == spot[:, None]) & (y == 1)[:, None]
    return which.masked_fill(again, 0)


@functools.cache
def _pool(split: str, source: str) -> Tensor:
    if source == "digits":
        return digits("sklearn", split).pixels.flatten(1)
    return shapes(5 if split == "train" else 6)


def shapes(cells: int) -> Float[Tensor, "m {3*36}"]:
    """Flat images (3, 6, 6) in [0, 1] of all polyominoes of `cells` ≤ 6 cells, turned and mirrored, in each of six colours.

    Each lies in the middle, rounded up and left. `Refused` outside 1 … 6. 1.5 s at most, once.

    >>> shapes(5).shape, shapes(6).shape
    (torch.Size([378, 108]), torch.Size([1296, 108]))
    """
    if not 1 <= cells <= SIDE:
        raise Refused(f"cells: must lie in 1 … {SIDE}, got {cells}")
    found = {frozenset({(0, 0)})}
    for _ in range(cells - 1):
        found = {
            _moved(shape | {(i + a, j + b)})
            for shape in found
            for i, j in shape
            for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))
            if (i + a, j + b) not in shape
        }
    masks = torch.zeros(len(found), SIDE, SIDE)
    for mask, shape in zip(masks, sorted(found, key=sorted), strict=True):
        i, j = torch.tensor(sorted(shape)).T
        mask[i + (SIDE - 1 - i.max()) // 2, j + (SIDE - 1 - j.max()) // 2] = 1
    return torch.einsum("sij,ck->sckij", masks, torch.tensor(COLOURS)).flatten(2).flatten(0, 1)


def _moved(shape: frozenset[tuple[int, int]]) -> frozenset[tuple[int, int]]:
    top, left = min(i for i, _ in shape), min(j for _, j in shape)
    return frozenset((i - top, j - left) for i, j in shape)


def set_game(
    batch: int, generator: torch.Generator, split: str = "train", d: int = 32, seed: int = 0
) -> tuple[Float[Tensor, "b 3 d"], Int[Tensor, " b"]]:
    """Three different cards of the game SET, and 1 where they are a set (about even odds).

    A card has 4 attributes of 3 values; each value is a fixed N(0, 1) vector of d/4 numbers (by `seed`), a card their sequence.
    Cards are known, triples are not: one in five, of sets and of others, whatever the order of its cards, is in "test" only.
    O(batch d). `Refused` for an unknown split, or a d that is not a positive multiple of 4.

    >>> x, y = set_game(10, torch.Generator().manual_seed(0))
    >>> x.shape, y.shape
    (torch.Size([10, 3, 32]), torch.Size([10]))
    """
    held = choose("split", split, ("train", "test")) == "test"
    if batch < 1 or d < 4 or d % 4:
        raise Refused(f"batch, d: at least 1 and a positive multiple of 4 are needed, got {batch} and {d}")
    own = torch.Generator().manual_seed(seed)
    values = torch.randn(4, 3, d // 4, generator=own)
    salt = torch.randint(5, (81, 81), generator=own)
    triples, labels = torch.empty(0, 3, dtype=torch.long), torch.empty(0, dtype=torch.long)
    while len(triples) < batch:  # one in five (or four in five) of what is drawn has its place in this split
        drawn, label = _triples(8 * batch, generator)
        low, _, high = drawn.sort(1).values.unbind(1)
        keep = (salt[low, high] == 0) == held
        triples, labels = torch.cat([triples, drawn[keep]]), torch.cat([labels, label[keep]])
    attributes = triples[:batch, :, None] // torch.tensor([1, 3, 9, 27]) % 3
    return values[torch.arange(4), attributes].flatten(2), labels[:batch]


def _triples(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Cards 0 … 80, three different ones a row, and whether they are a set."""
    place = torch.tensor([1, 3, 9, 27])
    first = torch.randint(81, (count,), generator=generator)
    second = (first + torch.randint(1, 81, (count,), generator=generator)) % 81
    third = ((-(first[:, None] // place % 3 + second[:, None] // place % 3)) % 3 * place).sum(1)  # the one card that completes
    label = torch.randint(2, (count,), generator=generator)
    other = torch.randint(78, (count,), generator=generator)
    for taken in torch.stack([first, second, third]).sort(0).values:  # the other 78 cards, without these three
        other = other + (other >= taken)
    return torch.stack([first, second, torch.where(label == 1, third, other)], 1), label
