"""Files that are never half-written: atomic replacement, locks between processes, hashes, JSON that fails in one clear line."""

import ast
import contextlib
import errno
import fcntl
import functools
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from neuropil.errors import Refused


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place in one step if all goes well inside, and is deleted if not.

    What killed processes left of earlier attempts is swept. An `OSError` inside names `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with _temporary(path, folder=False) as temporary:
            yield temporary
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
    except OSError as error:
        if error.errno is not None and (error.filename is None or Path(str(error.filename)).name.startswith(f".{path.name}.")):
            error.filename, error.filename2 = str(path), None
        raise


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path` that becomes `path` in one step if all goes well inside, and is deleted if not.

    If another process was faster, its folder stays: where it holds the same files, all is well, else `OSError` (ENOTEMPTY). Sweeps
    as `replacing` does.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, folder=True) as temporary:
        yield temporary
        os.chmod(temporary, 0o755)
        try:
            os.replace(temporary, path)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST) or _contents(path) != _contents(temporary):
                raise


def _contents(folder: Path) -> dict[str, str]:
    """SHA-256 of all files below a folder."""
    return {str(file.relative_to(folder)): sha256(file) for file in sorted(folder.rglob("*")) if file.is_file()}


@contextlib.contextmanager
def _temporary(path: Path, folder: bool) -> Iterator[Path]:
    """A file or folder ``.NAME.xxxx.tmp`` whose lock says that somebody is writing: the ones without are swept."""
    sweep(path.parent, f".{glob.escape(path.name)}.????????.tmp")
    while True:
        if folder:
            name = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        else:
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
            os.close(handle)
        temporary = Path(name)
        with _held(temporary, wait=True) as ours:
            if not ours:  # swept between its making and its lock
                continue
            try:
                yield temporary
            finally:
                _delete(temporary)
            return


@contextlib.contextmanager
def _held(path: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of a file or folder itself; False if it is gone, or another process has it and we do not `wait`."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            ours = path.exists()
        except OSError:  # held by another, or a file system without locks: there nothing is swept
            ours = wait
        yield ours
    finally:
        os.close(handle)


def sweep(folder: Path, pattern: str) -> None:
    """Delete the temporary files and folders in `folder` that killed processes left: those of `pattern` that nobody holds."""
    for left in folder.glob(pattern):
        with _held(left, wait=False) as ours:
            if ours:
                _delete(left)


def _delete(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


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


def kept(name: str, variable: str) -> Path:
    """The folder of what the repository keeps: ``$variable``, else the checkout's ``name/``, else ``./name``."""
    if chosen := os.environ.get(variable):
        return Path(chosen)
    checkout = Path(__file__).resolve().parents[2]
    return checkout / name if (checkout / "pyproject.toml").is_file() else Path(name)


def read_json(path: Path, what: str) -> Any:
    """The JSON in `path`; a corrupt or truncated file is `Refused` by name, with what it was meant to be."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise Refused(f"{what}: no file {path}") from None
    except OSError as error:
        raise Refused(f"{what}: cannot read {path} ({error.strerror})") from None
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"{what}: {path} is corrupt or truncated ({error}); delete it to start over") from None


def write_json(path: Path, value: Any) -> None:
    """`value` as readable JSON, atomically. NaN is not JSON and is refused rather than written."""
    write_atomic(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@functools.cache  # one file counts in the fingerprints of many systems and races
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


def code_hash(files: Iterable[Path]) -> str:
    """16 hex digits of what the `code_only` of these files hashes to, in their order."""
    return sha256(b"".join(code_only(file.read_text(encoding="utf-8")) for file in files))[:16]
