"""Calls of public parts that their authors hold to be right, and how they are made again."""

import doctest
import functools
import inspect
import io
import pkgutil
import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

LIMIT = 5  # seconds a call may take


def modules() -> list[str]:
    """The modules with parts of the catalogue, and all of nn and numerics."""
    import neuropil.nn
    import neuropil.numerics
    from neuropil.catalog import systems

    found = {part.rpartition(".")[0] for system in systems() for part in system.parts}
    for package in (neuropil.nn, neuropil.numerics):
        found |= {f"{package.__name__}.{info.name}" for info in pkgutil.iter_modules(package.__path__)}
    return sorted(name for name in found if not name.startswith(("neuropil.data.", "neuropil.nn.checks")))


class Call:
    """A call that its author holds to be right."""

    def __init__(self, name: str, function: Callable[..., Any], owner: Any, arguments: dict[str, Any]) -> None:
        self.name, self.function, self.owner, self.arguments = name, function, owner, arguments
        self.signature = inspect.signature(function)

    def __call__(self, arguments: dict[str, Any]) -> Any:
        import torch

        torch.manual_seed(0)
        random.seed(0)
        if isinstance(self.owner, type):
            return self.owner(**arguments)
        arguments = copied(arguments)
        return self.function(**arguments) if self.owner is None else self.function(copied(self.owner), **arguments)

    def axes(self) -> dict[str, list[tuple[str, int]]]:
        """Every axis that an annotation names: the arguments that have it, and where."""
        found: dict[str, list[tuple[str, int]]] = {}
        for name, value in self.arguments.items():
            if not is_tensor(value):
                continue
            words = dims(self.signature.parameters[name].annotation, value.ndim)
            for place, word in enumerate(words):
                if re.fullmatch(r"\*?[a-zA-Z_]\w*", word):
                    found.setdefault(word.lstrip("*"), []).append((name, place))
        return found


def is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)


def copied(value: Any) -> Any:
    """A deep copy, or the thing itself where it cannot be copied (generators, functions)."""
    import copy

    if isinstance(value, dict):
        return {name: copied(one) for name, one in value.items()}
    try:
        return copy.deepcopy(value)
    except Exception:
        return value


def dims(annotation: Any, ndim: int) -> list[str]:
    """The axes' words of a jaxtyping annotation for a tensor of so many axes; [] where there is none."""
    for one in (annotation, *getattr(annotation, "__args__", ())):
        words = getattr(one, "dim_str", None)
        if not isinstance(words, str):
            continue
        listed = [word.partition("=")[0] for word in words.split()]
        many = [i for i, word in enumerate(listed) if word.startswith("*") or word == "..."]
        if many:
            spare = ndim - len(listed) + 1
            listed[many[0] : many[0] + 1] = [listed[many[0]]] * (spare > 0) + ["..."] * (spare - 1)
        if len(listed) == ndim:
            return listed
    return []


def harvest(module: Any) -> dict[str, Call]:
    """The first right call of everything public in `module`, from its own doctests."""
    calls: dict[str, Call] = {}
    undo = []

    def watch(holder: Any, attribute: str, function: Callable[..., Any], name: str, kind: str) -> None:
        @functools.wraps(function)
        def watching(*args: Any, **given: Any) -> Any:
            if name not in calls:
                keep(args, given)
            return function(*args, **given)

        def keep(args: tuple[Any, ...], given: dict[str, Any]) -> None:
            try:
                owner = None if kind == "function" else type(args[0]) if kind == "init" else copied(args[0])
                if kind == "init" and owner is not holder:
                    return
                bound = inspect.signature(function).bind(*args, **given).arguments
                if kind != "function":
                    bound = dict(list(bound.items())[1:])
                if not any(
                    p.kind in (p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in inspect.signature(function).parameters.values()
                ):
                    more = [n for n, p in inspect.signature(function).parameters.items() if p.kind is p.VAR_KEYWORD]
                    for word in more:
                        bound |= bound.pop(word, {})
                    calls[name] = Call(name, function, owner, copied(bound))
            except (TypeError, IndexError):
                return

        setattr(holder, attribute, watching)
        undo.append((holder, attribute, function))

    for name, value in list(vars(module).items()):
        if name.startswith("_") or getattr(value, "__module__", "") != module.__name__:
            continue
        short = f"{module.__name__.removeprefix('neuropil.')}.{name}"
        if inspect.isfunction(value):
            watch(module, name, value, short, "function")
        elif inspect.isclass(value) and not issubclass(value, BaseException | tuple):
            for attribute, method in list(vars(value).items()):
                if inspect.isfunction(method) and (attribute in ("__init__", "__call__") or not attribute.startswith("_")):
                    word = short if attribute == "__init__" else f"{short}.{attribute}"
                    watch(value, attribute, method, word, "init" if attribute == "__init__" else "method")
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    with redirect_stdout(io.StringIO()):
        for test in doctest.DocTestFinder(recurse=True).find(module, module.__name__):
            test.globs = vars(module) | {"__name__": "__main__"}
            runner.run(test, out=lambda text: None, clear_globs=False)
    for holder, attribute, function in undo:
        setattr(holder, attribute, function)
    return calls


def resized(x: Any, axis: int, size: int) -> Any:
    import torch

    if x.shape[axis] == 0:
        return x
    return x.index_select(axis, torch.arange(size) % x.shape[axis])


def tensors(value: Any) -> Iterator[Any]:
    """All tensors and floats in a result."""
    import torch

    if isinstance(value, torch.Tensor | float):
        yield torch.as_tensor(value).detach()
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from tensors(one)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors(getattr(value, name, None))


def infinite(result: Any) -> bool:
    import torch

    return any(not bool(torch.isfinite(x).all()) for x in tensors(result) if x.is_floating_point() or x.is_complex())


class Slow(BaseException):
    """A call took longer than it may. No Exception, or a type checker at work would make its own error of it."""


def _too_slow(number: int, frame: Any) -> None:
    raise Slow


def _constructor(call: Call) -> set[str]:
    owner = call.owner if isinstance(call.owner, type) else type(call.owner)
    return set() if call.owner is None else set(inspect.signature(owner).parameters)


def attempt(call: Call, arguments: dict[str, Any]) -> tuple[str, str, Any]:
    """(failure, what was seen, result); no failure is '', and then what was seen is 'refused' or 'result'."""
    from jaxtyping import TypeCheckError

    from neuropil.errors import Refused

    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(LIMIT)
    try:
        return "", "result", call(arguments)
    except Slow:
        return "takes too long", f"over {LIMIT} s", None
    except TypeCheckError as error:
        text = str(error)
        if "typechecking parameter" in text or "checking parameters" in text:
            return "", "refused", None
        return "breaks its annotation", text, None
    except Refused as error:
        names = {*call.signature.parameters, *_constructor(call)} - {"self"}
        if "\n" in str(error):
            return "refused in several lines", str(error), None
        named = any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in names)
        return ("", "refused", None) if named else ("refused without a name", str(error), None)
    except Exception as error:
        return f"raises {type(error).__name__}", str(error), None
    finally:
        signal.alarm(0)
