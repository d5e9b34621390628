"""One training loop: ``θ ← optimizer(θ, ∇ loss(model, batches(step)))`` for step = 0 … steps-1.

The batch is a function of the step alone, so a run that was cut off goes on from its newest checkpoint as if nothing had been.
"""

import contextlib
import functools
import math
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map

from neuropil.errors import Refused, choose, optional
from neuropil.training import checkpoint

Report = Callable[[str, float], None]
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true")


@dataclass(frozen=True)
class History:
    """The loss of every step (mean over processes), and the step at which this call took up the work (0: from the start)."""

    losses: list[float]
    resumed: int = 0


def cosine(fraction: float) -> float:
    """``(1 + cos π x) / 2``: from 1 at x = 0 to 0 at x = 1.

    >>> cosine(0.0), round(cosine(0.5), 9), cosine(1.0)
    (1.0, 0.5, 0.0)
    """
    return (1 + math.cos(math.pi * fraction)) / 2


def warmup_cosine(warmup: float) -> Callable[[float], float]:
    """A line from 0 up to 1 at x = `warmup` (a fraction of training), then a cosine down to 0 at x = 1.

    >>> schedule = warmup_cosine(0.1)
    >>> schedule(0.05), schedule(0.1), schedule(1.0)
    (0.5, 1.0, 0.0)
    """
    if not 0 < warmup < 1:
        raise Refused(f"warmup: must lie between 0 and 1, got {warmup}")
    return lambda x: x / warmup if x < warmup else cosine((x - warmup) / (1 - warmup))


def minibatches(tensors: Sequence[Tensor], size: int, seed: int) -> Callable[[int], tuple[Tensor, ...]]:
    """``step -> the rows of step``: each epoch is a fresh permutation of (seed, epoch), cut into full batches of `size` rows.

    The n mod size last rows of a permutation sit that epoch out. O(n) at the start of an epoch, O(size) else. Raises `Refused`
    for tensors of different lengths or a size outside 1 … n.

    >>> batch = minibatches([torch.arange(6)], size=3, seed=0)
    >>> sorted(torch.cat([*batch(0), *batch(1)]).tolist())
    [0, 1, 2, 3, 4, 5]
    """
    lengths = {len(x) for x in tensors}
    if len(lengths) != 1:
        raise Refused(f"tensors: one or more of equal length are needed, got lengths {[len(x) for x in tensors]}")
    (n,) = lengths
    if not 1 <= size <= n:
        raise Refused(f"size: must lie between 1 and the {n} rows, got {size}")

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
    optimizer: Optimizer | Callable[[Iterable[nn.Parameter]], Optimizer] | None = None,
    schedule: Callable[[float], float] | None = None,
    device: str = "cpu",
    precision: str = "32-true",
    devices: int = 1,
    folder: str | Path | None = None,
    every: int | None = None,
    report: Report | None = None,
    clip: float | None = None,
) -> History:
    """Train `model` in place to `steps` steps in all; its tensors end on `device`.

    - ``loss(model, batch)`` gives the scalar to minimise; ``batches(step)`` must depend on the step alone (see `minibatches`).
    - `optimizer`: one that holds the model's parameters, or a function of them; default AdamW with `lr`.
    - `schedule`: fraction of steps done -> factor on the learning rate (see `cosine`, `warmup_cosine`).
    - `clip`: largest norm of the whole gradient.
    - `precision` other than 32-true, or `devices` > 1, run through Lightning Fabric. Of D processes, process r at step s takes
      ``batches(s D + r)``: D batches a step.
    - `folder`: checkpoints every `every` steps (default: ten in all), at the end, and on Ctrl-C once the step at hand is done.
      The same call on a folder that has some goes on from the newest sound one: bit-equal on the CPU, dropout included, as
      long as randomness comes from the global generators of torch, numpy or Python.
    - ``report(what, fraction)`` is called after each step; without it, a progress bar shows where stderr is a terminal.
      A KeyboardInterrupt that it raises also leaves a checkpoint; one raised inside `loss` or `batches` does not.

    Raises `Refused` for bad arguments, a loss that is not a finite scalar (by step), or checkpoints that are all corrupt or of
    another model. Costs one forward, one backward and one device synchronisation (the loss) a step.

    >>> x = torch.linspace(-1, 1, 64)[:, None]
    >>> model = nn.Linear(1, 1)
    >>> history = fit(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), minibatches([x, 2 * x], 16, 0), steps=200, lr=0.1)
    >>> len(history.losses), history.losses[-1] < 1e-3
    (200, True)
    """
    for name, count in (("steps", steps), ("devices", devices), ("every", every)):
        if count is not None and count < 1:
            raise Refused(f"{name}: must be at least 1, got {count}")
    for name, number in (("lr", lr), ("clip", clip)):
        if number is not None and not 0 < number < math.inf:
            raise Refused(f"{name}: must be positive and finite, got {number}")
    choose("precision", precision, PRECISIONS)
    engine = _Plain(_device(device)) if precision == "32-true" and devices == 1 else _Fabric(_device(device), devices, precision)
    folder, every = None if folder is None else Path(folder), every or math.ceil(steps / 10)

    model.to(engine.device)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise Refused("model: it has no parameter that requires a gradient")
    if not isinstance(optimizer, Optimizer):
        optimizer = torch.optim.AdamW(parameters, lr=lr) if optimizer is None else optimizer(parameters)
    rates = [group["lr"] for group in optimizer.param_groups]
    wrapped, stepper = engine.setup(model, optimizer)

    losses = _resume(folder, steps, model, optimizer, engine)
    start, was_training = len(losses), model.training

    def save() -> None:
        if folder is not None:
            generators = engine.gather(checkpoint.random_state(engine.device))
            if engine.rank == 0:
                state = {"optimizer": optimizer.state_dict(), "scaler": engine.scaler(), "random": generators}
                state["losses"] = torch.tensor(losses, dtype=torch.float64)
                checkpoint.save(folder, len(losses), model.state_dict(), state)
            engine.barrier()

    model.train()
    try:
        with _interrupts() as interrupted, _progress(report, engine.rank) as tell:
            for step in range(start, steps):
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    group["lr"] = rate if schedule is None else rate * schedule(step / steps)
                batch = tree_map(engine.move, batches(step * engine.world + engine.rank))
                with engine.autocast():
                    value = loss(wrapped, batch)
                if value.ndim:
                    raise Refused(f"loss: must return a scalar, got shape {tuple(value.shape)}")
                mean, stop = engine.agree(value, bool(interrupted))
                if not math.isfinite(mean):
                    raise Refused(f"loss: not finite ({mean}) at step {step}; lower lr, set clip, or look at batches({step})")
                stepper.zero_grad()
                engine.backward(value)
                if clip is not None:
                    engine.clip(clip)
                stepper.step()
                losses.append(mean)
                stop = stop or (engine.world == 1 and bool(interrupted))
                if stop or (step + 1) % every == 0 or step + 1 == steps:
                    save()
                if stop:
                    raise KeyboardInterrupt
                try:
                    tell(f"step {step + 1}/{steps}  loss {mean:.4g}", (step + 1) / steps)
                except KeyboardInterrupt:  # a front end's way to stop: this, too, is a step boundary
                    save()
                    raise
    finally:
        model.train(was_training)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
    return History(losses, start)


class _Plain:
    """One process in full precision: the loop's seam without Lightning."""

    rank, world = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def setup(self, model: nn.Module, optimizer: Optimizer) -> tuple[Any, Any]:
        self.model, self.optimizer = model, optimizer
        return model, optimizer

    def move(self, x: Any) -> Any:
        return x.to(self.device) if isinstance(x, Tensor) else x

    def autocast(self) -> Any:
        return contextlib.nullcontext()

    def backward(self, value: Tensor) -> None:
        value.backward()

    def clip(self, norm: float) -> None:
        nn.utils.clip_grad_norm_(self.model.parameters(), norm)

    def agree(self, value: Tensor, stop: bool) -> tuple[float, bool]:
        """The mean loss of all processes, and whether any of them wants to stop."""
        return float(value.detach()), stop

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, by rank."""
        return [value]

    def barrier(self) -> None:
        pass

    def scaler(self) -> dict[str, Any]:
        return {}

    def load_scaler(self, state: dict[str, Any]) -> None:
        pass


class _Fabric(_Plain):
    """Mixed precision and several processes, by Lightning Fabric.

    Imported only here: on the machine this was written on the import takes 1.7 s after torch's own 1.8 s with warm caches.
    """

    def __init__(self, device: torch.device, devices: int, precision: str) -> None:
        fabric = optional("lightning_fabric", "training")
        which: Any = [device.index] if devices == 1 and device.index is not None and device.type != "cpu" else devices
        try:
            self.fabric = fabric.Fabric(accelerator=device.type, devices=which, precision=precision)
        except (RuntimeError, ValueError) as error:  # also MisconfigurationException: more devices than there are
            raise Refused(f"devices, precision: {' '.join(str(error).split())}") from None
        self.fabric.launch()
        super().__init__(self.fabric.device)
        self.rank, self.world = self.fabric.global_rank, self.fabric.world_size

    def setup(self, model: nn.Module, optimizer: Optimizer) -> tuple[Any, Any]:
        self.model, self.optimizer = self.fabric.setup(model, optimizer)
        return self.model, self.optimizer

    def autocast(self) -> Any:
        return self.fabric.autocast()

    def backward(self, value: Tensor) -> None:
        self.fabric.backward(value)

    def clip(self, norm: float) -> None:
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=norm, error_if_nonfinite=False)

    def agree(self, value: Tensor, stop: bool) -> tuple[float, bool]:
        pair = torch.stack([value.detach().float(), value.new_tensor(stop, dtype=torch.float32)])
        mean, stopping = self.fabric.all_reduce(pair, reduce_op="mean").tolist()
        return mean, stopping > 0

    def gather(self, value: Any) -> list[Any]:
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        self.fabric.barrier()

    def scaler(self) -> dict[str, Any]:
        return self.fabric.strategy.precision.state_dict()

    def load_scaler(self, state: dict[str, Any]) -> None:
        if state:
            self.fabric.strategy.precision.load_state_dict(state)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise Refused(f"device: must be a torch device such as cpu, cuda or cuda:1, got {name!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise Refused(f"device: {name} is not there; torch sees {torch.cuda.device_count()} CUDA devices")
    return device


def _resume(folder: Path | None, steps: int, model: nn.Module, optimizer: Optimizer, engine: _Plain) -> list[float]:
    """Load the newest sound checkpoint, if any, into everything; the losses so far."""
    found = None if folder is None else checkpoint.load(folder)
    if found is None:
        return []
    step, weights, state = found
    if step > steps:
        raise Refused(f"steps: {folder} already holds step {step}, got {steps}; ask for more steps or give another folder")
    try:
        model.load_state_dict(weights)
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"folder: {folder} was written by another model or optimizer ({reason[:200]}); give another folder") from None
    if len(state["random"]) != engine.world:
        raise Refused(f"devices: {folder} was written with {len(state['random'])}, got {engine.world}")
    engine.load_scaler(state["scaler"])
    checkpoint.restore_random_state(state["random"][engine.rank], engine.device)
    return state["losses"].tolist()


@contextlib.contextmanager
def _interrupts() -> Iterator[list[int]]:
    """Inside, the first Ctrl-C only fills the list, so that the step at hand can end; the second one interrupts at once."""
    seen: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield seen  # signals go elsewhere, or the caller has a handler of its own
        return

    def handler(number: int, frame: Any) -> None:
        if seen:
            raise KeyboardInterrupt
        seen.append(number)

    signal.signal(signal.SIGINT, handler)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)
    if seen:  # it came after the last step
        raise KeyboardInterrupt


@contextlib.contextmanager
def _progress(report: Report | None, rank: int) -> Iterator[Report]:
    """The caller's report, else a bar where someone is looking, else nothing; only the first process speaks."""
    if rank or (report is None and not sys.stderr.isatty()):
        yield lambda what, fraction: None
    elif report is not None:
        yield report
    else:
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task("fit", total=1.0)
            yield lambda what, fraction: bar.update(task, description=what, completed=fraction)
