"""What recording costs: `python benchmarks/recording.py [REPEATS] [device]`.

A small transformer (4 layers, d = 128, 4 heads, MLPs of 512) on 16 sequences of 128 tokens, in turns with and without
`nn.sites.record` of every site, REPEATS pairs, the order within a pair alternating; percent of time (without CUDA the processor's)
beyond the other side's, the median of the pairs. Recording scores and patterns makes the model form them, which its fused kernel
does not: both sides form them here (an idle hook on each) but in the last row.

    hooks           keep nothing of what passes         against  a plain pass: what the hooks themselves take
    by hand         record                              against  a pass with hand-written hooks that keep the same tensors
    training        record, forward and backward        against  the same plain: the graph keeps most tensors anyway
    inference       record, without gradients           against  a plain pass, which uses the same few megabytes again and again
    fused           the same                            against  a plain pass that does not form scores and patterns

Memory: the storages that the record keeps alive and Python's own objects, in percent beyond the bytes of the tensors kept.
"""

import contextlib
import json
import platform
import statistics
import sys
import time
import tracemalloc

import torch
from torch.nn.functional import cross_entropy

from neuropil.nn.sites import record, sites
from neuropil.nn.transformer import GPT


@contextlib.contextmanager
def hooks(model, names, hook):
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def percent(step, first, second, repeats):
    """Percent of time that `step` takes beyond, inside second() against inside first(): median and quartiles of the pairs."""

    def seconds(block):
        clock = time.perf_counter if torch.cuda.is_available() else time.process_time  # the latter, where others share the machine
        start = clock()
        with block():
            step()
            return clock() - start

    ratios, sides = [], (first, second)
    for repeat in range(repeats + 3):
        used = {side: seconds(sides[side]) for side in ((0, 1) if repeat % 2 else (1, 0))}
        ratios.append(100 * (used[1] / used[0] - 1))
    low, middle, high = statistics.quantiles(ratios[3:], n=4)
    return {"time %": round(middle, 2), "quartiles": [round(low, 2), round(high, 2)]}


def memory(model, tokens, names):
    """Bytes beyond those of the tensors kept, in percent of them."""
    tracemalloc.start()
    with record(model, *names) as seen:
        model(tokens)
    python = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for [x] in seen.values()}
    tensors = {}  # the bytes of a storage that tensors of the record cover; views of one another count once
    for [x] in seen.values():
        key = x.untyped_storage().data_ptr()
        tensors[key] = max(tensors.get(key, 0), x.nbytes)
    total = sum(tensors.values())
    return {"MB": round(total / 1e6, 1), "memory %": round(100 * (sum(storages.values()) + python - total) / total, 3)}


if __name__ == "__main__":
    repeats, device = int(sys.argv[1]) if len(sys.argv) > 1 else 40, sys.argv[2] if len(sys.argv) > 2 else "cpu"
    torch.manual_seed(0)
    model = GPT(256, d=128, heads=4, layers=4, context=128, hidden=512).to(device)
    tokens = torch.randint(256, (16, 128), device=device)
    names = sites(model)
    formed = [name for name in names if name.endswith((".scores", ".pattern"))]
    wait = torch.cuda.synchronize if tokens.is_cuda else lambda: None

    def forward():
        with torch.no_grad():
            model(tokens)
        wait()

    def training():
        cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()
        wait()

    def plain():
        return hooks(model, formed, lambda *_: None)

    def by_hand():
        kept = []
        return hooks(model, names, lambda module, inputs, output: kept.append(output.detach()))

    def recorded():
        return record(model, *names)

    def nothing_kept():
        return record(model, *names, keep=lambda x: None)

    found = {
        "hooks": percent(forward, plain, nothing_kept, repeats),
        "by hand": percent(forward, by_hand, recorded, repeats),
        "training": percent(training, plain, recorded, repeats),
        "inference": percent(forward, plain, recorded, repeats),
        "fused": percent(forward, contextlib.nullcontext, recorded, repeats),
        "memory": memory(model, tokens, names),
    }
    facts = {"python": platform.python_version(), "torch": torch.__version__, "device": device, "threads": torch.get_num_threads()}
    print(json.dumps({**facts, "repeats": repeats, "sites": len(names), **found}, indent=1))
