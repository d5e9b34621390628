"""LangevinFlow: firing rates from latents that move like damped, pushed oscillators (Song, Keller, Yue, Perona & Welling 2025, CCN,
arXiv:2507.11531).

h_t = GRU(x_{t−1}, h_{t−1})                      counts of the neurons that are seen; the last bin repeated beyond the end
z_0, v_0 ~ N(W h_0, exp W' h_0)
z ← z + δ v,    v ← v − δ ∇U(z),    v ← (1 − γ) v + √(2γ) ε     δ = .01, γ = .55; ∇U at the old z, as released
U(z) = Σ_ij ⟨(K ∗ z)_i, z_j⟩                    4 channels of d/4 units in a line, K (4, 4, 3) of unit length along it
log rates = W transformer layer([z_t, v_t, h_t])            over all bins, so rates are NOT causal: bin t sees bins after it

loss = mean −log Poisson + .1 ramp [KL(z_0‖N(0,1)) + KL(v_0‖N(0,1)) + Σ_t KL(v_t‖N(0,.1))]           KL sums over numbers

The force is linear in z, ∇U = K̃ᵀ S + K̃ ∗ z with S = Σ_j z_j and K̃ = Σ_i K_i: no autograd within a step.

Differs from the released code: v_t's law is N((1 − γ)(v − δ ∇U), 2γ) in the KL (there the drawn v stands for the mean, and 2γ for a
log variance: `released_kl=True`); K starts small and random (there at 0, where its direction has no gradient); log rates are held
in ±10.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from neuropil.brain.coordinated_dropout import coordinated_dropout, passing
from neuropil.brain.spikes import poisson_nll
from neuropil.errors import Refused, choose
from neuropil.nn.checks import at_least, fits, same_kind
from neuropil.nn.modes import evaluating
from neuropil.nn.scan import scan

LATENTS = ("langevin", "free")


class LinePotential(nn.Module):
    """U(z) = Σ_ij ⟨(K ∗ z)_i, z_j⟩ of d = channels · length units, neighbours in a line coupled by K; and its force. O(d).

    >>> U, z = LinePotential(), torch.randn(2, 8, requires_grad=True)
    >>> torch.allclose(U.force(z), torch.autograd.grad(U(z).sum(), z)[0], atol=1e-5)
    True
    """

    def __init__(self, channels: int = 4) -> None:
        super().__init__()
        self.K = nn.Parameter(0.1 * torch.randn(channels, channels, 3))

    def parts(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """K̃ (channels, 3), K̃ ∗ z and S, both (b, 1, length)."""
        channels = len(self.K)
        same_kind("z", z, self.K)
        if not z.shape[-1] or z.shape[-1] % channels:
            raise Refused(f"z: its width must be a multiple of {channels} channels, got {z.shape[-1]}")
        kernel = nn.functional.normalize(self.K, dim=2).sum(0)
        line = z.reshape(-1, channels, z.shape[-1] // channels)
        return kernel, nn.functional.conv1d(line, kernel[None], padding=1), line.sum(1, keepdim=True)

    def forward(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
        """The energy."""
        _, field, total = self.parts(z)
        return (field * total).sum((-1, -2)).reshape(z.shape[:-1])

    def force(self, z: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """∇U."""
        kernel, field, total = self.parts(z)
        return (nn.functional.conv_transpose1d(total, kernel[None], padding=1) + field).reshape(z.shape)

    def hessian(self, d: int) -> Float[Tensor, "d d"]:
        """H with ∇U = H z: for many steps one product of matrices is faster than two convolutions."""
        at_least(1, d=d)
        return self.force(torch.eye(d, dtype=self.K.dtype, device=self.K.device))


def langevin_step(
    z: Float[Tensor, "*b d"],
    v: Float[Tensor, "*b d"],
    force: Callable[[Tensor], Tensor] | None,
    noise: Float[Tensor, "*b d"],
    dt: float = 0.01,
    gamma: float = 0.55,
    symplectic: bool = False,
) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d"], Float[Tensor, "*b d"]]:
    """The new z and v, and the mean of v's law before the noise came in. `force` is z ↦ ∇U.

    `symplectic` takes the force at the new z: with γ = 0 the energy v²/2 + U then stays in a band of width O(dt). O(d).
    `Refused` for a dt that is not finite, or a gamma below 0.

    >>> z, v, mean = langevin_step(torch.zeros(4), torch.ones(4), None, torch.zeros(4), gamma=0.5)
    >>> z[0].item(), v[0].item()
    (0.009999999776482582, 0.5)
    """
    if not (math.isfinite(dt) and 0 <= gamma < math.inf):
        raise Refused(f"dt, gamma: finite numbers and gamma ≥ 0 are needed, got {dt} and {gamma}")
    moved = z + dt * v
    if force is not None:
        v = v - dt * force(moved if symplectic else z)
    mean = (1 - gamma) * v
    return moved, mean + math.sqrt(2 * gamma) * noise, mean


def _linear(H: Tensor) -> Callable[[Tensor], Tensor]:
    """The force z ↦ z H."""

    def force(z: Tensor) -> Tensor:
        fits("z", z, len(H), H)
        return z @ H

    return force


class LangevinFlow(nn.Module):
    """Log rates of all neurons in all bins, from the counts of those seen in the bins observed.

    Args:
        seen: neurons whose counts go in.
        neurons: neurons whose rates come out; the first of them are those that are seen.
        ahead: bins to forecast after the last one observed.
        hidden: width d of h, z and v (a multiple of 4).
        gamma, dt: friction and step.
        potential: False takes the force away.
        latent: "langevin", or "free": z_t, v_t ~ N(W h_t, exp W' h_t) at every bin, a plain sequential autoencoder with the same
            encoder and decoder (prior N(0, 1)).
        dropout: of h and in the decoder.
        feedforward: width of the transformer layer's MLP (512 as published).

    O(t d² + t² d) time and O(t d + t²) memory a trial; the loop over bins goes through `nn.scan`.

    >>> net = LangevinFlow(seen=5, neurons=7, ahead=2, hidden=8, feedforward=16)
    >>> log_rates, kl = net(torch.ones(3, 6, 5))
    >>> log_rates.shape, kl.shape
    (torch.Size([3, 8, 7]), torch.Size([3]))
    """

    def __init__(
        self,
        seen: int,
        neurons: int,
        ahead: int = 0,
        hidden: int = 64,
        gamma: float = 0.55,
        dt: float = 0.01,
        potential: bool = True,
        latent: str = "langevin",
        dropout: float = 0.05,
        feedforward: int = 512,
        released_kl: bool = False,
    ) -> None:
        super().__init__()
        if not 1 <= seen <= neurons or ahead < 0 or hidden < 4 or hidden % 4:
            given = f"{seen}, {neurons}, {ahead} and {hidden}"
            raise Refused(f"seen, neurons, ahead, hidden: 1 ≤ seen ≤ neurons, ahead ≥ 0, a multiple of 4; got {given}")
        if not 0 <= gamma <= 1 or not dt > 0:
            raise Refused(f"gamma, dt: must lie in [0, 1] and above 0, got {gamma} and {dt}")
        at_least(1, feedforward=feedforward)
        self.seen, self.neurons, self.ahead, self.gamma, self.dt = seen, neurons, ahead, gamma, dt
        self.latent, self.released_kl = choose("latent", latent, LATENTS), released_kl
        self.encoder = nn.GRUCell(seen, hidden)
        self.z_mean, self.z_log_var, self.v_mean, self.v_log_var = (nn.Linear(hidden, hidden) for _ in range(4))
        self.potential = LinePotential() if potential and latent == "langevin" else None
        self.decoder = nn.TransformerEncoderLayer(3 * hidden, 2, feedforward, dropout, batch_first=True)
        with torch.no_grad():  # T-Fixup (Huang et al. 2020) for a layer without warm-up
            for weight in (self.decoder.linear1.weight, self.decoder.linear2.weight, self.decoder.self_attn.out_proj.weight):
                weight.mul_(0.67 * 3**-0.25)
        self.readout = nn.Linear(3 * hidden, neurons)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, counts: Shaped[Tensor, "b t n"], generator: torch.Generator | None = None
    ) -> tuple[Float[Tensor, "b s m"], Float[Tensor, " b"]]:
        """Log rates (b, t + ahead, neurons), and each trial's KL divergence in nats, from one draw of the latents."""
        if counts.ndim != 3 or counts.shape[2] != self.seen or not counts.shape[1]:
            raise Refused(f"counts: must be (trials, bins ≥ 1, {self.seen} neurons), got {tuple(counts.shape)}")
        x = counts.to(self.readout.weight.dtype).transpose(0, 1)
        h = self.dropout(self.encoder(x[0]))
        later = torch.cat([x[:-1], x[-1:].expand(self.ahead, *x.shape[1:])])
        source = generator.device if generator is not None else h.device
        shape = (2 * (len(later) + 1), *h.shape)
        noise = torch.randn(shape, generator=generator, device=source, dtype=h.dtype).to(h.device)
        path, kl = (self._langevin if self.latent == "langevin" else self._free)(h, later, noise)
        log_rates = self.readout(self.decoder(path.transpose(0, 1)))
        return log_rates.clamp(-10, 10), kl

    def _start(self, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z and v drawn from the laws that h gives, and both KL divergences to N(0, 1) for each trial."""
        laws = ((self.z_mean(h), self.z_log_var(h)), (self.v_mean(h), self.v_log_var(h)))
        z, v = (mean + (0.5 * log_var).exp() * e for (mean, log_var), e in zip(laws, noise, strict=True))
        return z, v, sum((gaussian_kl(mean, log_var.exp(), 1.0).sum(-1) for mean, log_var in laws), torch.zeros(()))

    def _langevin(self, h: Tensor, later: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        z, v, kl = self._start(h, noise[:2])
        first, width = torch.cat([z, v, h], -1)[None], h.shape[-1]
        if not len(later):
            return first, kl
        H = None if self.potential is None else self.potential.hessian(width)
        force = None if H is None else _linear(H)

        def cell(now: Tensor, state: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
            x, e = now[:, : self.seen], now[:, self.seen :]
            h, z, v = state
            h = self.dropout(self.encoder(x, h))
            z, v, mean = langevin_step(z, v, force, e, self.dt, self.gamma)
            return torch.cat([z, v, h, mean], -1), (h, z, v)

        y, _ = scan(cell, torch.cat([later, noise[2 : 2 + len(later)]], -1), (h, z, v))
        path, mean = y[..., : 3 * width], y[..., 3 * width :]
        if self.released_kl:
            steps = gaussian_kl(path[..., width : 2 * width], torch.as_tensor(2 * self.gamma).exp(), 0.1)
        else:
            steps = gaussian_kl(mean, torch.as_tensor(max(2 * self.gamma, 1e-12)), 0.1)
        return torch.cat([first, path]), kl + steps.sum((0, -1))

    def _free(self, h: Tensor, later: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        def cell(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
            h = self.dropout(self.encoder(x, h))
            return h, h

        h = torch.cat([h[None], scan(cell, later, h)[0]]) if len(later) else h[None]
        z, v, kl = self._start(h, noise.unflatten(0, (2, -1)))
        return torch.cat([z, v, h], -1), kl.sum(0)

    def rates(
        self, counts: Shaped[Tensor, "b t n"], samples: int = 10, generator: torch.Generator | None = None
    ) -> Float[Tensor, "b s m"]:
        """Spikes a bin, the mean over `samples` draws of the latents; without gradients, without dropout."""
        if samples < 1:
            raise Refused(f"samples: must be at least 1, got {samples}")
        with torch.no_grad(), evaluating(self):
            return torch.stack([self(counts, generator)[0].exp() for _ in range(samples)]).mean(0)

    def loss(
        self,
        counts: Shaped[Tensor, "b t n"],
        targets: Shaped[Tensor, "b s m"],
        ramp: float = 1.0,
        keep: float = 0.5,
        weight: float = 0.1,
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, ""]:
        """The objective on trials: `counts` seen, `targets` of all neurons in all bins (observed and ahead).

        `keep` is the share of coordinated dropout (1: none, and all gradients pass); `ramp` goes from 0 to 1 over training.
        """
        x = counts.to(self.readout.weight.dtype)
        if keep < 1:
            x, passes = coordinated_dropout(x, keep, generator)
        log_rates, kl = self(x, generator)
        nll = poisson_nll(log_rates, targets)
        if keep < 1:
            nll = passing(nll, passes)
        return nll.mean() + weight * ramp * kl.mean()


def gaussian_kl(mean: Float[Tensor, "*b"], variance: Float[Tensor, "*#b"], prior: float) -> Float[Tensor, "*b"]:
    """KL(N(mean, variance) ‖ N(0, prior)) in nats, for each number; infinite at a variance of 0. `Refused` for a prior not above 0.

    >>> gaussian_kl(torch.zeros(1), torch.ones(1), 1.0)
    tensor([0.])
    """
    if not 0 < prior < math.inf:
        raise Refused(f"prior: must be above 0 and finite, got {prior}")
    ratio = variance / prior
    return 0.5 * (ratio - 1 - ratio.log() + mean.square() / prior)
