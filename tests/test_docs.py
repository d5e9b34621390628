"""The site's pages: every system with all its claims and parts, links that lead somewhere, examples that run."""

import contextlib
import importlib.util
import re
import shlex
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from neuropil import catalog
from neuropil.cli import neuropil
from neuropil.errors import Refused
from neuropil.lab import evidence
from neuropil.report import docs

pytest.importorskip("jinja2")

EXISTING = [system for system in catalog.systems() if system.exists]
EXAMPLES = sorted(path.relative_to(docs.CHECKOUT / "docs").as_posix() for path in (docs.CHECKOUT / "docs").rglob("*.md"))
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NEEDS = {"own-data/brain.md": ("mne", "pynwb", "nibabel", "sklearn"), "own-data/fields.md": ("trimesh", "av", "numba", "skimage")}
RUN = {
    "fit",
    "render",
    "decode",
}  # run at tiny size; the others are parsed (a mesh needs a fit whose length depends on the machine)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evidence, "fingerprint", lambda system: "")  # seconds of hashing that pages here do not need
        patch.setattr(docs, "write_atomic", write)  # nor do they need to survive a power cut
        return docs.write(tmp_path_factory.mktemp("docs"))


def test_every_system_has_a_page_with_all_its_claims_and_parts(site):
    for system in EXISTING:
        page = (site / "systems" / f"{system.slug}.md").read_text(encoding="utf-8")
        assert system.cite() in page
        for claim in system.claims:
            assert f"{{ #{claim} }}" in page and f"neuropil run {system.slug}" in page, (system.slug, claim)
        for part in system.parts:
            assert f"{{ #{part} }}" in page, part
    assert len(list((site / "systems").glob("*.md"))) == len(EXISTING) + 1


def test_what_a_page_says_of_a_claim_and_a_part(site):
    page = (site / "systems" / "modern-hopfield.md").read_text(encoding="utf-8")
    found = evidence.read(evidence.path_of("modern-hopfield", "one-update-recalls-digits", "full"))
    assert found.facts["sentence"] in page and found.facts["expect"]["words"] in page and 'class="bar big"' in page
    assert "beta: float = 1.0,\n    steps: int = 1,\n) -> Float[Tensor" in page  # of retrieve
    assert "E(ξ) = −lse(β, Xᵀξ)" in page and "- `steps`" not in page


def test_the_index_names_all_systems_and_marks_the_planned(site):
    page = (site / "systems" / "index.md").read_text(encoding="utf-8")
    assert page.count("\n| 0") + page.count("\n| 1") == 176
    assert page.count('verdict planned">planned') == 176 - len(EXISTING) + 1  # and the legend


def links(page):
    """Link targets outside code."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.findall(r"(?<!\\)\]\(([^)\s]+)\)", text)


def test_links_and_pictures_lead_somewhere(site):
    missing = []
    for page in site.rglob("*.md"):
        for link in links(page):
            if link.startswith(("http", "#")):
                continue
            name, _, anchor = link.partition("#")
            target = page.parent / name
            whole = target.is_file() and (not anchor or f"{{ #{anchor} }}" in target.read_text(encoding="utf-8"))
            if not whole:
                missing.append((page.name, link))
    assert not missing


def test_navigation_holds_every_page_once(site):
    def pages(tree):
        for node in tree:
            if isinstance(node, str):
                yield node
            else:
                for value in node.values():
                    yield from pages([value] if isinstance(value, str) else value)

    named = list(pages(docs.navigation()))
    assert sorted(named) == sorted(page.relative_to(site).as_posix() for page in site.rglob("*.md"))


def test_what_cannot_be_filled_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("<!-- verdicts: wings -->")
    with pytest.raises(Refused, match=r"page\.md: verdicts of 'wings'"):
        docs.filled(page, tmp_path, {})
    with pytest.raises(Refused, match=r"hopfield\.nothing is not defined"):
        docs.by_module(["neuropil.memory.hopfield.nothing"])


def test_markdown_of_a_docstring():
    doc = "A rule, w_ij * x.\n\n    Δw = x * y\n\nArgs:\n    a, b: two numbers,\n        both positive.\n\n"
    doc += ">>> 1 + 1\n2\n\n- one\n- two"
    assert docs.markdown(doc).split("\n\n") == [
        r"A rule, w\_ij \* x.",
        "```text\nΔw = x * y\n```",
        "- `a, b`: two numbers, both positive.",
        "```pycon\n>>> 1 + 1\n2\n```",
        "- one\n- two",
    ]


def write_edf(path, signals, rate):
    """Plain EDF of one-second records, ±1,000 µV."""
    head = b"".join(str(v).encode().ljust(w) for v, w in ((0, 8), ("X", 80), ("X", 80), ("01.01.20", 8), ("00.00.00", 8)))
    n, seconds = len(signals), signals.shape[1] // rate
    head += b"".join(str(v).encode().ljust(w) for v, w in ((256 * (n + 1), 8), ("", 44), (seconds, 8), (1, 8), (n, 4)))
    columns = ((["C3", "C4", "Cz"], 16), ([""] * n, 80), (["uV"] * n, 8), ([-1000] * n, 8), ([1000] * n, 8))
    columns += (([-32768] * n, 8), ([32767] * n, 8), ([""] * n, 80), ([rate] * n, 8), ([""] * n, 32))
    head += b"".join(str(v).encode().ljust(w) for values, w in columns for v in values)
    digital = np.round((signals + 1000) / 2000 * 65535 - 32768).astype("<i2")
    path.write_bytes(head + digital.reshape(n, seconds, rate).transpose(1, 0, 2).tobytes())


def command(line):
    """Run a line of a shell block, or only parse it; seconds and shuffles are cut down."""
    words = shlex.split(line, comments=True)
    if words[0] != "neuropil":
        assert words == ["make", "tour"] or words[:2] == ["pip", "install"], line
        return
    arguments = words[1:]
    if arguments[0] in RUN:
        if "--seconds" in arguments:
            arguments[arguments.index("--seconds") + 1] = "0.05"
        arguments += ["--permutations", "3"] if arguments[0] == "decode" else []
    elif "--help" not in arguments:
        arguments.append("--help")
    result = CliRunner().invoke(neuropil, arguments)
    assert result.exit_code == 0, (line, result.output, result.exception)


@pytest.mark.parametrize("page", EXAMPLES)
def test_examples_run(page, tmp_path, monkeypatch):
    blocks = BLOCK.findall((docs.CHECKOUT / "docs" / page).read_text(encoding="utf-8"))
    if not blocks:
        return
    for module in NEEDS.get(page, ()):
        pytest.importorskip(module)
    monkeypatch.chdir(tmp_path)
    if page == "own-data/brain.md":
        write_edf(tmp_path / "eeg.edf", np.random.default_rng(0).normal(size=(3, 6600)) * 50, 100)
    names = {"__name__": "example"}
    for language, text in blocks:
        if language == "sh":
            for line in filter(str.strip, text.splitlines()):
                command(line)
        elif "transformers" in text and importlib.util.find_spec("transformers") is None:
            continue
        else:
            with contextlib.redirect_stdout(sys.stderr):
                exec(compile(text, page, "exec"), names)
