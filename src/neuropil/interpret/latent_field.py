"""The latent vector field of an autoencoder, or of any map of a space to itself: attractors, what they store, what moves strangely.

    f(z) = E(D(z)),    v(z) = f(z) − z,    z_{t+1} = f(z_t)

Iterated in its own latent space, an autoencoder is a dynamical system without further training. Where f contracts, codes flow to
attractors z* = f(z*). They tell what the weights hold: attractors from noise need no data and make a dictionary of it; those
whose picture D(z*) is a training sample were memorised; and a new input whose path stays far from the attractors of known ones is
strange.

    memorisation = mean over z* of  max_i cos(D(z*), x_i)
    strangeness  = mean over t of   min over z* of |ẑ_t − ẑ*|,    ẑ = z / |z|
    |x − F(x)|² ≤ 2 (|x − D(z*)|² + L² |z − z*|²),    z = E(x), z* its attractor, L the Lipschitz constant of D between them

Fumero, Moschella, Rodolà & Locatello 2025, arXiv:2505.22785. No public code. Here, besides a small residual, an attractor must
have a Jacobian of spectral radius below 1: slow drift does not count. The bound has the factor 2 that |a + b|² ≤ 2 |a|² + 2 |b|²
needs: without it, prototype error + L² coverage is no bound where both point the same way (a test has the case). Of a stochastic
encoder or decoder give the mean. Give latents such that f keeps their shape.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import normalize

from neuropil.errors import Refused
from neuropil.nn.checks import at_least, filled, finite, fits, full_precision, same_kind, suits
from neuropil.nn.modes import evaluating
from neuropil.numerics.fixed_points import Settled, length, merge, radius, settle
from neuropil.numerics.jacobians import spectral_norm

Function = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Attractors:
    """The distinct attractors that some starts reached.

    `z` (m, *d), by falling size of basin; `radius` (m) is ρ of the Jacobian, `basin` (m) how many starts ended there. `of` (b) is
    the attractor of each start, −1 for those that reached none: they diverged, ran out of steps, or stopped where f does not
    contract.
    """

    z: Tensor
    radius: Tensor
    basin: Tensor
    of: Tensor
    settled: Settled

    def __len__(self) -> int:
        return len(self.z)


@dataclass(frozen=True)
class Bound:
    """Of each input: |x − F(x)|², and the terms that bound it: |x − D(z*)|², |E x − z*|² and L, the slope of D between the two."""

    error: Tensor
    prototype: Tensor
    coverage: Tensor
    slope: Tensor

    @property
    def most(self) -> Tensor:
        """2 (prototype + L² coverage)."""
        return 2 * (self.prototype + self.slope**2 * self.coverage)


class LatentField:
    """The field of ``encoder ∘ decoder``, or of one map of a space to itself, given alone (then images are latents).

    Modules work in eval mode while the field is asked, and go back to the mode of each submodule. Cost of one step: one E and one
    D. `Refused` for what does not suit the module.

    >>> field = LatentField(lambda z: z / 2 + 1)
    >>> found = field.attractors(torch.randn(20, 2), tolerance=1e-6)
    >>> torch.allclose(found.z[0], torch.tensor(2.0), atol=1e-4), len(found), found.radius
    (True, 1, tensor([0.5000]))
    """

    def __init__(self, encoder: Function, decoder: Function | None = None) -> None:
        self._encoder, self._decoder = encoder, decoder

    def encode(self, x: Float[Tensor, "b *i"]) -> Float[Tensor, "b *d"]:
        """z = E(x); x itself for a map given alone."""
        if self._decoder is None:
            return x
        suits("x", x, self._encoder)
        with evaluating(self._encoder, self._decoder):
            return self._encoder(x)

    def decode(self, z: Float[Tensor, "b *d"]) -> Float[Tensor, "b *i"]:
        """D(z); z itself for a map given alone."""
        if self._decoder is None:
            return z
        suits("z", z, self._decoder)
        with evaluating(self._encoder, self._decoder):
            return self._decoder(z)

    def f(self, z: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """E(D(z)), differentiable. `Refused` if the shape changes."""
        suits("z", z, self._encoder if self._decoder is None else self._decoder)
        with evaluating(self._encoder, self._decoder):
            after = self._encoder(z if self._decoder is None else self._decoder(z))
        if not isinstance(after, Tensor) or after.shape != z.shape:
            given = tuple(after.shape) if isinstance(after, Tensor) else type(after).__name__
            raise Refused(f"f: must give the shape that it takes, {tuple(z.shape)}, got {given}")
        return after

    @torch.no_grad()
    def v(self, z: Float[Tensor, "b *d"]) -> Float[Tensor, "b *d"]:
        """The field f(z) − z."""
        return self.f(z) - z

    def settle(self, z: Float[Tensor, "b *d"], tolerance: float = 1e-5, steps: int = 3000, keep: bool = False) -> Settled:
        """Where codes end; see `numerics.fixed_points.settle`."""
        return settle(self.f, z, tolerance, steps, keep)

    def attractors(
        self,
        z: Float[Tensor, "b *d"],
        tolerance: float = 1e-5,
        steps: int = 3000,
        apart: float = 1e-2,
        measure: str = "l2",
        margin: float = 1e-3,
    ) -> Attractors:
        """The attractors that the codes flow to: ends that converged, merged within `apart`, with ρ < 1 − `margin`.

        Of ends that merge, the one of smallest residual stands for all. Cost of `settle`, then O(b² d) and a Jacobian a distinct
        end. Take starts from E(training data), E(test data), or noise (`noise`): three views of the same weights. `Refused` for
        other than float32 or float64.
        """
        full_precision("z", z)
        end = self.settle(z, tolerance, steps)
        rows = end.converged.nonzero()[:, 0]
        group = merge(end.z[rows], apart, measure)
        m = int(group.max()) + 1 if len(group) else 0
        order = end.residual[rows].argsort(stable=True)
        order = order[group[order].argsort(stable=True)]  # by group, the smallest residual first
        size = group.bincount(minlength=m)
        first = rows[order[size.cumsum(0) - size]]
        radii = radius(self.f, end.z[first])
        real = radii < 1 - margin
        number = torch.where(real, real.cumsum(0) - 1, -1)
        of = torch.full((len(z),), -1, device=z.device)
        of[rows] = number[group]
        basin = torch.bincount(of[of >= 0], minlength=int(real.sum()))
        return Attractors(end.z[first][real], radii[real], basin, of, end)

    def bound(self, x: Float[Tensor, "b *i"], steps: int = 3000, points: int = 5, tolerance: float = 1e-5) -> Bound:
        """How the error of F is bounded by the end of each input's path (whether or not it is an attractor).

        L is the largest spectral norm of D's Jacobian at `points` places on the straight line from E(x) to the end, by power
        iteration: an estimate from below. Rows that diverge have no meaning. Needs a decoder: `Refused` without.
        """
        if self._decoder is None:
            raise Refused("decoder: the bound needs one; the field was made of one map alone")
        with torch.no_grad():
            z = self.encode(x)
            end = self.settle(z, tolerance, steps).z
            picture, error = self.decode(end), length(x - self.decode(z)) ** 2
            prototype, coverage = length(x - picture) ** 2, length(z - end) ** 2
        line = torch.linspace(0, 1, points, dtype=z.dtype, device=z.device)
        slope = torch.stack([spectral_norm(self.decode, z.lerp(end, t)) for t in line.tolist()]).amax(0)
        return Bound(error, prototype, coverage, slope)


def noise(n: int, shape: tuple[int, ...], generator: torch.Generator | None = None, scale: float = 1.0) -> Tensor:
    """n starts from N(0, scale² I): no data needed. `Refused` for a negative n.

    >>> noise(3, (2,)).shape
    torch.Size([3, 2])
    """
    at_least(0, n=n)
    return scale * torch.randn(n, *shape, generator=generator)


def memorisation(pictures: Float[Tensor, "m *i"], train: Float[Tensor, "n *i"], batch: int = 4096) -> Float[Tensor, "m"]:
    """The cosine of each attractor's picture D(z*) with the training sample nearest in angle; their mean is the coefficient.

    1: a training sample (or one times a number) was stored. O(m n i) time, O(m · batch) memory. `Refused` for no training samples.

    >>> memorisation(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0], [2.0, 2.0]]))
    tensor([1.0000])
    """
    if not len(train):
        raise Refused("train: at least one sample is needed, got none")
    same_kind("pictures", pictures, train)
    unit = normalize(pictures.flatten(1), dim=1)
    return torch.stack([(unit @ normalize(some.flatten(1), dim=1).T).amax(1) for some in train.split(batch)]).amax(0)


class TrajectoryScore:
    """How known an input's path is: minus the mean distance of the codes z_0 … z_N on it to the nearest known attractor.

    All codes are scaled to length 1. Used as the detectors of `interpret.detectors`: ``fit(x)``, then ``score_samples(x)``,
    higher for known inputs. O(N) steps of the field and O(N n m d) for n inputs and m attractors, distances number by number: at
    an attractor they are 0, which a product of matrices rounds to 3e-4.

    >>> field = LatentField(lambda z: z / 2 + 1)
    >>> score = TrajectoryScore(field, steps=3).fit(torch.randn(5, 2))
    >>> score.score_samples(torch.tensor([[2.0, 2.0], [-2.0, -2.0]])).round(decimals=3)
    tensor([-0.0000, -0.7500])
    """

    def __init__(self, field: LatentField, steps: int = 10, settle_steps: int = 3000, apart: float = 1e-2) -> None:
        if min(steps + 1, settle_steps) < 1:
            raise Refused(f"steps, settle_steps: at least 0 and 1, got {steps} and {settle_steps}")
        self.field, self.steps, self.settle_steps, self.apart = field, steps, settle_steps, apart
        self.known: Attractors | None = None

    def fit(self, x: Float[Tensor, "n *i"], y: object = None) -> "TrajectoryScore":
        """Find the attractors of known inputs. `Refused` if their paths reach none, or codes are other than float32 or float64."""
        _rows(x)
        filled("x", x)
        finite("x", x)
        with torch.no_grad():
            codes = self.field.encode(x)
            full_precision("codes of x", codes)
            found = self.field.attractors(codes, steps=self.settle_steps, apart=self.apart)
        if not len(found):
            raise Refused(f"x: none of the {len(x)} known inputs reaches an attractor in {self.settle_steps} steps")
        self.known = found
        return self

    @torch.no_grad()
    def distances(self, x: Float[Tensor, "n *i"]) -> Float[Tensor, "{self.steps}+1 n"]:
        """The distance to the nearest attractor at each step of each path."""
        if self.known is None:
            raise Refused("fit: nothing is known yet; call fit first")
        _rows(x)
        known, z = normalize(self.known.z.flatten(1), dim=1), self.field.encode(x)
        rows = []
        for t in range(self.steps + 1):
            z = self.field.f(z) if t else z
            fits("codes of x", codes := z.flatten(1) if z.ndim > 1 else z, known.shape[1], known)
            rows.append(torch.cdist(normalize(codes, dim=1), known, compute_mode="donot_use_mm_for_euclid_dist").amin(1))
        return torch.stack(rows)

    def score_samples(self, x: Float[Tensor, "n *i"]) -> Float[Tensor, "n"]:
        """Higher: more like the known."""
        return -self.distances(x).mean(0)


def _rows(x: Tensor) -> None:
    if x.ndim < 2:
        raise Refused(f"x: inputs (n, …) are needed, got shape {tuple(x.shape)}")
