"""What each body of a group sees from its own moving frame (Kofinas et al. 2021, LoCS, arXiv:2110.14961; used by Aether).

R_i  the rotation that takes an axis onto the velocity u_i:  the x axis in the plane (yaw θ), the z axis in space (yaw θ, polar φ)

node i       [0, R_iᵀ u_i, R_iᵀ f_i]
edge j → i   [R_iᵀ(p_j − p_i), angles(R_iᵀ R_j)/π, |p_j − p_i|, angles(R_iᵀ(p_j − p_i)), R_iᵀ u_j, R_iᵀ f_j]  and node i

with positions p, velocities u and, where there are any, further vectors f (forces). Shifting all bodies changes none of these
numbers; turning them changes none in the plane. In space the two angles leave the roll about u open, so there only turns about
the z axis change nothing: so it is in the authors' code.

Every body is paired with all others: (…, n, n − 1, width); O(n²) time and memory.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import same_kind

STILL = 1e-8  # below this speed there is no direction, and R = I


def frames(u: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d d"]:
    """R with R e = u/|u|, e the x axis for d = 2 and the z axis for d = 3; the identity where |u| is below 1e-8. `Refused` else.

    >>> frames(torch.tensor([0.0, 2.0])).round()
    tensor([[ 0., -1.],
            [ 1.,  0.]])
    """
    if u.shape[-1] not in (2, 3):
        raise Refused(f"u: frames are for 2 or 3 dimensions, got {u.shape[-1]}")
    still = _below(u.norm(dim=-1), STILL)[..., None]
    axis = torch.zeros_like(u)
    axis[..., 0 if u.shape[-1] == 2 else 2] = 1
    u = torch.where(still, axis, u)
    planar = u[..., :2].norm(dim=-1)
    flat = _below(planar, STILL)  # straight up or down: any yaw is right, and 0 has a gradient
    # Inner `where`s keep the gradient finite where the outer ones throw its value away.
    safe = torch.where(flat, torch.ones_like(planar), planar)
    cos, sin = torch.where(flat, 1.0, u[..., 0] / safe), torch.where(flat, 0.0, u[..., 1] / safe)
    if u.shape[-1] == 2:
        return torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    speed = u.norm(dim=-1)
    up, out = u[..., 2] / speed, torch.where(flat, 0.0, safe) / speed
    zero = torch.zeros_like(up)
    rows = ([up * cos, -sin, out * cos], [up * sin, cos, out * sin], [-out, zero, up])
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _below(x: Tensor, least: float) -> Tensor:
    """``x < least``, also in float16, where `least` would be 0."""
    return x.to(torch.promote_types(x.dtype, torch.float32)) < least


def others(n: int, device: torch.device | None = None) -> Int[Tensor, "{n} m"]:
    """Row i: the n − 1 numbers that are not i, rising.

    >>> others(3).tolist()
    [[1, 2], [0, 2], [0, 1]]
    """
    if n < 0:
        raise Refused(f"n: must be 0 or more, got {n}")
    grid = torch.arange(n, device=device)
    column = grid[: n - 1]
    return column + (column[None] >= grid[:, None]).long()


def angles(x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b a"]:
    """Yaw, and in space the polar angle as well, in radians; zeros where x = 0 (with a zero gradient).

    >>> (angles(torch.tensor([0.0, 1.0])) / math.pi).tolist()
    [0.5]
    """
    if x.shape[-1] not in (2, 3):
        raise Refused(f"x: angles are for 2 or 3 dimensions, got {x.shape[-1]}")
    flat = _below(x[..., :2].square().sum(-1), STILL**2)
    one = torch.ones_like(x[..., 0])
    yaw = torch.where(flat, 0.0, torch.atan2(torch.where(flat, 0 * one, x[..., 1]), torch.where(flat, one, x[..., 0])))
    if x.shape[-1] == 2:
        return yaw[..., None]
    planar = torch.where(flat, one, x[..., :2].square().sum(-1)).sqrt()
    polar = torch.where(flat, torch.where(x[..., 2] < 0, math.pi * one, 0 * one), torch.atan2(planar, x[..., 2]))
    return torch.stack([yaw, polar], -1)


def euler(R: Float[Tensor, "*b d d"]) -> Float[Tensor, "*b a"]:
    """The angles of a rotation over π: the yaw in the plane, yaw, pitch and roll (z–y–x) in space.

    >>> euler(frames(torch.tensor([0.0, 2.0])))
    tensor([0.5000])
    """
    if R.shape[-1] not in (2, 3):
        raise Refused(f"R: rotations are of 2 or 3 dimensions, got {R.shape[-1]}")
    yaw = torch.atan2(R[..., 1, 0], R[..., 0, 0])
    if R.shape[-1] == 2:
        return yaw[..., None] / math.pi
    pitch = torch.asin((-R[..., 2, 0]).clamp(-1 + 1e-7, 1 - 1e-7))
    roll = torch.atan2(R[..., 2, 1], R[..., 2, 2])
    return torch.stack([yaw, pitch, roll], -1) / math.pi


def localize(
    p: Float[Tensor, "*b n d"], u: Float[Tensor, "*b n d"], f: Float[Tensor, "*b n d"] | None = None
) -> tuple[Float[Tensor, "*b n w"], Float[Tensor, "*b n m e"], Float[Tensor, "*b n d d"]]:
    """Node features, edge features (row i: from all j ≠ i), and the frames R: what the module's docstring lists, in that order.

    Without f widths are w = 2 d and e = 3 d + d (d − 1)/2 + w; each further vector f adds d to w and 2 d to e. `Refused` for a
    single body or another dimension than 2 and 3.

    >>> node, edge, R = localize(torch.randn(5, 2), torch.randn(5, 2))
    >>> node.shape, edge.shape
    (torch.Size([5, 4]), torch.Size([5, 4, 11]))
    """
    n = p.shape[-2]
    if n < 2:
        raise Refused(f"p: at least two bodies are needed, got {n}")
    same_kind("u", u, p)
    R = frames(u)
    to = others(n, p.device)

    def seen(x: Tensor) -> Tensor:  # vectors at i, in i's frame
        return (R.mT @ x[..., None])[..., 0]

    def seen_from(x: Tensor) -> Tensor:  # vectors at j, in i's frame
        return x @ R  # (…, n, m, d) times (…, n, d, d): rows xᵀ R = (Rᵀ x)ᵀ

    vectors = [u] if f is None else [u, f]
    node = torch.cat([torch.zeros_like(p), *map(seen, vectors)], -1)
    gap = p[..., to, :] - p[..., :, None, :]
    relative = seen_from(gap)
    turn = R[..., :, None, :, :].mT @ R[..., to, :, :]
    distance = gap.square().sum(-1, keepdim=True).clamp(min=STILL**2).sqrt()
    own = node[..., :, None, :].expand(*node.shape[:-1], n - 1, -1)
    edge = torch.cat([relative, euler(turn), distance, angles(relative), *(seen_from(v[..., to, :]) for v in vectors), own], -1)
    return node, edge, R
