"""Run folders, and the loop that fits a field for so many seconds and can always be stopped and gone on with.

    RUN/run.json             what was fitted to what, for how long, and how the score went: [seconds, step, PSNR]
        field.safetensors    the field's tensors: with run.json all that rendering, export and the viewer need
        state.safetensors    all that going on needs: the field, the optimiser and how far they have come
        preview.png          what the field looks like

Each file is replaced in one step, and state.safetensors first: it alone decides where a run goes on, and the other files follow it
where a power cut fell between. Without it (it may be deleted once a run is done) the optimiser starts afresh. A step's randomness
is a function of its number, so nothing else has to be kept.
"""

import contextlib
import fcntl
import io
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn
from torch.optim import Optimizer

from neuropil.errors import Refused
from neuropil.files import read_json, sha256, sweep, write_atomic, write_json
from neuropil.nn.modes import evaluating
from neuropil.training.checkpoint import flatten, seal, unflatten, unseal
from neuropil.training.fit import deferred_interrupts

FORMAT = 2
FIELD, STATE, FACTS, PREVIEW = "field.safetensors", "state.safetensors", "run.json", "preview.png"
SAVE_EVERY = 10.0  # seconds of fitting that a power cut may cost, at first fewer

Report = Callable[[float, int, float], None]  # seconds so far, step, PSNR in dB


@dataclass(frozen=True)
class Recipe:
    """What `run.json` says of a field: enough to build it again without its source."""

    kind: str
    field: str
    arguments: dict[str, Any]
    source: str
    fingerprint: str


class Fit:
    """One field being fitted to one source. A kind of source is a subclass with `loss`, `score` and `preview`."""

    def __init__(self, recipe: Recipe, model: nn.Module, optimizer: Optimizer, device: torch.device) -> None:
        self.recipe, self.model, self.optimizer, self.device = recipe, model, optimizer, device

    def loss(self, step: int) -> Float[Tensor, ""]:
        """The loss of a batch that is drawn by torch's global generator (which is seeded with `step`)."""
        raise NotImplementedError

    def score(self) -> float:
        """PSNR in dB on what the kind of source takes as its test."""
        raise NotImplementedError

    def preview(self) -> Float[Tensor, "h w 3"]:
        """A picture of the field, in [0, 1]."""
        raise NotImplementedError


@dataclass
class Progress:
    """How far a run has come; `history` holds (seconds, step, PSNR)."""

    seconds: float = 0.0
    step: int = 0
    history: list[tuple[float, int, float]] = field(default_factory=list)

    @property
    def psnr(self) -> float:
        """The newest score; NaN before the first."""
        return self.history[-1][2] if self.history else math.nan


@dataclass(frozen=True)
class Run:
    """A run folder that was read and is whole."""

    folder: Path
    recipe: Recipe
    progress: Progress

    def tensors(self) -> dict[str, Tensor]:
        """The field's tensors, on the CPU."""
        return _tensors(self.folder / FIELD)[0]


def read(folder: Path) -> Run:
    """The run in `folder`. `Refused` in one line if there is none, it is half-deleted, corrupt, or of another version."""
    if not folder.is_dir():
        raise Refused(f"run: no folder {folder}")
    missing = [name for name in (FACTS, FIELD) if not (folder / name).is_file()]
    if missing:
        whole = "is no run folder" if len(missing) == 2 else "is half-deleted"
        raise Refused(f"run: {folder} {whole}: it has no {' and no '.join(missing)}; nothing was changed")
    return _facts(folder)


def _facts(folder: Path) -> Run:
    facts = read_json(folder / FACTS, "run")
    version = facts.get("format") if isinstance(facts, dict) else None
    if version != FORMAT:
        raise Refused(f"run: {folder} has format {version!r}, this neuropil reads {FORMAT}; use the version that wrote it")
    try:
        recipe = Recipe(**{name: facts[name] for name in ("kind", "field", "arguments", "source", "fingerprint")})
        rows = [(float(s), int(step), float(psnr)) for s, step, psnr in facts["history"]]
        return Run(folder, recipe, Progress(float(facts["seconds"]), int(facts["step"]), rows))
    except (LookupError, TypeError, ValueError) as error:
        raise Refused(f"run: {folder / FACTS} is damaged ({type(error).__name__}: {error}); nothing was changed") from None


def load_into(model: nn.Module, run: Run) -> nn.Module:
    """`model` with the run's tensors, ready to be looked at; `Refused` if they are of another field."""
    _load(model, run.tensors(), run.folder / FIELD)
    return model.eval().requires_grad_(False)


def fit(job: Fit, out: Path, seconds: float, report: Report = lambda seconds, step, psnr: None, steps: int | None = None) -> Run:
    """Fit `job` until it has had `seconds` of optimisation (or `steps` steps) in all, keep it in `out`, and give the run.

    The rates fall by a cosine from the optimiser's own to a hundredth of them. `seconds` counts updates only, not scoring and
    saving. An `out` that holds the same recipe is gone on with, and is left alone if it has had its seconds; Ctrl-C saves, then
    raises KeyboardInterrupt. With `steps`, equal calls give equal bits on the CPU, however often they were stopped. Raises
    `Refused` for bad seconds, an `out` that holds something else or is in use, or numbers that explode (the last good state stays
    on disk).
    """
    check_seconds(seconds)
    _check_out(job.recipe, out)
    cuda = [job.device] if job.device.type == "cuda" else []
    with _alone(out), deferred_interrupts() as interrupts, torch.random.fork_rng(cuda):
        _warm(job)
        progress = _resume(job, out)
        rates = [group.setdefault("initial_lr", group["lr"]) for group in job.optimizer.param_groups]
        tick, scored, saved = min(max(0.5, seconds / 200), 5.0), progress.seconds, progress.seconds
        while (done := _fraction(progress, seconds, steps)) < 1:
            began = time.perf_counter()
            for group, rate in zip(job.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (0.505 + 0.495 * math.cos(math.pi * done))
            _step(job, progress.step, out)
            progress.step += 1
            progress.seconds += time.perf_counter() - began
            ends = bool(interrupts) or _fraction(progress, seconds, steps) >= 1
            if ends or progress.seconds - scored >= tick:
                scored = progress.seconds
                _score(job, progress, out)
                report(progress.seconds, progress.step, progress.psnr)
            if ends or progress.seconds - saved >= min(max(1.0, saved), SAVE_EVERY):
                saved = progress.seconds
                _save(job, progress, out)
            if interrupts:
                raise KeyboardInterrupt
    return Run(out, job.recipe, progress)


def check_seconds(seconds: float) -> None:
    """`Refused` unless `seconds` is a positive, finite time."""
    if not 0 < seconds < math.inf:
        raise Refused(f"seconds: must be positive and finite, got {seconds:g}")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, torch's CPU generator starts from `seed`; afterwards it is as before."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        yield


def fingerprint(*data: Tensor) -> str:
    """The SHA-256 of tensors' bytes: whether a source is still the one that was fitted."""
    bytes_of_all = (x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for x in data)
    return sha256("".join(map(sha256, bytes_of_all)).encode())


def png(picture: Float[Tensor, "h w 3"]) -> bytes:
    """The bytes of a PNG of values in [0, 1] (clipped)."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(picture).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def to_bytes(picture: Tensor) -> Tensor:
    """Values in [0, 1] (clipped) as rounded uint8 on the CPU."""
    return (picture.detach().clamp(0, 1) * 255).round().to("cpu", torch.uint8)


def _fraction(progress: Progress, seconds: float, steps: int | None) -> float:
    return progress.step / steps if steps else progress.seconds / seconds


def _warm(job: Fit) -> None:
    """The first step compiles and loads kernels, which is no fitting: take one that leaves no trace."""
    before = {name: x.clone() for name, x in job.model.state_dict().items()}
    job.loss(0).backward()
    job.model.load_state_dict(before)


def _step(job: Fit, step: int, out: Path) -> None:
    torch.manual_seed(step)
    job.optimizer.zero_grad()
    loss = job.loss(step)
    if not math.isfinite(float(loss.detach())):
        raise _exploded(job, step, out)
    loss.backward()
    job.optimizer.step()


def _score(job: Fit, progress: Progress, out: Path) -> None:
    with _looking(job.model):
        psnr = job.score()
    if not math.isfinite(psnr):
        raise _exploded(job, progress.step, out)
    progress.history.append((round(progress.seconds, 4), progress.step, round(psnr, 4)))


def _exploded(job: Fit, step: int, out: Path) -> Refused:
    return Refused(
        f"field: {job.recipe.field!r} exploded at step {step} (no finite numbers any more); {out} keeps the state before"
    )


@contextlib.contextmanager
def _looking(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in eval mode and nothing has a gradient."""
    with evaluating(model), torch.no_grad():
        yield


def _save(job: Fit, progress: Progress, out: Path) -> None:
    """One step decides: whatever is killed after it, `_resume` makes the other files follow."""
    kept = {"model": job.model.state_dict(), "optimizer": job.optimizer.state_dict(), "progress": vars(progress)}
    tree, tensors = flatten(kept)
    write_atomic(out / STATE, seal(tensors, {"tree": tree}))
    _publish(job, progress, out)


def _publish(job: Fit, progress: Progress, out: Path) -> None:
    """What others read of a run."""
    with _looking(job.model):
        picture = png(job.preview())
    write_atomic(out / FIELD, seal(job.model.state_dict(), {"step": progress.step}))
    write_atomic(out / PREVIEW, picture)
    _save_facts(job.recipe, progress, out)  # last: what it tells is there


def _save_facts(recipe: Recipe, progress: Progress, out: Path) -> None:
    write_json(out / FACTS, {"format": FORMAT} | vars(recipe) | vars(progress))


def _check_out(recipe: Recipe, out: Path) -> None:
    """`Refused` if `out` is a file, a folder of something else, or a run of another recipe."""
    if out.exists() and not out.is_dir():
        raise Refused(f"out: {out} is a file; give a folder")
    if not out.exists() or not [path for path in out.iterdir() if not path.name.startswith(".")]:
        return
    there = (_facts if (out / FACTS).is_file() else read)(out)
    if there.progress.step and not (out / FIELD).is_file():
        read(out)
    for name in ("kind", "fingerprint", "field", "arguments"):
        old, new = getattr(there.recipe, name), getattr(recipe, name)
        if old != new:
            raise Refused(f"out: {out} holds a fit of {there.recipe.source} with {_difference(name, old, new)}; give another --out")


def _difference(name: str, old: Any, new: Any) -> str:
    if name == "fingerprint":
        return "other data"
    if name != "arguments":
        return f"{name} {old!r} where {new!r} was asked for"
    keys = [key for key in old.keys() | new.keys() if old.get(key) != new.get(key)]
    return f"another {' and another '.join(sorted(keys))}"


def _resume(job: Fit, out: Path) -> Progress:
    """Put what is in `out` into the model and the optimiser; a new `out` says from the start whose it is."""
    sweep(out, ".*.tmp")
    progress = _facts(out).progress if (out / FACTS).is_file() else Progress()
    published = (out / FIELD).is_file()
    weights, stamp = _tensors(out / FIELD) if published else ({}, {"step": 0})
    if (out / STATE).is_file():
        kept = _restore(job, out)
        if not published or kept != progress or stamp.get("step") != kept.step:
            _publish(job, kept, out)
        return kept
    if published:
        _load(job.model, weights, out / FIELD)
        progress.step = int(stamp["step"])
        return progress
    _save_facts(job.recipe, Progress(), out)
    return Progress()


def _restore(job: Fit, out: Path) -> Progress:
    """The field and the optimiser as state.safetensors has them, and how far they had come."""
    tensors, head = _tensors(out / STATE)
    try:
        kept = unflatten(head["tree"], tensors)
        model, optimizer, progress = kept["model"], kept["optimizer"], kept["progress"]
        optimizer["state"] = {int(number): of for number, of in optimizer["state"].items()}
        rows = [(float(s), int(step), float(psnr)) for s, step, psnr in progress["history"]]
        done = Progress(float(progress["seconds"]), int(progress["step"]), rows)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise Refused(
            f"run: {out / STATE} is damaged or of another version ({type(error).__name__}: {error}); nothing was changed "
            "(without it the fit goes on from field.safetensors)"
        ) from None
    _load(job.model, model, out / STATE)
    try:
        job.optimizer.load_state_dict(optimizer)
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"run: {out / STATE} holds another optimiser ({' '.join(str(error).split())[:160]})") from None
    return done


def _load(model: nn.Module, weights: dict[str, Tensor], file: Path) -> None:
    try:
        model.load_state_dict(weights)
    except (RuntimeError, TypeError) as error:
        raise Refused(f"run: {file} holds another field ({' '.join(str(error).split())[:160]})") from None


def _tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        return unseal(path)
    except Refused as error:
        raise Refused(f"run: {error}") from None


@contextlib.contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the run folder against a second fit; a killed one frees it."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"out: {out} is being fitted by another process") from None
        yield
