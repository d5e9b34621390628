"""What the library says when it cannot do what was asked: one line that names the argument, the value and what is allowed."""

import difflib
import importlib
from collections.abc import Iterable
from typing import Any


class Refused(ValueError):
    """Bad input or a broken file: the user's to mend. The command line prints it as one line and exits with code 2."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest allowed word, or ``""`` if nothing is close.

    >>> nearest("hopfeild", ["hopfield", "sdm"])
    "; did you mean 'hopfield'?"
    """
    close = difflib.get_close_matches(given, list(allowed), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def choose(argument: str, given: str, allowed: Iterable[str]) -> str:
    """`given` if it is one of `allowed`, else `Refused` with the nearest allowed word."""
    allowed = list(allowed)
    if given in allowed:
        return given
    raise Refused(f"{argument}: unknown {given!r}{nearest(given, allowed)} (allowed: {', '.join(allowed)})")


def optional(module: str, extra: str) -> Any:
    """Import an optional library where it is used; if it is missing, say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name is None or error.name.partition(".")[0] != package:
            raise
        raise Refused(f"{package} is not installed: pip install 'neuropil[{extra}]'") from None
