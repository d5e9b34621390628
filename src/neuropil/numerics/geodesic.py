"""Free fall: geodesics of any connection by an adaptive Runge–Kutta method.

    x'' = −Γ^m_ij x'^i x'^j

The solver is SciPy's DOP853 (Dormand & Prince, order 8); all paths of a batch share its steps.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import finite


def geodesic(
    christoffel: Callable[[Tensor], Tensor],
    position: Float[Tensor, "*b n"],
    velocity: Float[Tensor, "*b n"],
    times: Float[Tensor, "t"],
    tolerance: float = 1e-9,
    inside: Callable[[Tensor], Bool[Tensor, "*b"]] | None = None,
) -> tuple[Float[Tensor, "t *b n"], Float[Tensor, "t *b n"]]:
    """Positions and velocities at the affine parameters `times`, from `position` and `velocity` at ``times[0]``.

    ``christoffel(x)`` gives Γ^m_ij, (… n n n), at a batch of points. `tolerance` is relative and absolute, a step. A path
    that leaves `inside` stays where it left. Runs in float64 on the CPU around calls of `christoffel`,
    which get the dtype and device of `position`; not differentiable. Each step costs 12 calls.
    Raises `Refused` for times that do not rise strictly and for a path that cannot be followed further.

    >>> x, v = geodesic(lambda x: x.new_zeros(*x.shape, 2, 2), torch.zeros(2), torch.tensor([1.0, 2.0]), torch.tensor([0.0, 3.0]))
    >>> x[-1]
    tensor([3., 6.])
    """
    from scipy.integrate import solve_ivp

    if len(times) < 2 or not bool((times.diff() > 0).all()):
        raise Refused(f"times: at least two that rise strictly are needed, got {times.tolist()[:6]}")
    if not tolerance > 0:
        raise Refused(f"tolerance: must be positive, got {tolerance}")
    finite("position", position)
    finite("velocity", velocity)
    shape, n = (2, *position.shape), position.shape[-1]

    def unpack(state: object) -> Tensor:
        return torch.as_tensor(state, dtype=position.dtype, device=position.device).view(shape)

    @torch.no_grad()
    def right_hand_side(_: float, state: object) -> object:
        x, v = unpack(state)
        gamma = christoffel(x)
        if gamma.shape[-3:] != (n, n, n):
            raise Refused(f"christoffel: must give (…, {n}, {n}, {n}) at {n} coordinates, got {tuple(gamma.shape)}")
        change = torch.stack([v, -torch.einsum("...mij,...i,...j->...m", gamma, v, v)])
        if inside is not None:
            change = torch.where(inside(x)[..., None], change, 0.0)
        return change.double().cpu().numpy().ravel()

    start = torch.stack([position, velocity]).double().cpu().numpy().ravel()
    at = times.double().cpu().numpy()
    found = solve_ivp(right_hand_side, (at[0], at[-1]), start, "DOP853", at, rtol=tolerance, atol=tolerance)
    if found.status < 0:
        raise Refused(f"christoffel: the path stops at parameter {found.t[-1] if len(found.t) else at[0]:g} ({found.message})")
    path = torch.as_tensor(found.y.T.copy(), dtype=position.dtype, device=position.device).view(-1, *shape)
    return path[:, 0], path[:, 1]
