"""Awkward inputs for every public part: shapes, kinds of numbers, NaN and infinity, sizes 0 and 1, ids that do not exist.

What is right for a part is learnt from its own doctest: every call there of a public function, constructor or method is kept, and
made again with one thing changed, then with several that Hypothesis draws (`drawn`). Allowed is a result that is finite and keeps
the shapes of its annotation, or one line (`Refused`, or jaxtyping's error about a parameter) that names an argument. NaN in, NaN
out is allowed; NaN in, numbers out is not.
"""

import importlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from accidents import drawn, report
from accidents.calls import Call, attempt, harvest, infinite, is_tensor, modules, resized, tensors
from accidents.report import Tally

PROMISE = "a finite result of the promised shape, or one line that names the argument"
ONLY = ""  # of the modules with this in their name
QUICK = (
    *("brain.spikes", "fields.rendering", "fields.siren", "memory.hopfield", "nn.attention", "nn.bilinear", "nn.contrastive"),
    *("nn.local_frames", "nn.mlp", "nn.per_unit", "nn.scan", "nn.spiking", "nn.synchrony"),
)
IDS = re.compile(r"ids?|index|indices|labels?|tokens?|counts?|spikes?|edges?|faces?|targets?|classes|edge_index|senders|receivers")


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


def judge(call: Call, what: str, kind: str, arguments: dict[str, Any], finite: bool) -> tuple[str, str]:
    """(failure, what was seen); no failure is ''."""
    failure, seen, result = attempt(call, arguments)
    if failure or seen == "refused":
        return failure, seen
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


def cases(module: Any, blocks: int) -> Iterator[tuple[str, str, str]]:
    """(case, failure, what was seen) for every change of every call; the failure of a case that has just begun is 'begins'."""
    from neuropil.errors import Refused

    known = report.known()
    for call in harvest(module).values():
        try:
            finite = not infinite(call(call.arguments))
        except Refused:  # what the doctest shows is a refusal
            continue
        except Exception as error:
            yield f"{call.name} as it is", f"raises {type(error).__name__}", str(error)
            continue
        tried: set[str] = set()
        for case, failure, seen in _enumerated(call, finite):
            tried.add(case)
            yield case, failure, seen
        yield from drawn.cases(call, finite, drawn.examples(call, blocks) + drawn.replayed(call, known, tried))


def _enumerated(call: Call, finite: bool) -> Iterator[tuple[str, str, str]]:
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


def run(rounds: int, quick: bool, seen: Callable[[int, int], None]) -> Tally:
    """Every case of every module, each module in a process of its own (what is given may kill it).

    The library is imported with its annotations checked, also in a process of its own: other kinds of accident want it as it is.
    """
    if "neuropil.nn" in sys.modules:
        raise RuntimeError("inputs come first: the library is imported already, without checks of its annotations")
    tally = Tally("inputs", PROMISE)
    receive, send = os.pipe()
    sys.stdout.flush()
    if not (pid := os.fork()):
        os.close(receive)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        with os.fdopen(send, "w", buffering=1) as pipe:
            _all(quick, 1 if quick else 2 * rounds, pipe)
            pipe.flush()
            os._exit(0)
    os.close(send)
    last = ""
    with os.fdopen(receive) as pipe:
        for line in pipe:
            name, case, failure, what = json.loads(line)
            if failure == "begins":
                last = case
            elif failure == "ends":
                if last:
                    tally.cases.add(last)
                    tally.fault(f"{last} -> kills the process", "")
                last = ""
                seen(*map(int, what.split()))
            elif failure == "takes too long":  # a matter of the machine
                tally.tries[name] += 1
                tally.skipped[case], last = what, ""
            else:
                tally.tries[name] += 1
                tally.cases.add(case)
                last = ""
                if failure:
                    tally.fault(f"{case} -> {failure}", what)
    status = os.waitpid(pid, 0)[1]
    if status:
        tally.fault("the library -> does not import", f"status {status}")
    return tally


def _all(quick: bool, blocks: int, pipe: TextIO) -> None:
    """All modules, each forked; one JSON a case into `pipe`."""
    from jaxtyping import install_import_hook

    with install_import_hook(["neuropil"], "beartype.beartype"):
        wanted = [name for name in modules() if ONLY in name and (not quick or name.removeprefix("neuropil.") in QUICK)]
        for name in wanted:  # before anything is forked
            importlib.import_module(name)
        _warm()
        for number, name in enumerate(wanted, 1):
            short = name.removeprefix("neuropil.")
            pipe.flush()
            if not (pid := os.fork()):
                _child(short, importlib.import_module(name), blocks, pipe)
                pipe.flush()
                os._exit(0)
            os.waitpid(pid, 0)
            pipe.write(json.dumps([short, "", "ends", f"{number} {len(wanted)}"]) + "\n")


def _warm() -> None:
    """What doctests, annotations and Hypothesis do only once is done before anything is forked."""
    for call in harvest(importlib.import_module("neuropil.nn.scan")).values():
        attempt(call, call.arguments)
        attempt(call, {})
        drawn.examples(call, 1)


def _child(short: str, module: Any, blocks: int, pipe: TextIO) -> None:
    warnings.simplefilter("ignore")
    try:
        for case in cases(module, blocks):
            pipe.write(json.dumps([short, *case]) + "\n")
    except BaseException as error:
        pipe.write(json.dumps([short, f"{short} as it is", f"raises {type(error).__name__}", str(error)]) + "\n")
