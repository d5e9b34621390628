"""Files that are never half-written: atomic replacement, locks between processes, hashes, JSON that fails in one clear line."""

import ast
import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from neuropil.errors import Refused


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place in one step if all goes well inside, and is deleted if not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_atomic(path: Path, content: bytes | str) -> None:
    """Replace `path` by `content` in one step: a reader, or a power cut, sees the old file or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the exclusive lock of `path` (kept in ``<path>.lock``) against other processes; a killed holder frees it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def sha256(content: bytes | Path) -> str:
    """Hex SHA-256 of bytes or of a file."""
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with open(content, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, what: str) -> Any:
    """The JSON in `path`; a corrupt or truncated file is `Refused` by name, with what it was meant to be."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Refused(f"{what}: no file {path}") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"{what}: {path} is corrupt or truncated ({error}); delete it to start over") from None


def write_json(path: Path, value: Any) -> None:
    """`value` as readable JSON, atomically. NaN is not JSON and is refused rather than written."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def code_only(source: str) -> bytes:
    """Python source without comments, docstrings and layout: what a fingerprint of code is taken of. SyntaxError if it is none.

    >>> code_only("def f(x):\\n    'Twice x.'\\n    return 2*x  # or x + x").decode()
    'def f(x):\\n    return 2 * x'
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree).encode()  # not ast.dump, whose form changes with the Python version
