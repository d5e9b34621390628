"""Fixed-step integrators: explicit Runge–Kutta for dy = f dt, Euler–Maruyama and Heun for dy = f dt + g dW.

kᵢ = f(t + cᵢ h,  y + h Σⱼ aᵢⱼ kⱼ),     y ← y + h Σᵢ bᵢ kᵢ          (Butcher table c | a | b)
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused, choose

Field = Callable[[Tensor, Tensor], Tensor]  # (t, y) -> the shape of y


@dataclass(frozen=True)
class Butcher:
    """An explicit Runge–Kutta scheme; row i of `a` holds aᵢⱼ for j < i. `order`: the error after a fixed time is O(h^order)."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    b: tuple[float, ...]
    order: int


TABLES = {
    "euler": Butcher(c=(0.0,), a=((),), b=(1.0,), order=1),
    "midpoint": Butcher(c=(0.0, 1 / 2), a=((), (1 / 2,)), b=(0.0, 1.0), order=2),
    "heun": Butcher(c=(0.0, 1.0), a=((), (1.0,)), b=(1 / 2, 1 / 2), order=2),
    "rk4": Butcher(
        c=(0.0, 1 / 2, 1 / 2, 1.0),
        a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)),
        b=(1 / 6, 1 / 3, 1 / 3, 1 / 6),
        order=4,
    ),
}


def odeint(
    f: Field, y0: Float[Tensor, "*shape"], times: Float[Tensor, "t"], method: str = "rk4", substeps: int = 1
) -> Float[Tensor, "t *shape"]:
    """y at `times` for ``dy/dt = f(t, y)``, ``y(times[0]) = y0``; every interval of `times` is cut into `substeps` equal steps.

    `times` must rise or fall strictly (falling integrates backwards). Differentiable through all steps.
    O(t · substeps · stages) calls of f; `method` is one of euler, midpoint, heun (2 stages), rk4.
    Raises `Refused` for an unknown method, times that are not monotone, or an f that changes the shape.

    >>> y = odeint(lambda t, y: -y, torch.ones(1), torch.linspace(0, 1, 11))
    >>> round(float(y[-1]), 4)
    0.3679
    """
    table = TABLES[choose("method", method, TABLES)]
    _check(times, substeps, backwards=True)

    def step(t: Tensor, h: Tensor, y: Tensor) -> Tensor:
        k: list[Tensor] = []
        for c, a in zip(table.c, table.a, strict=True):
            k.append(_same_shape("f", f(t + c * h, y + h * _dot(a, k)), y))
        return y + h * _dot(table.b, k)

    return _integrate(step, y0, times, substeps)


def sdeint(
    drift: Field,
    diffusion: Field,
    y0: Float[Tensor, "*shape"],
    times: Float[Tensor, "t"],
    generator: torch.Generator | None = None,
    method: str = "euler_maruyama",
    substeps: int = 1,
) -> Float[Tensor, "t *shape"]:
    """One path, at `times`, of ``dy = drift(t, y) dt + diffusion(t, y) dW``, one independent W for each element of y.

    - ``euler_maruyama``: ``y ← y + f h + g ΔW`` solves the Itô equation.
    - ``heun_stratonovich``: ``ŷ = y + f h + g ΔW; y ← y + (f + f̂) h/2 + (g + ĝ) ΔW/2`` solves the Stratonovich equation.

    The two agree where the diffusion does not depend on y. ΔW ~ N(0, h) is drawn from `generator` (default: torch's global one).
    O(t · substeps) calls. Raises `Refused` for an unknown method, times that do not rise strictly, or a changed shape.

    >>> y = sdeint(lambda t, y: -y, lambda t, y: 0 * y, torch.ones(1), torch.linspace(0, 1, 1001))
    >>> round(float(y[-1]), 3)
    0.368
    """
    choose("method", method, ("euler_maruyama", "heun_stratonovich"))
    _check(times, substeps, backwards=False)

    def fields(t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return _same_shape("drift", drift(t, y), y), _same_shape("diffusion", diffusion(t, y), y)

    def step(t: Tensor, h: Tensor, y: Tensor) -> Tensor:
        source = generator.device if generator is not None else y.device
        dW = h.sqrt() * torch.randn(y.shape, generator=generator, device=source, dtype=y.dtype).to(y.device)
        f, g = fields(t, y)
        end = y + f * h + g * dW
        if method == "euler_maruyama":
            return end
        f_end, g_end = fields(t + h, end)
        return y + (f + f_end) * h / 2 + (g + g_end) * dW / 2

    return _integrate(step, y0, times, substeps)


def _integrate(step: Callable[[Tensor, Tensor, Tensor], Tensor], y0: Tensor, times: Tensor, substeps: int) -> Tensor:
    """y0 and the y after each interval, stacked."""
    times = times.to(y0.device, torch.promote_types(times.dtype, y0.dtype))  # steps may be too short for the dtype of y
    path = [y0]
    for start, end in itertools.pairwise(times):
        y, h = path[-1], (end - start) / substeps
        for i in range(substeps):
            y = step((start + i * h).to(y0.dtype), h.to(y0.dtype), y)
        path.append(y)
    return torch.stack(path)


def _dot(weights: tuple[float, ...], k: list[Tensor]) -> Tensor | float:
    """Σ wᵢ kᵢ over the weights that are not zero."""
    terms = [w * x for w, x in zip(weights, k, strict=True) if w]
    return sum(terms[1:], terms[0]) if terms else 0.0


def _same_shape(name: str, value: Tensor, y: Tensor) -> Tensor:
    if value.shape != y.shape:
        raise Refused(f"{name}: must return the shape of y, {tuple(y.shape)}, got {tuple(value.shape)}")
    return value


def _check(times: Tensor, substeps: int, backwards: bool) -> None:
    if times.ndim != 1 or len(times) < 1:
        raise Refused(f"times: must be one row of at least one time, got shape {tuple(times.shape)}")
    if substeps < 1:
        raise Refused(f"substeps: must be at least 1, got {substeps}")
    gaps = times.diff()
    if not (bool((gaps > 0).all()) or (backwards and bool((gaps < 0).all()))):
        raise Refused(f"times: must {'rise or fall' if backwards else 'rise'} strictly, got {times.tolist()[:6]}")
