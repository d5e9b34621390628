"""Hidden Markov chains: posteriors, best paths, likelihoods and samples, batched over chains; time is the only loop.

α_1 = π ∘ b_1,   α_t = b_t ∘ (Pᵀ α_{t−1})          β_T = 1,   β_t = P (b_{t+1} ∘ β_{t+1})          p(x) = Σ_s α_T(s)
γ_t(s) = α_t(s) β_t(s) / p(x)              ξ_t(i, j) = α_t(i) P_ij b_{t+1}(j) β_{t+1}(j) / p(x)

b_t(s) = p(x_t | state s) comes as its logarithm; all is done in log space and double precision, so that nothing underflows: a
state may be 10⁵ nats worse than another. A bin that was not seen (`mask`) says nothing: b_t = 1. Chains of different lengths are
padded with such bins; bins after a chain's last one seen have γ = 0 and path 0. On the CPU, where numba is installed, the passes
are compiled (`hidden_markov_cpu`); else they run through `nn.scan` on the tensors' device.

Baum et al. 1970, doi:10.1214/aoms/1177697196; Viterbi 1967; as in Rabiner 1989, doi:10.1109/5.18626.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from neuropil.errors import Refused, choose
from neuropil.nn.checks import filled
from neuropil.nn.scan import scan
from neuropil.numerics.threads import numba_is_there


@dataclass(frozen=True)
class Posterior:
    """γ (b, t, s); ξ summed over time (b, s, s), or each of it (b, t − 1, s, s); log p(x) (b,), double, in nats."""

    gamma: Float[Tensor, "b t s"]
    xi: Float[Tensor, "b *t s s"]
    log_likelihood: Float[Tensor, " b"]


def forward_backward(
    log_emission: Float[Tensor, "b t s"],
    transition: Float[Tensor, "s s"],
    start: Float[Tensor, " s"] | None = None,
    mask: Bool[Tensor, "b t"] | None = None,
    xi: str = "sum",
) -> Posterior:
    """What the whole of each chain tells about its state at every bin and about every step.

    Args:
        log_emission: log b_t(s), in nats; −∞ where a state cannot have emitted.
        transition: P_ij = p(j next | i); rows sum to 1.
        start: π; None: even.
        mask: True where a bin was seen; None: all.
        xi: "sum" over time, or "full".

    γ and ξ have the dtype of `log_emission` and no gradient (see `log_likelihood`). O(b t s²) time; O(b t s) memory, times s for
    full ξ and where numba is not used. `Refused` for a P or π that are no probabilities, a chain without a bin seen, or one that
    is impossible (p(x) = 0).

    >>> found = forward_backward(torch.tensor([[[0.0, -9.0], [0.0, 0.0], [-9.0, 0.0]]]), torch.tensor([[0.9, 0.1], [0.1, 0.9]]))
    >>> found.gamma[0].argmax(-1).tolist(), round(float(found.xi.sum()), 4)
    ([0, 0, 1], 2.0)
    """
    full = choose("xi", xi, ("sum", "full")) == "full"
    dtype = log_emission.dtype
    log_b, log_p, log_start, lengths = _prepared(log_emission, transition, start, mask)
    if _compiled(log_b):
        from neuropil.numerics import hidden_markov_cpu

        gamma, pairs, total = hidden_markov_cpu.posterior(log_b, log_p, log_start, lengths, full)
    else:
        gamma, pairs, total = _posterior(log_b, log_p, log_start, lengths, full)
    if not bool(total.isfinite().all()):
        raise Refused(
            f"log_emission: chain {int((~total.isfinite()).nonzero()[0])} has probability 0, or values that are no numbers"
        )
    return Posterior(gamma.to(dtype), (pairs if full else pairs[:, 0]).to(dtype), total)


def log_likelihood(
    log_emission: Float[Tensor, "b t s"],
    transition: Float[Tensor, "s s"],
    start: Float[Tensor, " s"] | None = None,
    mask: Bool[Tensor, "b t"] | None = None,
) -> Float[Tensor, " b"]:
    """log p(x) of each chain in nats, double, by the forward pass alone; differentiable: ∂ log p(x) / ∂ log b_t(s) = γ_t(s).

    O(b t s²) time; through `nn.scan`, so that it takes some 50 µs a bin whatever b. `Refused` as for `forward_backward`, but an
    impossible chain gives −∞.

    >>> log_likelihood(torch.zeros(1, 4, 2), torch.full((2, 2), 0.5)).exp()
    tensor([1.], dtype=torch.float64)
    """
    log_b, log_p, log_start, _ = _prepared(log_emission, transition, start, mask)
    return _forward(log_b, log_p, log_start)[-1].logsumexp(-1)


def viterbi(
    log_emission: Float[Tensor, "b t s"],
    transition: Float[Tensor, "s s"],
    start: Float[Tensor, " s"] | None = None,
    mask: Bool[Tensor, "b t"] | None = None,
) -> tuple[Int[Tensor, "b t"], Float[Tensor, " b"]]:
    """The one most probable path of each chain, and log p(path, x), double. Arguments, cost and errors as `forward_backward`.

    >>> viterbi(torch.tensor([[[0.0, -9.0], [0.0, 0.0], [-9.0, 0.0]]]), torch.tensor([[0.9, 0.1], [0.2, 0.8]]))[0]
    tensor([[0, 0, 1]])
    """
    log_b, log_p, log_start, lengths = _prepared(log_emission, transition, start, mask)
    if _compiled(log_b):
        from neuropil.numerics import hidden_markov_cpu

        path, best = hidden_markov_cpu.viterbi(log_b, log_p, log_start, lengths)
    else:
        path, best = _viterbi(log_b, log_p, log_start, lengths)
    if not bool(best.isfinite().all()):
        raise Refused(
            f"log_emission: chain {int((~best.isfinite()).nonzero()[0])} has probability 0, or values that are no numbers"
        )
    return path, best


def sample_chain(
    chains: int,
    length: int,
    transition: Float[Tensor, "s s"],
    start: Float[Tensor, " s"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "{chains} {length}"]:
    """Paths drawn from the chain: z_1 ~ π (None: even), z_{t+1} ~ P[z_t]. O(chains length s). `Refused` for none of either.

    >>> sample_chain(2, 4, torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([1.0, 0.0]))
    tensor([[0, 1, 0, 1], [0, 1, 0, 1]])
    """
    if min(chains, length) < 1:
        raise Refused(f"chains, length: at least 1, got {chains} and {length}")
    start = _probabilities(transition, start)
    device = transition.device if generator is None else generator.device
    u = torch.rand(length, chains, generator=generator, device=device).to(transition.device)
    below = torch.cat([transition, start[None]]).cumsum(-1)[:, :-1].contiguous()  # row s of the table: how a path begins
    begin = torch.full((chains,), len(start), device=transition.device)

    def step(u_t: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        z = (u_t[:, None] >= below[z]).sum(-1)
        return z.to(u.dtype), z

    return scan(step, u, begin)[0].long().T.contiguous()


def _probabilities(transition: Tensor, start: Tensor | None) -> Tensor:
    """π; `Refused` unless P and π are probabilities of at least one state."""
    filled("transition", transition)
    s = len(transition)
    start = transition.new_full((s,), 1 / s) if start is None else start
    rows = torch.cat([transition.detach(), start.detach().to(transition)[None]])
    if not bool(((rows >= 0).all(-1) & ((rows.sum(-1) - 1).abs() < 1e-4)).all()):
        raise Refused("transition, start: each row must be probabilities (≥ 0, with sum 1)")
    return start


def _prepared(
    log_emission: Tensor, transition: Tensor, start: Tensor | None, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """log b, log P, log π in double, and the number of bins of each chain up to the last one seen."""
    b, t, _ = log_emission.shape
    if min(b, t) < 1:
        raise Refused(f"log_emission: at least one chain of one bin is needed, got shape {tuple(log_emission.shape)}")
    start = _probabilities(transition, start)
    log_b = log_emission.double()
    lengths = torch.full((b,), t, device=log_b.device)
    if mask is not None:
        log_b = log_b.masked_fill(~mask[..., None], 0.0)
        lengths = (mask * torch.arange(1, t + 1, device=mask.device)).amax(-1)
        if not bool((lengths > 0).all()):
            raise Refused(f"mask: chain {int((lengths == 0).nonzero()[0])} has no bin seen")
    return log_b, transition.double().log(), start.double().log(), lengths


def _compiled(log_b: Tensor) -> bool:
    return log_b.device.type == "cpu" and numba_is_there()


def _forward(log_b: Tensor, log_p: Tensor, log_start: Tensor) -> Tensor:
    """log α, time first. Bins after the last one seen are predictions and leave Σ_s α as it is."""
    first = (log_start + log_b[:, 0])[None]
    if log_b.shape[1] == 1:
        return first

    def step(log_b_t: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
        alpha = log_b_t + (alpha[:, :, None] + log_p).logsumexp(1)
        return alpha, alpha

    return torch.cat([first, scan(step, log_b[:, 1:].transpose(0, 1), first[0])[0]])


@torch.no_grad()
def _posterior(log_b: Tensor, log_p: Tensor, log_start: Tensor, lengths: Tensor, full: bool) -> tuple[Tensor, Tensor, Tensor]:
    alpha, t = _forward(log_b, log_p, log_start).transpose(0, 1), log_b.shape[1]
    total = alpha[:, -1].logsumexp(-1)
    beta = torch.zeros_like(log_b)
    if t > 1:

        def step(log_b_next: Tensor, later: Tensor) -> tuple[Tensor, Tensor]:
            later = (log_p + (log_b_next + later)[:, None]).logsumexp(-1)
            return later, later

        beta[:, :-1] = scan(step, log_b[:, 1:].flip(1).transpose(0, 1), beta[:, -1])[0].transpose(0, 1).flip(1)
    seen = torch.arange(t, device=log_b.device) < lengths[:, None]
    gamma = (alpha + beta - total[:, None, None]).exp() * seen[..., None]
    ahead = log_b[:, 1:] + beta[:, 1:] - total[:, None, None]
    steps = (alpha[:, :-1, :, None] + log_p + ahead[:, :, None]).exp() * seen[:, 1:, None, None]
    return gamma, steps if full else steps.sum(1, keepdim=True), total


@torch.no_grad()
def _viterbi(log_b: Tensor, log_p: Tensor, log_start: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    b, t, s = log_b.shape
    best = log_start + log_b[:, 0]
    came = torch.zeros(t, b, s, device=log_b.device, dtype=log_b.dtype)
    seen = torch.arange(t, device=log_b.device)[:, None] < lengths
    if t > 1:

        def forth(x: Tensor, best: Tensor) -> tuple[Tensor, Tensor]:
            value, at = (best[:, :, None] + log_p).max(1)
            stays = torch.arange(s, device=at.device).expand_as(at)  # after the last bin seen the path stays where it is
            inside = x[:, s:] > 0
            return torch.where(inside, at, stays).to(x.dtype), torch.where(inside, value + x[:, :s], best)

        inputs = torch.cat([log_b.transpose(0, 1), seen[..., None].to(log_b.dtype)], -1)
        came[1:], best = scan(forth, inputs[1:], best)
    last = best.argmax(-1)

    def back(at: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        return z.to(at.dtype), at.gather(1, z[:, None])[:, 0].long()

    path = scan(back, came.flip(0), last)[0].flip(0).long()
    return (path * seen).T.contiguous(), best.gather(1, last[:, None])[:, 0]
