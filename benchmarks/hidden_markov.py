"""`numerics.hidden_markov` on 30 chains of 1,000 bins and 5 states: `python benchmarks/hidden_markov.py [threads]`.

Compiled, and plain tensors through `nn.scan`, against a plain Python loop over chains and bins (tensors of one bin, log space,
double precision). Forward-backward with ξ summed, and Viterbi. All run in turns in one process, so that the ratios of a round
are of one moment; compilation is not counted.
"""

import json
import platform
import sys
import time

import torch
from rounds import spread

from neuropil.data.spike_simulators import stay_or_switch
from neuropil.numerics import hidden_markov

CHAINS, BINS, STATES, ROUNDS = 30, 1000, 5, 3


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


def seconds(way) -> float:
    start = time.perf_counter()
    way()
    return time.perf_counter() - start


def plain(way):
    """The same function on its way without numba."""

    def run():
        kept, hidden_markov._compiled = hidden_markov._compiled, lambda log_b: False
        try:
            return way()
        finally:
            hidden_markov._compiled = kept

    return run


def run(bins: int, rounds: int) -> dict[str, object]:
    torch.manual_seed(0)
    log_b, p = 3 * torch.randn(CHAINS, bins, STATES), stay_or_switch(STATES)
    found: dict[str, object] = {}
    for what, ours, loop in (
        ("forward-backward", lambda: hidden_markov.forward_backward(log_b, p), lambda: loop_posterior(log_b, p)),
        ("Viterbi", lambda: hidden_markov.viterbi(log_b, p), lambda: loop_viterbi(log_b, p)),
    ):
        ways = {"compiled": ours, "nn.scan": plain(ours), "Python loop": loop}
        results = {name: way() for name, way in ways.items()}  # also compiles
        if what == "Viterbi":
            assert all(torch.equal(results[name][0], results["Python loop"]) for name in ("compiled", "nn.scan"))
        else:
            for name in ("compiled", "nn.scan"):
                torch.testing.assert_close(results[name].gamma.double(), results["Python loop"][0], atol=1e-6, rtol=1e-6)
                torch.testing.assert_close(results[name].xi.double(), results["Python loop"][1], atol=1e-3, rtol=1e-6)
        taken = [{name: seconds(way) for name, way in ways.items()} for _ in range(rounds)]
        found[f"{what}, seconds"] = {name: spread([t[name] for t in taken]) for name in ways}
        found[f"{what}, times faster than the Python loop"] = {
            name: spread([t["Python loop"] / t[name] for t in taken], 1) for name in ("compiled", "nn.scan")
        }
    return found


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    short = sys.argv[2:] == ["short"]  # only to see that it runs
    facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({**facts, **run(*((20, 1) if short else (BINS, ROUNDS)))}, indent=1))
