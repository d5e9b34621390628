"""The catalogue and the code stay in step; the floors hold; list is instant because it imports no torch."""

import ast
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import neuropil
from neuropil import catalog
from neuropil.errors import Refused
from neuropil.lab import evidence
from neuropil.lab.claims import load

PACKAGE = Path(neuropil.__file__).parent
EXISTING = [s for s in catalog.systems() if s.parts]
FLOORS = [
    {"errors", "files"},
    {"catalog"},
    {"nn", "numerics", "data", "training"},
    set(catalog.WINGS),
    {"lab"},
    {"claims", "races"},
    {"cli", "report", "studio"},
]


def run(*arguments, **environment):
    command = [sys.executable, "-m", "neuropil", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **environment)


def test_all_176_are_there_and_well_formed():
    systems = catalog.systems()
    assert [s.number for s in systems] == list(range(1, 177))
    assert len({s.slug for s in systems}) == 176
    assert all(s.wing in catalog.WINGS and s.kind in catalog.KINDS and s.title and s.year > 1980 for s in systems)


@pytest.mark.parametrize("system", EXISTING, ids=lambda s: s.slug)
def test_parts_and_claims_of_the_catalogue_exist(system):
    for part in system.parts:
        module, _, name = part.rpartition(".")
        assert hasattr(importlib.import_module(module), name), part
    assert tuple(load(system)) == system.claims


def test_every_claim_file_is_in_the_catalogue():
    files = {p for p in (PACKAGE / "claims").glob("*/*.py") if p.stem != "__init__"}
    named = {PACKAGE / "claims" / s.wing / f"{s.slug.replace('-', '_')}.py" for s in catalog.systems() if s.claims}
    assert files == named


@pytest.mark.parametrize(("name", "slug"), [("hopfield", "modern-hopfield"), ("163", "modern-hopfield"), ("SDM", "attention-sdm")])
def test_find_by_alias_number_and_short_name(name, slug):
    assert catalog.find(name).slug == slug


def test_unknown_system_names_the_nearest():
    with pytest.raises(Refused, match="did you mean 'hopfield'"):
        catalog.find("hopfeild")


def floor_of(module):
    parts = module.split(".")
    return next((i for i, names in enumerate(FLOORS) if len(parts) > 1 and parts[1] in names), -1)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{a.name}" for a in node.names if node.module == "neuropil")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_point_down(path):
    own = "neuropil." + ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for name in imports(path):
        if name.startswith("neuropil.") and floor_of(own) >= 0:
            assert floor_of(name) <= floor_of(own), f"{own} imports {name} from a floor above"
            wings = {own.split(".")[1], name.split(".")[1]}
            assert not (wings <= set(catalog.WINGS) and len(wings) == 2), f"{own} imports another wing: {name}"
    assert len(path.read_text().splitlines()) <= 500


def test_import_and_list_do_not_import_torch():
    listing = "import sys, neuropil.cli.catalogue as c; c.list_.main(['--json'], standalone_mode=False)"
    code = f"{listing}; assert 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_list_json_has_the_agreed_columns():
    rows = json.loads(run("list", "--wing", "memory", "--json").stdout)
    assert len(rows) == 10
    assert set(rows[0]) == {"number", "slug", "title", "wing", "kind", "parts", "claims", "verdict", "measured"}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["show", "hopfeild"], "hopfield"),
        (["lst"], "list"),
        (["list", "--wing", "memry"], "memory"),
        (["run", "hopfield", "--budget", "hole"], "budget"),
        (["run", "hopfield", "--seeds", "0"], "seeds"),
        (["run", "hopfield", "--device", "tpu"], "device"),
        (["run", "hopfield/nothing"], "CLAIM"),
        (["check"], "--all"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, says):
    done = run(*arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_damaged_evidence_file_costs_its_own_verdict_not_the_list(tmp_path):
    (tmp_path / "modern-hopfield").mkdir()
    (tmp_path / "modern-hopfield" / f"{catalog.find('modern-hopfield').claims[0]}.full.json").write_text('{"rows": [')
    done = run("list", "--json", env=os.environ | {"NEUROPIL_EVIDENCE": str(tmp_path)})
    assert len(json.loads(done.stdout)) == 176 and "corrupt or truncated" in done.stderr


def test_a_run_gives_the_same_values_twice(tmp_path):
    """Each run trains its own nets: the caches are apart."""
    command = ("run", "aether/no-field-no-gain", "--budget", "smoke", "--seeds", "2", "--json")
    one, other = (json.loads(run(*command, env=os.environ | {"NEUROPIL_DATA": str(tmp_path / k)}).stdout) for k in "ab")
    assert len(one["method"]["values"]) == 2
    assert one | {"seconds": 0} == other | {"seconds": 0}


def test_kept_verdicts_are_those_of_the_rows():
    for system in EXISTING:
        for claim in load(system).values():
            found = evidence.best(system.slug, claim.name)
            if found:
                sides = ([r[side] for r in found.rows] for side in ("method", "baseline"))
                assert claim.expect.judge(*sides, claim.metric).word == found.verdict
