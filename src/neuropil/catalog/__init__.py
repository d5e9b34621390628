"""The catalogue: all 176 systems, what they are and where their parts and claims live (``systems.toml``).

>>> find("hopfield").title
'Hopfield Networks is All You Need'
>>> len(systems())
176
"""

import functools
import re
import tomllib
from dataclasses import dataclass, fields
from importlib import resources
from typing import Any, cast, get_origin

from neuropil.errors import Refused, nearest

WINGS = ("fields", "physics", "memory", "dynamics", "learning", "interaction", "interpret", "brain")
KINDS = ("method", "theory", "survey", "position", "application", "dataset")


@dataclass(frozen=True)
class System:
    """One of the 176 papers."""

    number: int
    slug: str
    title: str
    short: str
    wing: str
    kind: str
    year: int
    paper: str
    authors: str = ""
    headline: str = ""
    aliases: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()
    claims: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()  # "<role>:<dotted path of a builder>": the races that its parts are in
    tour: str = ""

    @property
    def exists(self) -> bool:
        """Whether its part can be imported; else it is planned."""
        return bool(self.parts)

    @property
    def module(self) -> str:
        """Dotted path of the file that holds its claims."""
        return f"neuropil.claims.{self.wing}.{self.slug.replace('-', '_')}"

    @property
    def arxiv(self) -> str | None:
        """The arXiv number in `paper`, if there is one."""
        found = re.search(r"arXiv:(\d{4}\.\d{4,5}|[\w.-]+/\d{7})", self.paper)
        return found[1] if found else None

    def cite(self) -> str:
        """A BibTeX entry made of the catalogue's facts.

        >>> print(find("hopfield").cite().splitlines()[0])
        @article{neuropil163modern-hopfield,
        """
        fields = {"title": f"{{{self.title}}}", "author": self.authors, "year": str(self.year), "note": self.paper}
        if self.arxiv:
            fields |= {"eprint": self.arxiv, "archivePrefix": "arXiv", "url": f"https://arxiv.org/abs/{self.arxiv}"}
        lines = [f"  {key} = {{{value}}}," for key, value in fields.items() if value]
        return "\n".join([f"@article{{neuropil{self.number:03}{self.slug},", *lines, "}"])


@functools.cache
def systems() -> tuple[System, ...]:
    """All systems, by number; a broken ``systems.toml`` is `Refused`."""
    file = resources.files(__name__).joinpath("systems.toml")
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
        if "system" not in table:
            raise ValueError("it has no table [[system]]")
        return tuple(map(_system, table["system"]))
    except (AttributeError, TypeError, ValueError) as error:  # ValueError: also what is no TOML, and no UTF-8
        raise Refused(f"catalogue: {file} is broken ({' '.join(str(error).split())[:200]})") from None


def _system(row: dict[str, Any]) -> System:
    facts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in row.items()}
    system = System(**facts)
    for field in fields(System):
        value, kind = getattr(system, field.name), cast(type, get_origin(field.type) or field.type)
        if not isinstance(value, kind):
            raise TypeError(f"{field.name} of {system.slug!r} is {value!r}")
    return system


@functools.cache
def _names() -> dict[str, System]:
    names: dict[str, System] = {}
    for system in systems():
        for name in (system.slug, str(system.number), f"{system.number:03}", system.short.lower(), *system.aliases):
            names.setdefault(name, system)
    for system in systems():  # a slug always means its own system, whatever another one's short name is
        names[system.slug] = system
    return names


def find(name: str) -> System:
    """The system of a slug, alias, number or short name; an unknown name is `Refused` with the nearest one."""
    system = _names().get(name.strip().lower())
    if system is None:
        raise Refused(f"SLUG: unknown system {name!r}{nearest(name.lower(), _names())} (see `neuropil list`)")
    return system
