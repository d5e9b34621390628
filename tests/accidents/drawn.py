"""Awkward inputs that Hypothesis draws: sizes of axes, one of them broken, a kind of numbers and a special value, all at once.

Examples depend on nothing but their number: a longer form has those of a shorter one first. Of a call that fails, the fewest of its
changes that fail alike are told. What is taken in silence is judged one change at a time only, in `inputs`.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from accidents.calls import Call, attempt, infinite, is_tensor, resized

BLOCK = 4  # examples that are drawn together
SIZES = ("0", "1", "2", "3")
DTYPES = ("float16", "bfloat16", "float64", "int64", "bool", "complex64")
VALUES = {"nan": "nan", "first-nan": "nan", "inf": "inf", "-inf": "-inf", "0": "0", "1e30": "1e30", "1e-40": "1e-40"}
WILD = set(VALUES) - {"0"}  # of these nothing finite need come

Changes = tuple[tuple[str, str], ...]  # (axis or argument, what becomes of it)


def examples(call: Call, blocks: int) -> list[Changes]:
    """The examples of so many blocks, each once."""
    strategy = _changes(call)
    found = [changes for block in range(blocks) for changes in _block(strategy, block)]
    return [changes for changes in dict.fromkeys(found) if changes]


def _block(strategy: Any, number: int) -> list[Changes]:
    """Examples that are a function of `number` alone; the first one, no change, counts as none."""
    from hypothesis import HealthCheck, Phase, given, seed, settings

    drawn: list[Changes] = []
    quiet = list(HealthCheck)

    @seed(number)
    @settings(
        max_examples=BLOCK + 1, derandomize=True, database=None, deadline=None, phases=[Phase.generate], suppress_health_check=quiet
    )
    @given(strategy)
    def example(changes: Changes) -> None:
        drawn.append(changes)

    example()
    return drawn


def _changes(call: Call) -> Any:
    """A strategy for the changes that a call may have."""
    from hypothesis import strategies as st

    axes = call.axes()
    sizes = st.tuples(*(st.sampled_from([(), *(((f"axis {axis}", size),) for size in SIZES)]) for axis in axes))
    broken = [(f"axis {axis} of {name}", size) for axis, at in axes.items() for name in dict(at) if len(at) > 1 for size in SIZES]
    tensors = {name: value for name, value in call.arguments.items() if is_tensor(value)}
    dtypes = [(name, dtype) for name, value in tensors.items() for dtype in DTYPES if dtype != str(value.dtype)[6:]]
    values = [(name, word) for name, value in tensors.items() if value.is_floating_point() for word in VALUES]
    for name, value in call.arguments.items():
        if isinstance(value, int) and not isinstance(value, bool) and "seed" not in name:
            values += [(name, word) for word in ("-1", "0", "1", "2", "3") if int(word) != value]
        elif isinstance(value, float):
            values += [(name, word) for word in ("nan", "inf", "-1", "0") if float(word) != value]
    others = (st.sampled_from([(), *((change,) for change in some)]) for some in (broken, dtypes, values))
    return st.tuples(sizes, *others).map(lambda drawn: tuple(change for some in (*drawn[0], *drawn[1:]) for change in some))


def changed(call: Call, changes: Changes) -> dict[str, Any]:
    """The call's arguments with these changes; KeyError, TypeError or ValueError if they are not of this call."""
    import torch

    arguments, axes = dict(call.arguments), call.axes()
    for what, kind in changes:
        if what.startswith("axis "):
            axis, _, only = what.removeprefix("axis ").partition(" of ")
            for name, place in axes[axis]:
                if only in ("", name):
                    arguments[name] = resized(arguments[name], place, int(kind))
            continue
        value = arguments[what]
        if not is_tensor(value):
            arguments[what] = type(value)(kind)
        elif kind in DTYPES:
            arguments[what] = value.to(getattr(torch, kind))
        elif value.is_floating_point() and value.numel():
            number = float(torch.tensor(float(VALUES[kind])).to(value.dtype))  # what is too large for half is inf
            first = torch.arange(1 if kind.startswith("first") else value.numel())
            arguments[what] = value.clone().flatten().index_fill(0, first, number).view_as(value)
    return arguments


def cases(call: Call, finite: bool, given: Iterable[Changes]) -> Iterator[tuple[str, str, str]]:
    """As `inputs.cases`: (case, failure, what was seen), each after a 'begins'."""

    def verdict(changes: Changes) -> tuple[str, str]:
        failure, seen, result = attempt(call, changed(call, changes))
        wild = any(kind in WILD for _, kind in changes)
        if not failure and finite and not wild and infinite(result):
            return "not finite", ""
        return failure, "" if seen in ("refused", "result") else seen

    for changes in given:
        yield _words(call, changes), "begins", ""
        failure, seen = verdict(changes)
        for change in changes if failure and failure != "takes too long" else ():
            fewer = tuple(one for one in changes if one != change)
            if fewer:
                yield _words(call, fewer), "begins", ""
                if (now := verdict(fewer))[0] == failure:
                    changes, seen = fewer, now[1]
        yield _words(call, changes), failure, seen


def _words(call: Call, changes: Changes) -> str:
    return f"{call.name} {'; '.join(f'{what} {kind}' for what, kind in changes)}"


def replayed(call: Call, known: set[str], tried: set[str]) -> list[Changes]:
    """The changes of this call's known faults that were not `tried`: whether they are still there is seen in every form."""
    cases = {key.removeprefix("inputs: ").rpartition(" -> ")[0] for key in known if key.startswith(f"inputs: {call.name} ")}
    found = []
    for case in sorted(cases - tried):
        changes = tuple(tuple(one.rsplit(" ", 1)) for one in case.removeprefix(f"{call.name} ").split("; "))
        try:
            changed(call, changes)
        except (LookupError, TypeError, ValueError):  # of another stage, or of a part that has changed
            continue
        found.append(changes)
    return found
