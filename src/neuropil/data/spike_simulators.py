"""Simulators of spike counts with known wiring: coupled Poisson neurons, and such a network that switches between states.

f_{t,n} = act(b_n + Σ_n' w_{s,n←n'} Σ_{k=1..K} φ_k x_{t−k,n'}),    s = z_t,    x_{t,n} ~ Poisson(f_{t,n})

The history starts with the bin before: k ≥ 1. Networks are drawn by the law of Li et al. 2024, arXiv:2310.15263 (their code; u is
uniform on [0, 1], once for each number):

    π_{n←n'} ~ Dirichlet(0.2, 1.6, 0.2)       shared by the states: inhibitory, none, excitatory
    a_{s,n←n'} = argmax of a sample of the Gumbel-softmax law with π,    so that a ~ π
    w = (a_exc − a_inh) softplus(log 3u),     b = 0.1 (u − 0.5),     P: 0.98 to stay, else even,     act = sigmoid
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from neuropil.errors import Refused, choose
from neuropil.nn.scan import scan
from neuropil.numerics.hidden_markov import sample_chain

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"sigmoid": torch.sigmoid, "softplus": softplus}


@dataclass(frozen=True)
class SwitchingNetwork:
    """The wiring: w (s, n, n), from column to row; its signs −1, 0, 1 (s, n, n); b (n,); P (s, s); φ (k,), the bin before first."""

    weights: Float[Tensor, "s n n"]
    adjacency: Int[Tensor, "s n n"]
    bias: Float[Tensor, " n"]
    transition: Float[Tensor, "s s"]
    kernel: Float[Tensor, " k"]
    activation: str


def exponential_kernel(bins: int) -> Float[Tensor, " {bins}"]:
    """φ_k ∝ e^−k for k = 1 … K, with sum 1.

    >>> exponential_kernel(5)
    tensor([0.6364, 0.2341, 0.0861, 0.0317, 0.0117])
    """
    if bins < 1:
        raise Refused(f"bins: the history needs at least 1, got {bins}")
    return torch.softmax(-torch.arange(bins, dtype=torch.float32), 0)


def stay_or_switch(states: int, stay: float = 0.98) -> Float[Tensor, "{states} {states}"]:
    """P with `stay` on the diagonal and the rest spread evenly; one state stays for ever.

    >>> stay_or_switch(3, 0.8)
    tensor([[0.8000, 0.1000, 0.1000],
            [0.1000, 0.8000, 0.1000],
            [0.1000, 0.1000, 0.8000]])
    """
    if states < 1 or not 0 < stay <= 1:
        raise Refused(f"states, stay: at least 1 state and a probability above 0, got {states} and {stay}")
    if states == 1:
        return torch.ones(1, 1)
    other = (1 - stay) / (states - 1)
    return torch.full((states, states), other) + (stay - other) * torch.eye(states)


def switching_network(
    neurons: int, states: int, generator: torch.Generator, *, bins: int = 5, stay: float = 0.98, activation: str = "sigmoid"
) -> SwitchingNetwork:
    """A network drawn by the paper's law (above).

    >>> net = switching_network(20, 5, torch.Generator().manual_seed(0))
    >>> net.weights.shape, bool((net.weights.sign() == net.adjacency).all())
    (torch.Size([5, 20, 20]), True)
    """
    if neurons < 1:
        raise Refused(f"neurons: at least 1, got {neurons}")
    choose("activation", activation, ACTIVATIONS)
    shape = (states, neurons, neurons)
    gamma = torch.tensor([0.2, 1.6, 0.2]).expand(neurons, neurons, 3).contiguous()
    prior = torch._standard_gamma(gamma, generator=generator)  # Dirichlet, but with a generator; argmax of Gumbel noise: a ~ prior
    noise = torch.empty(*shape, 3).exponential_(generator=generator)
    adjacency = (prior.clamp_min(torch.finfo(prior.dtype).tiny).log() - noise.log()).argmax(-1) - 1
    strength = softplus(torch.log(3 * torch.rand(shape, generator=generator).clamp_min(1e-6)))
    bias = 0.1 * (torch.rand(neurons, generator=generator) - 0.5)
    transition = stay_or_switch(states, stay)
    return SwitchingNetwork(adjacency * strength, adjacency, bias, transition, exponential_kernel(bins), activation)


def coupled_poisson(
    network: SwitchingNetwork, states: Int[Tensor, "b t"], generator: torch.Generator
) -> tuple[Float[Tensor, "b t n"], Float[Tensor, "b t n"]]:
    """Spike counts of trials whose states are given, from an empty history, and their rates a bin. O(b t n² ) time.

    One state all along is the coupled Poisson GLM (Truccolo et al. 2005, doi:10.1152/jn.00697.2004). `Refused` for a state that
    the network does not have.

    >>> g = torch.Generator().manual_seed(0)
    >>> counts, rates = coupled_poisson(switching_network(4, 1, g), torch.zeros(2, 50, dtype=torch.long), g)
    >>> counts.shape, bool((rates > 0).all())
    (torch.Size([2, 50, 4]), True)
    """
    w, b, act = network.weights, network.bias, ACTIVATIONS[network.activation]
    if not 0 <= int(states.min()) <= int(states.max()) < len(w):
        raise Refused(f"states: must lie in 0 … {len(w) - 1}, got {int(states.min())} … {int(states.max())}")

    def step(z: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        h = network.kernel @ past  # past: (b, k, n), the bin before first
        f = act(b + (w[z.long()] @ h[..., None])[..., 0])
        x = torch.poisson(f, generator)
        return torch.cat([x, f], -1), torch.cat([x[:, None], past[:, :-1]], 1)

    start = w.new_zeros(len(states), len(network.kernel), len(b))
    both, _ = scan(step, states.T.to(w.dtype), start)
    x, f = both.transpose(0, 1).contiguous().chunk(2, -1)
    return x.contiguous(), f.contiguous()


def switching_spikes(
    network: SwitchingNetwork, trials: int, length: int, generator: torch.Generator
) -> tuple[Float[Tensor, "b t n"], Int[Tensor, "b t"]]:
    """Spike counts of a network that switches by itself, from an even start, and its states.

    >>> g = torch.Generator().manual_seed(0)
    >>> counts, states = switching_spikes(switching_network(4, 2, g), trials=3, length=50, generator=g)
    >>> counts.shape, states.shape
    (torch.Size([3, 50, 4]), torch.Size([3, 50]))
    """
    states = sample_chain(trials, length, network.transition, generator=generator)
    return coupled_poisson(network, states, generator)[0], states
