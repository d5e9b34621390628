"""Checkpoints without pickle: a directory a step, moved into place whole, hashed, the newest two kept.

folder/step-00000100/model.safetensors    the model's state_dict
                     state.safetensors    every other tensor: optimizer, random generators, losses
                     state.json           the state those tensors belong to, and the SHA-256 of all three parts
"""

import json
import os
import random
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from neuropil.errors import Refused
from neuropil.files import locked, read_json, sha256, write_atomic, write_json

FORMAT = 1
KEPT = 2


def save(folder: Path, step: int, model: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
    """Write ``folder/step-NNNNNNNN`` in one rename, delete all older ones but one, and return its path.

    `state` is a tree of dicts, lists, tensors and JSON's plain values. A reader, a full disk or a power cut sees the whole
    directory or none of it, and the one before. Time and memory O(bytes): one copy on the CPU. Raises `Refused` for a value
    that is neither a tensor nor plain, `OSError` if the disk is full.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save(Path(folder), 3, {"w": torch.ones(2)}, {"lr": 0.1, "losses": torch.zeros(1)})
    ...     load(Path(folder))
    (3, {'w': tensor([1., 1.])}, {'lr': 0.1, 'losses': tensor([0.])})
    """
    text, tensors = flatten(state)
    parts = {"model.safetensors": pack(model), "state.safetensors": pack(tensors)}
    hashes = {"state": sha256(text.encode())} | {name: sha256(content) for name, content in parts.items()}
    path, temporary = folder / f"step-{step:08d}", folder / ".step"
    with locked(folder / "checkpoints"):
        shutil.rmtree(temporary, ignore_errors=True)  # left by a killed process: the lock says that nobody is writing
        temporary.mkdir()
        try:
            for name, content in parts.items():
                write_atomic(temporary / name, content)
            write_json(temporary / "state.json", {"format": FORMAT, "step": step, "sha256": hashes, "state": json.loads(text)})
            shutil.rmtree(path, ignore_errors=True)  # a corrupt one, which training has come past again
            os.replace(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        found = _found(folder)
        for old in sorted(s for s in found if s <= step)[:-KEPT]:
            shutil.rmtree(found[old], ignore_errors=True)
    return path


def load(folder: Path) -> tuple[int, dict[str, Tensor], dict[str, Any]] | None:
    """Step, model and state of the newest whole checkpoint in `folder`, on the CPU; None if there is none at all.

    The state comes back as JSON has it: tuples are lists, keys are strings. A corrupt checkpoint is passed over with a
    warning that names the file. Raises `Refused` if all are corrupt.

    >>> load(Path("/nonexistent")) is None
    True
    """
    found = _found(folder)
    faults: list[str] = []
    for step in sorted(found, reverse=True):
        try:
            whole = _read(found[step], step)
        except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
            words = " ".join(str(error).split())
            faults.append(words if str(found[step]) in words else f"{found[step]}: {type(error).__name__}: {words}")
            continue
        if faults:
            warnings.warn(f"going back to the checkpoint of step {step}: {'; '.join(faults)}", stacklevel=2)
        return whole
    if faults:
        raise Refused(f"folder: no checkpoint in {folder} is whole ({'; '.join(faults)}); delete them to start over")
    return None


def _found(folder: Path) -> dict[int, Path]:
    return {int(path.name[5:]): path for path in folder.glob("step-*") if path.name[5:].isdigit()}


def _read(path: Path, step: int) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    head = read_json(path / "state.json", "checkpoint")
    text = json.dumps(head["state"])
    if (head["format"], head["step"], head["sha256"]["state"]) != (FORMAT, step, sha256(text.encode())):
        raise Refused(f"{path / 'state.json'} does not match its SHA-256, step or format {FORMAT}")
    parts = []
    for name in ("model.safetensors", "state.safetensors"):
        content = (path / name).read_bytes()
        if sha256(content) != head["sha256"][name]:
            raise Refused(f"{path / name} does not match its SHA-256")
        parts.append(safetensors.torch.load(content))
    model, tensors = parts
    return step, model, unflatten(text, tensors)


def flatten(state: Any) -> tuple[str, dict[str, Tensor]]:
    """A tree of dicts, lists, tensors and plain values as JSON, and the tensors by the numbers that stand for them there.

    `Refused` for other leaves, and for a dict whose only key is "tensor".

    >>> flatten({"lr": 0.1, "losses": torch.zeros(1)})
    ('{"lr": 0.1, "losses": {"tensor": "0"}}', {'0': tensor([0.])})
    >>> unflatten(*flatten([1, torch.ones(1)]))
    [1, tensor([1.])]
    """
    tensors: dict[str, Tensor] = {}
    places: list[Any] = []

    def place(value: Any) -> dict[str, str]:
        if not isinstance(value, Tensor):
            raise Refused(f"state: its leaves must be tensors or plain values, got a {type(value).__name__}")
        tensors[str(len(tensors))] = value
        return {"tensor": str(len(tensors) - 1)}

    text = json.dumps(state, default=place)
    json.loads(text, object_hook=lambda d: places.append(d) if d.keys() == {"tensor"} else d)
    if len(places) != len(tensors):
        raise Refused("state: a dict whose only key is 'tensor' stands for a tensor here; call the key something else")
    return text, tensors


def unflatten(text: str, tensors: Mapping[str, Tensor]) -> Any:
    """What `flatten` took apart; its doctest shows both."""
    return json.loads(text, object_hook=lambda d: tensors[d["tensor"]] if d.keys() == {"tensor"} else d)


def pack(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file of tensors from anywhere, views too, and words about them."""
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise Refused(f"model: its state_dict must hold tensors only, {name!r} is a {type(value).__name__}")
    return safetensors.torch.save({k: v.detach().to("cpu", copy=True).contiguous() for k, v in tensors.items()}, metadata)


def seal(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """A safetensors file of tensors and plain facts that `unseal` knows to be whole; equal input gives equal bytes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "x.safetensors"
    ...     _ = file.write_bytes(seal({"w": torch.ones(2)}, {"step": 3}))
    ...     unseal(file)
    ({'w': tensor([1., 1.])}, {'step': 3})
    """
    text = json.dumps(facts)
    return pack(tensors, {"sealed": json.dumps({"sha256": _digest(text, tensors), "facts": text})})


def unseal(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts of a file that `seal` made; `Refused` by name if it is missing or not to the bit what was written."""
    try:
        with safetensors.safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            sealed = json.loads((file.metadata() or {})["sealed"])
        facts: dict[str, Any] = json.loads(sealed["facts"])
        if sealed["sha256"] != _digest(sealed["facts"], tensors):
            raise ValueError("its SHA-256 is another")
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, RuntimeError) as error:
        raise Refused(f"{path} is corrupt or truncated ({' '.join(str(error).split())[:160]}); nothing was changed") from None
    return tensors, facts


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    return sha256(text.encode() + pack(tensors))


@contextmanager
def randomness_kept() -> Iterator[None]:
    """A block after which the global generators of torch, on all devices in use, of numpy and of Python are as before it.

    >>> with randomness_kept():
    ...     first = torch.rand(1), numpy.random.rand(), random.random()
    >>> first == (torch.rand(1), numpy.random.rand(), random.random())
    True
    """
    in_use = torch.cuda.is_initialized()
    theirs, pythons = numpy.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if in_use else ()):
            yield
    finally:
        if not in_use:  # what a seed in the block would have CUDA begin with later, or had it begin with
            torch.cuda.manual_seed_all(torch.initial_seed())
        numpy.random.set_state(theirs)
        random.setstate(pythons)


def random_state(device: torch.device) -> dict[str, Any]:
    """The global generators of torch, numpy and Python, and of a CUDA `device`: tensors and plain values, to write down.

    >>> state = random_state(torch.device("cpu"))
    >>> before = torch.rand(1).item(), numpy.random.rand(), random.random()
    >>> restore_random_state(state, torch.device("cpu"))
    >>> before == (torch.rand(1).item(), numpy.random.rand(), random.random())
    True
    """
    kind, key, *rest = numpy.random.get_state()
    version, words, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    return {
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "numpy": [kind, torch.from_numpy(numpy.asarray(key, dtype=numpy.int64)), *rest],
        "python": [version, torch.tensor(words), gauss],
    }


def restore_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put back what `random_state` gave; its doctest shows both."""
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    kind, key, *rest = state["numpy"]
    numpy.random.set_state((kind, key.numpy().astype(numpy.uint32), *rest))
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
