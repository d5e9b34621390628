"""`numerics.hidden_markov` on 30 chains of 1,000 bins and 5 states: compiled, and plain tensors through `nn.scan`.

Against a plain Python loop over chains and bins (tensors of one bin, log space, double precision): forward-backward with ξ summed,
and Viterbi. Compilation is not counted.
"""

from collections.abc import Callable, Iterator
from unittest import mock

import torch
from rounds import Ratio, in_turns, main

from neuropil.data.spike_simulators import stay_or_switch
from neuropil.numerics import hidden_markov

CHAINS, STATES = 30, 5


def loop_posterior(log_b: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_b, log_p, s = log_b.double(), p.double().log(), len(p)
    gamma, xi = torch.zeros_like(log_b), log_b.new_zeros(len(log_b), s, s)
    for b, chain in enumerate(log_b):
        alpha, beta = torch.zeros_like(chain), torch.zeros_like(chain)
        alpha[0] = chain[0] - torch.tensor(float(s)).log()
        for t in range(1, len(chain)):
            alpha[t] = chain[t] + (alpha[t - 1][:, None] + log_p).logsumexp(0)
        total = alpha[-1].logsumexp(0)
        for t in range(len(chain) - 2, -1, -1):
            steps = log_p + chain[t + 1] + beta[t + 1]
            beta[t] = steps.logsumexp(1)
            xi[b] += (alpha[t][:, None] + steps - total).exp()
        gamma[b] = (alpha + beta - total).exp()
    return gamma, xi


def loop_viterbi(log_b: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    log_b, log_p = log_b.double(), p.double().log()
    path = torch.zeros(log_b.shape[:2], dtype=torch.long)
    for b, chain in enumerate(log_b):
        best, came = chain[0].clone(), torch.zeros(chain.shape, dtype=torch.long)
        for t in range(1, len(chain)):
            value, came[t] = (best[:, None] + log_p).max(0)
            best = value + chain[t]
        path[b, -1] = best.argmax()
        for t in range(len(chain) - 1, 0, -1):
            path[b, t - 1] = came[t, path[b, t]]
    return path


def without_numba(way: Callable[[], object]) -> Callable[[], object]:
    """The same function on its way through `nn.scan`."""

    def run() -> object:
        with mock.patch.object(hidden_markov, "_compiled", lambda log_b: False):
            return way()

    return run


def same_posterior(ours: hidden_markov.Posterior, loop: tuple[torch.Tensor, torch.Tensor]) -> None:
    torch.testing.assert_close(ours.gamma.double(), loop[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(ours.xi.double(), loop[1], atol=1e-3, rtol=1e-6)


def same_path(ours: tuple[torch.Tensor, torch.Tensor], loop: torch.Tensor) -> None:
    assert torch.equal(ours[0], loop)


def compare(quick: bool) -> Iterator[Ratio]:
    torch.manual_seed(0)
    bins = 100 if quick else 1000
    log_b, p = 3 * torch.randn(CHAINS, bins, STATES), stay_or_switch(STATES)
    for what, ours_of, loop_of, check, wish in (
        ("forward–backward", hidden_markov.forward_backward, loop_posterior, same_posterior, 20.0),
        ("Viterbi", hidden_markov.viterbi, loop_viterbi, same_path, None),
    ):
        compiled, loop = (lambda of=of: of(log_b, p) for of in (ours_of, loop_of))
        ours, expected = {"compiled": compiled, "through `scan`": without_numba(compiled)}, loop()
        for way in ours.values():
            check(way(), expected)

        taken = in_turns(ours | {"loop": loop}, 2 if quick else 3)
        for name in ours:
            row = f"{what}, {CHAINS} chains × {bins:,} bins × {STATES} states, {name}"
            limit = wish if name == "compiled" else None
            yield Ratio(row, "a Python loop", taken[name], taken["loop"], at_least=limit)


if __name__ == "__main__":
    main(compare)
