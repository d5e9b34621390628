"""HMM-GLM: coupled Poisson neurons whose couplings switch between hidden states, with three priors on what the states share.

z_t ~ P[z_{t−1}],   f_{t,n} = act(b_n + Σ_n' w_{s,n←n'} Σ_{k=1..K} φ_k x_{t−k,n'}),  s = z_t,   x_{t,n} ~ Poisson(f_{t,n})

naive      w_s free
gaussian   w_s ~ N(μ, σ²), μ = mean over the states, σ = 1/3
one-hot    w_s = (a_{s,exc} − a_{s,inh}) softplus(strength_s),   a_s on the simplex of (inhibitory, none, excitatory) for each pair,
           a_s ~ GumbelSoftmax(π, τ) with one π for all states, learned: a guess at the wiring that does not change

EM: γ, ξ of all trials by forward-backward; then `steps` of Adam on −Σ γ log p(x | s) − log prior, and P ∝ ξ in closed form. While
it is fitted the one-hot model takes a Gumbel-softmax sample of a_s at every step; it is judged by its arg max.

Li, Kim, Rodgers, Choi & Wu 2024, arXiv:2310.15263 (ICLR). Differs from the authors' code:
- every M-step sees all trials and the prior counts once, as the posterior says; theirs goes trial by trial, with the whole prior
  for each (`prior_weight` = the number of trials);
- all priors may start from the same model; theirs starts all states alike, a saddle that free and Gaussian couplings leave only by
  rounding, while the samples of the one-hot model leave it at once;
- their demo hands π to the density where log π is due, so that its prior is nearly even; here it is the paper's;
- their term of the initial state, a constant, is left out.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad, softplus

from neuropil.brain.estimator import Estimator, as_tensor
from neuropil.brain.spikes import poisson_nll
from neuropil.data.spike_simulators import ACTIVATIONS, exponential_kernel, stay_or_switch
from neuropil.errors import Refused, choose
from neuropil.nn.checks import at_least, filled, numbers, same_kind, some
from neuropil.nn.choice import gumbel_simplex, gumbel_simplex_log_prob
from neuropil.numerics.hidden_markov import Posterior, forward_backward, sample_chain, viterbi

ROWS = 1024  # bins that are worked on at a time: their rates stay in the cache
SHARP = 5.0  # nats of log a for a coupling of 1 where a one-hot model begins with given weights
LEAST = 1e-30  # the least rate a bin whose logarithm is taken


def history(counts: Float[Tensor, "b t n"], kernel: Float[Tensor, " k"]) -> Float[Tensor, "b t n"]:
    """Σ_k φ_k x_{t−k} with k = 1 … K: bin t does not see itself; before the first bin there is nothing. O(b t n k).

    >>> history(torch.tensor([[[1.0], [0.0], [0.0]]]), torch.tensor([0.7, 0.3]))[0, :, 0]
    tensor([0.0000, 0.7000, 0.3000])
    """
    some("counts", counts, 1)
    same_kind("kernel", kernel, counts)
    k, t = len(kernel), counts.shape[1]
    windows = pad(counts, (0, 0, k, 0))[:, : t + k - 1].unfold(1, k, 1)  # of bin t: x_{t−k} … x_{t−1}
    return windows @ kernel.flip(0)


class _ExpectedLogLikelihood(torch.autograd.Function):
    """Σ_{t,s,n} γ_ts (x_tn log f_tsn − f_tsn) and its gradient in one pass, ROWS bins at a time: no rate of all bins is kept."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, bias: Tensor, h: Tensor, x: Tensor, gamma: Tensor, activation: str) -> Tensor:
        s, n, _ = weights.shape
        flat = weights.reshape(s * n, n)
        total = weights.new_zeros(())
        by_weights, by_bias = torch.zeros_like(flat), weights.new_zeros(s, n)
        for h_t, x_t, g_t in zip(h.split(ROWS), x.split(ROWS), gamma.split(ROWS), strict=True):
            drive = (h_t @ flat.T).view(-1, s, n) + bias
            rate = ACTIVATIONS[activation](drive)
            seen, g_t = x_t[:, None], g_t[..., None]
            total += (g_t * torch.addcmul(-rate, seen, rate.clamp_min(LEAST).log())).sum()
            slope = (1 - rate) if activation == "sigmoid" else torch.sigmoid(drive) / rate.clamp_min(LEAST)  # d log f / d drive
            of_drive = (seen - rate).mul_(slope).mul_(g_t)
            by_weights += of_drive.view(-1, s * n).T @ h_t
            by_bias += of_drive.sum(0)
        ctx.save_for_backward(by_weights.view(s, n, n), by_bias)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        by_weights, by_bias = ctx.saved_tensors
        return g * by_weights, g * by_bias, None, None, None, None


def expected_log_likelihood(
    weights: Float[Tensor, "s n n"],
    bias: Float[Tensor, "s n"],
    past: Float[Tensor, "m n"],
    counts: Float[Tensor, "m n"],
    gamma: Float[Tensor, "m s"],
    activation: str = "sigmoid",
) -> Float[Tensor, ""]:
    """Σ γ_ts (x_tn log f_tsn − f_tsn) over m bins: what the M-step raises, in nats, without the constant Σ log x!.

    Differentiable once, in weights and bias. O(m s n²) time; O(s n² + 1024 s n) memory beyond the arguments.

    >>> one = torch.ones(1, 1)
    >>> expected_log_likelihood(torch.zeros(1, 1, 1), torch.zeros(1, 1), one, 2 * one, one)  # 2 log ½ − ½
    tensor(-1.8863)
    """
    choose("activation", activation, ACTIVATIONS)
    some("weights", weights, 0)
    for name, value in (("bias", bias), ("past", past), ("counts", counts)):
        same_kind(name, value, weights)
    return _ExpectedLogLikelihood.apply(weights, bias, past, counts, gamma, activation)  # type: ignore[no-untyped-call,no-any-return]


class Couplings(nn.Module):
    """w_s of s states among n neurons, free: the naive model. The others change how w_s is made and how likely it is."""

    def __init__(self, states: int, neurons: int) -> None:
        super().__init__()
        at_least(1, states=states, neurons=neurons)
        self.w = nn.Parameter(torch.zeros(states, neurons, neurons))

    @torch.no_grad()
    def begin(self, weights: Float[Tensor, "s n n"]) -> None:
        """Start from these."""
        self.w.copy_(weights)

    def sample(self, generator: torch.Generator) -> Float[Tensor, "s n n"]:
        """The weights of one step of fitting."""
        return self.w

    def weights(self) -> Float[Tensor, "s n n"]:
        """The weights to be judged by."""
        return self.w.detach().clone()

    def log_prior(self) -> Float[Tensor, ""]:
        """In nats."""
        return self.w.new_zeros(())

    def guard(self) -> None:
        """After each step."""


class GaussianCouplings(Couplings):
    """w_s ~ N(μ, σ²) with μ = mean_s w_s, which is the likeliest and carries no gradient."""

    def __init__(self, states: int, neurons: int, sigma: float) -> None:
        super().__init__(states, neurons)
        self.sigma = sigma

    def log_prior(self) -> Float[Tensor, ""]:
        """In nats."""
        return torch.distributions.Normal(self.w.detach().mean(0), self.sigma, validate_args=False).log_prob(self.w).sum()


class OneHotCouplings(Couplings):
    """w_s = (a_exc − a_inh) softplus(strength), a_s ~ GumbelSoftmax(π, τ); `temperature` is that of the samples while fitting."""

    def __init__(self, states: int, neurons: int, tau: float, temperature: float) -> None:
        super().__init__(states, neurons)
        self.tau, self.temperature = tau, temperature
        self.adjacency = nn.Parameter(torch.zeros(states, neurons, neurons, 3))  # logits of a
        self.prior = nn.Parameter(torch.zeros(neurons, neurons, 3))  # logits of π

    @torch.no_grad()
    def begin(self, weights: Float[Tensor, "s n n"]) -> None:
        """Start with "none" where |w| is below half of the strength that all begin with, the more surely the farther from it."""
        half = 0.5 * softplus(self.w)
        self.adjacency.copy_(SHARP * torch.stack([-weights, half, weights], -1))
        self.w.copy_(weights.abs().maximum(half).expm1().log())

    def sample(self, generator: torch.Generator) -> Float[Tensor, "s n n"]:
        """With a soft sample of a_s."""
        a = gumbel_simplex(self.adjacency, self.temperature, generator=generator)
        return (a[..., 2] - a[..., 0]) * softplus(self.w)

    def signs(self) -> Int[Tensor, "s n n"]:
        """arg max a_s as −1, 0 or 1."""
        return self.adjacency.detach().argmax(-1) - 1

    def weights(self) -> Float[Tensor, "s n n"]:
        """With the arg max of a_s."""
        return self.signs() * softplus(self.w.detach())

    def log_prior(self) -> Float[Tensor, ""]:
        """In nats."""
        return gumbel_simplex_log_prob(self.adjacency.softmax(-1), self.prior, self.tau).sum()

    @torch.no_grad()
    def guard(self) -> None:
        """Halve the logits where a class is less likely than e^−20: the density grows without bound toward the corners."""
        for logits in (self.adjacency, self.prior):
            extreme = (logits.log_softmax(-1) < -20).any(-1, keepdim=True)
            logits.mul_(torch.where(extreme, 0.5, 1.0))


class HMMGLM(Estimator):
    """The switching model in scikit-learn's manner, on counts (trials, bins, neurons).

    Args:
        states: S; 1 is the plain coupled Poisson GLM.
        prior: "naive", "gaussian" or "one-hot".
        activation: "sigmoid" (at most one spike a bin is expected) or "softplus".
        bins: K of the kernel φ_k ∝ e^−k.
        sweeps, steps: EM sweeps, and Adam's steps in each M-step.
        lr: Adam's rate.
        bias: "shared" by the states, or one for each "state".
        self_coupling: False: no neuron acts on itself.
        sigma, tau, temperature, prior_weight: of the priors (module's docstring); the weight counts the prior so many times.
        stay: the chance to stay in a state, of P at first and of the random path of states it begins with.
        restarts: as many fits from different paths; the one with the likeliest training data is kept.
        seed: of paths and samples.

    `fit` gives `weights_` (s, n, n) from column to row, `adjacency_` their signs (one-hot only), `bias_` (s, n), `transition_`
    (s, s), `couplings_` (the module, with what it learned of the prior), `log_likelihoods_` of the training data in nats after each
    sweep. O(sweeps steps t s n²) time for t bins in all: 10 × 50 steps on 30,000 bins of 20 neurons with 5 states take some 12 s on
    one core. `Refused` for bad arguments, and for counts that are negative or not finite.

    >>> counts = torch.poisson(torch.full((2, 60, 3), 0.5))
    >>> model = HMMGLM(states=2, sweeps=2, steps=5).fit(counts)
    >>> model.predict(counts).shape, model.predict_proba(counts).shape, model.weights_.shape
    (torch.Size([2, 60]), torch.Size([2, 60, 2]), torch.Size([2, 3, 3]))
    """

    _estimator_type = "clusterer"
    weights_: Tensor
    adjacency_: Tensor
    bias_: Tensor
    transition_: Tensor
    kernel_: Tensor
    couplings_: Couplings
    log_likelihoods_: list[float]

    def __init__(
        self,
        states: int = 3,
        prior: str = "one-hot",
        *,
        activation: str = "sigmoid",
        bins: int = 5,
        sweeps: int = 10,
        steps: int = 50,
        lr: float = 0.01,
        bias: str = "shared",
        self_coupling: bool = True,
        sigma: float = 1 / 3,
        tau: float = 0.2,
        temperature: float = 0.2,
        prior_weight: float = 1.0,
        stay: float = 0.98,
        restarts: int = 1,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.states, self.prior, self.activation, self.bins = states, prior, activation, bins
        self.sweeps, self.steps, self.lr, self.bias, self.self_coupling = sweeps, steps, lr, bias, self_coupling
        self.sigma, self.tau, self.temperature, self.prior_weight = sigma, tau, temperature, prior_weight
        self.stay, self.restarts, self.seed, self.device = stay, restarts, seed, device

    def fit(
        self,
        counts: Any,
        y: None = None,
        *,
        mask: Bool[Tensor, "b t"] | None = None,
        start: "Float[Tensor, 'b t s'] | HMMGLM | None" = None,
    ) -> "HMMGLM":
        """EM on the bins where `mask` is True (default: all; a bin that was not seen counts as silent in the history of others).

        It begins with the posterior `start`, or a fitted model (its posterior, weights, bias and P); default: a random path.
        """
        self._check()
        x, seen = self._counts(counts, mask)
        if isinstance(start, Tensor) and start.shape != (*x.shape[:2], self.states):
            raise Refused(f"start: must have shape {(*x.shape[:2], self.states)}, got {tuple(start.shape)}")
        if isinstance(start, HMMGLM) and start.fitted("weights_").shape != (self.states, x.shape[2], x.shape[2]):
            raise Refused(
                f"start: a model of {self.states} states and {x.shape[2]} neurons is needed, got {tuple(start.weights_.shape)[:2]}"
            )
        best: HMMGLM | None = None
        for number in range(self.restarts):
            generator = torch.Generator().manual_seed(self.seed + 7919 * number)
            tried = type(self)(**self.get_params())
            tried._fit(x, seen, start, generator)
            if best is None or tried.log_likelihoods_[-1] > best.log_likelihoods_[-1]:
                best = tried
        assert best is not None
        self.__dict__.update({name: value for name, value in vars(best).items() if name.endswith("_")})
        return self

    def predict(self, counts: Any, mask: Bool[Tensor, "b t"] | None = None) -> Int[Tensor, "b t"]:
        """The most probable path of states (Viterbi)."""
        log_b, seen = self._log_emission(counts, mask)
        return viterbi(log_b, self.transition_, mask=seen)[0]

    def predict_proba(self, counts: Any, mask: Bool[Tensor, "b t"] | None = None) -> Float[Tensor, "b t s"]:
        """γ: the probability of each state at each bin."""
        return self._posterior(counts, mask).gamma

    def log_likelihood(self, counts: Any, mask: Bool[Tensor, "b t"] | None = None) -> Float[Tensor, " b"]:
        """log p(counts) of each trial in nats, over all paths of states."""
        return self._posterior(counts, mask).log_likelihood

    def score(self, counts: Any, y: None = None, mask: Bool[Tensor, "b t"] | None = None) -> float:  # type: ignore[override]
        """log p(counts) in nats a spike. `Refused` where there is none."""
        total = float(self.log_likelihood(counts, mask).sum())
        x, seen = self._counts(counts, mask)
        spikes = float((x * seen[..., None]).sum())
        if not spikes > 0:
            raise Refused("counts: a score a spike needs at least one spike, got none")
        return total / spikes

    def _fit(self, x: Tensor, seen: Tensor, start: "Tensor | HMMGLM | None", generator: torch.Generator) -> None:
        trials, length, n = x.shape
        s, device = self.states, x.device
        self.kernel_, self.transition_ = exponential_kernel(self.bins).to(device), stay_or_switch(s, self.stay).to(device)
        self.couplings_ = self._couplings(n).to(device)
        self.bias_ = (x[seen].mean(0) if self.bias == "shared" else x[seen].mean(0).expand(s, n)).clone()
        if isinstance(start, HMMGLM):
            self.couplings_.begin(start.weights_)
            self.bias_.copy_(start.bias_.mean(0) if self.bias == "shared" else start.bias_)
            self.transition_, start = start.transition_.to(device), start.predict_proba(x, seen)
        if start is None:
            path = sample_chain(trials, length, self.transition_.cpu(), generator=generator)
            start = one_hot(path, s).to(x)
        self.bias_.requires_grad_()
        free = torch.ones(n, n, device=device) if self.self_coupling else 1 - torch.eye(n, device=device)
        past, now, gamma = history(x, self.kernel_)[seen], x[seen], start.to(x)[seen]
        adam = torch.optim.Adam([self.bias_, *(p for p in self.couplings_.parameters() if p.requires_grad)], lr=self.lr)
        draws = torch.Generator(device).manual_seed(int(torch.randint(2**62, (), generator=generator)))
        self.log_likelihoods_ = []
        for _ in range(self.sweeps):
            for _ in range(self.steps):
                w, b = self.couplings_.sample(draws) * free, self.bias_.expand(s, n)
                likely = expected_log_likelihood(w, b, past, now, gamma, self.activation)
                loss = -(likely + self.prior_weight * self.couplings_.log_prior()) / len(past)
                adam.zero_grad()
                loss.backward()
                adam.step()
                self.couplings_.guard()
            self.weights_ = self.couplings_.weights() * free
            found = self._posterior(x, seen)
            gamma = found.gamma[seen]
            self.transition_ = transition_from(found.xi.sum(0))
            self.log_likelihoods_.append(float(found.log_likelihood.sum()))
        self.bias_ = self.bias_.detach().expand(s, n).clone()
        if isinstance(self.couplings_, OneHotCouplings):
            self.adjacency_ = self.couplings_.signs() * free.long()

    def _couplings(self, n: int) -> Couplings:
        if self.prior == "one-hot":
            return OneHotCouplings(self.states, n, self.tau, self.temperature)
        return GaussianCouplings(self.states, n, self.sigma) if self.prior == "gaussian" else Couplings(self.states, n)

    def _posterior(self, counts: Any, mask: Tensor | None) -> Posterior:
        log_b, seen = self._log_emission(counts, mask)
        try:
            return forward_backward(log_b, self.transition_, mask=seen)
        except Refused as error:
            raise Refused(f"counts: {error}") from None

    @torch.no_grad()
    def _log_emission(self, counts: Any, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """log p(x_t | state, what was before), (b, t, s), and the mask."""
        w, b = self.fitted("weights_"), self.bias_
        x, seen = self._counts(counts, mask)
        if x.shape[2] != w.shape[2]:
            raise Refused(f"counts: the model knows {w.shape[2]} neurons, got {x.shape[2]}")
        past = history(x, self.kernel_)
        parts = [
            self._log_emission_rows(h, c, w, b)
            for h, c in zip(past.flatten(0, 1).split(ROWS), x.flatten(0, 1).split(ROWS), strict=True)
        ]
        return torch.cat(parts).view(*x.shape[:2], -1), seen

    def _log_emission_rows(self, h: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        s, n, _ = w.shape
        rate = ACTIVATIONS[self.activation]((h @ w.reshape(s * n, n).T).view(-1, s, n) + b)
        return -poisson_nll(rate.clamp_min(LEAST).log(), x[:, None].expand(-1, s, n)).sum(-1)

    def _counts(self, counts: Any, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Counts as float32 on the device with zeros where nothing was seen, and the mask."""
        given = as_tensor("counts", counts, None)
        if given.ndim != 3 or not given.numel():
            raise Refused(f"counts: must be (trials, bins, neurons), none of them 0, got shape {tuple(given.shape)}")
        x = given.to(self.device, torch.float32)
        seen = torch.ones(x.shape[:2], dtype=torch.bool) if mask is None else mask
        if seen.shape != x.shape[:2] or not bool(seen.any(1).all()):
            raise Refused(f"mask: must have shape {tuple(x.shape[:2])} and a bin seen in each trial, got {tuple(seen.shape)}")
        if bool((x < 0).any()):
            raise Refused(f"counts: must not be negative, got {float(x.min())}")
        seen = seen.to(x.device)
        return x * seen[..., None], seen

    def _check(self) -> None:
        choose("prior", self.prior, ("naive", "gaussian", "one-hot"))
        choose("activation", self.activation, ACTIVATIONS)
        choose("bias", self.bias, ("shared", "state"))
        for name in ("states", "bins", "sweeps", "steps", "restarts"):
            if getattr(self, name) < 1:
                raise Refused(f"{name}: at least 1, got {getattr(self, name)}")
        if self.stay > 1:
            raise Refused(f"stay: a probability is needed, got {self.stay}")
        for name in ("lr", "sigma", "tau", "temperature", "stay"):
            if not 0 < getattr(self, name) < float("inf"):
                raise Refused(f"{name}: must be positive and finite, got {getattr(self, name)}")


def transition_from(pairs: Float[Tensor, "s s"], least: float = -8.0) -> Float[Tensor, "s s"]:
    """P from ξ summed over time and trials: each row's share, none below e^`least` (before the row is normalised again).

    A state that is never left or visited keeps an even row.

    >>> transition_from(torch.tensor([[3.0, 1.0], [0.0, 0.0]]))
    tensor([[0.7500, 0.2500],
            [0.5000, 0.5000]])
    """
    filled("pairs", pairs)
    numbers("pairs", pairs)
    rows = pairs.sum(-1, keepdim=True)
    share = torch.where(rows > 0, pairs / rows.clamp_min(1e-30), 1 / len(pairs))
    return share.log().clamp_min(least).softmax(-1)
