"""Forward-forward: each layer raises its goodness for an image with its label and lowers it for one with a wrong label, by itself.

    h_l = φ(W_l ĥ_{l-1} + b_l)      ĥ = h / ‖h‖₂: the length, which was the last layer's goodness, is taken away
    G_l = ‖h_l‖_p                   L_l = mean over both halves of  softplus(θ - G_l(x, y)),  softplus(G_l(x, wrong y) - θ)
    FF: each W_l on its own L_l, inputs detached             BP/FF: one loss on Σ_l G_l, its gradient through all layers
    answer: argmax_y  Σ_l softmax_y G_l(x, y)

Hinton 2022, arXiv:2212.13345; in this form Tosato, Basile, Ballarin, de Alteriis, Cazzaniga & Ansuini, arXiv:2305.18353 (TMLR
2025), who find that the codes are sparse and that each class has its own ensemble of units (`neuropil.numerics.sparsity`). With
p = 2, θ is a length; Hinton's goodness is its square (or the mean square), so that his θ is not ours. Differs: wrong labels are
drawn anew at each step and for the images of the batch, where the authors draw one set of image-label pairs for all of training;
the label is as bright as its image, where they take the brightest pixel of all images.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize, softplus

from neuropil.errors import Refused
from neuropil.learning.competition import KWinners
from neuropil.learning.labels import overlay_label, wrong_labels
from neuropil.learning.rule import ELEMENTWISE, Block, Rule, blocks
from neuropil.nn.checks import same_kind, some


def goodness(h: Float[Tensor, "b *shape"], p: float = 2.0) -> Float[Tensor, " b"]:
    """‖h‖_p of each sample's whole activity. `Refused` for other than (b, …), a p of nan, or an extreme of nothing.

    >>> goodness(torch.tensor([[3.0, 4.0]])), goodness(torch.tensor([[3.0, 4.0]]), float("inf"))
    (tensor([5.]), tensor([4.]))
    """
    if h.ndim < 2 or math.isnan(p):
        raise Refused(f"h, p: (b, …) and a number are needed, got shape {tuple(h.shape)} and {p}")
    flat = h.flatten(1)
    if not 0 <= p < math.inf:
        some("h", flat)
    return torch.linalg.vector_norm(flat, p, dim=1)


class ForwardForward(Rule):
    """Local learning without a backward pass, for any `nn.Sequential` of linear or convolutional layers, one activation each.

    Args:
        classes: C; labels are 0 … C - 1 and take C numbers of the input.
        at: where in the flat input the label begins. What lay there is lost.
        theta: θ, the goodness above which a layer says "they belong together".
        p: the norm that is the goodness, ≥ 1 or inf.
        layer: train only this block, the ones below are held and the ones above left out: a layer after the other is a sequence of
            such rules. By default all learn together.
        scale: the label's brightness; by default that of its image.

    Every block is a layer, also the last: the net needs no head, its output is not used. Wrong labels come from torch's generator.
    A step costs a forward and a local backward pass of 2 b rows, `predict` a forward pass of C b rows.

    >>> from torch import nn
    >>> _ = torch.manual_seed(0)
    >>> net, rule = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU()), ForwardForward(classes=2)
    >>> y = torch.arange(64) % 2
    >>> x = torch.cat([torch.rand(64, 4), nn.functional.one_hot(y, 2)], 1)
    >>> optimizer = torch.optim.Adam(net.parameters(), 0.01)
    >>> losses = [rule.step(net, (x, y), optimizer) for _ in range(100)]
    >>> bool((rule.predict(net, x).argmax(1) == y).all())
    True
    """

    local = True

    def __init__(
        self,
        classes: int = 10,
        at: int = 0,
        theta: float = 3.0,
        p: float = 2.0,
        layer: int | None = None,
        scale: float | None = None,
    ) -> None:
        if classes < 2 or at < 0:
            raise Refused(f"classes, at: at least 2 classes and a place ≥ 0 are needed, got {classes} and {at}")
        if not p >= 1:
            raise Refused(f"p: a norm needs p ≥ 1 (or inf), got {p}")
        if layer is not None and layer < 0:
            raise Refused(f"layer: must be a block's number from 0 on, got {layer}")
        self.classes, self.at, self.theta, self.p, self.layer, self.scale = classes, at, theta, p, layer, scale

    def gradients(self, net: torch.nn.Module, x: Tensor, y: Tensor) -> Float[Tensor, ""]:
        right, wrong = (self.labelled(x, label) for label in (y, wrong_labels(y, self.classes)))
        states = _states(self._layers(net), torch.cat([right, wrong]), detach=self.local)
        good = self._goodness(states[self.layer or 0 :])
        loss = self.losses(*good.split(len(x))).sum()
        loss.backward()
        return loss.detach()

    def losses(self, right: Float[Tensor, "b l"], wrong: Float[Tensor, "b l"]) -> Float[Tensor, " l"]:
        """L_l from the goodness of each layer for right and for wrong labels."""
        some("right", right, 0)
        return softplus(torch.cat([self.theta - right, wrong - self.theta])).mean(0)

    @torch.no_grad()
    def predict(self, net: torch.nn.Module, x: Tensor) -> Float[Tensor, "b c"]:
        """Each label is tried: scores Σ_l softmax_y G_l(x, y), which add up to the number of layers."""
        every = torch.arange(self.classes, device=x.device).repeat_interleave(len(x))
        good = self._goodness(self.states(net, self.labelled(torch.cat([x] * self.classes), every)))
        return good.unflatten(0, (self.classes, -1)).softmax(0).sum(-1).T

    def labelled(self, x: Tensor, y: Tensor) -> Tensor:
        """The images with these labels written into them."""
        return overlay_label(x, y, self.classes, self.at, self.scale)

    @torch.no_grad()
    def states(self, net: torch.nn.Module, x: Tensor) -> list[Tensor]:
        """h_l of each layer for an input as it is, its label written in already."""
        return _states(self._layers(net), x, detach=True)

    def _goodness(self, states: list[Tensor]) -> Tensor:
        return torch.stack([goodness(h, self.p) for h in states], 1)

    def _layers(self, net: torch.nn.Module) -> list[Block]:
        whole = blocks(net, type(self).__name__, (*ELEMENTWISE, KWinners))
        if self.layer is None:
            return whole
        if self.layer >= len(whole):
            raise Refused(f"layer: the net has blocks 0 … {len(whole) - 1}, got {self.layer}")
        return whole[: self.layer + 1]


class GoodnessBackprop(ForwardForward):
    """BP/FF, the twin: the same goal, but one loss on the sum of all layers' goodnesses, by backpropagation through all of them.

    >>> rule = GoodnessBackprop(classes=4)
    >>> rule.losses(torch.tensor([[2.0, 2.0]]), torch.tensor([[1.0, 1.0]])).shape
    torch.Size([1])
    """

    local = False

    def __init__(self, classes: int = 10, at: int = 0, theta: float = 3.0, p: float = 2.0, scale: float | None = None) -> None:
        super().__init__(classes, at, theta, p, scale=scale)

    def losses(self, right: Float[Tensor, "b l"], wrong: Float[Tensor, "b l"]) -> Float[Tensor, " 1"]:
        """The one loss, on Σ_l G_l."""
        return super().losses(right.sum(1, keepdim=True), wrong.sum(1, keepdim=True))


def _states(layers: list[Block], x: Tensor, detach: bool) -> list[Tensor]:
    if x.ndim < 2:
        raise Refused(f"x: (b, …) is needed, got shape {tuple(x.shape)}")
    same_kind("x", x, next(layers[0].linear.parameters()))
    found = []
    for layer in layers:
        x = layer.before(x.detach() if detach else x)
        x = layer.after(layer.linear(normalize(x.flatten(1)).view_as(x)))
        found.append(x)
    return found
