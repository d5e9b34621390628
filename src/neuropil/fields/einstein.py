"""Einstein fields: a network that stores the metric of a space-time as a function of the coordinates, trained on its derivatives.

    g_ij(x) = η_ij + D_ij(x),   D = μ + σ · net((x − c)/s), 10 numbers: the upper triangle of D
    L = ⟨((D − D*)/σ₀)²⟩ + ⟨((∂D − ∂D*)/σ₁)²⟩ + ⟨((∂∂D − ∂∂D*)/σ₂)²⟩

η is the flat metric in the same coordinates, D the distortion. Connection, curvature and orbits come from g by differentiation, so
that an error that looks small in g can spoil them all; the targets of the derivatives come from the exact metric by autodiff.

Cranganore, Bodnar, Berzins & Brandstetter 2025, "Einstein Fields", arXiv:2507.11589; their code: AndreiB137/EinFields.
Networks and first weights as there: Glorot's normal (SiLU), or SIREN's with ω = 3; SOAP trains. What differs:

- Derivatives go forward through the layers by hand, as one batch of 1 + n + n(n+1)/2 tangents (`EinsteinField.jet`): equal to
  nested autodiff, and faster.
- Each component of each order is divided by its standard deviation σ over the training points, coordinates and outputs as well.
  The paper sums plain squares and can balance the norms of their gradients.
- WIRE and PirateNet fields and the Minkowski and Papuc norms are not here.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.data.spacetimes import minkowski
from neuropil.errors import Refused, choose
from neuropil.fields.siren import Sine, Siren
from neuropil.nn.checks import at_least, same_kind, some
from neuropil.numerics.curvature import Geometry, Metric, jet
from neuropil.training.fit import History, Report, cosine, fit, minibatches
from neuropil.training.soap import SOAP

ROWS, COLUMNS = torch.triu_indices(4, 4).tolist()
FULL = [[min(i, j) * (7 - min(i, j)) // 2 + max(i, j) for j in range(4)] for i in range(4)]  # where the triangle holds (i, j)


class Swish(nn.Module):
    """``x ↦ x · sigmoid(x)``, written out so that forward derivatives nest in every version of torch."""

    def forward(self, x: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """Elementwise."""
        return x * torch.sigmoid(x)


def curve(phi: nn.Module, z: Tensor, order: int) -> list[Tensor]:
    """``φ(z), φ'(z), φ''(z)`` up to `order` for a `Swish` or a `Sine`."""
    if isinstance(phi, Sine):
        wave = torch.sin(phi.omega * z)
        return [wave, phi.omega * torch.cos(phi.omega * z), -(phi.omega**2) * wave][: order + 1] if order else [wave]
    s = torch.sigmoid(z)
    values = [z * s]
    if order > 0:
        values.append(s * (1 + z * (1 - s)))
    if order > 1:
        values.append(s * (1 - s) * (2 + z * (1 - 2 * s)))
    return values


class EinsteinField(nn.Module):
    """A metric as a network: coordinates (… 4) → g_ij (… 4 4).

    - `width`, `layers`: of the hidden layers (the paper: 190 × 5 for Kerr, 128 × 6 for orbits).
    - `activation`: "silu", or "sine" for a SIREN with ω = 3.
    - `reads`: the coordinates that the metric depends on; derivatives by the others are zero. (1, 2, 3) is a static space-time.
    - `flat`: η(x), the part that is not learned; Cartesian `minkowski` by default, ``None`` to learn the full metric.
    - `dtype`: float64 by default: curvature is a difference of large numbers.

    O(width² · layers) numbers and time a point. Raises `Refused` for sizes below 1, an unknown activation or other coordinates.

    >>> field = EinsteinField(width=16, layers=2)
    >>> field(torch.zeros(5, 4, dtype=torch.float64)).shape
    torch.Size([5, 4, 4])
    """

    centre: Tensor
    spread: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(
        self,
        width: int = 128,
        layers: int = 3,
        activation: str = "silu",
        reads: Sequence[int] = (0, 1, 2, 3),
        flat: Metric | None = minkowski,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if width < 1 or layers < 1:
            raise Refused(f"width, layers: must be positive, got {width} and {layers}")
        if not reads or sorted(set(reads)) != list(reads) or not set(reads) <= {0, 1, 2, 3}:
            raise Refused(f"reads: rising numbers of coordinates out of 0, 1, 2, 3 are needed, got {list(reads)}")
        self.reads, self.flat = tuple(reads), flat
        sizes = [len(reads), *[width] * layers, 10]
        if choose("activation", activation, ("silu", "sine")) == "sine":
            self.net: nn.Sequential = Siren(sizes, omega=3.0, hidden_omega=3.0)
        else:
            parts: list[nn.Module] = []
            for n, m in itertools.pairwise(sizes):
                linear = nn.Linear(n, m)
                nn.init.xavier_normal_(linear.weight)
                nn.init.zeros_(linear.bias)
                parts += [linear, Swish()]
            self.net = nn.Sequential(*parts[:-1])
        self.register_buffer("centre", torch.zeros(len(reads)))
        self.register_buffer("spread", torch.ones(len(reads)))
        self.register_buffer("mean", torch.zeros(10))
        self.register_buffer("scale", torch.ones(10))
        self.to(dtype)

    def _normal(self, x: Tensor) -> Tensor:
        return (x[..., list(self.reads)] - self.centre) / self.spread

    def distortion(self, x: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 10"]:
        """The upper triangle of D, row by row."""
        return self.mean + self.scale * self.net(self._normal(x))

    def forward(self, x: Float[Tensor, "*b 4"]) -> Float[Tensor, "*b 4 4"]:
        """The metric g."""
        D = self.distortion(x)[..., FULL]
        return D if self.flat is None else D + self.flat(x)

    def jet(self, x: Float[Tensor, "b 4"], order: int = 2) -> Float[Tensor, "channels b 10"]:
        """D and its derivatives by the n coordinates that are read: D; ∂_i D; ∂_i ∂_j D for i ≤ j, row by row.

        A tangent goes through a layer as  z = W a + b,  a_i = φ' z_i,  a_ij = φ'' z_i z_j + φ' z_ij. Channels:
        1, 1 + n or 1 + n + n(n+1)/2 for orders 0, 1 and 2; memory and time are those of that many plain evaluations.
        """
        if order > 1:
            same_kind("x", x, self.centre)
        n = len(self.reads)
        i, j = pairs(n)
        a = [self._normal(x)[None]]  # values, first and second derivatives: up to three batches of tangents
        if order > 0:
            a.append(torch.diag(1 / self.spread)[:, None].expand(n, len(x), n))
        if order > 1:
            a.append(x.new_zeros(len(i), len(x), n))
        for layer in self.net:
            if isinstance(layer, nn.Linear):
                a = [layer(a[0]), *(tangents @ layer.weight.T for tangents in a[1:])]
                continue
            phi, z = curve(layer, a[0], order), a
            a = [phi[0]]
            if order > 0:
                a.append(phi[1] * z[1])
            if order > 1:
                a.append(phi[2] * (z[1][i] * z[1][j]) + phi[1] * z[2])
        return torch.cat([self.mean + self.scale * a[0], *(self.scale * tangents for tangents in a[1:])])

    def geometry(self, x: Float[Tensor, "*b 4"], order: int = 2) -> Geometry:
        """Connection (``order=1``) and curvature (2) at x, from `jet`; as `neuropil.numerics.curvature.geometry`, and faster."""
        points = x.reshape(-1, 4)
        with torch.autocast(x.device.type, enabled=False):  # half precision would leave nothing of a curvature
            parts = unpack(self.jet(points, order), self.reads, order)
            known = None if self.flat is None else _flat_jet(self.flat, points, order)
        if known is not None:
            parts = [part + flat for part, flat in zip(parts, known, strict=True)]
        return Geometry(*(part.reshape(*x.shape[:-1], *part.shape[1:]) for part in parts))

    def standardise(self, x: Float[Tensor, "b 4"], D: Float[Tensor, "b 10"]) -> None:
        """Take mean and spread of coordinates and distortions from these, so that the network reads and writes unit numbers."""
        read = x[:, list(self.reads)]
        for name, value in (("centre", read.mean(0)), ("spread", _spread(read)), ("mean", D.mean(0)), ("scale", _spread(D))):
            getattr(self, name).copy_(value)


def pairs(n: int) -> tuple[list[int], list[int]]:
    """The rows i and columns j of an upper triangle, i ≤ j.

    >>> pairs(2)
    ([0, 0, 1], [0, 1, 1])
    """
    at_least(0, n=n)
    i, j = torch.triu_indices(n, n).tolist()
    return i, j


def unpack(channels: Float[Tensor, "c b 10"], reads: Sequence[int], order: int) -> list[Tensor]:
    """Packed derivatives as full tensors: D (b 4 4), ∂_k D (b 4 4 4), ∂_l ∂_k D (b 4 4 4 4), up to `order`."""
    n, full = len(reads), channels[..., FULL]
    parts = [full[0]]
    if order > 0:
        first = full.new_zeros(full.shape[1], 4, 4, 4)
        first[:, list(reads)] = full[1 : 1 + n].transpose(0, 1)
        parts.append(first)
    if order > 1:
        second = full.new_zeros(full.shape[1], 4, 4, 4, 4)
        i, j = ([reads[k] for k in side] for side in pairs(n))
        second[:, i, j] = second[:, j, i] = full[1 + n :].transpose(0, 1)
        parts.append(second)
    return parts


def targets(metric: Metric, field: EinsteinField, x: Float[Tensor, "b 4"], order: int = 2) -> Float[Tensor, "c b 10"]:
    """What `EinsteinField.jet` ought to give: the distortion of an exact metric and its derivatives, by nested autodiff.

    Raises `Refused` where the metric depends on a coordinate that the field does not read.
    """

    def triangle(point: Tensor) -> Tensor:
        D = metric(point) if field.flat is None else metric(point) - field.flat(point)
        return D[..., ROWS, COLUMNS]

    reads = list(field.reads)
    value, *derivatives = jet(triangle, x, max(order, 1))
    blind = [k for k in range(4) if k not in reads and bool(derivatives[0][:, k].abs().max() > 1e-12)]
    if blind:
        raise Refused(f"reads: the metric depends on coordinates {blind}, too, got {reads}")
    channels = [value[None]]
    if order > 0:
        channels.append(derivatives[0][:, reads].transpose(0, 1))
    if order > 1:
        i, j = ([reads[k] for k in side] for side in pairs(len(reads)))
        channels.append(derivatives[1][:, i, j].transpose(0, 1))
    return torch.cat(channels)


def sobolev_loss(
    predicted: Float[Tensor, "c b 10"], target: Float[Tensor, "c b 10"], scale: Float[Tensor, "c 10"], n: int
) -> Float[Tensor, ""]:
    """``Σ_orders ⟨((∂D − ∂D*)/σ)²⟩``: each order's mean over its channels, components and points; n coordinates are read."""
    some("predicted", predicted, 0)
    some("predicted", predicted, 1)
    squares = ((predicted - target) / scale[:, None]).square().mean((1, 2))
    return torch.stack([part.mean() for part in (squares[:1], squares[1 : 1 + n], squares[1 + n :]) if len(part)]).sum()


def fit_metric(
    field: EinsteinField,
    metric: Metric,
    points: Float[Tensor, "m 4"],
    *,
    order: int = 2,
    steps: int = 2_000,
    lr: float = 3e-2,
    batch: int = 256,
    optimizer: Callable[..., Optimizer] = SOAP,
    seed: int = 0,
    report: Report | None = None,
) -> History:
    """Train `field` in place on `metric` at `points`: on D alone (``order=0``), on its Jacobian (1), on its Hessian (2), too.

    `steps` of `optimizer` on batches of `batch` points, the rate rising over the first twentieth and then falling by a cosine from
    `lr`. A step costs 1, 1 + n or 1 + n + n(n+1)/2 plain ones. Raises `Refused` for another order, and as `fit` does.

    >>> from neuropil.data.spacetimes import schwarzschild_kerr_schild, shell
    >>> _ = torch.manual_seed(0)
    >>> field, x = EinsteinField(width=16, layers=2, reads=(1, 2, 3)), shell(256, 3.0, 10.0, torch.Generator().manual_seed(0))
    >>> history = fit_metric(field, schwarzschild_kerr_schild, x, steps=200, report=lambda what, fraction: None)
    >>> history.losses[-1] < history.losses[0] / 2
    True
    """
    if order not in (0, 1, 2):
        raise Refused(f"order: must be 0 (metric), 1 (+ Jacobian) or 2 (+ Hessian), got {order}")
    some("points", points, 0)
    if order > 1:
        same_kind("points", points, field.centre)
    truth = targets(metric, field, points, order)
    field.standardise(points, truth[0])
    scale, n = torch.stack([_spread(channel) for channel in truth]), len(field.reads)

    def loss(model: EinsteinField, rows: tuple[Tensor, Tensor]) -> Tensor:
        return sobolev_loss(model.jet(rows[0], order), rows[1].transpose(0, 1), scale, n)

    batches = minibatches([points, truth.transpose(0, 1).contiguous()], size=min(batch, len(points)), seed=seed)
    where, slow = str(points.device), cosine(warmup=0.05)
    return fit(field, loss, batches, steps=steps, lr=lr, optimizer=optimizer, schedule=slow, device=where, report=report)


def _spread(x: Float[Tensor, "b d"]) -> Float[Tensor, "d"]:
    """Standard deviations; where one is nothing beside the others, that of all together, and 1 if there is nothing at all."""
    std = x.std(0)
    all_together = x.square().mean().sqrt()
    std = torch.where(std > 1e-6 * all_together, std, all_together)
    return torch.where(std > 0, std, torch.ones_like(std))


def _flat_jet(flat: Metric, x: Tensor, order: int) -> tuple[Tensor, ...]:
    """The derivatives of the flat part; those of the Cartesian one are zero."""
    if flat is minkowski:
        zeros = (x.new_zeros(len(x), *[4] * (2 + k)) for k in range(1, order + 1))
        return (minkowski(x), *zeros)
    return jet(flat, x, order)
