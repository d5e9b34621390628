"""Sparse binary messages and their noise: the code of the Willshaw and clique memories.

A message is k active units of n. Clustered, the n = c·l units are c clusters of l, with one active unit each: c symbols of an
alphabet of l. Coarsely quantised, the noise of a synapse and of neurons outside the network is two binary events: an active unit is
erased with probability p_e, an inactive one inserted with probability p_i.

Coyac, Gripon, Langlais & Berrou 2017, arXiv:1709.08367; the clustered code is Gripon & Berrou 2011.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from neuropil.errors import Refused


@dataclass(frozen=True)
class SparseMessages:
    """A source of random messages of `k` active units of `n`; with `clustered`, one in each of k clusters of n / k. A simulator.

    Raises `Refused` unless 1 ≤ k ≤ n, and for clusters of unequal size.

    >>> SparseMessages(400, 8).draw(150, torch.Generator().manual_seed(0)).sum(1).unique()
    tensor([8.])
    """

    n: int
    k: int
    clustered: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.k <= self.n:
            raise Refused(f"k: must lie between 1 and n={self.n}, got {self.k}")
        if self.clustered and self.n % self.k:
            raise Refused(f"k: must divide n={self.n} into equal clusters, got {self.k}")

    def draw(self, m: int, generator: torch.Generator) -> Float[Tensor, "m n"]:
        """`m` independent messages, on the generator's device. Time O(m n log n), memory O(m n)."""
        if self.clustered:
            l = self.n // self.k
            return from_symbols(torch.randint(l, (m, self.k), generator=generator, device=generator.device), l)
        order = torch.rand(m, self.n, generator=generator, device=generator.device).argsort(1)
        return (order < self.k).float()


def from_symbols(symbols: Int[Tensor, "m c"], l: int) -> Float[Tensor, "m n"]:
    """The clustered messages, n = c·l, of symbols 0 … l − 1.

    >>> from_symbols(torch.tensor([[1, 0]]), 2)
    tensor([[0., 1., 1., 0.]])
    """
    return one_hot(symbols, l).flatten(1).float()


def insert_erase(x: Float[Tensor, "*m n"], p_i: float, p_e: float, generator: torch.Generator) -> Float[Tensor, "*m n"]:
    """Erase each active unit with probability `p_e`, insert each inactive one with `p_i`. Time and memory O(m n).

    Raises `Refused` for probabilities outside [0, 1] and for anything but 0 and 1 in `x`.

    >>> insert_erase(torch.tensor([1.0, 0.0]), p_i=0.0, p_e=1.0, generator=torch.Generator())
    tensor([0., 0.])
    """
    for name, p in (("p_i", p_i), ("p_e", p_e)):
        if not 0 <= p <= 1:
            raise Refused(f"{name}: must lie between 0 and 1, got {p}")
    check_binary("x", x)
    flip = torch.rand(x.shape, generator=generator, device=generator.device).to(x.device) < torch.where(x > 0, p_e, p_i)
    return torch.where(flip, 1 - x, x)


def erase_clusters(x: Float[Tensor, "m n"], c: int, erased: int, generator: torch.Generator) -> Float[Tensor, "m n"]:
    """Clear `erased` of the `c` clusters of every message, drawn anew for each. Time and memory O(m n).

    >>> x = SparseMessages(12, 4, clustered=True).draw(5, torch.Generator().manual_seed(0))
    >>> erase_clusters(x, 4, 3, torch.Generator().manual_seed(1)).sum(1)
    tensor([1., 1., 1., 1., 1.])
    """
    if not 0 <= erased <= c:
        raise Refused(f"erased: must lie between 0 and c={c}, got {erased}")
    order = torch.rand(len(x), c, generator=generator, device=generator.device).to(x.device).argsort(1)
    return (x.unflatten(1, (c, -1)) * (order >= erased)[..., None]).flatten(1)


def check_binary(name: str, x: Tensor) -> None:
    """`Refused` for anything but 0 and 1."""
    if not torch.compiler.is_compiling() and not bool(((x == 0) | (x == 1)).all()):
        raise Refused(f"{name}: must be 0 or 1")
