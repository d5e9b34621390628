"""A linear map whose weights learn from another input than the one it maps, and whose error may travel by other weights.

    forward    z = W x + b
    backward   ∂W = δᵀ x′      ∂b = Σ δ      ∂x = δ B       x′: what the weights see instead of x; B: W itself or other weights

x′ = x − HᵀH x gives orthogonal projection (Xiao et al. 2024, arXiv:2402.11984), x′ = x̄ an eligibility trace; a fixed random B is
feedback alignment (Lillicrap et al. 2016), B = sign(W)/√fan_in sign-symmetry (Liao et al. 2016, arXiv:1510.05067). The function and
the error that is sent back stay those of the true input: projecting what goes forward would change the net.

A convolution is the same map on patches: `rows` gives what each output sees, `replaced` maps it.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from neuropil.errors import Refused
from neuropil.nn.checks import same_kind


class ReplacedInput(torch.autograd.Function):
    """``ReplacedInput.apply(x, x′, W, b or None, B or None)``; see `replaced_linear`."""

    @staticmethod
    def forward(x: Tensor, seen: Tensor, W: Tensor, b: Tensor | None, B: Tensor | None) -> Tensor:
        return F.linear(x, W, b)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], output: Tensor) -> None:
        _, seen, W, _, B = inputs
        ctx.save_for_backward(seen, W if B is None else B)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, Tensor | None, Tensor | None, None]:
        seen, B = ctx.saved_tensors
        delta = grads[0].to(B.dtype)  # autocast computes z in half precision
        dx = delta @ B if ctx.needs_input_grad[0] else None
        flat = delta.reshape(-1, delta.shape[-1])
        dW = flat.T @ seen.reshape(-1, seen.shape[-1]).to(B.dtype) if ctx.needs_input_grad[2] else None
        return dx, None, dW, flat.sum(0) if ctx.needs_input_grad[3] else None, None


def replaced_linear(
    x: Float[Tensor, "*batch n"],
    seen: Float[Tensor, "*batch n"],
    W: Float[Tensor, "k n"],
    b: Float[Tensor, " k"] | None = None,
    back: Float[Tensor, "k n"] | None = None,
) -> Float[Tensor, "*batch k"]:
    """``W x + b``, whose W learns as if `seen` had come in and whose error goes back through `back` (None: W).

    Same cost as a linear layer; `seen` is kept for the backward pass in place of x. No gradient reaches `seen` or `back`.

    >>> W = torch.tensor([[2.0, 3.0]], requires_grad=True)
    >>> x = torch.tensor([[1.0, 1.0]], requires_grad=True)
    >>> z = replaced_linear(x, torch.tensor([[0.0, 1.0]]), W)
    >>> z.sum().backward()
    >>> z.item(), W.grad.tolist(), x.grad.tolist()
    (5.0, [[0.0, 1.0]], [[2.0, 3.0]])
    """
    same_kind("x", x, W)
    return ReplacedInput.apply(x, seen, W, b, back)


def plain(layer: nn.Module) -> bool:
    """Whether `rows` and `replaced` take this layer.

    >>> plain(nn.Linear(2, 3)), plain(nn.Conv2d(4, 4, 3, groups=2))
    (True, False)
    """
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 and layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return isinstance(layer, nn.Linear)


def rows(layer: nn.Module, x: Float[Tensor, "*batch"]) -> Float[Tensor, "*rows d"]:
    """What each output of `layer` sees of x: x itself, or the patches (… positions, d) of a 2-D convolution.

    `Refused` for other layers, for convolutions in groups, with padding in words or of another mode than zeros, and for a single
    image without a batch.

    >>> rows(nn.Conv2d(2, 5, 3), torch.zeros(7, 2, 8, 8)).shape
    torch.Size([7, 36, 18])
    """
    if not plain(layer):
        raise Refused(f"layer: a Linear or a plain Conv2d (one group, zero padding in numbers) is needed, got {layer}")
    if not isinstance(layer, nn.Conv2d):
        return x
    if x.ndim < 4:
        raise Refused(f"x: (b, …, channels, height, width) is needed for a convolution, got shape {tuple(x.shape)}")
    assert not isinstance(layer.padding, str)
    return F.unfold(x.flatten(0, -4), layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT.unflatten(0, x.shape[:-3])


def replaced(
    layer: nn.Module,
    x: Float[Tensor, "*batch"],
    see: Callable[[Tensor], Tensor],
    back: Float[Tensor, "k *n"] | None = None,
    fixed_bias: bool = False,
) -> Float[Tensor, "*out"]:
    """`layer` of x, its weights learning from ``see(rows)`` instead of rows; `back` has the shape of its weights.

    Time as the layer's own, a convolution's by way of its patches: memory × kernel area. `Refused` as in `rows`.

    >>> layer, x = nn.Conv2d(2, 5, 3, padding=1), torch.randn(7, 2, 8, 8)
    >>> torch.allclose(replaced(layer, x, lambda rows: rows), layer(x), atol=1e-5)
    True
    """
    seen_from = rows(layer, x)
    same_kind("x", x, next(layer.parameters()))
    with torch.no_grad():
        seen = see(seen_from)
    W, b = layer.weight, layer.bias
    assert isinstance(W, Tensor)
    if isinstance(b, Tensor) and fixed_bias:
        b = b.detach()
    z = replaced_linear(seen_from, seen, W.flatten(1), b, None if back is None else back.flatten(1))  # type: ignore[arg-type]
    if isinstance(layer, nn.Linear):
        return z
    height = (x.shape[-2] + 2 * layer.padding[0] - layer.dilation[0] * (layer.kernel_size[0] - 1) - 1) // layer.stride[0] + 1  # type: ignore
    return z.mT.unflatten(-1, (height, -1))
