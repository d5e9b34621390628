"""Layers on 20,000 nodes and 20,000 edges, forward and backward, against DeepHypergraph: `python benchmarks/hypergraph.py [d]`.

Both sides in turns on the same weights; outputs and gradients must agree to 1e-4. "operator" leaves out what is the same on both
sides, the product with Θ. Without `dhg` (pip install --no-deps dhg==0.9.7 optuna colorlog) our side alone is timed.
"""

import json
import resource
import statistics
import sys
import time

import torch
from torch import Tensor, nn

from neuropil.interaction import hypergraph_layers as hl
from neuropil.interaction.hypergraph import Hypergraph

NODES, EDGES, SIZE, PAIRS = 20_000, 20_000, 10, 5
LAYERS = {"HGNN": "HGNNConv", "HGNNPlus": "HGNNPConv", "UniGCN": "UniGCNConv", "UniSAGE": "UniSAGEConv", "UniGIN": "UniGINConv"}
ATTENTION = {"UniGAT": "UniGATConv", "HNHN": "HNHNConv"}


def step(layer: nn.Module, x: Tensor, h: object) -> tuple[float, Tensor, Tensor]:
    """Seconds of one forward and backward, the output, the gradient by x."""
    x = x.clone().requires_grad_()
    start = time.perf_counter()
    y = layer(x, h)
    y.backward(torch.ones_like(y))
    seconds = time.perf_counter() - start
    assert x.grad is not None
    return seconds, y.detach(), x.grad


def no_theta(layer: nn.Module, name: str) -> None:
    """The identity in place of Θ, so that the operator alone is timed."""
    if hasattr(layer.theta, "before"):
        layer.theta.before = layer.theta.after = lambda x: x  # type: ignore[method-assign, assignment]
    else:
        layer.theta = nn.Identity()


def copied(name: str, ours: nn.Module, peer: nn.Module) -> None:
    """The peer's weights into our layer."""
    pairs = [(ours.theta_ve, peer.theta_v2e), (ours.theta_ev, peer.theta_e2v)] if name == "HNHN" else [(ours.theta, peer.theta)]
    with torch.no_grad():
        for mine, theirs in pairs:
            mine.weight.copy_(theirs.weight)
            mine.bias.copy_(theirs.bias)
        if name == "UniGAT":
            ours.a_e.copy_(peer.atten_e.weight)
            ours.a_v.copy_(peer.atten_dst.weight)


def peak() -> float:
    """MiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    try:
        import dhg
    except ImportError:
        dhg = None
    d = int(sys.argv[1]) if len(sys.argv) > 1 else 64
    g = torch.Generator().manual_seed(0)
    members = torch.rand(EDGES, 200, generator=g).argsort(1)[:, :SIZE] * 100 + torch.randint(100, (EDGES, 1), generator=g)
    x, rows = torch.randn(NODES, d, generator=g), members.tolist()
    start = time.perf_counter()
    h = Hypergraph.from_edges(members.flatten(), torch.full((EDGES,), SIZE), NODES)
    found: dict[str, object] = {"torch": torch.__version__, "threads": torch.get_num_threads(), "features": d, "members": SIZE}
    found["build, s"] = {"neuropil, arrays": time.perf_counter() - start}
    before = peak()
    for name in LAYERS:
        step(getattr(hl, name)(d, d), x, h)
    found["MiB beyond the start"] = {"neuropil, all layers": peak() - before}
    if dhg is not None:
        start = time.perf_counter()
        peer_h = dhg.Hypergraph(NODES, rows)
        built = time.perf_counter() - start
        start = time.perf_counter()
        _ = peer_h.H, peer_h.H_T, peer_h.D_v, peer_h.D_e
        found["build, s"] |= {"dhg, lists": built, "dhg, its matrices": time.perf_counter() - start}
    table = {}
    for name, theirs in (LAYERS | ATTENTION).items():
        extra = {"clamp": (0.001, 5.0)} if name == "UniGAT" else {}
        for kind in ("layer", "operator"):
            if kind == "operator" and name == "HNHN":
                continue
            ours, times = getattr(hl, name)(d, d, **extra), {"neuropil": [], "dhg": []}
            peer = getattr(dhg.nn, theirs)(d, d, drop_rate=0.0, is_last=True) if dhg is not None else None
            if peer is not None:
                copied(name, ours, peer)
            if kind == "operator":
                no_theta(ours, name)
                if peer is not None:
                    peer.theta = nn.Identity()
            for _ in range(PAIRS + 1):  # the first is for caches
                seconds, y, gradient = step(ours, x, h)
                times["neuropil"].append(seconds)
                if peer is not None:
                    seconds, y_2, gradient_2 = step(peer, x, peer_h)
                    times["dhg"].append(seconds)
                    torch.testing.assert_close(y, y_2, atol=1e-4, rtol=1e-4)
                    torch.testing.assert_close(gradient, gradient_2, atol=1e-4, rtol=1e-4)
            row = {side: 1e3 * statistics.median(t[1:]) for side, t in times.items() if t}
            if peer is not None:
                ratios = [b / a for a, b in zip(times["neuropil"][1:], times["dhg"][1:], strict=True)]
                row |= {"times faster": statistics.median(ratios), "from": min(ratios), "to": max(ratios)}
                row["first dhg step"] = 1e3 * times["dhg"][0]
            table[f"{name}, {kind}"] = {k: round(v, 2) for k, v in row.items()}
            if peer is not None and "MiB" not in str(found.get(f"peak after {name}")):
                found["MiB beyond the start"][f"after dhg {name}"] = round(peak() - before, 1)
    print(json.dumps(found | {"milliseconds, forward and backward": table}, indent=1))
