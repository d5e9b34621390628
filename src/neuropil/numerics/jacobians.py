"""Jacobians J = ∂f/∂x of each sample of a batch: the whole matrix, its largest singular value, its largest eigenvalue.

    spectral norm    σ(J) = max |J v| / |v|         power iteration  v ← JᵀJ v / |JᵀJ v|, from products only
    spectral radius  ρ(J) = max |λ(J)|              eigenvalues of J, or of its Arnoldi projection on a Krylov space (Arnoldi 1951)

f maps a batch to a batch and treats its samples one by one: put a model in eval mode, for batch norm and dropout do not. It may
be any module, or the rest of a model from a site on (`nn.sites.downstream`). Jᵀu is a backward pass, J v one through that backward
pass; both reuse one forward pass. Attention runs unfused meanwhile, as fused kernels cannot be differentiated twice.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import grad
from torch.nn.attention import SDPBackend, sdpa_kernel

from neuropil.errors import Refused
from neuropil.nn.checks import filled, full_precision, has_eigenvalues

Function = Callable[[Tensor], Tensor]
UNUSED = "f: its output does not depend on x through differentiable operations"


def jacobian(f: Function, x: Float[Tensor, "b *i"], chunk: int | None = None) -> Float[Tensor, "b *o"]:
    """∂f/∂x of each sample, of shape (b, *out, *in). One forward and as many backward passes as outputs, `chunk` of them at once.

    Time O(out · backward), memory O(b out in), and of the graph times `chunk` (default: all). `Refused` if f's output is no batch
    of as many samples, or does not depend on x.

    >>> jacobian(lambda x: x**2, torch.tensor([[1.0, 2.0]]))
    tensor([[[2., 0.],
             [0., 4.]]])
    """
    filled("x", x)
    x, y = _graph(f, x)
    outputs = y[0].numel()
    rows = []
    for eye in torch.eye(outputs, dtype=y.dtype, device=y.device).split(chunk or outputs):
        cotangents = eye[:, None].expand(-1, len(y), -1).reshape(-1, *y.shape)
        rows.append(_used(grad(y, x, cotangents, retain_graph=True, is_grads_batched=True, allow_unused=True)[0]))
    return torch.cat(rows).transpose(0, 1).reshape(*y.shape, *x.shape[1:])


def spectral_norm(
    f: Function, x: Float[Tensor, "b *i"], steps: int = 100, tolerance: float = 1e-4, generator: torch.Generator | None = None
) -> Float[Tensor, "b"]:
    """The largest singular value of each sample's Jacobian, from below: until a step adds less than a share of `tolerance`.

    At most `steps` steps of two products with J, about three backward passes each; memory of one graph and O(b (in + out)). Start
    vectors come from `generator` (a CPU one; default: torch's global one).

    >>> round(spectral_norm(lambda x: x.cumsum(-1), torch.zeros(1, 2)).item(), 2)  # J = [[1, 0], [1, 1]]: the golden ratio
    1.62
    """
    if steps < 1:
        raise Refused(f"steps: at least 1, got {steps}")
    forward, backward = _products(f, x)
    v = _unit(torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device))
    sigma = x.new_zeros(len(x))
    for _ in range(steps):
        u = forward(v)
        before, sigma = sigma, u.flatten(1).norm(dim=1)
        if bool(((sigma - before).abs() <= tolerance * sigma).all()):
            break
        v = _unit(backward(u))
    return sigma


def spectral_radius(
    f: Function, x: Float[Tensor, "b *i"], krylov: int | None = None, generator: torch.Generator | None = None
) -> Float[Tensor, "b"]:
    """The largest absolute eigenvalue of each sample's Jacobian, where f keeps the shape. A fixed point with ρ < 1 attracts.

    Exact by default, O(b d²) memory and O(b d³) time. With `krylov` = m, the estimate from m products with J, O(b d m) memory:
    exact for m ≥ d, usually close long before, and not blind to complex pairs as power iteration is. `Refused` for another
    precision than single or double, or where J is not finite.

    >>> radii = [spectral_radius(lambda x: x.roll(1, -1) / 2, torch.zeros(1, 3), krylov=m) for m in (None, 3)]
    >>> torch.allclose(torch.stack(radii), torch.tensor(0.5))
    True
    """
    filled("x", x)
    full_precision("x", x)
    d = x[0].numel()
    if krylov is None:
        whole = jacobian(f, x)
        if whole.numel() != len(x) * d * d:
            raise Refused(f"f: must give the shape that it takes, {tuple(x.shape)}")
        has_eigenvalues("Jacobian at x", whole)
        return torch.linalg.eigvals(whole.reshape(len(x), d, d)).abs().amax(-1)
    if krylov < 1:
        raise Refused(f"krylov: at least 1, got {krylov}")
    forward, _ = _products(f, x, square=True)
    m = min(krylov, d)
    Q = [_unit(torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)).flatten(1)]
    H = x.new_zeros(len(x), m + 1, m)
    for j in range(m):
        w = forward(Q[j].reshape(x.shape)).flatten(1)
        size = w.norm(dim=1, keepdim=True)
        basis = torch.stack(Q, 1)  # b j d
        for _ in range(2):  # once leaves rounding errors
            h = torch.einsum("bjd,bd->bj", basis, w)
            w = w - torch.einsum("bj,bjd->bd", h, basis)
            H[:, : j + 1, j] += h
        rest = w.norm(dim=1, keepdim=True)
        alive = rest > 10 * torch.finfo(x.dtype).eps * size  # else the space is invariant: all is found
        H[:, j + 1, j] = (rest * alive)[:, 0]
        Q.append(torch.where(alive, w / rest.where(alive, torch.ones_like(rest)), torch.zeros_like(w)))
    has_eigenvalues("Jacobian at x, on its Krylov space", H)
    return torch.linalg.eigvals(H[:, :m]).abs().amax(-1)


def _graph(f: Function, x: Tensor) -> tuple[Tensor, Tensor]:
    """x as a leaf and f(x), which can be differentiated twice."""
    x = x.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad():
        y = f(x)
    if not isinstance(y, Tensor) or y.ndim < 1 or len(y) != len(x):
        raise Refused(
            f"f: must give a tensor of {len(x)} samples, got {tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__}"
        )
    if not y.requires_grad:
        raise Refused(UNUSED)
    return x, y


def _used(pulled: Tensor | None) -> Tensor:
    """Jᵀu, unless there is none: what needs a gradient was not x."""
    if pulled is None:
        raise Refused(UNUSED)
    return pulled


def _products(f: Function, x: Tensor, square: bool = False) -> tuple[Function, Function]:
    """v ↦ J v and u ↦ Jᵀu for all samples at once."""
    if x.ndim < 2:
        raise Refused(f"x: samples (b, *i) are needed, got shape {tuple(x.shape)}")
    x, y = _graph(f, x)
    if square and y.shape != x.shape:
        raise Refused(f"f: must give the shape that it takes, {tuple(x.shape)}, got {tuple(y.shape)}")
    u = torch.zeros_like(y, requires_grad=True)
    pulled = _used(grad(y, x, u, create_graph=True, allow_unused=True)[0])  # Jᵀu, linear in u: its derivative along v is J v
    return (
        lambda v: grad(pulled, u, v, retain_graph=True, materialize_grads=True)[0],
        lambda cotangent: grad(y, x, cotangent, retain_graph=True)[0],
    )


def _unit(v: Tensor) -> Tensor:
    """Each sample at length 1; zero stays zero."""
    length = v.flatten(1).norm(dim=1).reshape(-1, *[1] * (v.ndim - 1))
    return v / length.clamp_min(torch.finfo(v.dtype).tiny)
