"""A training step (forward and backward) of our FNO and of neuraloperator's, same weights.

Two dimensions: 64 × 64 points, batch 8, 32 channels, 12 modes. One: 1,024 points, batch 16, 64 channels, 16 modes. 4 layers.
"""

from collections.abc import Iterator

import torch
from rounds import Ratio, in_turns, main, peer
from torch import Tensor, nn

from neuropil.physics.fourier import FNO

CASES = {"2-D, 64 × 64, batch 8": ((12, 12), (64, 64), 32, 8), "1-D, 1,024, batch 16": ((16,), (1024,), 64, 16)}


def same_weights(theirs: nn.Module, ours: FNO) -> None:
    """The peer's weights into ours; both packages count them alike."""
    p, o = dict(theirs.named_parameters()), dict(ours.named_parameters())
    same = mlp(p, "lifting", "lift") | mlp(p, "projection", "project")
    for n in range(len(ours.blocks)):
        block, mine = "fno_blocks", f"blocks.{n}"
        spectral = p[f"{block}.convs.{n}.weight.tensor"].movedim((0, 1), (-2, -1))
        same[f"{mine}.fourier.spectral.weight"] = torch.view_as_real(spectral)
        same[f"{mine}.fourier.W.0.bias"] = p[f"{block}.convs.{n}.bias"].flatten()
        same[f"{mine}.fourier.W.0.weight"] = p[f"{block}.fno_skips.{n}.conv.weight"][..., 0]
        same[f"{mine}.gate"] = p[f"{block}.channel_mlp_skips.{n}.weight"].flatten()
        same |= mlp(p, f"{block}.channel_mlp.{n}", f"{mine}.mlp")
    assert same.keys() == o.keys()
    with torch.no_grad():
        for name, value in same.items():
            o[name].copy_(value)


def mlp(p: dict[str, Tensor], theirs: str, mine: str) -> dict[str, Tensor]:
    """The two linear layers of a pointwise MLP."""
    layers = ((0, 0), (1, 2))
    weights = {f"{mine}.{j}.weight": p[f"{theirs}.fcs.{i}.weight"][..., 0] for i, j in layers}
    return weights | {f"{mine}.{j}.bias": p[f"{theirs}.fcs.{i}.bias"] for i, j in layers}


def step(net: nn.Module, x: Tensor) -> None:
    net.zero_grad()
    net(x).square().mean().backward()


def compare(quick: bool) -> Iterator[Ratio]:
    neuralop = peer("neuralop.models", "neuraloperator")
    for name, (modes, grid, width, batch) in CASES.items():
        torch.manual_seed(0)
        theirs, ours = neuralop.FNO(tuple(2 * k + 1 for k in modes), 1, 1, width), FNO(1, 1, width, modes)
        same_weights(theirs, ours)
        x = torch.randn(batch, 1, *grid)
        with torch.no_grad():
            torch.testing.assert_close(ours(x), theirs(x), atol=1e-5, rtol=1e-4)

        taken = in_turns({"ours": lambda n=ours, x=x: step(n, x), "theirs": lambda n=theirs, x=x: step(n, x)}, 3 if quick else 15)
        yield Ratio(
            f"FNO, training step, {name}",
            "neuraloperator",
            taken["ours"],
            taken["theirs"],
            at_least=1,
            package="neuraloperator",
            note="same weights",
        )


if __name__ == "__main__":
    main(compare)
