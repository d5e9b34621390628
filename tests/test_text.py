"""English text: what is there, the alphabet, splits, markup, windows."""

import itertools
import re
from collections import Counter

import pytest
import torch

from neuropil import data
from neuropil.data.pieces import learn_pieces
from neuropil.data.texts import ALPHABET, decode, encode, plain, strip_markup
from neuropil.errors import Refused


@pytest.fixture(scope="module")
def corpora():
    try:
        return {name: data.documents(name) for name in ("news", "wikipedia")}
    except Refused as refused:
        pytest.skip(f"needs the wheel of gensim: {refused}")


@pytest.mark.parametrize(
    ("name", "count", "characters", "opening"),
    [
        ("news", 290, 346_118, "hundreds of people have been forced to vacate their homes"),
        ("wikipedia", 104, 2_764_212, "anarchism is a political philosophy that advocates self-governed societies"),
    ],
)
def test_the_corpora(corpora, name, count, characters, opening):
    found = corpora[name]
    assert (len(found), sum(map(len, found))) == (count, characters)
    assert found[0].startswith(opening)
    assert set("".join(found)) <= set(ALPHABET)
    joined = "".join(found)
    for trace in ("''", "  ", "\n\n", "cite web", "accessdate", "nbsp"):  # what markup would leave behind
        assert trace not in joined, trace
    assert joined.count("http") < 3  # there is one that its author mistyped
    assert joined.count(" the ") / len(joined.split()) > 0.04  # English


def test_splits_part_the_documents(corpora):
    for name, found in corpora.items():
        train, test = (data.documents(name, split) for split in ("train", "test"))
        assert sorted(train + test) == sorted(found) and len(test) == len(found) // 10
        assert not {d[:60] for d in train} & {d[:60] for d in test}
        assert data.text(name, "test") == "".join(f"{d}\n" for d in test)
        assert decode(encode(data.text(name, "test"))) == data.text(name, "test")


def test_the_alphabet():
    assert len(ALPHABET) == len(set(ALPHABET)) == 48
    assert encode(ALPHABET).tolist() == list(range(48))
    assert plain(ALPHABET[2:]) == ALPHABET[2:]
    assert plain("\tNaïve\tÆ — ¡ñ! [x]  \n \n Ω") == "naive - n. (x)"
    with pytest.raises(Refused, match="characters: 'É' is not in ALPHABET"):
        encode("caf" + "É")


@pytest.mark.parametrize(
    ("markup", "kept"),
    [
        ("a {{b {{c}} d}} e", "a  e"),
        ("a [[b]] [[c|d]] [[e (f)|]]", "a b d "),
        ("[[File:x.jpg|thumb|A [[b|c]] d]]e [[category:z]]", "e "),
        ("a<ref>b [[c]]</ref> <ref name=x />d<!-- e\nf -->", "a d"),
        ("{| class=x\n| b\n{| inner\n|}\n|}c", "c"),
        ("a\n== B ==\nc\n=== See also ===\nd\n== E ==", "a\n\nc"),
        ("* '''a''' ''b'' <small>c</small> [http://x.y d] [https://z] &amp; 5&nbsp;km", " a b c d  & 5\xa0km"),
    ],
)
def test_markup(markup, kept):
    assert strip_markup(markup) == kept


def test_windows():
    codes = torch.arange(50)
    found = data.windows(codes, 7, 400, torch.Generator().manual_seed(0))
    assert found.shape == (400, 7) and bool((found.diff() == 1).all())
    assert (int(found.min()), int(found.max())) == (0, 49)  # first and last can come
    assert torch.equal(found, data.windows(codes, 7, 400, torch.Generator().manual_seed(0)))
    assert torch.equal(data.windows(codes, 50, 2), torch.stack([codes, codes]))
    torch.manual_seed(1)
    first = data.windows(codes, 7, 5)
    torch.manual_seed(1)
    assert torch.equal(first, data.windows(codes, 7, 5))


def test_bad_input():
    for length, batch in ((0, 1), (51, 1), (3, 0)):
        with pytest.raises(Refused, match="length, batch: 1 ≤ length ≤ 50"):
            data.windows(torch.arange(50), length, batch)
    with pytest.raises(Refused, match="text: unknown 'wikipaedia'; did you mean 'wikipedia'"):
        data.text("wikipaedia")
    with pytest.raises(Refused, match="split: unknown 'dev'"):
        data.documents("news", "dev")


def test_pieces_merge_the_commonest_pairs():
    said = "the cat, the hat; then aaaa aaa\nthe end"
    pieces = learn_pieces(said, 70)
    assert pieces.names[:48] == tuple(ALPHABET) and pieces.names[48] == "aa"
    assert pieces.decode(pieces.encode(said)) == said and len(pieces.encode(said)) < len(said)
    assert learn_pieces("ab", 60).names[48:] == ("ab",)  # nothing is left to merge
    assert len(learn_pieces("", 50)) == 48
    with pytest.raises(Refused, match="count: at least the 48 characters"):
        learn_pieces("a", 47)


@pytest.mark.parametrize("said", ["aaaaa aaaa aa", "abababa bab", "banana bandana an anna"])
def test_pieces_are_those_of_merging_by_hand(said):
    pieces = learn_pieces(said, 56)
    words = re.findall(r" ?[a-z]+", said)
    split = [list(word) for word in words]
    for name in pieces.names[48:]:
        pairs = Counter(pair for word in split for pair in itertools.pairwise(word))
        best = max(pairs.values())
        a, b = next((a, b) for a, b in pairs if a + b == name and pairs[a, b] == best)  # one of the commonest
        for word in split:
            i = 0
            while i + 1 < len(word):
                if (word[i], word[i + 1]) == (a, b):
                    word[i : i + 2] = [name]
                i += 1
    assert [pieces.names[code] for code in pieces.encode(said)] == [piece for word in split for piece in word]
