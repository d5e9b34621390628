"""An activation whose slope is a symmetric finite difference along the error that arrives: dual propagation inside autograd.

    forward   z = f(a)            backward   e ↦ ( f(a + β e) − f(a − β e) ) / 2β

β → 0 is f'(a) e, backpropagation; a finite β reads how f answers errors of that size, so that a silent ReLU near its corner still
passes some, and needs no derivative of f. With the mean loss of a batch of B, the errors are 1/B of a sample's: β = B/2 gives the
errors of one sweep of dual propagation at γ = 1 (cross-entropy).

Høier, Staudt & Zach 2023, arXiv:2302.01228 (ICML 2023), who train their convnets so, with ReLU and β = 1. Differs: any f.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from neuropil.errors import Refused
from neuropil.learning.rule import ELEMENTWISE

Activation = Callable[[Tensor], Tensor]


class _Difference(torch.autograd.Function):
    @staticmethod
    def forward(a: Tensor, f: Activation, beta: float) -> Tensor:
        return f(a)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Activation, float], output: Tensor) -> None:
        a, ctx.f, ctx.beta = inputs
        ctx.save_for_backward(a)

    @staticmethod
    def backward(ctx: Any, e: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (a,) = ctx.saved_tensors
        return (ctx.f(a + ctx.beta * e) - ctx.f(a - ctx.beta * e)) / (2 * ctx.beta), None, None


def finite_difference(f: Activation, a: Float[Tensor, "*b"], beta: float = 1.0) -> Float[Tensor, "*b"]:
    """``f(a)`` with the finite difference along the upstream error as its backward pass.

    f works number by number, out of place, and has nothing to learn. Costs two calls of f in the backward pass; keeps a.
    `Refused` for β that is not positive.

    >>> a = torch.tensor([-1.0, 2.0], requires_grad=True)
    >>> finite_difference(torch.relu, a).backward(torch.tensor([3.0, 1.0]))
    >>> a.grad  # the silent unit: (relu(-1 + 3) - relu(-1 - 3)) / 2
    tensor([1., 1.])
    """
    if not beta > 0:
        raise Refused(f"beta: must be positive, got {beta}")
    return _Difference.apply(a, f, beta)  # type: ignore[no-any-return]


class FiniteDifference(nn.Module):
    """The activation `f`, a module, with that backward pass. `Refused` if f has parameters: they would get no gradient.

    >>> FiniteDifference(nn.Tanh(), beta=0.5)
    FiniteDifference(
      beta=0.5
      (f): Tanh()
    )
    """

    def __init__(self, f: nn.Module, beta: float = 1.0) -> None:
        super().__init__()
        if not beta > 0:
            raise Refused(f"beta: must be positive, got {beta}")
        if any(True for _ in f.parameters()):
            raise Refused(f"f: must have nothing to learn, got a {type(f).__name__} with parameters")
        self.f, self.beta = copy.copy(f), beta
        if getattr(f, "inplace", False):
            self.f.inplace = False  # type: ignore[assignment]

    def forward(self, a: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """f(a)."""
        return _Difference.apply(a, self.f, self.beta)  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """β, as torch's modules show their options."""
        return f"beta={self.beta:g}"


def swap(net: nn.Module, beta: float = 1.0, kinds: tuple[type[nn.Module], ...] = ELEMENTWISE) -> nn.Module:
    """`net` with every activation of `kinds` replaced by its `FiniteDifference`; weights are shared, `net` itself stays.

    Training what comes back trains `net`, whose `state_dict` fits both. Any autograd net will do, as long as its activations are
    modules: those called as functions cannot be seen. `Refused` for a net with none, or β that is not positive.

    >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> dual = swap(net)
    >>> type(dual[1]).__name__, type(net[1]).__name__, dual[0].weight is net[0].weight
    ('FiniteDifference', 'ReLU', True)
    """
    shared = [*net.parameters(), *net.buffers()]
    twin = copy.deepcopy(net, {id(tensor): tensor for tensor in shared})
    places = [(parent, name, f) for parent in twin.modules() for name, f in parent.named_children() if isinstance(f, kinds)]
    if isinstance(twin, kinds):
        return FiniteDifference(twin, beta)
    if not places:
        raise Refused(f"net: a {type(net).__name__} without an activation module ({', '.join(k.__name__ for k in kinds[:4])}, …)")
    for parent, name, f in places:
        setattr(parent, name, FiniteDifference(f, beta))
    return twin
