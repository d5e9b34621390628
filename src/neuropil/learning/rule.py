"""One way to train any net by any rule: ``rule.step(net, batch, optimizer)``.

    g = rule.gradients(net, x, y)  fills  p.grad  of what the rule trains  →  optimizer.step()

A rule is no optimiser: it says which direction each weight should take, local or not, and any optimiser of torch takes the step.
Most rules see a feed-forward net as blocks z_k = f_k(W_k z_{k−1} + b_k), each a linear map and what follows it: `blocks` takes an
`nn.Sequential` (nested ones, too) apart and names the layer that a rule cannot train.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from neuropil.errors import Refused

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs, targets) -> the mean loss of the batch

LINEAR = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.SiLU, nn.GELU, nn.ELU, nn.Hardtanh, nn.Identity)
SHAPING = (nn.Flatten, nn.Unflatten, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)  # linear, without parameters


class Rule:
    """How weights learn. Subclasses give `gradients`, and `predict` if the net's own output is not the answer."""

    def gradients(self, net: nn.Module, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
        """Fill the `.grad` of all that the rule trains in `net`, from inputs x and targets y; gives the batch's loss."""
        raise NotImplementedError

    def predict(self, net: nn.Module, x: Tensor) -> Tensor:
        """What the net answers, as scores of classes or values."""
        return net(x)

    def step(self, net: nn.Module, batch: tuple[Tensor, Tensor], optimizer: Optimizer) -> float:
        """One update on one batch; the loss before it. `Refused`, by layer, if this rule cannot train this net."""
        optimizer.zero_grad()
        loss = self.gradients(net, *batch)
        optimizer.step()
        return float(loss.detach())


class Backprop(Rule):
    """The gradient of the loss, by reverse-mode differentiation: what other rules are measured against.

    >>> import torch
    >>> net, x = nn.Sequential(nn.Linear(3, 2)), torch.ones(4, 3)
    >>> rule, optimizer = Backprop(), torch.optim.SGD(net.parameters(), 0.1)
    >>> losses = [rule.step(net, (x, torch.zeros(4, dtype=torch.long)), optimizer) for _ in range(3)]
    >>> losses[2] < losses[0]
    True
    """

    def __init__(self, loss: Loss = cross_entropy) -> None:
        self.loss = loss

    def gradients(self, net: nn.Module, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
        outputs = net(x)
        fit_targets(self.loss, outputs, y)
        loss = self.loss(outputs, y)
        loss.backward()
        return loss.detach()


def fit_targets(loss: Loss, outputs: Tensor, y: Tensor) -> None:
    """`Refused` for targets that cross-entropy does not take: classes, or shares of all of them. Of other losses nothing is known.

    >>> import torch
    >>> fit_targets(cross_entropy, torch.zeros(3, 2), torch.zeros(3))
    Traceback (most recent call last):
    neuropil.errors.Refused: y: must be int64 classes of shape (3,) or shares of shape (3, 2), got torch.float32 of (3,)
    """
    if loss is not cross_entropy:
        return
    classes = outputs.shape[:1] + outputs.shape[2:] if outputs.ndim > 1 else outputs.shape[:0]
    shares = y.is_floating_point() and y.shape == outputs.shape
    if not shares and (y.dtype not in (torch.int64, torch.uint8) or y.shape != classes):
        raise Refused(
            f"y: must be int64 classes of shape {tuple(classes)} or shares of shape {tuple(outputs.shape)}, "
            f"got {y.dtype} of {tuple(y.shape)}"
        )


@dataclass(frozen=True)
class Block:
    """``z ↦ after(linear(before(z)))``: one weighted layer with what shapes its input and what follows it."""

    name: str
    before: nn.Sequential
    linear: nn.Module
    after: nn.Sequential

    def __call__(self, z: Tensor) -> Tensor:
        return self.after(self.linear(self.before(z)))


def blocks(
    net: nn.Module,
    rule: str,
    allowed: tuple[type[nn.Module], ...] = ELEMENTWISE,
    shaping: tuple[type[nn.Module], ...] = SHAPING,
) -> list[Block]:
    """A feed-forward net as blocks, in order. `rule` is the name to say in a refusal.

    Layers may be linear maps or convolutions, `allowed` activations (at most one a block), and what only shapes (flatten, average
    pooling) before one of them. `Refused` for any other layer, by its name in the net, and for a net without a weighted layer.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    >>> [(b.name, len(b.before), len(b.after)) for b in blocks(net, "doctest")]
    [('1', 1, 1), ('3', 0, 0)]
    """
    found: list[tuple[str, list[nn.Module], nn.Module | None, list[nn.Module]]] = [("", [], None, [])]
    for name, layer in _leaves(net, rule):
        _, before, linear, after = found[-1]
        if isinstance(layer, LINEAR):
            if linear is None:
                found[-1] = (name, before, layer, after)
            else:
                found.append((name, [], layer, []))
        elif isinstance(layer, shaping):
            if linear is None:
                before.append(layer)
            else:
                found.append((name, [layer], None, []))
        elif isinstance(layer, allowed) and linear is not None and not after:
            after.append(layer)
        else:
            raise Refused(f"net: {rule} cannot train layer {name!r}, a {type(layer).__name__}{_why(layer, linear, allowed)}")
    whole = [Block(n, nn.Sequential(*b), layer, nn.Sequential(*a)) for n, b, layer, a in found if layer is not None]
    if not whole:
        raise Refused(f"net: {rule} needs at least one linear or convolutional layer, got {type(net).__name__} without any")
    name, behind, linear, _ = found[-1]
    if linear is None:
        raise Refused(f"net: {rule} cannot train layer {name!r}, a {type(behind[0]).__name__} behind the last weighted layer")
    return whole


def _why(layer: nn.Module, linear: nn.Module | None, allowed: tuple[type[nn.Module], ...]) -> str:
    if isinstance(layer, allowed):
        return ": an activation must follow a weighted layer, one each" if linear is None else " behind another activation"
    names = ", ".join(kind.__name__ for kind in (*LINEAR[:3:2], *allowed[:4]))
    return f" (layers may be {names}, …)"


def _leaves(net: nn.Module, rule: str, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    if not isinstance(net, nn.Sequential):
        raise Refused(f"net: {rule} trains an nn.Sequential (nested ones, too), got a {type(net).__name__}")
    for name, layer in net.named_children():
        if isinstance(layer, nn.Sequential):
            yield from _leaves(layer, rule, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", layer
