"""The documentation site: the pages of ``docs/``, with tables filled in, and one page for each system, made from the code itself.

``mkdocs build`` calls `on_config`, which writes all pages into ``build/docs-src`` and tells mkdocs about them; nothing generated is
kept in git. A hand-written page may hold these comments, each of which becomes a table or a text:

    <!-- verdicts: memory -->    the claims of a wing, and what they came to
    <!-- systems -->             all 176, planned ones marked
    <!-- roles -->               the roles that can be raced, and who plays them
    <!-- races -->               what the races came to that are kept, with their pictures
    <!-- file: NAME.md -->       a file of the checkout, without its title

Parts are read from source, without importing them, so that a build needs no torch; claims and evidence as the gallery reads them.
"""

import ast
import functools
import re
import shutil
import textwrap
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from neuropil import catalog
from neuropil.catalog import System
from neuropil.errors import Refused, optional
from neuropil.files import write_atomic
from neuropil.report import races
from neuropil.report.build import SIGNS, TEMPLATES, ClaimView, SystemView, view
from neuropil.report.races import RaceView

CHECKOUT = Path(__file__).resolve().parents[3]
COMMENT = re.compile(r"<!-- (verdicts|systems|roles|races|file)(?:: ([\w./-]+))? -->")
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def write(folder: Path | str) -> Path:
    """All pages, pictures and styles into `folder`, for mkdocs to build; gives the folder. Needs a checkout and jinja2, no mkdocs.

    `Refused` where there is no ``docs/`` beside the code, and for a comment in a page that asks for what there is not.
    """
    folder, pages = Path(folder), CHECKOUT / "docs"
    if not (pages / "index.md").is_file():
        raise Refused(f"docs: no {pages / 'index.md'}; the site is built in a checkout of the repository")
    views = {system.slug: view(system) for system in catalog.systems() if system.exists}
    for file in sorted(path for path in pages.rglob("*") if path.is_file()):
        if file.suffix == ".md":
            write_atomic(folder / file.relative_to(pages), filled(file, pages, views))
        else:
            write_atomic(folder / file.relative_to(pages), file.read_bytes())
    races.write_pictures(races.views(), folder)
    template = _environment().get_template("docs/system.md")
    for shown in views.values():
        for picture in (picture for claim in shown.claims for picture in claim.pictures):
            write_atomic(folder / "pictures" / shown.system.slug / file_name(picture), picture.read_bytes())
        modules = by_module(shown.system.parts)
        write_atomic(
            folder / "systems" / f"{shown.system.slug}.md", template.render(view=shown, system=shown.system, modules=modules)
        )
    return folder


def filled(page: Path, root: Path, views: dict[str, SystemView]) -> str:
    """The text of a hand-written page with its comments replaced."""
    up = "../" * (len(page.relative_to(root).parts) - 1)

    def replaced(comment: re.Match[str]) -> str:
        kind, name = comment.groups()
        if kind == "verdicts":
            if name not in catalog.WINGS:
                raise Refused(f"{page.name}: verdicts of {name!r} (allowed: {', '.join(catalog.WINGS)})")
            return verdicts([shown for shown in views.values() if shown.system.wing == name], up)
        if kind == "systems":
            return index(views, up)
        if kind == "roles":
            return roles(catalog.systems(), up)
        if kind == "races":
            return raced(races.views(), up)
        text = (CHECKOUT / str(name)).read_text(encoding="utf-8")
        return LINK.sub(_unlinked, re.sub(r"\A# .*\n", "", text))

    return COMMENT.sub(replaced, page.read_text(encoding="utf-8"))


def verdicts(views: Iterable[SystemView], up: str) -> str:
    """A table of the claims of these systems, a system a group."""
    tables = []
    for shown in views:
        link = f"{up}systems/{shown.system.slug}.md"
        rows = ["| verdict | claim | effect |", "|---|---|---|"]
        for claim in shown.claims:
            rows.append(f"| {badge(claim)} | [{prose(claim.sentence)}]({link}#{claim.name}) | {effect(claim)} |")
        head = f"### [{prose(shown.system.short)}]({link})\n\n{prose(shown.system.headline or shown.system.title)}"
        tables.append(f"{head}\n\n" + '<div class="verdicts" markdown>\n\n' + "\n".join(rows) + "\n\n</div>")
    return "\n\n".join(tables) or "*No system of this wing exists yet.*"


def index(views: dict[str, SystemView], up: str) -> str:
    """All systems, by wing: those that exist with a link and the worst of their verdicts, the others as planned."""
    lines = []
    for wing in catalog.WINGS:
        inside = [system for system in catalog.systems() if system.wing == wing]
        here = sum(system.slug in views for system in inside)
        lines += [f"\n## {wing}\n", f"{here} of {len(inside)} exist.\n", '<div class="systems" markdown>\n']
        lines += ["| no | system | paper | year | |", "|---|---|---|---|---|"]
        for system in inside:
            shown, name = views.get(system.slug), prose(system.short)
            name = f"**[{name}]({up}systems/{system.slug}.md)**" if shown else name
            state = _badge(shown.verdict if shown else "planned")
            lines.append(f"| {system.number:03} | {name} | {prose(system.title)} | {system.year} | {state} |")
        lines.append("\n</div>")
    return "\n".join(lines)


def roles(systems: Iterable[System], up: str) -> str:
    """The roles of the catalogue and the systems that play them."""
    found: dict[str, list[System]] = {}
    for system in systems:
        for role in system.roles:
            found.setdefault(role.partition(":")[0], []).append(system)
    if not found:
        return "*No system of the catalogue names a role yet.*"
    rows = ["| role | who plays it |", "|---|---|"]
    for role, players in sorted(found.items()):
        links = dict.fromkeys(f"[{prose(s.short)}]({up}systems/{s.slug}.md)" if s.exists else prose(s.short) for s in players)
        rows.append(f"| `{role}` | {', '.join(links)} |")
    return "\n".join(rows)


def raced(views: Iterable[RaceView], up: str) -> str:
    """The ranking and the picture of each race."""
    pages = []
    for shown in views:
        if not shown.places:
            pages.append(f"### {shown.role}\n\n{prose(shown.warning)}")
            continue
        rows = ["| | entry | numbers | mean | from the best |", "|--:|---|--:|---|---|"]
        for n, place in enumerate(shown.places, 1):
            name = f"[{prose(place['entry'])}]({up}systems/{place['system']}.md)" if place["system"] else prose(place["entry"])
            value = f"{place['value']} {place['interval']}" if place["value"] else "broke"
            rows.append(f"| {n} | {name} | {place['numbers']} | {value} | {place['behind']} {place['behind_interval']} |")
        seeds = f"{shown.seeds} seed{'s' * (shown.seeds > 1)}"
        budget = f"{shown.settings['budget']} budget, {shown.settings['parameters']:,} numbers, {seeds}, {shown.measured}"
        stale = ' <span class="verdict stale">↻ stale</span>' if shown.stale else ""
        pages.append(f"### {shown.role}{stale}\n\n{prose(shown.headline)}\n\n*By {prose(shown.metric)}; {budget}.*")
        pages.append("\n".join(rows))
        if shown.picture:
            pages.append(f"![]({up}pictures/races/{shown.role}.png){{ .evidence loading=lazy }}")
    return "\n\n".join(pages) or "*No race is kept yet.*"


def effect(claim: ClaimView) -> str:
    """The effect with its interval, and what the claim wants it to be."""
    if not claim.effect:
        return "–"
    return f'{claim.effect} {claim.interval} <span class="quiet">{prose(claim.expected)}</span>'


def badge(claim: ClaimView) -> str:
    """A verdict with its sign; one seed and stale evidence say so."""
    more = " (one seed)" if claim.one_seed and claim.verdict != "unmeasured" else ""
    return _badge(claim.verdict, more) + (' <span class="verdict stale">↻ stale</span>' if claim.stale else "")


def _badge(word: str, more: str = "") -> str:
    text = f"{SIGNS.get(word, '')} {word}{more}".strip()
    return f'<span class="verdict {word}">{text}</span>'


def prose(text: str) -> str:
    """Plain text as Markdown that shows just it; what stands between backticks stays code.

    >>> prose("a*b < c_1 `x_i*2`")
    'a\\\\*b &lt; c\\\\_1 `x_i*2`'
    """
    pieces = re.split(r"(``.+?``|`[^`\n]+`)", " ".join(text.split()))
    return "".join(_code(p) if p.startswith("`") and len(p) > 1 else _escaped(p) for p in pieces)


def _code(piece: str) -> str:
    """Code between backticks; what would end a table's cell needs HTML."""
    return f"<code>{_escaped(piece.strip('`'))}</code>" if "|" in piece else piece


def _escaped(text: str) -> str:
    plain = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]{}#])", r"\\\1", plain).replace("|", "&#124;")


def _unlinked(found: re.Match[str]) -> str:
    """A link of a copied file: addresses stay, neighbours in the checkout become their names."""
    return found[0] if found[2].startswith(("http", "#")) else f"{found[1]} (`{found[2]}`)"


def file_name(picture: Path) -> str:
    """A picture's name on the site, without spaces."""
    return picture.name.replace(" ", "-")


def _environment() -> Any:
    jinja2 = optional("jinja2", "docs")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"prose": prose, "file_name": file_name, "markdown": markdown, "compact": _compact}
    environment.filters |= {
        "last_name": lambda dotted: dotted.rpartition(".")[2],
        "spaced": lambda name: name.replace("-", " ").capitalize(),
        "imports": imports,
    }
    environment.globals |= {"signs": SIGNS, "badge": badge, "effect": effect}
    return environment


def imports(module: str, names: Iterable[str]) -> str:
    """An import statement, its names one a line where one line would be too long."""
    line = f"from {module} import {', '.join(names)}"
    return line if len(line) <= 88 else "\n".join([f"from {module} import (", *(f"    {name}," for name in names), ")"])


def _compact(html: str) -> str:
    """Without blank lines, which would end an HTML block of Markdown."""
    return "\n".join(line for line in html.splitlines() if line.strip())


@dataclass
class PartView:
    """A part as its page shows it: how it is called, what its docstring says, and the public methods of a class."""

    name: str
    signature: str
    doc: str
    methods: list[tuple[str, str]] = field(default_factory=list)


def by_module(parts: Iterable[str]) -> list[tuple[str, str, list[PartView]]]:
    """The parts by the module that defines them: its dotted name, its docstring, its parts. `Refused` for one that is not there."""
    found: dict[str, tuple[str, str, list[PartView]]] = {}
    for dotted in parts:
        module, node = locate(dotted)
        words = ast.get_docstring(_tree(module)) or ""
        found.setdefault(module, (module, words, []))[2].append(_part(dotted, module, node))
    return list(found.values())


def locate(dotted: str) -> tuple[str, ast.stmt]:
    """The module that defines ``package.module.name``, and the statement that does, also if a package only passes it on."""
    module, _, name = dotted.rpartition(".")
    path = _path(module)
    inside = [f"{module}.{file.stem}" for file in sorted(path.glob("*.py")) if file.stem != "__init__"] if path.is_dir() else []
    for place in (module, *inside):
        for node in _tree(place).body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
                return place, node
            if isinstance(node, ast.Assign | ast.AnnAssign) and ast.unparse(node).split("=")[0].split(":")[0].strip() == name:
                return place, node
    raise Refused(f"catalogue: {dotted} is not defined in {module}")


def _path(module: str) -> Path:
    return Path(__file__).parents[1].joinpath(*module.split(".")[1:])


@functools.cache
def _tree(module: str) -> ast.Module:
    path = _path(module)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.is_file():
        raise Refused(f"catalogue: there is no module {module}")
    return ast.parse(file.read_text(encoding="utf-8"))


def _part(dotted: str, module: str, node: ast.stmt) -> PartView:
    name = dotted.rpartition(".")[2]
    if isinstance(node, ast.FunctionDef):
        return PartView(dotted, signature(node), ast.get_docstring(node) or "")
    if not isinstance(node, ast.ClassDef):
        return PartView(dotted, ast.unparse(node).partition("=")[0].strip(), "")
    functions = [child for child in node.body if isinstance(child, ast.FunctionDef)]
    shown = _call(name, _constructor(module, node), "")
    public = [f for f in functions if not f.name.startswith("_") or f.name == "__call__"]
    methods = [(signature(f, method=True), (ast.get_docstring(f) or "").split("\n\n")[0]) for f in public]
    return PartView(dotted, shown, ast.get_docstring(node) or "", methods)


def signature(node: ast.FunctionDef, method: bool = False) -> str:
    """How a function is called, as its source says it, one argument a line where one line would be too long."""
    marks = {ast.unparse(mark) for mark in node.decorator_list}
    returns = f" -> {_quoted(node.returns)}" if node.returns else ""
    arguments = list(_arguments(node.args))[1 if method and "staticmethod" not in marks else 0 :]
    if "property" in marks:
        return f"{node.name}{returns.replace(' ->', ':', 1)}"
    return _call(node.name, arguments, returns)


def _call(name: str, arguments: list[str], returns: str, width: int = 88) -> str:
    line = f"{name}({', '.join(arguments)}){returns}"
    if len(line) <= width or not arguments:
        return line
    return "\n".join([f"{name}(", *(f"    {argument}," for argument in arguments), f"){returns}"])


def _arguments(given: ast.arguments) -> Iterator[str]:
    """Each argument with annotation and default, the bare * where keywords begin."""
    plain = [*given.posonlyargs, *given.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(given.defaults)) + list(given.defaults)
    yield from map(_argument, plain, defaults)
    if given.vararg or given.kwonlyargs:
        yield "*" + (_argument(given.vararg) if given.vararg else "")
    yield from map(_argument, given.kwonlyargs, given.kw_defaults)
    if given.kwarg:
        yield "**" + _argument(given.kwarg)


def _argument(given: ast.arg, default: ast.expr | None = None) -> str:
    text = f"{given.arg}: {_quoted(given.annotation)}" if given.annotation else given.arg
    if default is None:
        return text
    return f"{text} = {_quoted(default)}" if given.annotation else f"{text}={_quoted(default)}"


def _constructor(module: str, node: ast.ClassDef) -> list[str]:
    """The arguments that make an object: of __init__, the fields of a dataclass or named tuple, or those of the base class."""
    for child in node.body:
        if isinstance(child, ast.FunctionDef) and child.name == "__init__":
            return list(_arguments(child.args))[1:]
    bases = [ast.unparse(base) for base in node.bases]
    if "NamedTuple" in bases or any("dataclass" in ast.unparse(mark) for mark in node.decorator_list):
        lines = [child for child in node.body if isinstance(child, ast.AnnAssign)]
        return [_quoted(line) for line in lines if "init=False" not in ast.unparse(line)]
    found = next(filter(None, (_class(module, base) for base in bases)), None)
    return _constructor(*found) if found else []


def _class(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """The library's class that a module calls `name`, and the module that defines it."""
    for node in _tree(module).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("neuropil."):
            for alias in node.names:
                if name == (alias.asname or alias.name):
                    place, defined = locate(f"{node.module}.{alias.name}")
                    return (place, defined) if isinstance(defined, ast.ClassDef) else None
    return None


def _quoted(node: ast.AST) -> str:
    """Source of a node with double quotes, as in the files."""
    return ast.unparse(node).replace("'", '"')


def markdown(doc: str) -> str:
    """A docstring as Markdown: prose as prose; formulas, tables and doctests, which stand indented or after >>>, as they are.

    >>> print(markdown("Sum x_i.\\n\\n    S = x * y\\n\\nArgs:\\n    x: a number."))
    Sum x\\_i.
    <BLANKLINE>
    ```text
    S = x * y
    ```
    <BLANKLINE>
    - `x`: a number.
    """
    pieces: list[str] = []
    lines = doc.splitlines()
    while lines:
        if not lines[0].strip():
            lines.pop(0)
        elif lines[0].startswith(">>> "):
            pieces.append("```pycon\n" + "\n".join(_take(lines, lambda line: bool(line.strip()))) + "\n```")
        elif lines[0].rstrip() in ("Args:", "Attributes:"):
            lines.pop(0)
            block = _take(lines, lambda line: line.startswith("    ") or not line.strip())
            pieces.append("\n".join(_items([line[4:] for line in block])))
        elif lines[0].startswith("- "):
            block = _take(lines, lambda line: line.startswith(("- ", "  ")))
            pieces.append("\n".join(f"- {prose(item)}" for item in " \n".join(block)[2:].split("\n- ")))
        elif lines[0].startswith("  ") or _formula(lines):
            block = _take(lines, lambda line: bool(line.strip()))
            pieces.append("```text\n" + textwrap.dedent("\n".join(block)) + "\n```")
        else:
            pieces.append(
                prose(" ".join(_take(lines, lambda line: bool(line.strip()) and not line.startswith(("    ", ">>> ", "- ")))))
            )
    return "\n\n".join(pieces)


def _take(lines: list[str], wanted: Callable[[str], bool]) -> list[str]:
    """Removes and gives the first line and those after it that are wanted."""
    count = next((i for i, line in enumerate(lines) if i and not wanted(line)), len(lines))
    taken, lines[:] = lines[:count], lines[count:]
    return taken


def _formula(lines: list[str]) -> bool:
    """Whether a block that is not indented is a table of formulas: most of its lines hold columns, set apart by wide gaps."""
    block = _take(list(lines), lambda line: bool(line.strip()))
    return sum(bool(re.search(r"\S {3,}\S", line)) for line in block) * 2 > len(block)


def _items(lines: list[str]) -> list[str]:
    """``name: text`` with its further lines, as list items."""
    items: list[str] = []
    for line in filter(str.strip, lines):
        name, colon, text = line.partition(":")
        if line.startswith(" ") and items:
            items[-1] += " " + line.strip()
        else:
            items.append(f"`{name}`:{text}" if colon else line)
    return [f"- {prose(item)}" for item in items]


def navigation() -> list[Any]:
    """The site's tree, as mkdocs takes it."""
    wings = [
        {wing: [f"wings/{wing}.md", *({s.short: f"systems/{s.slug}.md"} for s in catalog.systems() if s.exists and s.wing == wing)]}
        for wing in catalog.WINGS
    ]
    reliability = ["reliability.md"] if (CHECKOUT / "docs/reliability.md").is_file() else []
    return [
        {"Home": ["index.md", {"How to think": "think.md"}, {"All 176 systems": "systems/index.md"}]},
        {"Wings": wings},
        {"Your own data": ["own-data/index.md", *({wing: f"own-data/{wing}.md"} for wing in catalog.WINGS)]},
        {"Add and compare": ["add-a-system.md", "races.md", "benchmarks.md", *reliability]},
    ]


def on_config(config: Any) -> Any:
    """Called by mkdocs before it reads pages: writes them and says where they are."""
    folder = Path(config.config_file_path).parent / "build" / "docs-src"
    shutil.rmtree(folder, ignore_errors=True)
    config.docs_dir, config.nav = str(write(folder)), navigation()
    return config
