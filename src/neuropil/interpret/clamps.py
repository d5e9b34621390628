"""Clamps for a forming circuit ("artificial optogenetics"): edits for `nn.sites.override`, while a net runs or while it trains.

    with override(model, ablate(1, [1, 2, 3], heads=8)), override(model, perfect_match(1, [0], batch.correct, heads=8)):
        cross_entropy(model(batch.x, batch.labels), batch.target).backward()

Of an induction circuit in two layers, A looks one back and writes what it finds to the label's place, B matches the query to that,
C copies the label that B attends to. Over sequences ``x₁ l₁ x₂ l₂ … x_q``, for each of them one clamp that does its work:

    perfect_layer_1   A   layer 2's patterns are those of inputs in which l_i's place carries x_i's embedding, its values those of
                          the plain embeddings: whatever layer 1 does is left out
    perfect_match     B   a head of layer 2 attends to the right label with weight 1
    perfect_copy      C   logits of the labels in the context ← the head's scores at their places; all others ← −10⁹

and others for heads: `ablate` (values ← 0: what a head attends to stays), `keep` (patterns, values, queries or keys as they were in
an unperturbed pass), `previous_token` (a pattern). What is put in as a constant (`ablate`, `keep`, `previous_token`,
`perfect_match`) gets no gradient. `perfect_layer_1` and `perfect_copy` are no constants but other wires: gradients reach the
embeddings and the head's queries and keys, as in the paper.

A. K. Singh, T. Moskovitz, F. Hill, S. C. Y. Chan & A. M. Saxe, "What needs to go right for an induction head? A mechanistic study
of in-context learning circuits and their formation", 2024, arXiv:2404.07129. Layers and heads are counted from 0 here. Differs:
patterns that are kept are constants (there, gradients reach the pass that they come from); one pass, where there it takes two.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuropil.errors import Refused, choose
from neuropil.nn.checks import at_least, nonnegative, some, within
from neuropil.nn.sites import Edit, record, replace
from neuropil.nn.transformer import Transformer

KEPT = ("pattern", "v", "q", "k")


def these(chosen: Iterable[int], heads: int) -> Bool[Tensor, "{heads} 1 1"]:
    """True for the heads chosen, as a mask for (b, heads, …). `Refused` for one that there is not.

    >>> these([0, 2], heads=3).flatten()
    tensor([ True, False,  True])
    """
    chosen = list(chosen)
    if not all(0 <= head < heads for head in chosen):
        raise Refused(f"heads: must be within 0 … {heads - 1}, got {chosen}")
    mask = torch.zeros(heads, 1, 1, dtype=torch.bool)
    mask[chosen] = True
    return mask


def ablate(layer: int, chosen: Iterable[int], heads: int) -> dict[str, Edit]:
    """Values ← 0 for the heads `chosen` of the `heads` of a layer: they write nothing, whatever they attend to.

    >>> sorted(ablate(1, [0, 2], heads=8))
    ['layers.1.attention.v']
    """
    return {f"layers.{layer}.attention.v": replace(0.0, where=these(chosen, heads))}


def keep(model: Transformer, *inputs: Any, what: Sequence[str] = ("pattern",)) -> dict[str, Edit]:
    """Patterns (or "v", "q", "k"; several of these) of all layers as they are now, for these inputs: one pass, without gradients.

    Enter it before the clamps that change what it keeps. `Refused` for something else to keep.

    >>> from neuropil.interpret.formation import FewShotNet
    >>> model = FewShotNet(inputs=12, labels=5, d=16, heads=2)
    >>> sorted(keep(model, torch.randn(7, 3, 12), torch.zeros(7, 2, dtype=torch.long)))
    ['layers.0.attention.pattern', 'layers.1.attention.pattern']
    """
    names = [f"layers.*.attention.{choose('what', one, KEPT)}" for one in what]
    with torch.no_grad(), record(model, *names) as seen:
        model(*inputs)
    return {site: replace(values[0]) for site, values in seen.items()}


def previous_token(
    layer: int, chosen: Iterable[int], heads: int, length: int, strength: float = 1.0, labels_only: bool = False
) -> dict[str, Edit]:
    """Patterns of the heads `chosen`: each position attends with `strength` to the one before it, with the rest to itself.

    `labels_only`: only at the places of labels, the odd ones; elsewhere the head attends as it likes. `Refused` for a strength
    outside 0 … 1.

    >>> previous_token(0, [2], heads=8, length=5)["layers.0.attention.pattern"].where.shape
    torch.Size([8, 1, 1])
    """
    _share(strength)
    at_least(1, length=length)
    pattern = (1 - strength) * torch.eye(length) + strength * torch.eye(length).roll(-1, 1)
    pattern[0] = torch.eye(length)[0]
    where = these(chosen, heads)
    if labels_only:
        where = where & (torch.arange(length) % 2 == 1)[:, None]
    return {f"layers.{layer}.attention.pattern": replace(pattern, where)}


def perfect_match(
    layer: int, chosen: Iterable[int], correct: Int[Tensor, " b"], heads: int, pairs: int = 2, strength: float = 1.0
) -> dict[str, Edit]:
    """Patterns of the heads `chosen` at the query: `strength` to the label of the pair `correct`, the rest shared by the others.

    `Refused` for a strength outside 0 … 1, or pairs that there are not.

    >>> edit = perfect_match(1, [0], torch.tensor([1]), heads=8)["layers.1.attention.pattern"]
    >>> edit.where.shape
    torch.Size([8, 5, 1])
    """
    _share(strength)
    right, wrong = _places(correct, pairs)
    pattern = strength * right + (1 - strength) / max(1, pairs - 1) * wrong
    where = these(chosen, heads) & (torch.arange(2 * pairs + 1) == 2 * pairs)[:, None]
    return {f"layers.{layer}.attention.pattern": replace(pattern[:, None, None, :], where)}


def perfect_layer_1(model: Transformer) -> dict[str, Any]:
    """Layer 2's queries and keys see embeddings moved one place on, all but the first and last; its values see the plain ones.

    So l_i's place carries x_i's embedding there. `Refused` unless the model has two layers.

    >>> from neuropil.interpret.formation import FewShotNet
    >>> list(perfect_layer_1(FewShotNet(inputs=12, labels=5, d=16, heads=2)))
    ['layers.0:in', 'layers.1:in', 'layers.1.attention.q', 'layers.1.attention.k']
    """
    if len(model.layers) != 2:
        raise Refused(f"model: the clamp is for two layers, got {len(model.layers)}")
    block: Any = model.layers[1]
    seen: list[Tensor] = []  # of this pass: the embedding; then keys and queries

    def look(embedding: Tensor) -> Tensor:
        seen[:] = [embedding]
        return embedding

    def enter(_: Tensor) -> Tensor:
        embedding = seen.pop()
        moved = block.attention_norm(torch.cat([embedding[:, :1], embedding[:, :-2], embedding[:, -1:]], 1))
        q, k, _v = block.attention.project(moved, moved)
        seen[:] = [k, q]
        return embedding

    return {
        "layers.0:in": look,
        "layers.1:in": enter,
        "layers.1.attention.q": lambda _: seen.pop(),
        "layers.1.attention.k": lambda _: seen.pop(),
    }


def perfect_copy(layer: int, head: int, labels: Int[Tensor, "b p"]) -> dict[str, Any]:
    """Logits (b, l) that the model puts out ← the head's scores, before softmax, from the query to each label; −10⁹ for the rest.

    >>> list(perfect_copy(1, 0, torch.tensor([[3, 4]])))
    ['layers.1.attention.scores', '']
    """
    nonnegative("labels", labels)
    seen: list[Tensor] = []  # the scores of this pass

    def look(scores: Tensor) -> Tensor:
        if not 0 <= head < scores.shape[1]:
            raise Refused(f"head: must be within 0 … {scores.shape[1] - 1}, got {head}")
        seen[:] = [scores[:, head, -1, 1::2]]
        return scores

    def say(logits: Tensor) -> Tensor:
        within("labels", labels, logits.shape[1])
        return torch.full_like(logits, -1e9).scatter(1, labels, seen.pop().to(logits))

    return {f"layers.{layer}.attention.scores": look, "": say}


def induction_strength(A: Float[Tensor, "*l b h n n"], correct: Int[Tensor, " b"]) -> Float[Tensor, "*l h"]:
    """Attention from the query to the right label, less that to the wrong ones, of each head: mean over sequences, −1 … 1.

    `A` are patterns (see `interpret.heads.patterns`), `correct` says which pair is right. `Refused` for pairs that there are not.

    >>> A = torch.zeros(1, 1, 5, 5)
    >>> A[..., -1, 1], A[..., -1, 3] = 0.25, 0.75
    >>> induction_strength(A, torch.tensor([1]))
    tensor([0.5000])
    """
    some("correct", correct)
    right, wrong = _places(correct, A.shape[-1] // 2)
    return torch.einsum("...bhn,bn->...h", A[..., -1, :], (right - wrong).to(A)) / len(correct)


def _places(correct: Tensor, pairs: int) -> tuple[Tensor, Tensor]:
    """1 at the place of the right label, and at those of the others: (b, 2 pairs + 1) each."""
    if not bool(((correct >= 0) & (correct < pairs)).all()):
        raise Refused(f"correct: must be within 0 … {pairs - 1}, got {int(correct.min())} … {int(correct.max())}")
    place = torch.arange(2 * pairs + 1, device=correct.device)
    right = place == 2 * correct[:, None] + 1
    return right.float(), ((place % 2 == 1) & ~right).float()


def _share(strength: float) -> None:
    if not 0 <= strength <= 1:
        raise Refused(f"strength: must lie in 0 … 1, got {strength}")
