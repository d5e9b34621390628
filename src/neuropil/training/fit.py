"""One training loop: ``θ ← optimizer(θ, ∇ loss(model, batches(step)))`` for step = 0 … steps − 1.

The batch is a function of the step alone, so a run that was cut off goes on from its newest checkpoint as if nothing had happened.
"""

import contextlib
import functools
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map_only

from neuropil.errors import Refused, choose, optional
from neuropil.nn.modes import modes_kept
from neuropil.training import checkpoint

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class History:
    """What a training came to: the loss of each step (mean over processes), how many steps, and the seconds they took.

    Calls that went on from a checkpoint count what came before it. Goes through `json.dumps(dataclasses.asdict(history))`.
    """

    losses: list[float]
    steps: int
    seconds: float


def cosine(warmup: float = 0.0) -> Callable[[float], float]:
    """A line from 0 up to 1 at x = `warmup` (a fraction of training), then ``(1 + cos π x') / 2`` down to 0 at x = 1.

    >>> schedule = cosine(warmup=0.1)
    >>> schedule(0.05), schedule(0.1), schedule(1.0)
    (0.5, 1.0, 0.0)
    """
    if not 0 <= warmup < 1:
        raise Refused(f"warmup: must lie in [0, 1), got {warmup}")
    return lambda x: x / warmup if x < warmup else (1 + math.cos(math.pi * (x - warmup) / (1 - warmup))) / 2


def minibatches(tensors: Sequence[Tensor], size: int, seed: int) -> Callable[[int], tuple[Tensor, ...]]:
    """``step -> the rows of step``: each epoch is a fresh permutation of (seed, epoch), cut into full batches of `size` rows.

    The n mod size last rows of a permutation sit that epoch out. O(n) at the start of an epoch, O(size) else. Raises `Refused`
    for tensors of different lengths or a size outside 1 … n.

    >>> batch = minibatches([torch.arange(6)], size=3, seed=0)
    >>> sorted(torch.cat([*batch(0), *batch(1)]).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    lengths = [len(x) for x in tensors]
    n = min(lengths, default=0)
    if not 1 <= size <= n or max(lengths) > n:
        raise Refused(f"tensors, size: as many rows in each and 1 ≤ size ≤ rows are needed, got {lengths} rows and size {size}")

    @functools.lru_cache(maxsize=2)
    def permutation(epoch: int) -> Tensor:
        return torch.from_numpy(numpy.random.default_rng([seed, epoch]).permutation(n))

    def batch(step: int) -> tuple[Tensor, ...]:
        epoch, part = divmod(step, n // size)
        rows = permutation(epoch)[part * size : (part + 1) * size]
        return tuple(x[rows.to(x.device)] for x in tensors)

    return batch


def fit(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    batches: Callable[[int], Any],
    *,
    steps: int,
    lr: float = 1e-3,
    optimizer: Callable[..., Optimizer] = torch.optim.AdamW,
    schedule: Callable[[float], float] | None = None,
    clip: float | None = None,
    device: str = "cpu",
    precision: str = "32-true",
    devices: int = 1,
    folder: str | Path | None = None,
    every: int | None = None,
    report: Report | None = None,
) -> History:
    """Train `model` in place to `steps` steps in all; its tensors end on `device`, each submodule in the mode that it had.

    - ``loss(model, batch)`` is the number to minimise; ``batches(step)`` depends on the step alone (see `minibatches`).
    - ``optimizer(parameters, lr=lr)`` makes the optimizer; ``schedule(fraction done)`` is a factor on its rates (see `cosine`).
    - `clip`: largest norm of the whole gradient.
    - `precision`: 32-true (the model's own), or bf16-mixed: `loss` runs under autocast to bfloat16.
    - `devices` D > 1: D processes (by Lightning Fabric, which starts the running script once more for each). Process r takes
      ``batches(step D + r)``, gradients are averaged: D batches a step. The model must be called as ``model(…)`` then.
    - `folder`: whole checkpoints every `every` steps (default: ten in all), at the end, and on Ctrl-C, which waits for the step
      at hand. The same call on a folder that has some goes on from the newest whole one: bit-equal on the CPU, as long as
      randomness comes from the global generators of torch, numpy or Python, whose states are kept, too.
    - ``report(what, fraction)`` is called after each step; without it a progress bar shows where stderr is a terminal.
    - Modes: a model in train mode is trained as it is, so that submodules in eval mode stay so; one in eval mode is put in train
      mode, all of it. Whatever `report` does to modes is undone.

    Raises `Refused` for bad arguments, a loss that is not one finite number (by step), or checkpoints that are all corrupt, of
    another model or from beyond `steps`. Costs one forward, one backward and one device synchronisation (the loss) a step.

    >>> from neuropil.nn.mlp import MLP
    >>> _ = torch.manual_seed(0)
    >>> x = torch.linspace(-3, 3, 256)[:, None]
    >>> mlp = MLP([1, 32, 32, 1], activation="tanh")
    >>> batches = minibatches([x, x.sin()], size=64, seed=0)
    >>> history = fit(mlp, lambda f, b: (f(b[0]) - b[1]).square().mean(), batches, steps=200, lr=0.01, schedule=cosine())
    >>> history.steps, history.losses[-1] < 0.01
    (200, True)
    """
    for name, number in (("steps", steps), ("lr", lr), ("clip", clip), ("devices", devices), ("every", every)):
        if number is not None and not 0 < number < math.inf:
            raise Refused(f"{name}: must be positive and finite, got {number}")
    half = choose("precision", precision, ("32-true", "bf16-mixed")) == "bf16-mixed"
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise Refused("model: none of its parameters requires a gradient")
    team = _Team(device, devices)
    model.to(team.device)
    stepper = optimizer(parameters, lr=lr)
    rates = [group["lr"] for group in stepper.param_groups]
    losses, before = ([], 0.0) if folder is None else _resume(Path(folder), steps, model, stepper, team)
    began, every = time.monotonic() - before, every or math.ceil(steps / 10)
    trained = team.fabric.setup_module(model) if team.fabric else model
    with modes_kept(model), deferred_interrupts() as interrupts, _progress(report, team.rank) as tell:
        if not model.training:
            model.train()
        for step in range(len(losses), steps):
            for group, rate in zip(stepper.param_groups, rates, strict=True):
                group["lr"] = rate * (schedule(step / steps) if schedule else 1.0)
            batch = tree_map_only(Tensor, lambda x: x.to(team.device), batches(step * team.size + team.rank))
            with torch.autocast(team.device.type, torch.bfloat16, enabled=half):
                value = loss(trained, batch)
            mean, stop = team.agree(value, bool(interrupts))
            if not math.isfinite(mean):
                raise Refused(f"loss: {mean} at step {step}; lower lr, set clip, or look at batches({step})")
            stepper.zero_grad()
            value.backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(parameters, clip)
            stepper.step()
            losses.append(mean)
            if folder is not None and (stop or (step + 1) % every == 0 or step + 1 == steps):
                _save(Path(folder), model, stepper, team, losses, time.monotonic() - began)
            if stop:
                raise KeyboardInterrupt
            with modes_kept(model):
                tell(f"step {step + 1}/{steps}  loss {mean:.4g}", (step + 1) / steps)
    return History(losses, steps, time.monotonic() - began)


def _save(folder: Path, model: nn.Module, optimizer: Optimizer, team: "_Team", losses: list[float], seconds: float) -> None:
    state = {"optimizer": optimizer.state_dict(), "losses": torch.tensor(losses, dtype=torch.float64), "seconds": seconds}
    state["random"] = team.gather(checkpoint.random_state(team.device))
    if team.rank == 0:
        checkpoint.save(folder, len(losses), model.state_dict(), state)
    team.gather(None)  # nobody goes on before it is written


def _resume(folder: Path, steps: int, model: nn.Module, optimizer: Optimizer, team: "_Team") -> tuple[list[float], float]:
    """Put the newest whole checkpoint, if there is one, into everything; the losses and the seconds before it."""
    if folder.exists() and not folder.is_dir():
        raise Refused(f"folder: {folder} is a file")
    found = checkpoint.load(folder)
    if found is None:
        return [], 0.0
    step, weights, state = found
    if step > steps:
        raise Refused(f"steps: {folder} holds step {step} already, got {steps}; ask for more or give another folder")
    if len(state["random"]) != team.size:
        raise Refused(f"devices: {folder} was written by {len(state['random'])}, got {team.size}")
    state["optimizer"]["state"] = {int(number): of for number, of in state["optimizer"]["state"].items()}
    try:
        model.load_state_dict(weights)
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise Refused(f"folder: {folder} holds another model or optimizer ({reason}); give another folder") from None
    checkpoint.restore_random_state(state["random"][team.rank], team.device)
    return state["losses"].tolist(), state["seconds"]


class _Team:
    """The processes that train together: this one alone, or `size` of them."""

    fabric: Any = None
    rank, size = 0, 1

    def __init__(self, device: str, devices: int) -> None:
        try:
            self.device = torch.device(device) if devices > 1 else torch.empty(0, device=device).device
        except (RuntimeError, AssertionError) as error:
            raise Refused(f"device: {device!r} cannot be used here ({str(error).splitlines()[0]})") from None
        if devices > 1:
            self._launch(devices)

    def _launch(self, devices: int) -> None:
        """Start the other processes. Lightning Fabric is imported only here: it takes 1.1 s after torch's 1.1 s, 11 s cold."""
        first, there = self.device.index or 0, torch.cuda.device_count()
        if self.device.type == "cuda" and first + devices > there:
            raise Refused(f"devices: {devices} from {self.device} on were asked for, torch sees {there}")
        which = devices if self.device.type == "cpu" else list(range(first, first + devices))
        lightning = optional("lightning_fabric", "training")
        self.fabric = lightning.Fabric(accelerator=self.device.type, devices=which, strategy="ddp")
        self.fabric.launch()
        self.device, self.rank, self.size = self.fabric.device, self.fabric.global_rank, self.fabric.world_size

    def agree(self, value: Tensor, stop: bool) -> tuple[float, bool]:
        """The mean loss of all processes, and whether any of them wants to stop."""
        if value.numel() != 1:
            raise Refused(f"loss: must be one number, got shape {tuple(value.shape)}")
        if not self.fabric:
            return float(value.detach()), stop
        pair = torch.stack([value.detach().double().reshape(()), value.new_tensor(stop, dtype=torch.float64)])
        mean, stopping = self.fabric.all_reduce(pair, reduce_op="mean").tolist()
        return mean, stopping > 0

    def gather(self, value: Any) -> list[Any]:
        """The plain values of all processes, by rank."""
        values = [value] * self.size
        if self.fabric:
            torch.distributed.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[list[int]]:
    """Inside, the first Ctrl-C only fills the list, so that the step at hand can end; the second one interrupts at once."""
    seen: list[int] = []
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:  # else signals go elsewhere, or the caller has a handler of its own
        signal.signal(signal.SIGINT, lambda *where: signal.default_int_handler(*where) if seen else seen.append(where[0]))
    try:
        yield seen
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    if seen:  # it came after the last step
        raise KeyboardInterrupt


@contextlib.contextmanager
def _progress(report: Report | None, rank: int) -> Iterator[Report]:
    """The caller's report, else a bar where someone is looking, else nothing; only the first process speaks."""
    if rank or report or not sys.stderr.isatty():
        yield report if report and not rank else lambda what, fraction: None
        return
    from rich import console, progress

    with progress.Progress(console=console.Console(stderr=True), transient=True) as bar:
        task = bar.add_task("fit", total=1.0)
        yield lambda what, fraction: bar.update(task, description=what, completed=fraction)
