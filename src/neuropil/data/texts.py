"""English text as characters of one small alphabet: news stories, and articles of Wikipedia.

`text` gives it whole, `documents` one by one, `encode` and `decode` go between characters and their numbers in `ALPHABET`, and
`windows` draws pieces to train on. Every tenth document, in file order, tests.

The articles' markup (templates, tables, references, headings, links) is taken off by a few rules, not by Wikipedia's own parser:
what a template would have shown (some dates, units and names in other scripts) is missing, and here and there a comma stands alone.
"""

import bz2
import functools
import html
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

from neuropil.data.sources import path
from neuropil.errors import Refused, choose

ALPHABET = "\n abcdefghijklmnopqrstuvwxyz0123456789.,;:?'\"()-"
_FILES = {
    "news": "lee_background.cor",
    "wikipedia": "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2",
}
_SPLITS = ("train", "test")
_SAME = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "!": ".", "[": "(", "]": ")", "/": " "}
)
_SHORTEST = 500  # characters: what is shorter is no article, but points to another


def text(name: str, split: str | None = None) -> str:
    """The documents of `name` in characters of `ALPHABET`, each ended by a newline.

    Args:
        name: ``"news"``, 290 stories of about 1,200 characters (0.35 M in all; gensim's Lee corpus), or ``"wikipedia"``, 104
            articles of about 27,000 (2.8 M; all with titles that begin with A).
        split: None for all, ``"train"``, or ``"test"``: every tenth document.

    The first call reads the file (Wikipedia: 1 s); later ones cost a copy. `Refused` for an unknown name or split.

    >>> text("news", "train")[:54]
    'hundreds of people have been forced to vacate their ho'
    """
    return "".join(f"{document}\n" for document in documents(name, split))


def documents(name: str, split: str | None = None) -> tuple[str, ...]:
    """The same one by one, without the newlines at their ends."""
    choose("text", name, _FILES)
    if split is not None:
        choose("split", split, _SPLITS)
    return tuple(d for i, d in enumerate(_all(name)) if split is None or (i % 10 == 9) == (split == "test"))


def plain(raw: str) -> str:
    """`raw` in lower case and in characters of `ALPHABET`: accents taken off, what has no place there and double blanks left out.

    >>> plain("Élan  –  “Vital”…\\n\\nIn 1907!")
    'elan - "vital"...\\nin 1907.'
    """
    bare = unicodedata.normalize("NFKD", raw.translate(_SAME)).lower()
    known = re.sub(f"[^{re.escape(ALPHABET)}]", "", bare)
    return re.sub(r" *\n\s*", "\n", re.sub(r" {2,}", " ", known)).strip()


def encode(characters: str) -> Int[Tensor, "n"]:
    """Each character's place in `ALPHABET`, int64. `Refused` for one that is not there (see `plain`). O(n).

    >>> encode("ab\\n")
    tensor([2, 3, 0])
    """
    try:
        return torch.tensor([_PLACE[c] for c in characters], dtype=torch.long)
    except KeyError as error:
        raise Refused(f"characters: {error.args[0]!r} is not in ALPHABET; neuropil.data.texts.plain makes it so") from None


def decode(codes: Int[Tensor, "n"]) -> str:
    """The characters of `codes`. O(n).

    >>> decode(encode("good morning"))
    'good morning'
    """
    return "".join(ALPHABET[i] for i in codes.tolist())


def windows(
    codes: Int[Tensor, "n"], length: int, batch: int, generator: torch.Generator | None = None
) -> Int[Tensor, "{batch} {length}"]:
    """`batch` pieces of `length` codes in a row, each from a random place. Without a generator, torch's global one.

    O(batch length). `Refused` for a length outside 1 … n or no batch.

    >>> windows(torch.arange(10), length=3, batch=2).diff()
    tensor([[1, 1],
            [1, 1]])
    """
    if not 1 <= length <= len(codes) or batch < 1:
        raise Refused(
            f"length, batch: 1 ≤ length ≤ {len(codes)} (what there is) and batch ≥ 1 are needed, got {length} and {batch}"
        )
    start = torch.randint(len(codes) - length + 1, (batch, 1), generator=generator).to(codes.device)
    return codes[start + torch.arange(length, device=codes.device)]


_PLACE = {character: place for place, character in enumerate(ALPHABET)}


@functools.cache
def _all(name: str) -> tuple[str, ...]:
    content = path("text", _FILES[name]).read_bytes()
    if name == "news":
        stories: dict[str, str] = {}
        for story in map(plain, content.decode("utf-8").splitlines()):
            stories.setdefault(story[:60], story)  # ten of 300 come twice, up to a word: they would train and test
        return tuple(stories.values())
    articles = (plain(strip_markup(article)) for article in _articles(bz2.decompress(content)))
    return tuple(article for article in articles if len(article) >= _SHORTEST)


def _articles(dump: bytes) -> Iterator[str]:
    """The markup of each page of a dump that is no redirect."""
    for element in ElementTree.fromstring(dump).iter():
        if element.tag.endswith("}text") and element.text and not element.text.lstrip().upper().startswith("#REDIRECT"):
            yield element.text


def strip_markup(markup: str) -> str:
    """The running text of a page in Wikipedia's markup, up to its first list of references or links.

    >>> strip_markup("'''Ants''' {{IPA|x{{y}}}} are [[insect|insects]].<ref name=a>[http://b c]</ref>\\n== Life ==\\n* Long.")
    'Ants  are insects.\\n\\n Long.'
    """
    body = re.split(r"\n=+ *(?:See also|References|Notes|Footnotes|External links|Further reading|Bibliography)\b", markup)[0]
    body = re.sub(r"<!--.*?-->|<ref[^<>]*/>|<(ref|math|gallery|timeline|score|syntaxhighlight|pre)\b.*?</\1>", "", body, flags=re.S)
    for nested in (
        r"\{\{[^{}]*\}\}",
        r"\{\|(?:(?!\{\||\|\}).)*?\|\}",
        r"\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]",
    ):
        before = None
        while before != body:  # from the innermost outwards
            before, body = body, re.sub(nested, "", body, flags=re.S | re.I)
    body = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]]*)\]\]", r"\1", body)
    body = re.sub(r"\[https?:\S* ?([^\]]*)\]|https?:\S*", r"\1", body)
    body = re.sub(r"<[^<>]*>|'{2,}|^=+.*=+ *$|^[*#:;]+", "", body, flags=re.M)
    return html.unescape(body)
