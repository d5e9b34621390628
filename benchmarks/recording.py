"""What recording costs: a small transformer with and without `nn.sites.record` of every site.

4 layers, d = 128, 4 heads, MLPs of 512, on 16 sequences of 128 tokens; seconds without CUDA are the processor's. Recording scores
and patterns makes the model form them, which its fused kernel does not: both sides form them here (an idle hook on each) but in
the row of the fused kernel. Memory: the storages that the record keeps alive and Python's own objects, against the bytes of the
tensors kept.
"""

import contextlib
import time
import tracemalloc
from collections.abc import Callable, Iterator

import torch
from rounds import Ratio, in_turns, main
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.nn.sites import record, sites
from neuropil.nn.transformer import GPT

NEW = "the time that new memory for 122 MB takes"
Block = Callable[[], contextlib.AbstractContextManager]


@contextlib.contextmanager
def hooks(model: nn.Module, names: list[str], hook: Callable) -> Iterator[None]:
    modules = dict(model.named_modules())
    handles = [modules[name].register_forward_hook(hook) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def memory(model: nn.Module, tokens: Tensor, names: list[str]) -> tuple[float, float]:
    """MB held by a record, and MB of its tensors."""
    tracemalloc.start()
    with record(model, *names) as seen:
        model(tokens)
    python = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    held, tensors = {}, {}  # the bytes of a storage that tensors of the record cover; views of one another count once
    for [x] in seen.values():
        key = x.untyped_storage().data_ptr()
        held[key], tensors[key] = x.untyped_storage().nbytes(), max(tensors.get(key, 0), x.nbytes)
    return (sum(held.values()) + python) / 1e6, sum(tensors.values()) / 1e6


def compare(quick: bool) -> Iterator[Ratio]:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = GPT(256, d=128, heads=4, layers=4, context=128, hidden=512).to(device)
    tokens = torch.randint(256, (16, 128), device=device)
    names = list(sites(model))
    formed = [name for name in names if name.endswith((".scores", ".pattern"))]

    def clock() -> float:
        if tokens.is_cuda:
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()

    def forward() -> Tensor:
        with torch.no_grad():
            return model(tokens)

    def training() -> None:
        cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten()).backward()

    def by_hand() -> contextlib.AbstractContextManager:
        kept: list[Tensor] = []
        return hooks(model, names, lambda module, inputs, output: kept.append(output.detach()))

    def inside(block: Block, step: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            with block():
                return step()

        return run

    plain: Block = lambda: hooks(model, formed, lambda *_: None)  # noqa: E731
    recorded: Block = lambda: record(model, *names)  # noqa: E731
    nothing_kept: Block = lambda: record(model, *names, keep=lambda x: None)  # noqa: E731
    assert torch.equal(inside(recorded, forward)(), inside(plain, forward)())
    for what, step, ours, theirs, against, note in (
        (f"recording all {len(names)} sites", forward, recorded, by_hand, "hooks by hand that keep the same", ""),
        ("hooks that keep nothing", forward, nothing_kept, plain, "a plain pass", ""),
        ("recording, a training step", training, recorded, plain, "a plain step", NEW),
        ("recording, no gradients", forward, recorded, plain, "a plain pass", NEW),
        ("recording, no gradients", forward, recorded, contextlib.nullcontext, "a pass with the fused kernel", NEW),
    ):
        taken = in_turns({"ours": inside(ours, step), "theirs": inside(theirs, step)}, 4 if quick else 40, clock)
        yield Ratio(what, against, taken["ours"], taken["theirs"], at_most=1.05, note=note)
    held, tensors = memory(model, tokens, names)
    yield Ratio("memory of a record", "the tensors kept", [held], [tensors], at_most=1.05, unit="MB")


if __name__ == "__main__":
    main(compare)
