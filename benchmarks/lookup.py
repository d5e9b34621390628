"""`retrieve` against a plain softmax(QKᵀ)V over 100,000 patterns, 1,024 queries of 64 numbers."""

from collections.abc import Iterator

import torch
from rounds import Ratio, in_turns, main

from neuropil.memory.hopfield import retrieve


def plain(query: torch.Tensor, patterns: torch.Tensor) -> torch.Tensor:
    return torch.softmax(query @ patterns.T, dim=-1) @ patterns


def compare(quick: bool) -> Iterator[Ratio]:
    torch.manual_seed(0)
    patterns = torch.randn(100_000, 64)
    patterns *= 8 / patterns.norm(dim=1, keepdim=True)
    query = patterns[:1024] + 0.5 * torch.randn(1024, 64)
    ways = {"ours": lambda: retrieve(query, patterns), "plain": lambda: plain(query, patterns)}
    torch.testing.assert_close(ways["ours"](), ways["plain"](), atol=1e-4, rtol=1e-4)

    taken = in_turns(ways, 3 if quick else 9)
    note = "the plain one writes 400 MB of weights"
    yield Ratio("`retrieve`, 1,024 queries, 100,000 patterns", "plain softmax attention", taken["ours"], taken["plain"], note=note)


if __name__ == "__main__":
    main(compare)
