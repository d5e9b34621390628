"""Run a claim: one seed (`measure`), the summary over seeds (`summary`), what a row says about where it was made."""

import datetime
import functools
import importlib.metadata
import math
import os
import platform
import random
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

from neuropil.catalog import find
from neuropil.errors import Refused
from neuropil.lab import evidence
from neuropil.lab.claims import Claim
from neuropil.lab.trial import Trial

Row = dict[str, Any]
RECORDED = ("neuropil", "torch", "numpy", "scipy", "scikit-learn", "lightning-fabric")


def check_device(device: str) -> str:
    """`device` if torch can use it here, else `Refused`."""
    import torch

    kind, _, index = device.partition(":")
    if not re.fullmatch(r"cpu|mps|cuda(:[0-9]+)?", device):
        raise Refused(f"device: unknown {device!r} (allowed: cpu, cuda, cuda:N, mps)")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise Refused(f"device: {device!r} asked for, but torch sees {torch.cuda.device_count()} CUDA devices here")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise Refused("device: 'mps' asked for, but torch has no MPS here")
    return device


@functools.cache
def versions() -> dict[str, str]:
    """Versions of what a number may depend on."""
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def machine() -> str:
    """The machine, in words that name no person or host."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def seed_everything(seed: int) -> None:
    """Seed the global generators of torch, numpy and random."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def measure(
    claim: Claim,
    seed: int,
    budget: str,
    device: str = "cpu",
    draw: bool = False,
    report: Callable[[str, float], None] | None = None,
) -> tuple[Row, dict[str, bytes]]:
    """One seed of a claim: its evidence row and its pictures."""
    seed_everything(seed)
    trial = Trial(seed, budget, device, draw, report)
    start = time.perf_counter()
    outcome = claim(trial)
    row = {
        "seed": seed,
        "method": outcome.method,
        "baseline": outcome.baseline,
        "notes": plain(outcome.notes),
        "seconds": round(time.perf_counter() - start, 3),
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M"),
        "device": device,
        "machine": machine(),
        "versions": versions(),
        "fingerprint": evidence.fingerprint(find(claim.system)),
    }
    return row, trial.figures


def plain(value: Any) -> Any:
    """Notes as JSON takes them: tensors, arrays and numpy numbers become lists and numbers of six digits."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    return value if isinstance(value, int | bool | str | type(None)) else str(value)


def summary(claim: Claim, budget: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The claim and what its rows came to, as the JSON that `neuropil run --json` prints. `smoke` gives no verdict."""
    method, baseline = ([row[side] for row in rows] for side in ("method", "baseline"))
    verdict = claim.expect.judge(method, baseline, claim.metric) if rows and budget != "smoke" else None
    return {
        "system": claim.system,
        "claim": claim.name,
        "sentence": claim.sentence,
        "budget": budget,
        "seeds": [row["seed"] for row in rows],
        "metric": claim.metric.as_json(),
        "expect": claim.expect.as_json() | {"words": str(claim.expect)},
        "method": {"name": claim.method, "values": method},
        "baseline": {"name": claim.baseline, "values": baseline},
        "paper": claim.paper,
        "effect": verdict.effect if verdict else None,
        "interval": list(verdict.interval) if verdict and verdict.interval else None,
        "verdict": verdict.word if verdict else "unmeasured",
        "one_seed": verdict.one_seed if verdict else len(rows) == 1,
        "seconds": round(sum(row["seconds"] for row in rows), 3),
        "versions": rows[-1]["versions"] if rows else versions(),
    }


def record(claim: Claim, budget: str, row: Row, pictures: dict[str, bytes]) -> None:
    """Keep one row as evidence."""
    path = evidence.path_of(claim.system, claim.name, budget)
    evidence.record(path, row, pictures, lambda rows: summary(claim, budget, rows))
