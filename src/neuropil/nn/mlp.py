"""The multilayer perceptron: ``x ← drop(φ(norm(W x + b)))`` per hidden layer, then one linear layer."""

import itertools
from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.nn.activations import activation as registered
from neuropil.nn.activations import find
from neuropil.nn.checks import fits

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "gelu": nn.GELU,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


def _activation(name: str) -> Callable[[], nn.Module]:
    """torch's module of a name, else the registry's if it works number by number."""
    if name in ACTIVATIONS:
        return ACTIVATIONS[name]
    if find(name).kind != "elementwise":
        raise Refused(f"activation: {name!r} is a {find(name).kind} entry; only elementwise ones keep the width")
    return lambda: registered(name)


class MLP(nn.Sequential):
    """``W_L · φ(… φ(W_1 x + b_1)) + b_L`` with widths `sizes` = (in, hidden…, out).

    `norm` puts a LayerNorm before each activation φ, `dropout` a dropout after it; the last layer is linear and bare.
    φ is any elementwise entry of `neuropil.nn.activations`; a trained one has parameters of its own in each layer.
    O(Σ sizes_i sizes_{i+1}) parameters and time per row. Raises `Refused` for fewer than two sizes, an unknown activation,
    or a dropout outside [0, 1).

    >>> MLP([4, 16, 2], activation="tanh")
    MLP(
      (0): Linear(in_features=4, out_features=16, bias=True)
      (1): Tanh()
      (2): Linear(in_features=16, out_features=2, bias=True)
    )
    """

    def __init__(self, sizes: Sequence[int], activation: str = "gelu", dropout: float = 0.0, norm: bool = False) -> None:
        if len(sizes) < 2 or min(sizes) < 1:
            raise Refused(f"sizes: at least two positive widths (in, hidden…, out) are needed, got {list(sizes)}")
        if not 0 <= dropout < 1:
            raise Refused(f"dropout: must lie in [0, 1), got {dropout}")
        phi = _activation(activation)
        layers: list[nn.Module] = []
        for n, m in itertools.pairwise(sizes[:-1]):
            layers += [nn.Linear(n, m), *([nn.LayerNorm(m)] if norm else []), phi(), *([nn.Dropout(dropout)] if dropout else [])]
        super().__init__(*layers, nn.Linear(sizes[-2], sizes[-1]))

    def forward(self, x: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch m"]:
        """Rows of `sizes[0]` features to rows of `sizes[-1]`."""
        fits("x", x, self[0].in_features, self[0].weight)  # type: ignore[arg-type]
        return super().forward(x)
