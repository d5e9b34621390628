"""One retrieval core for all associative memories: how alike (`similarity`), and how the alike are told apart (`separation`).

    lookup(ξ) = Σ_i  sep( sim(ξ, k_i) ) v_i

The similarities are dot product, cosine and minus the Hamming distance; the separations softmax, linear, ball, top-k and
winner-take-all. Modern Hopfield nets are dot × softmax (Ramsauer et al. 2021, arXiv:2008.02217), classical ones dot × linear,
Kanerva's sparse distributed memory is Hamming × ball.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from neuropil.errors import Refused, choose
from neuropil.nn.attention import attend
from neuropil.nn.checks import at_least, numbers, same_kind, some

SIMILARITIES = ("dot", "cosine", "hamming")


@dataclass(frozen=True)
class Softmax:
    """Weights ``softmax(beta · similarity)``."""

    beta: float = 1.0

    def __call__(self, similarity: Tensor) -> Tensor:
        """Weights of similarities ``*b m``."""
        return torch.softmax(self.beta * similarity, dim=-1)


@dataclass(frozen=True)
class Linear:
    """Weights are the similarities themselves."""

    def __call__(self, similarity: Tensor) -> Tensor:
        """Weights of similarities ``*b m``."""
        return similarity


@dataclass(frozen=True)
class Ball:
    """Weight 1 for similarity `at_least` or more, else 0; with `mean`, divided by their number."""

    at_least: float
    mean: bool = False

    def __call__(self, similarity: Tensor) -> Tensor:
        """Weights of similarities ``*b m``."""
        numbers("similarity", similarity)
        return _shared(similarity >= self.at_least, similarity, self.mean)


@dataclass(frozen=True)
class TopK:
    """The mean of the `k` most similar and of everything tied with the k-th."""

    k: int = 1

    def __call__(self, similarity: Tensor) -> Tensor:
        """Weights of similarities ``*b m``."""
        at_least(1, k=self.k)
        _real("similarity", similarity)
        numbers("similarity", similarity)
        kth = similarity.topk(min(self.k, similarity.shape[-1]), dim=-1).values[..., -1:]
        return _shared(similarity >= kth, similarity, True)


@dataclass(frozen=True)
class WinnerTakeAll(TopK):
    """The most similar; tied winners are averaged, never broken by index."""


Separation = Callable[[Tensor], Tensor]  # similarities (*b m) -> weights (*b m); Softmax is recognised and fused


def _shared(chosen: Tensor, similarity: Tensor, mean: bool) -> Tensor:
    weights = chosen.to(similarity.dtype)
    return weights / weights.sum(-1, keepdim=True).clamp(min=1) if mean else weights


def _real(name: str, given: Tensor) -> None:
    if not given.is_floating_point():
        raise Refused(f"{name}: must be floating point, got {given.dtype}")


def _check(name: str, given: Tensor) -> None:
    _real(name, given)
    if not torch.compiler.is_compiling() and not bool(torch.isfinite(given).all()):
        raise Refused(f"{name}: must be finite, got NaN or infinity")


def lookup(
    query: Float[Tensor, "*b d"],
    keys: Float[Tensor, "m d"],
    values: Float[Tensor, "m v"] | None = None,
    *,
    similarity: str = "dot",
    separation: Separation = Softmax(),
    block: int = 2**24,
) -> Float[Tensor, "*b v"]:
    """Read `values` (default: the keys) at `query`.

    ``hamming`` takes ±1 vectors and is minus their Hamming distance, so ``Ball(at_least=-r)`` is the Hamming ball of radius r.
    Softmax goes through torch's fused attention; every other separation takes the queries in slices of at most `block`
    similarities. Time O(b m d); memory O(b d + m d), plus `block` numbers.

    Raises `Refused` for NaN, integers, widths that differ, no patterns, or an unknown similarity.

    >>> X = torch.eye(3)
    >>> lookup(torch.tensor([0.1, 0.9, 0.2]), X, separation=WinnerTakeAll())
    tensor([0., 1., 0.])
    """
    choose("similarity", similarity, SIMILARITIES)
    values = keys if values is None else values
    for name, tensor in (("query", query), ("keys", keys), ("values", values)):
        _check(name, tensor)
    if query.shape[-1] != keys.shape[-1] or len(keys) != len(values) or not len(keys):
        shapes = f"query {tuple(query.shape)}, keys {tuple(keys.shape)}, values {tuple(values.shape)}"
        raise Refused(f"lookup: needs query (*b, d), keys (m, d), values (m, v) with m > 0, got {shapes}")
    some("query", query)
    same_kind("keys", keys, query)
    same_kind("values", values, query)
    if similarity == "cosine":
        query, keys = normalize(query, dim=-1), normalize(keys, dim=-1)
    flat = query.reshape(-1, query.shape[-1])
    if isinstance(separation, Softmax):
        # half the dot product is minus the Hamming distance up to a constant, which softmax does not see
        scale = separation.beta / (2 if similarity == "hamming" else 1)
        read = attend(flat[None, None], keys[None, None], values[None, None], scale)[0, 0]
        return read.reshape(*query.shape[:-1], values.shape[-1])
    parts = []
    for part in flat.split(max(1, block // len(keys))):
        alike = part @ keys.T
        parts.append(separation((alike - keys.shape[-1]) / 2 if similarity == "hamming" else alike) @ values)
    return torch.cat(parts).reshape(*query.shape[:-1], values.shape[-1])
