"""A simulator, not data: neural masses on a connectome, and the BOLD signal that their activity would cause.

Wilson–Cowan node k (fractions E, I of active cells; τ in s, inputs without unit):
    τ_E Ė_k = −E_k + (1 − E_k) S(c_EE E_k − c_EI I_k + K Σ_l C_kl E_l + P_E)
    τ_I İ_k = −I_k + (1 − I_k) S(c_IE E_k − c_II I_k + P_I)
    S(x) = 1 / (1 + exp(−a (x − μ))),     plus σ dW on both
Balloon–Windkessel (s signal, f flow, v volume, q deoxyhaemoglobin; z the activity, rest at z = 0: s = 0, f = v = q = 1):
    ṡ = z − κ s − γ (f − 1),   ḟ = s,   τ v̇ = f − v^(1/α),   τ q̇ = f (1 − (1 − ρ)^(1/f)) / ρ − q v^(1/α − 1)
    BOLD = V₀ (k₁ (1 − q) + k₂ (1 − q/v) + k₃ (1 − v)),     k₁ = 7ρ, k₂ = 2, k₃ = 2ρ − 0.2

Sources: Wilson & Cowan 1972, values as in neurolib (Cakan, Jajcay & Obermayer 2023); Friston et al. 2000, by default with the prior
means of SPM12's dynamic causal models, whose response is slower than that of Friston et al. 2003 (`FRISTON_2003`, as in neurolib).
Differs from neurolib: no conduction delays, white noise instead of Ornstein–Uhlenbeck, steps of higher order, a start at rest.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.numerics.integrate import odeint, sdeint

_LEAST = 1e-3  # of flow and volume: a deep undershoot must not make the powers complex


@dataclass(frozen=True)
class WilsonCowan:
    """Excitatory and inhibitory masses; time constants in s. The defaults rest at low activity and oscillate for `P_E` near 1."""

    tau_E: float = 0.0025
    tau_I: float = 0.00375
    c_EE: float = 16.0
    c_EI: float = 12.0
    c_IE: float = 15.0
    c_II: float = 3.0
    a: float = 1.5
    mu: float = 3.0
    P_E: float = 0.0
    P_I: float = 0.0
    coupling: float = 0.6

    def drift(self, y: Float[Tensor, "2 *b n"], C: Float[Tensor, "*#b n n"]) -> Float[Tensor, "2 *b n"]:
        """d(E, I)/dt in 1/s of n nodes coupled by C[to, from]. O(b n²)."""
        E, I = y
        others = self.coupling * (C @ E[..., None])[..., 0]
        S_E = torch.sigmoid(self.a * (self.c_EE * E - self.c_EI * I + others + self.P_E - self.mu))
        S_I = torch.sigmoid(self.a * (self.c_IE * E - self.c_II * I + self.P_I - self.mu))
        return torch.stack([(-E + (1 - E) * S_E) / self.tau_E, (-I + (1 - I) * S_I) / self.tau_I])


@dataclass(frozen=True)
class Balloon:
    """Haemodynamics of a region; κ, γ in 1/s, τ in s. A pulse of 1 s has its peak 4.5 s after its start, then an undershoot."""

    kappa: float = 0.64
    gamma: float = 0.32
    tau: float = 2.0
    alpha: float = 0.32
    rho: float = 0.4
    V0: float = 0.02

    def drift(self, y: Float[Tensor, "4 *n"], z: Float[Tensor, "*n"]) -> Float[Tensor, "4 *n"]:
        """d(s, f, v, q)/dt in 1/s."""
        s, f, v, q = y
        flow, volume = f.clamp(min=_LEAST), v.clamp(min=_LEAST)
        taken = (1 - (1 - self.rho) ** (1 / flow)) / self.rho
        return torch.stack(
            [
                z - self.kappa * s - self.gamma * (f - 1),
                s,
                (flow - volume ** (1 / self.alpha)) / self.tau,
                (flow * taken - q * volume ** (1 / self.alpha - 1)) / self.tau,
            ]
        )

    def signal(self, y: Float[Tensor, "t 4 *n"]) -> Float[Tensor, "t *n"]:
        """BOLD over time, as a share of the resting signal."""
        _, _, v, q = y.unbind(1)
        rho = self.rho
        return self.V0 * (7 * rho * (1 - q) + 2 * (1 - q / v) + (2 * rho - 0.2) * (1 - v))


def haemodynamic_response(
    activity: Float[Tensor, "t *n"], rate: float, tr: float, balloon: Balloon | None = None, step: float = 0.02
) -> Float[Tensor, "s *n"]:
    """BOLD at 0, tr, 2 tr … s of activity sampled at `rate` Hz (linear between samples), from rest.

    Runge–Kutta steps of at most `step` s; O(t / (rate · step)) steps, batched over n. `Refused` for a rate, tr or step not above 0,
    or an activity shorter than one tr.

    >>> pulse = torch.zeros(300, 1)
    >>> pulse[:10] = 1.0  # 1 s at 10 Hz
    >>> bold = haemodynamic_response(pulse, rate=10.0, tr=0.5)
    >>> bold.shape, 4 <= 0.5 * int(bold.argmax()) <= 6
    (torch.Size([60, 1]), True)
    """
    for name, value in (("rate", rate), ("tr", tr), ("step", step)):
        if not value > 0:
            raise Refused(f"{name}: must be above 0, got {value}")
    length = (len(activity) - 1) / rate
    samples = int(length / tr + 1e-6) + 1
    if samples < 2:
        raise Refused(f"activity: {length:g} s are shorter than one tr of {tr:g} s")
    balloon = balloon or Balloon()
    times = torch.arange(samples, dtype=torch.float64) * tr
    rest = torch.ones((4, *activity.shape[1:]), dtype=activity.dtype, device=activity.device)
    rest[0] = 0

    def drift(t: Tensor, y: Tensor) -> Tensor:
        place = (t * rate).clamp(0, len(activity) - 1)
        before = place.floor().long().clamp(max=len(activity) - 2)
        return balloon.drift(y, torch.lerp(activity[before], activity[before + 1], (place - before).to(activity.dtype)))

    path = odeint(drift, rest, times, substeps=math.ceil(tr / step - 1e-6))
    return balloon.signal(path)


FRISTON_2003 = Balloon(kappa=0.65, gamma=0.41, tau=0.98, alpha=0.32, rho=0.34)  # peaks at 3.4 s


@dataclass(frozen=True)
class SimulatedBold:
    """What the simulator made: excitatory `activity` (t, …, n) at `rate` Hz, `bold` (s, …, n) every `tr` s, and C (…, n, n)."""

    activity: Float[Tensor, "t *b n"]
    rate: float
    bold: Float[Tensor, "s *b n"]
    tr: float
    connectivity: Float[Tensor, "*c n n"]


def simulate_bold(
    structural: Float[Tensor, "*b n n"],
    seconds: float,
    tr: float = 0.72,
    noise: float = 0.05,
    masses: WilsonCowan | None = None,
    balloon: Balloon | None = None,
    generator: torch.Generator | None = None,
    step: float = 0.0005,
) -> SimulatedBold:
    """Simulated BOLD of n regions coupled by `structural`, say ``data.bold().structural``.

    Args:
        structural: weights [to, from], streamline counts or any others from 0 up; its diagonal is set to 0 and its
            greatest weight to 1; a batch (subjects, say) is simulated side by side.
        noise: σ, in 1/√s, on the share of active cells; it is what makes regions at rest fluctuate.
        step: of the masses in s; activity is kept every 10 ms and drives the haemodynamics, from rest: drop the first 15 s.

    The default masses rest far from their oscillation and hardly feel each other; on HCP's first connectome, 60 s of
    ``WilsonCowan(P_E=0.65, coupling=1.5)`` gave BOLD whose correlations go with log streamlines at r = 0.20 (one seed).

    O(seconds / step) steps of O(b n²): about 0.7 s a simulated second of 94 regions on one core. `Refused` for weights below 0 or
    not finite.

    >>> simulated = simulate_bold(torch.ones(3, 3), seconds=2.0, tr=1.0, step=0.002)
    >>> simulated.activity.shape, simulated.bold.shape
    (torch.Size([201, 3]), torch.Size([3, 3]))
    """
    if structural.shape[-1] != structural.shape[-2]:
        raise Refused(f"structural: must be square, got {tuple(structural.shape)}")
    if not bool(((structural >= 0) & structural.isfinite()).all()):
        raise Refused("structural: weights must be finite and at least 0")
    if not 0 < step <= 0.01:
        raise Refused(f"step: must lie in (0, 0.01] s, got {step}")
    if not seconds >= tr:
        raise Refused(f"seconds: at least one tr of {tr:g} s, got {seconds}")
    masses, rate = masses or WilsonCowan(), 100.0
    C = structural * (1 - torch.eye(structural.shape[-1], dtype=structural.dtype, device=structural.device))
    C = C / C.amax((-1, -2), keepdim=True).clamp(min=torch.finfo(C.dtype).tiny)
    times = torch.arange(round(seconds * rate) + 1, dtype=torch.float64) / rate
    start = torch.full((2, *C.shape[:-1]), 0.01, dtype=C.dtype, device=C.device)
    path = sdeint(
        lambda t, y: masses.drift(y, C),
        lambda t, y: torch.full_like(y, noise),
        start,
        times,
        generator,
        method="heun_stratonovich",  # of second order where noise is small
        substeps=math.ceil(1 / (rate * step) - 1e-6),
    )
    activity = path[:, 0]
    return SimulatedBold(activity, rate, haemodynamic_response(activity, rate, tr, balloon), tr, C)
