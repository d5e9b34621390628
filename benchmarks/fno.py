"""A training step (forward and backward) of our FNO and of neuraloperator's, same weights: `python benchmarks/fno.py [threads]`.

Two dimensions: 64 × 64 points, batch 8, 32 channels, 12 modes. One: 1,024 points, batch 16, 64 channels, 16 modes. 4 layers.
In turns in one process, so that the ratio of a round is of one moment. Needs `pip install neuraloperator`.
"""

import json
import platform
import sys
import time
import warnings

import torch
from rounds import spread
from torch import Tensor, nn

from neuropil.physics.fourier import FNO

CASES = {"2-D, 64 × 64, batch 8": ((12, 12), (64, 64), 32, 8), "1-D, 1,024, batch 16": ((16,), (1024,), 64, 16)}
ROUNDS = 15


def same_weights(peer: nn.Module, ours: FNO) -> None:
    """The peer's weights into ours; both packages count them alike."""
    p, o = dict(peer.named_parameters()), dict(ours.named_parameters())
    same: list[tuple[str, Tensor]] = []
    for theirs, mine in (("lifting", "lift"), ("projection", "project")):
        same += mlp(p, theirs, mine)
    for n in range(len(ours.blocks)):
        theirs, mine = "fno_blocks", f"blocks.{n}"
        same.append(
            (
                f"{mine}.fourier.spectral.weight",
                torch.view_as_real(p[f"{theirs}.convs.{n}.weight.tensor"].movedim((0, 1), (-2, -1))),
            )
        )
        same.append((f"{mine}.fourier.W.0.bias", p[f"{theirs}.convs.{n}.bias"].flatten()))
        same.append((f"{mine}.fourier.W.0.weight", p[f"{theirs}.fno_skips.{n}.conv.weight"][..., 0]))
        same.append((f"{mine}.gate", p[f"{theirs}.channel_mlp_skips.{n}.weight"].flatten()))
        same += mlp(p, f"{theirs}.channel_mlp.{n}", f"{mine}.mlp")
    assert {name for name, _ in same} == set(o)
    with torch.no_grad():
        for name, value in same:
            o[name].copy_(value)


def mlp(p: dict[str, Tensor], theirs: str, mine: str) -> list[tuple[str, Tensor]]:
    """The two linear layers of a pointwise MLP."""
    layers = ((0, 0), (1, 2))
    weights = [(f"{mine}.{j}.weight", p[f"{theirs}.fcs.{i}.weight"][..., 0]) for i, j in layers]
    return weights + [(f"{mine}.{j}.bias", p[f"{theirs}.fcs.{i}.bias"]) for i, j in layers]


def seconds(net: nn.Module, x: Tensor) -> float:
    start = time.perf_counter()
    net.zero_grad()
    net(x).square().mean().backward()
    return time.perf_counter() - start


def run(rounds: int) -> dict[str, object]:
    from neuralop.models import FNO as Peer

    found: dict[str, object] = {}
    for name, (modes, grid, width, batch) in CASES.items():
        torch.manual_seed(0)
        peer, ours = Peer(tuple(2 * k + 1 for k in modes), 1, 1, width), FNO(1, 1, width, modes)
        same_weights(peer, ours)
        x = torch.randn(batch, 1, *grid)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), peer(x), atol=1e-5, rtol=1e-4)
        taken = [(seconds(ours, x), seconds(peer, x)) for _ in range(rounds + 2)][2:]
        found[name] = {
            "ours, seconds": spread([a for a, _ in taken]),
            "neuraloperator, seconds": spread([b for _, b in taken]),
            "ours is times faster": spread([b / a for a, b in taken]),
        }
    return found


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    short = sys.argv[2:] == ["short"]  # only to see that it runs
    facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps({**facts, **run(1 if short else ROUNDS)}, indent=1, ensure_ascii=False))
