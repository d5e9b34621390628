"""Nerfacto: the best published pieces of radiance fields put together.

    x' = contract((x − centre)/radius)       all of space in a cube                             (mip-NeRF 360)
    σ̂₁, σ̂₂: small hash grids → 16 → 1        256 and then 96 samples propose the final 48       (mip-NeRF 360, Instant-NGP)
    hash(x') → 64 → (h, 15 features g),      σ = σ₀ exp(h)                                      (Instant-NGP)
    [SH₄(d), g, code of the picture] → 64 → 64 → colour                                         (NeRF-W)
    o ← o + t_c, d ← exp([ω_c]×) d           a learned pose for each picture
    loss = MSE + interlevel + 0.002 · distortion + poses' penalty (+ 10⁻⁴ orientation + 10⁻³ predicted normals)

Tancik et al. 2023, arXiv:2302.04264, §4; sizes and rates are those of their code's ``nerfacto``. Each piece can be dropped.

What differs from their code, and why:
- Directions enter the spherical harmonics as unit vectors; their code gives both its backends directions moved to [0, 1]³.
- exp is cut at h = 15, whole (theirs cuts the gradient alone), so that σ stays finite.
- Proposals learn in steps that are a function of the step alone, not of a counter: a run can go on from any step.
- Orientation acts on the predicted normals through live weights, as in Ref-NeRF; in their code nothing reaches it.
- Codes start as 0.1 N(0, 1) instead of N(0, 1): colours need not first unlearn them.
- Proposals send no gradient to poses.
- The light that passes everything shows `background`; theirs, the last sample's colour, is `sky`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from neuropil.data.cameras import Rays
from neuropil.errors import Refused
from neuropil.fields import losses
from neuropil.fields.encodings import Fourier, SphericalHarmonics
from neuropil.fields.grids import HashGrid
from neuropil.fields.poses import PoseCorrection
from neuropil.fields.radiance import RadianceModel, Rendered
from neuropil.fields.rendering import accumulation, composite, contract, median_depth, weights
from neuropil.fields.sampling import Samples, clip_to_box, propose
from neuropil.nn.checks import at_least
from neuropil.nn.mlp import MLP

FAR = 1000.0  # in units of the scene's radius; infinity for a float32


@dataclass(frozen=True)
class Traced:
    """What one pass over rays gives to renderer and losses."""

    rays: Rays
    samples: Samples
    weights: Float[Tensor, "*b s"]
    rounds: list[tuple[Samples, Tensor]]
    positions: Float[Tensor, "*b s 3"]
    h: Float[Tensor, "*b s"]
    features: Float[Tensor, "*b s g"]
    colours: Float[Tensor, "*b s 3"]


class HashDensity(nn.Module):
    """``σ = σ₀ exp(h)`` with (h, g further features) = MLP(hash(x)) for x in [−1, 1]³; 0 outside.

    >>> HashDensity(levels=2, table=2**10, finest=32, width=16)(torch.zeros(4, 3))[0].shape
    torch.Size([4])
    """

    def __init__(
        self,
        levels: int = 5,
        features: int = 2,
        table: int = 2**17,
        coarsest: int = 16,
        finest: int = 128,
        width: int = 16,
        extra: int = 0,
        first: float = 0.01,
    ) -> None:
        super().__init__()
        at_least(1, width=width)
        at_least(0, extra=extra)
        self.first = first
        self.encoding = HashGrid(3, levels, features, table, coarsest, finest)
        self.mlp, self.extra = MLP([self.encoding.width, width, 1 + extra], "relu"), extra

    def forward(self, x: Float[Tensor, "*b 3"]) -> tuple[Float[Tensor, "*b"], Float[Tensor, "*b"], Float[Tensor, "*b g"]]:
        """(σ, h, features)."""
        h, features = self.mlp(self.encoding(x)).split([1, self.extra], -1)
        inside = (x.detach().abs() <= 1).all(-1)
        sigma = self.first * h[..., 0].float().clamp_max(15).exp()
        return torch.where(inside, sigma, torch.zeros_like(sigma)), h[..., 0], features


class Nerfacto(RadianceModel):
    """A radiance field for n `pictures` of one scene, in any of its published parts.

    Args:
        pictures: how many pictures train it; `Rays.camera` must lie below it in training mode.
        centre, radius: the ball that the cameras look at, in the world's unit; outside, space is contracted. Without
            `contraction` the field ends at the cube ``centre ± radius``, and rays are cut to it.
        levels, features, table, coarsest, finest, width: of the final hash field.
        proposal_samples, proposal_finest, proposal_levels, proposal_table, proposal_width: of the proposals, one a round.
        samples: intervals a ray of the final field.
        proposal: without it the final intervals are spread on the scale `spacing` alone.
        contraction: all of space, or only the cube.
        code: numbers a picture of its appearance; 0 drops them. In eval mode the mean of all codes is shown.
        poses: learn a correction of each picture's camera, its shift in units of `radius`. Applied in training mode only: in eval
            mode rays are taken as they are.
        normals: predict normals, with the two losses that belong to them.
        sky: light that passes everything shows the last sample's colour instead of the background: for pictures without alpha.
        first: the density everywhere at the start, in 1/`radius`. Small values suit long trainings, 1 short ones.
        spacing: the scale of the first samples (see `sampling.SPACINGS`) in units of `radius`.
        anneal_steps, proposal_warmup: steps until proposals count fully, and until they learn only every `proposal_every` steps.

    O((p₁ + p₂ + s) · 16 levels) table reads and s small MLPs a ray. In training mode samples are jittered, one number a ray.

    >>> model = Nerfacto.small(pictures=3).eval()
    >>> rays = Rays(torch.zeros(5, 3), torch.eye(3)[[0] * 5], torch.zeros(5), torch.ones(5), torch.zeros(5, dtype=torch.long))
    >>> seen = model(rays, background=torch.ones(3))
    >>> seen.colour.shape, seen.depth.shape
    (torch.Size([5, 3]), torch.Size([5]))
    """

    centre: Tensor
    step: Tensor

    def __init__(
        self,
        pictures: int,
        centre: tuple[float, float, float] = (0.0, 0.0, 0.0),
        radius: float = 1.0,
        *,
        levels: int = 16,
        features: int = 2,
        table: int = 2**19,
        coarsest: int = 16,
        finest: int = 2048,
        width: int = 64,
        geometry: int = 15,
        proposal_samples: Sequence[int] = (256, 96),
        proposal_finest: Sequence[int] = (128, 256),
        proposal_levels: int = 5,
        proposal_table: int = 2**17,
        proposal_width: int = 16,
        samples: int = 48,
        proposal: bool = True,
        contraction: bool = True,
        code: int = 32,
        poses: bool = True,
        normals: bool = False,
        sky: bool = False,
        first: float = 0.01,
        spacing: str = "piecewise",
        anneal_steps: int = 1000,
        proposal_every: int = 5,
        proposal_warmup: int = 5000,
        lr: float = 1e-2,
        pose_lr: float = 1e-3,
    ) -> None:
        super().__init__()
        if pictures < 1 or samples < 1 or code < 0:
            raise Refused(f"pictures, samples, code: at least 1, 1 and 0, got {pictures}, {samples} and {code}")
        at_least(1, width=width, proposal_width=proposal_width)
        at_least(0, geometry=geometry)
        if not radius > 0:
            raise Refused(f"radius: must be positive, got {radius}")
        if len(proposal_samples) != len(proposal_finest):
            raise Refused(
                f"proposal_finest: one for each of proposal_samples {list(proposal_samples)}, got {list(proposal_finest)}"
            )
        self.radius, self.samples, self.spacing, self.contraction, self.lr = radius, samples, spacing, contraction, lr
        self.counts, self.sky = tuple(proposal_samples) if proposal else (), sky
        self.anneal_steps, self.every, self.warmup, self.pose_lr = anneal_steps, proposal_every, proposal_warmup, pose_lr
        self.register_buffer("centre", torch.tensor(centre))
        self.register_buffer("step", torch.tensor(0))
        self.field = HashDensity(levels, features, table, coarsest, finest, width, extra=geometry, first=first)
        self.proposals = nn.ModuleList(
            HashDensity(proposal_levels, features, proposal_table, coarsest, n, proposal_width, first=first)
            for n in (proposal_finest if proposal else ())
        )
        self.direction = SphericalHarmonics(4)
        self.colour = MLP([self.direction.width + geometry + code, width, width, 3], "relu")
        self.code = nn.Embedding(pictures, code) if code else None
        if self.code is not None:
            nn.init.normal_(self.code.weight, 0, 0.1)
        self.poses = PoseCorrection(pictures) if poses else None
        self.waves = Fourier(3, octaves=2) if normals else None
        self.normal = MLP([self.waves.width + geometry, 64, 64, 3], "relu") if self.waves else None

    @classmethod
    def small(
        cls, pictures: int, centre: tuple[float, float, float] = (0.0, 0.0, 0.0), radius: float = 1.0, **changes: Any
    ) -> "Nerfacto":
        """Sizes for seconds on a CPU core: 8 levels to 256 cells in tables of 2¹⁵; one round, 32 and 16 samples a ray."""
        sizes: dict[str, Any] = {
            "levels": 8,
            "table": 2**15,
            "coarsest": 8,
            "finest": 256,
            "width": 32,
            "proposal_samples": (32,),
            "proposal_finest": (64,),
            "proposal_levels": 3,
            "proposal_table": 2**13,
            "samples": 16,
            "code": 8,
            "first": 1.0,
            "lr": 4e-2,
            "anneal_steps": 200,
            "proposal_warmup": 1000,
        }
        return cls(pictures, centre, radius, **sizes | changes)

    def forward(self, rays: Rays, background: Float[Tensor, "#*b c"] | None = None) -> Rendered:
        """What `rays` see over `background`."""
        return self._show(self.trace(rays), background)

    def density(self, positions: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b"]:
        """σ of the final field in 1/length at points of the world."""
        return self.field(self._inward((positions - self.centre) / self.radius))[0] / self.radius

    def update(self, step: int) -> None:
        """Set the step that annealing and the proposals' rhythm follow."""
        self.step.fill_(step)

    def loss(
        self, rays: Rays, target: Float[Tensor, "*b c"], background: Float[Tensor, "#*b c"] | None = None
    ) -> Float[Tensor, ""]:
        """Squared error and the losses of the pieces that are in use."""
        with torch.enable_grad():
            seen = self.trace(rays)
            loss = (self._show(seen, background).colour - target).square().mean()
            loss = loss + 0.002 * losses.distortion(seen.weights, seen.samples.u).mean()
            for samples, proposed in seen.rounds if self._proposals_learn() else []:
                # the definition's sum over intervals is a mean in the authors' code, and so in their factor 1
                excess = losses.interlevel(seen.weights, seen.samples.u, proposed, samples.u)
                loss = loss + excess.mean() / self.samples
            if self.poses is not None:
                loss = loss + self.poses.penalty()
            return loss if self.normal is None else loss + self._normal_losses(seen)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Fields and proposals at `lr` (in the paper times 0.01 over 200,000 steps), poses at `pose_lr` (times 0.1 over 5,000)."""
        slow = list(self.poses.parameters()) if self.poses is not None else []
        fast = [p for p in self.parameters() if all(p is not q for q in slow)]
        groups = [{"params": fast, "lr": self.lr, "eps": 1e-15}, {"params": slow, "lr": self.pose_lr, "eps": 1e-15}]
        return groups if slow else groups[:1]

    def trace(self, rays: Rays) -> Traced:
        """Samples, weights and colours along rays of the world; positions and distances in units of `radius`."""
        rays = replace(
            rays, origins=(rays.origins - self.centre) / self.radius, near=rays.near / self.radius, far=rays.far / self.radius
        )
        if self.training and self.poses is not None:
            rays = self.poses(rays)
        rays = replace(rays, far=rays.far.clamp_max(FAR)) if self.contraction else clip_to_box(rays)
        step, jitter = int(self.step), "ray" if self.training else "none"
        x = min(step / self.anneal_steps, 1.0)
        anneal = 10 * x / (9 * x + 1) if self.training else 1.0
        with torch.set_grad_enabled(torch.is_grad_enabled() and self._proposals_learn()):
            frozen = replace(rays, origins=rays.origins.detach(), directions=rays.directions.detach())
            densities = [lambda p, net=net: net(self._inward(p))[0] for net in self.proposals]
            samples, rounds = propose(frozen, densities, self.counts, self.samples, self.spacing, anneal, jitter)
        positions = samples.positions(rays)
        if self.normal is not None and torch.is_grad_enabled() and not positions.requires_grad:
            positions.requires_grad_()
        sigma, h, features = self.field(self._inward(positions))
        colour = self.colour(torch.cat([self._views(rays)[..., None, :].expand(*features.shape[:-1], -1), features], -1)).sigmoid()
        return Traced(rays, samples, weights(sigma, samples.delta), rounds, positions, h, features, colour)

    def _show(self, seen: Traced, background: Tensor | None) -> Rendered:
        background = seen.colours[..., -1, :] if self.sky else background
        depth = median_depth(seen.weights.detach(), seen.samples.middle) * self.radius
        return Rendered(composite(seen.weights, seen.colours, background), depth, accumulation(seen.weights))

    def _normal_losses(self, seen: Traced) -> Tensor:
        """Normals are −∇h, which is −∇σ but for its length."""
        assert self.normal is not None and self.waves is not None
        normals = normalize(-torch.autograd.grad(seen.h.sum(), seen.positions, retain_graph=True)[0], dim=-1)
        read = torch.cat([self.waves(seen.positions.detach()), seen.features], -1)
        predicted = normalize(self.normal(read).tanh(), dim=-1)
        towards = losses.orientation(seen.weights, predicted, seen.rays.directions)
        return (1e-4 * towards + 1e-3 * losses.predicted_normals(seen.weights.detach(), normals, predicted)).mean()

    def _views(self, rays: Rays) -> Tensor:
        """What the colour depends on beside the place: direction and the picture's code."""
        direction = self.direction(rays.directions)
        if self.code is None:
            return direction
        code = self.code(rays.camera) if self.training else self.code.weight.mean(0).expand(*direction.shape[:-1], -1)
        return torch.cat([direction, code], -1)

    def _inward(self, x: Tensor) -> Tensor:
        """Points in units of `radius` to the hash grid's cube."""
        return contract(x) / 2 if self.contraction else x

    def _proposals_learn(self) -> bool:
        """Every step at first, every `proposal_every`-th after the warm-up."""
        step = int(self.step)
        return step < 10 or step % max(1, round(self.every * min(step / self.warmup, 1.0))) == 0
