"""The table of the benchmarks and the command that fills it, on invented comparisons: nothing is timed here."""

import doctest
import importlib
import json
import shutil
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
PROGRAM = """'''An invented comparison.'''
from pathlib import Path
from rounds import Ratio, main, peer

def compare(quick):
    with open(Path(__file__).with_suffix(".runs"), "a") as runs:
        runs.write("x")
    print("peers chat")
{body}

if __name__ == "__main__":
    main(compare)
"""
GOOD = "    yield Ratio('a sum', 'a slow sum', [1.0, 2.0], [3.0, 4.0], at_least=2)"
MISSING = "    peer('no_such_peer', 'no-such-peer')\n" + GOOD
BROKEN = "    yield Ratio('a', 'b', [1.0], [1.0])\n    raise ArithmeticError('sums differ')"


@pytest.fixture
def rounds(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("rounds")
    for name in ("bench", "rounds"):
        sys.modules.pop(name, None)


@pytest.fixture
def bench(rounds):
    return importlib.import_module("bench")


@pytest.fixture
def programs(tmp_path):
    """A folder with the shared file; `programs(name=body)` adds comparisons."""
    folder = tmp_path / "programs"
    folder.mkdir()
    shutil.copy(BENCHMARKS / "rounds.py", folder)

    def add(**bodies):
        for name, body in bodies.items():
            (folder / f"{name}.py").write_text(PROGRAM.format(body=body))
        return folder

    return add


def runs(folder, name):
    path = folder / f"{name}.runs"
    return len(path.read_text()) if path.exists() else 0


def command(out, *more):
    return [*more, "--threads", "1", "--out", str(out)]


def rows_of(text, what):
    lines = [line for line in text.splitlines() if line.startswith(f"| {what} |")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_a_ratio_is_theirs_over_ours_and_an_overhead_the_other_way_round(rounds):
    faster = rounds.Ratio("a", "b", [1.0, 2.0, 1.0], [2.0, 8.0, 3.0], at_least=3)
    assert faster.ratios() == [2.0, 4.0, 3.0]
    assert (faster.wanted(), faster.seen(), faster.verdict()) == ("≥ 3", "3 (2–4), 3 pairs", "faster")
    over = rounds.Ratio("a", "b", [1.02], [1.0], at_most=1.05)
    assert over.ratios() == pytest.approx([1.02])
    assert (over.wanted(), over.seen(), over.verdict()) == ("≤ 1.05", "1.020 (1.020–1.020), 1 pair", "within")


@pytest.mark.parametrize(
    ("wish", "theirs", "words"),
    [
        ({"at_least": 1}, 0.5, "**slower**"),
        ({}, 0.5, "**slower**"),
        ({"at_least": 5}, 2.0, "**faster, but less than wanted**"),
        ({"at_most": 1.05}, 0.5, "**slower than wanted**"),
        ({"unit": "MiB"}, 3.0, "less"),
        ({"unit": "MiB"}, 0.5, "**more**"),
        ({"unit": "MiB", "at_most": 1.05}, 0.5, "**more than wanted**"),
    ],
)
def test_the_verdict_says_plainly_where_we_are_behind(rounds, wish, theirs, words):
    assert rounds.Ratio("a", "b", [1.0], [theirs], **wish).verdict() == words


def test_numbers_are_short(rounds):
    assert doctest.testmod(rounds).failed == 0


def test_sides_take_turns_and_the_first_round_is_not_counted(rounds):
    order, now = [], [0.0]

    def side(name, seconds):
        order.append(name)
        now[0] += seconds

    ways = {"ours": lambda: side("ours", 1.0), "theirs": lambda: side("theirs", 2.0)}
    taken = rounds.in_turns(ways, 2, clock=lambda: now[0], before=lambda name: side(f"before {name}", 10.0))
    assert taken == {"ours": [1.0, 1.0], "theirs": [2.0, 2.0]}
    assert [name for name in order if "before" not in name] == ["theirs", "ours", "ours", "theirs", "theirs", "ours"]
    assert order[::2] == [f"before {name}" for name in order[1::2]]


def test_the_table_has_every_row_with_versions_and_conditions(bench, rounds):
    ratio = rounds.Ratio("sums | all", "himalaya, by tens", [0.004], [0.054], at_least=5, package="himalaya", note="same sums")
    facts = {"date": "2026-01-02T03:04+00:00", "threads": 2, "load before": 0.1, "seconds": 3.0, "machine": "a box", "quick": False}
    versions = {"torch": "2.6.0", "himalaya": "0.4.11"}
    text = bench.table({"sums": facts | {"versions": versions, "rows": [rounds.asdict(ratio)]}})
    expected = "| sums \\| all | himalaya 0.4.11, by tens | ≥ 5 | 13.5 (13.5–13.5), 1 pair | faster | 4 ms / 54 ms | same sums |"
    assert expected in text.splitlines()
    assert "| `sums.py` | 2026-01-02T03:04+00:00 | 2 | 0.1 | 3.0 | a box | torch 2.6.0, himalaya 0.4.11 |" in text.splitlines()
    assert "quick" not in text


def test_a_run_writes_the_table_and_goes_on_where_it_stopped(bench, programs, tmp_path):
    folder, out = programs(first=GOOD, second=GOOD), tmp_path / "out"
    assert bench.main(command(out, "first"), folder) == 0
    assert not (out / "results" / "second.json").exists()
    assert bench.main(command(out), folder) == 0
    assert (runs(folder, "first"), runs(folder, "second")) == (1, 1)  # the first was kept
    assert bench.main(command(out, "first", "--again"), folder) == 0
    assert (runs(folder, "first"), runs(folder, "second")) == (2, 1)
    assert bench.main(command(out, "second", "--quick"), folder) == 0
    assert runs(folder, "second") == 2  # of another kind
    records = json.loads((out / "results.json").read_text())
    assert list(records) == ["first", "second"]
    assert {"python", "torch", "numpy"} <= records["first"]["versions"].keys()
    assert {"date", "load before", "seconds", "machine"} <= records["first"].keys()
    assert records["first"]["threads"] == 1
    text = (out / "RESULTS.md").read_text()
    assert [row[3] for row in rows_of(text, "a sum")] == ["2.5 (2–3), 2 pairs"] * 2
    assert "A quick run" in text


def test_an_interrupted_run_keeps_what_is_finished(bench, programs, tmp_path, monkeypatch, capsys):
    folder, out, measured = programs(first=GOOD, second=GOOD), tmp_path / "out", bench.measured

    def stopped(program, *rest):
        if program.stem == "second":
            raise KeyboardInterrupt
        return measured(program, *rest)

    monkeypatch.setattr(bench, "measured", stopped)
    assert bench.main(command(out), folder) == 130
    assert "goes on" in capsys.readouterr().err
    assert [path.name for path in (out / "results").iterdir()] == ["first.json"]
    assert "first.py" in (out / "RESULTS.md").read_text()


def test_a_missing_peer_is_skipped_by_name_and_no_error(bench, programs, tmp_path, monkeypatch):
    folder, out = programs(alone=MISSING), tmp_path / "out"
    assert bench.main(command(out), folder) == 0
    [row] = rows_of((out / "RESULTS.md").read_text(), "An invented comparison")
    assert row[1] == "no-such-peer"
    assert row[3] == "not installed: pip install no-such-peer"
    assert bench.main(command(out), folder) == 0
    assert runs(folder, "alone") == 1
    monkeypatch.setattr(bench, "version", lambda package: "1.0")  # installed since
    assert bench.main(command(out), folder) == 0
    assert runs(folder, "alone") == 2


def test_a_broken_comparison_is_one_row_and_the_others_still_run(bench, programs, tmp_path):
    folder, out = programs(bad=BROKEN, good=GOOD), tmp_path / "out"
    assert bench.main(command(out), folder) == 1
    text = (out / "RESULTS.md").read_text()
    assert [row[3] for row in rows_of(text, "bad")] == ["**broke**: ArithmeticError: sums differ (exit code 1)"]
    assert [row[3] for row in rows_of(text, "a sum")] == ["2.5 (2–3), 2 pairs"]
    bench.main(command(out), folder)
    assert (runs(folder, "bad"), runs(folder, "good")) == (2, 1)  # what broke is not finished


def test_an_unknown_name_says_the_nearest(bench, capsys):
    assert bench.main(["hash_gird"]) == 2
    assert "did you mean 'hash_grid'?" in capsys.readouterr().err


def test_every_program_has_the_common_shape(bench):
    for name in bench.names():
        text = (BENCHMARKS / f"{name}.py").read_text()
        assert "\ndef compare(quick: bool) -> Iterator[Ratio]:\n" in text, name
        assert text.endswith('if __name__ == "__main__":\n    main(compare)\n'), name
