"""Throughput and error of `retrieve` against a plain softmax(QKᵀ)V over 100,000 patterns: `python benchmarks/lookup.py`."""

import json
import resource
import time

import torch

from neuropil.memory.hopfield import retrieve


def plain(query: torch.Tensor, patterns: torch.Tensor) -> torch.Tensor:
    return torch.softmax(query @ patterns.T, dim=-1) @ patterns


def seconds(function, *arguments, times: int = 5) -> float:
    found = []
    for _ in range(times):
        start = time.perf_counter()
        function(*arguments)
        found.append(time.perf_counter() - start)
    return min(found)


if __name__ == "__main__":
    torch.manual_seed(0)
    patterns = torch.randn(100_000, 64, dtype=torch.float64)
    patterns *= 8 / patterns.norm(dim=1, keepdim=True)
    query = patterns[:1024] + 0.5 * torch.randn(1024, 64, dtype=torch.float64)
    errors = {}
    for dtype in (torch.float32, torch.float64):
        read = retrieve(query.to(dtype), patterns.to(dtype)).double()
        errors[str(dtype)] = float(((read - patterns[:1024]).norm(dim=1) / 8).median())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    fused = seconds(retrieve, query.float(), patterns.float())
    slow = seconds(plain, query.float(), patterns.float())
    print(
        json.dumps(
            {"median relative error": errors, "peak MiB before the plain one": memory, "times faster": slow / fused}, indent=1
        )
    )
