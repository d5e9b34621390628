"""Awkward inputs for every public part: shapes, kinds of numbers, NaN and infinity, sizes 0 and 1, ids that do not exist.

What is right for a part is learnt from its own doctest: every call there of a public function, constructor or method is kept, and
made again with one thing changed. Allowed is a result that is finite and keeps the shapes of its annotation, or one line
(`Refused`, or jaxtyping's error about a parameter) that names an argument. NaN in, NaN out is allowed; NaN in, numbers out is not.
"""

import doctest
import functools
import importlib
import inspect
import io
import json
import os
import pkgutil
import random
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

from accidents.report import Tally

PROMISE = "a finite result of the promised shape, or one line that names the argument"
LIMIT = 5  # seconds a call may take
ONLY = ""  # of the modules with this in their name
QUICK = (
    *("brain.spikes", "fields.rendering", "fields.siren", "memory.hopfield", "nn.attention", "nn.bilinear", "nn.contrastive"),
    *("nn.local_frames", "nn.mlp", "nn.per_unit", "nn.scan", "nn.spiking", "nn.synchrony"),
)
IDS = re.compile(r"ids?|index|indices|labels?|tokens?|counts?|spikes?|edges?|faces?|targets?|classes|edge_index|senders|receivers")


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


def changes(call: Call) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(argument or axis, kind of change, arguments) for every change that fits the call."""
    import torch

    def with_(name: str, value: Any) -> dict[str, Any]:
        return call.arguments | {name: value}

    for axis, places in call.axes().items():
        old = call.arguments[places[0][0]].shape[places[0][1]]
        for word, size in (("+1", old + 1), ("0", 0), ("1", 1)):
            if size != old:
                new = {name: resized(call.arguments[name], place, size) for name, place in places}
                yield f"axis {axis}", word, call.arguments | new
        if len(places) > 1:
            name, place = places[0]
            yield f"axis {axis}", "1 in one", with_(name, resized(call.arguments[name], place, 1))
    for name, value in call.arguments.items():
        if is_tensor(value):
            if value.is_floating_point():
                for kind in (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.complex64):
                    if kind != value.dtype:
                        yield name, str(kind).removeprefix("torch."), with_(name, value.to(kind))
                yield name, "nan", with_(name, torch.full_like(value, torch.nan))
                yield name, "inf", with_(name, torch.full_like(value, torch.inf))
            elif value.dtype != torch.bool and not value.is_complex():
                yield name, "float32", with_(name, value.float())
                if value.numel() and IDS.fullmatch(name):
                    too_many = name.startswith(("count", "spike"))  # any number is one of these
                    for word, wrong in (("-1", -1), *(() if too_many else (("10^6", 10**6),))):
                        yield (
                            name,
                            word,
                            with_(name, value.clone().flatten().index_fill(0, torch.tensor([0]), wrong).view_as(value)),
                        )
            if value.ndim:
                yield name, "one axis less", with_(name, value[0] if len(value) else value.sum(0))
            yield name, "one axis more", with_(name, value[None])
        elif isinstance(value, int) and not isinstance(value, bool) and "seed" not in name:
            for wrong in {0, 1, -1} - {value}:
                yield name, str(wrong), with_(name, wrong)
        elif isinstance(value, float):
            for word in ("nan", "inf", "-1", "0"):
                if float(word) != value:
                    yield name, word, with_(name, float(word))


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


class Slow(Exception):
    """A call took longer than it may."""


def _too_slow(number: int, frame: Any) -> None:
    raise Slow


def judge(call: Call, what: str, kind: str, arguments: dict[str, Any], finite: bool) -> tuple[str, str]:
    """(failure, what was seen); no failure is ''."""
    from jaxtyping import TypeCheckError

    from neuropil.errors import Refused

    signal.signal(signal.SIGALRM, _too_slow)
    signal.alarm(LIMIT)
    try:
        result = call(arguments)
    except Slow:
        return "takes too long", f"over {LIMIT} s"
    except TypeCheckError as error:
        text = str(error)
        return (
            ("", "refused")
            if "typechecking parameter" in text or "checking parameters" in text
            else ("breaks its annotation", text)
        )
    except Refused as error:
        names = {*call.signature.parameters, *_constructor(call)} - {"self"}
        named = any(re.search(rf"\b{re.escape(name)}\b", str(error)) for name in names)
        if "\n" in str(error):
            return "refused in several lines", str(error)
        return ("", "refused") if named else ("refused without a name", str(error))
    except Exception as error:
        return f"raises {type(error).__name__}", str(error)
    finally:
        signal.alarm(0)
    found = [x for x in tensors(result) if x.numel()]
    tensor = is_tensor(call.arguments.get(what))
    if kind in ("nan", "inf") and tensor and isinstance(call.owner, type):
        return "", ""
    if kind == "nan":
        if found and not any(bool(x.isnan().any()) for x in found if x.is_floating_point() or x.is_complex()):
            return ("", "") if tensor and _unread(call, what, found) else ("swallows NaN", "numbers came out")
        return ("", "") if tensor or not found else ("gives NaN", "")
    if kind == "inf" and tensor:
        return "", ""
    if tensor and kind in ("-1", "10^6"):
        return "takes it in silence", "no error"
    if finite and infinite(result):
        return "not finite", ""
    return "", "result"


def _unread(call: Call, what: str, found: list[Any]) -> bool:
    """Whether the argument's values do not matter at all: other numbers give the same result as NaN did."""
    import torch

    other = [x for x in tensors(call(call.arguments | {what: call.arguments[what] * 0.7 + 0.1})) if x.numel()]
    return len(other) == len(found) and all(torch.equal(x, y) for x, y in zip(found, other, strict=True))


def _constructor(call: Call) -> set[str]:
    owner = call.owner if isinstance(call.owner, type) else type(call.owner)
    return set() if call.owner is None else set(inspect.signature(owner).parameters)


def cases(module: Any) -> Iterator[tuple[str, str, str]]:
    """(case, failure, what was seen) for every change of every call; the failure of a case that has just begun is 'begins'."""
    from neuropil.errors import Refused

    for call in harvest(module).values():
        try:
            finite = not infinite(call(call.arguments))
        except Refused:  # what the doctest shows is a refusal
            continue
        except Exception as error:
            yield f"{call.name} as it is", f"raises {type(error).__name__}", str(error)
            continue
        fixed: set[str] = set()
        for what, kind, arguments in changes(call):
            case = f"{call.name} {what} {kind}"
            yield case, "begins", ""
            failure, seen = judge(call, what, kind, arguments, finite)
            if kind == "+1" and (failure or seen == "refused"):
                fixed.add(what)
            if kind == "1" and seen == "result" and what in fixed and not isinstance(call.owner, type) and call.owner is not None:
                failure, seen = "spreads one over the axis", "an axis of fixed size, given with size 1, was taken"
            yield case, failure, seen


def _child(name: str, out: int) -> None:
    """All cases of a module, one JSON a line into `out`."""
    warnings.simplefilter("ignore")
    with os.fdopen(out, "w", buffering=1) as pipe:
        try:
            module = importlib.import_module(name)
            for case in cases(module):
                pipe.write(json.dumps(case) + "\n")
            pipe.write(json.dumps(["", "ends", ""]) + "\n")
        except BaseException as error:
            pipe.write(json.dumps([f"{name} as it is", f"raises {type(error).__name__}", str(error)]) + "\n")


def run(rounds: int, quick: bool, seen: Callable[[int, int], None]) -> Tally:
    """Every case of every module, each module in a process of its own (what is given may kill it)."""
    from jaxtyping import install_import_hook

    tally = Tally("inputs", PROMISE)
    wanted = modules()
    if quick:
        wanted = [name for name in wanted if name.removeprefix("neuropil.") in QUICK]
    wanted = [name for name in wanted if ONLY in name]
    with install_import_hook(["neuropil"], "beartype.beartype"):
        for name in wanted:  # before anything is forked
            importlib.import_module(name)
        for number, name in enumerate(wanted):
            seen(number, len(wanted))
            receive, send = os.pipe()
            sys.stdout.flush()
            if not (pid := os.fork()):
                os.close(receive)
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
                _child(name, send)
                os._exit(0)
            os.close(send)
            last = ""
            with os.fdopen(receive) as pipe:
                for line in pipe:
                    case, failure, what = json.loads(line)
                    last = case
                    if failure in ("begins", "ends"):
                        continue
                    tally.tries[name.removeprefix("neuropil.")] += 1
                    if failure == "takes too long":  # a matter of the machine
                        tally.skipped[case] = what
                        continue
                    tally.cases.add(case)
                    if failure:
                        tally.fault(f"{case} -> {failure}", what)
            os.waitpid(pid, 0)
            if last:
                tally.cases.add(last)
                tally.fault(f"{last} -> kills the process", "")
    return tally
