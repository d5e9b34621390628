"""Nets that several claims need are trained once and kept: `trained` trains or loads, with the weights at chosen steps in between.

    found = trained("induction", make, train, seed=0, settings={"layers": 2})

The key is the name, the seed, the settings, torch's version, and the code: the files that define `make`, `train` and what `code`
names, without their comments and docstrings. A file a key, in ``trained/`` of the data cache (see `data.sources.cache`), as
safetensors whose SHA-256 it carries; it is written in one step, under a lock that makes a second process wait and load.

Training starts from generators set by the seed, and the caller's, on all devices, are put back: trained or loaded, the program goes
on alike.
"""

import functools
import inspect
import json
import random
import re
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from neuropil.data.sources import cache
from neuropil.errors import Refused
from neuropil.files import code_only, locked, sha256, write_atomic
from neuropil.training.checkpoint import randomness_kept, seal, unseal

FORMAT = "2"


@dataclass(frozen=True)
class Trained:
    """A trained net and its past.

    `model` is in eval mode. `notes` are what `train` returned (losses, say), `seconds` what training took when it was done,
    `note` one line that says what happened now: trained, loaded, or trained again since the file was corrupt.
    """

    model: nn.Module
    notes: Any
    seconds: float
    note: str
    path: Path
    weights: Mapping[int, Mapping[str, Tensor]] = field(repr=False)
    make: Callable[[], nn.Module] = field(repr=False)

    @property
    def steps(self) -> list[int]:
        """The steps that were kept, rising."""
        return sorted(self.weights)

    def at(self, step: int) -> nn.Module:
        """A fresh net, in eval mode, with the weights after `step` steps; `Refused` if that step was not kept.

        Making it leaves the global random generators as they are.
        """
        if step not in self.weights:
            raise Refused(f"step: {step} was not kept (kept: {', '.join(map(str, self.steps)) or 'none'})")
        device = next(iter(self.model.state_dict().values()), torch.empty(0)).device
        model = _undisturbed(self.make).to(device)
        model.load_state_dict(self.weights[step])
        return model.eval()


def trained(
    name: str,
    make: Callable[..., nn.Module],
    train: Callable[..., Any],
    *,
    seed: int,
    settings: Mapping[str, Any] | None = None,
    code: Sequence[Any] = (),
    device: str = "cpu",
) -> Trained:
    """The net ``make(**settings)`` after ``train(model, keep, **settings)``: from the cache, or trained now and put there.

    Args:
        name: a word for the folder.
        make: makes the net, on the CPU.
        train: trains it in place; ``keep(step)`` stores its weights of that step; it returns notes as JSON's plain values. What it
            draws comes from the global generators of torch, numpy and Python, which start from `seed`.
        settings: plain values, all of them passed to both functions and part of the key.
        code: further functions, classes or modules whose source files are part of the key: what a change of should train anew.
        device: where the net is trained, and ends.

    Costs what `train` costs, once; later a read and a hash of the file. Memory: all kept weights. `Refused` for settings or notes
    that are not JSON's plain values, or weights whose names or shapes are not those of `make`'s net.

    >>> import os, tempfile, unittest.mock
    >>> def make(d):
    ...     return nn.Linear(d, 1)
    >>> def train(model, keep, d):
    ...     keep(0)
    ...     _ = nn.init.ones_(model.weight)
    ...     return {"d": d}
    >>> with tempfile.TemporaryDirectory() as folder, unittest.mock.patch.dict(os.environ, NEUROPIL_DATA=folder):
    ...     first, again = (trained("doctest", make, train, seed=0, settings={"d": 2}) for _ in range(2))
    >>> first.note, again.note, again.notes, again.model.weight.tolist(), again.steps
    ('trained', 'loaded', {'d': 2}, [[1.0, 1.0]], [0])
    """
    if not re.fullmatch(r"[\w.-]+", name) or name.startswith("."):
        raise Refused(f"name: letters, digits, '_', '-' and '.' only, got {name!r}")
    settings = dict(settings or {})
    key = {
        "format": FORMAT,
        "seed": seed,
        "settings": _plain("settings", settings),
        "code": code_of(make, train, *code),
        "torch": torch.__version__,
    }
    path = cache() / "trained" / name / f"{sha256(json.dumps(key, sort_keys=True).encode())[:24]}.safetensors"
    made = functools.partial(make, **settings)
    before = path.exists()
    found = _read(path)
    if found is None:
        with locked(path):
            found = _read(path)  # another process may have been faster
            if found is None:
                note = "trained again: the file was corrupt" if before else "trained"
                return _train(path, made, functools.partial(train, **settings), seed, torch.device(device), note, key)
    final, weights, facts = found
    model = _undisturbed(made)
    try:
        model.load_state_dict(final)
    except RuntimeError as error:
        raise Refused(f"make: gives another net than the one in {path} ({' '.join(str(error).split())[:200]})") from None
    return Trained(model.to(device).eval(), facts["notes"], facts["seconds"], "loaded", path, weights, made)


def _train(
    path: Path,
    make: Callable[[], nn.Module],
    train: Callable[..., Any],
    seed: int,
    device: torch.device,
    note: str,
    key: Mapping[str, Any],
) -> Trained:
    """Train under the lock, with generators of the seed, and write."""
    kept: dict[int, dict[str, Tensor]] = {}
    with randomness_kept():
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        model = make().to(device)
        began = time.monotonic()
        notes = train(model, lambda step: kept.__setitem__(int(step), _copy(model)))
        seconds = time.monotonic() - began
    tensors = {f"final/{name}": x for name, x in _copy(model).items()}
    tensors |= {f"{step}/{name}": x for step, weights in kept.items() for name, x in weights.items()}
    facts = {"key": key, "seconds": seconds, "notes": json.loads(_plain("train: its notes", notes))}
    write_atomic(path, seal(tensors, facts))
    return Trained(model.eval(), facts["notes"], seconds, note, path, kept, make)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[int, dict[str, Tensor]], dict[str, Any]] | None:
    """Final weights, those by step, and facts; None if there is no such file, or not a whole one."""
    try:
        tensors, facts = unseal(path)
        weights: dict[str, dict[str, Tensor]] = {"final": {}}
        for name, x in tensors.items():
            step, _, parameter = name.partition("/")
            weights.setdefault(step, {})[parameter] = x
        return weights.pop("final"), {int(step): x for step, x in weights.items()}, facts
    except ValueError:  # Refused is one
        return None


def code_of(*objects: Any) -> str:
    """A hash of the source files that define these functions, classes or modules, without comments and docstrings.

    What has no file counts by its own source (a notebook's cell). `Refused` where there is no source at all, and for functions that
    carry settings the key would not see: partials, those that close over anything but functions, classes and modules, and those
    made in functions (or lambdas) whose default arguments are anything else. What a bound method's object holds is not looked at.

    >>> len(code_of(code_of))
    16
    """
    return sha256(b"".join(sorted({sha256(_source(thing)).encode() for thing in objects})))[:16]


def _source(thing: Any) -> bytes:
    """The code of the file that defines it, in one form whatever its comments and docstrings say."""
    thing = inspect.unwrap(thing)  # what a decorator (a type checker's, a cache) wraps, not the decorator's own file
    name = getattr(thing, "__qualname__", repr(thing))
    if isinstance(thing, functools.partial):
        raise Refused(f"code: the partial {name} hides its arguments from the key; give them as settings")
    if inspect.isfunction(thing):
        for how, values in (("closes over", inspect.getclosurevars(thing).nonlocals), ("has defaults for", _made_defaults(thing))):
            if hidden := [k for k, v in values.items() if not (inspect.isroutine(v) or inspect.isclass(v) or inspect.ismodule(v))]:
                raise Refused(f"code: {name} {how} {', '.join(hidden)}, which the key does not see; give it as a setting")
    if not (inspect.ismodule(thing) or inspect.isclass(thing) or inspect.isroutine(thing)):
        thing = type(thing)
    try:
        file = Path(inspect.getsourcefile(thing) or "")
        text = file.read_text(encoding="utf-8") if file.is_file() else textwrap.dedent(inspect.getsource(thing))
        return code_only(text)
    except (TypeError, OSError, SyntaxError):
        raise Refused(f"code: {name} has no source file to make the key of; define it in one") from None


def _made_defaults(function: Any) -> Mapping[str, Any]:
    """The default arguments that a lambda, or a function made in another, got when it was made: the file need not show them."""
    if "<" not in function.__qualname__:
        return {}
    return {k: p.default for k, p in inspect.signature(function).parameters.items() if p.default is not p.empty}


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().to("cpu", copy=True) for name, x in model.state_dict().items()}


def _plain(what: str, value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise Refused(f"{what} must be JSON's plain values ({error})") from None


def _undisturbed(make: Callable[[], nn.Module]) -> nn.Module:
    """A net made without moving the global generators."""
    with randomness_kept():
        return make()
