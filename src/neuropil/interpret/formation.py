"""How an induction circuit forms: the net of the few-shot task, when its loss drops, and a toy model that waits and drops alike.

    the net     logits = unembed(transformer(x₁ l₁ x₂ l₂ … x_q)) at x_q;   exemplars come in by a linear map, labels by a table
    the drop    the first step at which the mean loss of the last w steps is below ONE threshold, the same for all runs
    the toy     L = ½ mean (a* ⊗ b* ⊗ c* − a ⊗ b ⊗ c)²,  a ← a − η ∂L/∂a, and so b and c: three things that need each other

Each factor's gradient is a product with the other two: near 0, all wait for one another. With c (or b and c) clamped at the truth
the product is shorter, and so is the wait. A. K. Singh, T. Moskovitz, F. Hill, S. C. Y. Chan & A. M. Saxe, "What needs to go right
for an induction head?", 2024, arXiv:2404.07129. What to clamp in the net: `interpret.clamps`.
"""

import functools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.nn.checks import at_least, fits, within
from neuropil.nn.sites import Site
from neuropil.nn.transformer import Attention, Transformer


class FewShotNet(Transformer):
    """An attention-only transformer over ``x₁ l₁ x₂ l₂ … x_q``: logits of the query's label.

    Args:
        inputs: features of an exemplar.
        labels: how many labels there are.
        d, heads, layers: width, heads a layer, and layers.
        pairs: the most named exemplars in a sequence.

    Rotary positions, pre-norm, causal, no biases in attention. Initial values are the paper's: truncated normal of variance
    1 / fan-in, for labels of deviation 0.02. Sites: those of `Transformer`, ``exemplar``, ``label``, ``unembed``, and
    ``embedding``, the whole sequence. d (inputs + 2 labels) + 4 layers d² numbers or so. `Refused` as `Transformer` does.

    >>> model = FewShotNet(inputs=12, labels=5, d=16, heads=2)
    >>> model(torch.randn(7, 3, 12), torch.zeros(7, 2, dtype=torch.long)).shape
    torch.Size([7, 5])
    """

    def __init__(self, inputs: int, labels: int, d: int = 64, heads: int = 8, layers: int = 2, pairs: int = 2) -> None:
        at_least(1, inputs=inputs, labels=labels)
        attention = functools.partial(Attention, bias=False)
        super().__init__(d, heads, layers, 2 * pairs + 1, positions="rotary", attention=attention)
        self.exemplar = nn.Linear(inputs, d)
        self.label = nn.Embedding(labels, d)
        self.embedding = Site()
        self.unembed = nn.Linear(d, labels)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                _truncated(module.weight, module.in_features**-0.5 / 0.8796256610342398)  # its deviation once cut at two
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        _truncated(self.label.weight, 0.02)

    def forward(self, x: Float[Tensor, "b q i"], labels: Int[Tensor, "b p"]) -> Float[Tensor, "b l"]:  # type: ignore[override]
        """Exemplars, the query last, and the labels of all but the query."""
        if x.shape[1] != labels.shape[1] + 1:
            raise Refused(f"x, labels: one exemplar more than labels is needed, got {x.shape[1]} and {labels.shape[1]}")
        fits("x", x, self.exemplar.in_features, self.exemplar.weight)
        within("labels", labels, self.label.num_embeddings)
        shown = self.exemplar(x)
        pairs = torch.stack([shown[:, :-1], self.label(labels).to(shown)], 2).flatten(1, 2)
        z = super().forward(self.embedding(torch.cat([pairs, shown[:, -1:]], 1)))
        return self.unembed(z[:, -1])


def _truncated(weight: Tensor, deviation: float) -> None:
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def drop(losses: Sequence[float] | Float[Tensor, " t"], below: float = 0.35, window: int = 10) -> int | None:
    """How many steps it took until the mean loss of the last `window` steps was below `below`; None if that never happened.

    One threshold for all runs that are to be compared. `Refused` for a window below 1, or losses that are not finite.

    >>> drop([0.7] * 20 + [0.0] * 20), drop([0.7] * 20)
    (26, None)
    """
    values = torch.as_tensor(losses, dtype=torch.float64)
    if window < 1 or not bool(values.isfinite().all()):
        raise Refused(f"losses, window: finite losses and a window of at least 1 are needed, got window {window}")
    if len(values) < window:
        return None
    low = (values.unfold(0, window, 1).mean(-1) < below).nonzero()
    return int(low[0]) + window if len(low) else None


def outer_product_losses(
    start: Sequence[Float[Tensor, "*b n"]],
    truth: Sequence[Float[Tensor, "*b n"]],
    clamped: Sequence[bool],
    steps: int,
    rate: float = 1.0,
) -> Float[Tensor, "t *b"]:
    """The toy model: losses of `steps` steps of gradient descent on the factors of a ⊗ b ⊗ c, those that are `clamped` at `truth`.

    `start` and `truth` are the factors (three in the paper, any number here), each (…, n): many problems run side by side. The
    tensor itself is never formed: ``mean (⊗ u* − ⊗ u)² = (∏ ‖u*‖² − 2 ∏ u*·u + ∏ ‖u‖²) / ∏ n``. Time O(steps n k²) for k factors.
    `Refused` for different numbers of factors.

    >>> e = torch.eye(2)[0]
    >>> outer_product_losses([0.5 * e, e, e], [e, e, e], [False, True, True], steps=3)
    tensor([0.0156, 0.0120, 0.0092])
    """
    if not len(start) == len(truth) == len(clamped):
        raise Refused(f"start, truth, clamped: as many of each are needed, got {len(start)}, {len(truth)}, {len(clamped)}")
    at_least(1, steps=steps)
    factors = [true if fixed else first for first, true, fixed in zip(start, truth, clamped, strict=True)]
    size = math.prod(u.shape[-1] for u in factors)
    whole = _product([(true * true).sum(-1) for true in truth])
    losses = []
    for _ in range(steps):
        along = [(true * u).sum(-1) for true, u in zip(truth, factors, strict=True)]
        squares = [(u * u).sum(-1) for u in factors]
        losses.append(0.5 * (whole - 2 * _product(along) + _product(squares)) / size)
        factors = [
            u if fixed else u - rate / size * (_others(squares, i)[..., None] * u - _others(along, i)[..., None] * true)
            for i, (u, true, fixed) in enumerate(zip(factors, truth, clamped, strict=True))
        ]
    return torch.stack(losses)


def _product(numbers: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(numbers)).prod(0)


def _others(numbers: Sequence[Tensor], i: int) -> Tensor:
    return _product([x for j, x in enumerate(numbers) if j != i]) if len(numbers) > 1 else torch.ones_like(numbers[0])
