"""Checkpoints without pickle: a directory per step, moved into place whole, hashed, the newest two kept.

folder/step-00000100/model.safetensors    the model's state_dict
                     state.safetensors    every other tensor: optimizer, random generators, losses
                     state.json           what those tensors are, and the SHA-256 of both files
"""

import math
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from neuropil.errors import Refused
from neuropil.files import locked, read_json, sha256, write_json

FORMAT = 1
KEPT = 2
TENSORS = ("model.safetensors", "state.safetensors")


def save(folder: Path, step: int, model: Mapping[str, Any], state: Any) -> Path:
    """Write ``folder/step-NNNNNNNN`` in one rename and return it; older ones but the newest two, and all later ones, go.

    `model` is a flat state_dict, `state` a tree of dicts, lists, tuples, tensors and plain values. A reader, or a power cut,
    sees the whole directory or none. Raises `Refused` for a value that is neither a tensor nor plain.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(Path(folder), 3, {"w": torch.ones(2)}, {"losses": [0.5], "at": torch.zeros(1)})
    ...     load(Path(folder))
    (3, {'w': tensor([1., 1.])}, {'losses': [0.5], 'at': tensor([0.])})
    """
    for name, value in model.items():
        if not isinstance(value, Tensor):
            raise Refused(f"model: its state_dict must hold tensors only, {name!r} is a {type(value).__name__}")
    tensors: dict[str, Tensor] = {}
    tree = _flatten(state, "state", tensors)
    path = folder / f"step-{step:08d}"
    with locked(folder / "checkpoints"):
        for stale in folder.glob(".step-*"):  # left by a killed process: the lock says that nobody is writing
            shutil.rmtree(stale, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=".step-", dir=folder))
        try:
            for name, content in zip(TENSORS, (model, tensors), strict=True):
                save_file({k: v.detach().to("cpu", copy=True).contiguous() for k, v in content.items()}, temporary / name)
                with open(temporary / name, "rb") as file:
                    os.fsync(file.fileno())
            hashes = {name: sha256(temporary / name) for name in TENSORS}
            write_json(temporary / "state.json", {"format": FORMAT, "step": step, "sha256": hashes, "state": tree})
            temporary.chmod(0o755)
            shutil.rmtree(path, ignore_errors=True)  # a corrupt one that training has come past again
            os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        found = _found(folder)
        for other, old in found.items():
            if other > step or other in sorted(s for s in found if s <= step)[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)
    return path


def load(folder: Path) -> tuple[int, dict[str, Tensor], Any] | None:
    """Step, model and state of the newest sound checkpoint in `folder`, on the CPU; None if there is none at all.

    A corrupt one is passed over with a warning. Raises `Refused` if all are corrupt.

    >>> load(Path("/nonexistent")) is None
    True
    """
    found = _found(folder)
    for step in sorted(found, reverse=True):
        try:
            return step, *_read(found[step], step)
        except (Refused, OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            warnings.warn(f"checkpoint {found[step]} is corrupt ({error}); trying the one before", stacklevel=2)
    if found:
        raise Refused(f"folder: all {len(found)} checkpoints in {folder} are corrupt; delete them to start over")
    return None


def _found(folder: Path) -> dict[int, Path]:
    return {int(path.name[5:]): path for path in folder.glob("step-*") if path.name[5:].isdigit()}


def _read(path: Path, step: int) -> tuple[dict[str, Tensor], Any]:
    head = read_json(path / "state.json", "checkpoint")
    if head["format"] != FORMAT or head["step"] != step:
        raise Refused(f"format {head['format']} at step {head['step']}, needed is format {FORMAT} at step {step}")
    for name in TENSORS:
        if sha256(path / name) != head["sha256"][name]:
            raise Refused(f"{name} does not match its SHA-256")
    model, tensors = (load_file(path / name) for name in TENSORS)
    return model, _unflatten(head["state"], tensors)


def _flatten(value: Any, at: str, tensors: dict[str, Tensor]) -> Any:
    """`value` as JSON; what JSON lacks becomes a one-key object, tensors move to `tensors` under the path that leads to them."""
    if isinstance(value, Tensor):
        tensors[at] = value
        return {"tensor": at}
    if isinstance(value, dict):
        return {"dict": [[_flatten(k, at, tensors), _flatten(v, f"{at}.{k}", tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_flatten(v, f"{at}.{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [_flatten(v, f"{at}.{i}", tensors) for i, v in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise Refused(f"checkpoint: {at} must be a tensor or a plain value, got a {type(value).__name__}")


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_unflatten(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    ((kind, inner),) = value.items()
    if kind == "tensor":
        return tensors[inner]
    if kind == "dict":
        return {_unflatten(k, tensors): _unflatten(v, tensors) for k, v in inner}
    return tuple(_unflatten(v, tensors) for v in inner) if kind == "tuple" else float(inner)


def random_state(device: torch.device) -> dict[str, Any]:
    """The global generators of torch, numpy and Python (and of a CUDA `device`), as tensors and plain values.

    >>> state = random_state(torch.device("cpu"))
    >>> before = torch.rand(2), numpy.random.rand(), random.random()
    >>> restore_random_state(state, torch.device("cpu"))
    >>> bool((torch.rand(2) == before[0]).all()), (numpy.random.rand(), random.random()) == before[1:]
    (True, True)
    """
    kind, key, *position = numpy.random.get_state()
    version, words, gauss = random.getstate()
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (str(kind), torch.from_numpy(numpy.asarray(key, dtype=numpy.int64)), *position),
        "python": (version, torch.tensor(words), gauss),
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_state` gave; its doctest shows both."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, key, *position = state["numpy"]
    numpy.random.set_state((kind, key.numpy().astype(numpy.uint32), *position))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
