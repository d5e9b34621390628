"""Embeddings of rows of categories: F fields in one table, and the vocabulary that numbers their values.

    e_f = E[o_f + i_f],   o_f = Σ_{g<f} V_g        field f's id i_f is one of 0 … V_f − 1

Id 0 of every field is the unknown: values not seen when the vocabulary was fitted, and those seen less often than a threshold. Its
row of E starts at zero. Rare training values train it; where there are none it stays exactly zero, and a new value says nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuropil.errors import Refused, choose

OUT_OF_RANGE = ("refuse", "unknown")
Columns = Tensor | np.ndarray | Sequence[np.ndarray | Tensor]


@dataclass(frozen=True)
class Vocabulary:
    """The values of each field that have an id, sorted: the k-th of `values[f]` has id k + 1, everything else id 0.

    `fit` and `encode` take a table (n, F) of ints or strings, or F columns of n; ints and strings may be mixed between fields.

    >>> vocabulary = Vocabulary.fit([np.array(["b", "a", "b"]), np.array([7, 7, 9])])
    >>> vocabulary.sizes, vocabulary.encode([np.array(["a", "z"]), np.array([9, 0])]).tolist()
    ((3, 3), [[1, 2], [0, 0]])
    """

    values: tuple[np.ndarray, ...]

    @staticmethod
    def fit(columns: Columns, at_least: int = 1) -> "Vocabulary":
        """Keep the values that occur `at_least` times in the training rows `columns`. O(F n log n), no loop over rows.

        `Refused` for no rows, `at_least` below 1, columns of unequal length, or values that are neither ints nor strings.
        """
        if at_least < 1:
            raise Refused(f"at_least: must be at least 1, got {at_least}")
        kept = []
        for number, column in enumerate(_columns(columns)):
            if not len(column):
                raise Refused(f"columns: at least one row is needed, field {number} has none")
            values, counts = np.unique(column, return_counts=True)
            kept.append(values[counts >= at_least])
        return Vocabulary(tuple(kept))

    @property
    def sizes(self) -> tuple[int, ...]:
        """V_f: how many ids each field has, with the unknown."""
        return tuple(len(values) + 1 for values in self.values)

    def encode(self, columns: Columns) -> Int[Tensor, "n f"]:
        """The ids of each row, int64. O(F n log V), no loop over rows.

        `Refused` for another number of fields, or strings where ints were fitted (and the other way round).
        """
        found = list(_columns(columns))
        if len(found) != len(self.values):
            raise Refused(f"columns: {len(self.values)} fields were fitted, got {len(found)}")
        ids = np.zeros((len(found[0]), len(found)), dtype=np.int64)
        for f, (column, values) in enumerate(zip(found, self.values, strict=True)):
            if (column.dtype.kind == "U") != (values.dtype.kind == "U"):
                raise Refused(f"columns: field {f} was fitted on {values.dtype}, got {column.dtype}")
            if len(values):
                place = np.searchsorted(values, column).clip(max=len(values) - 1)
                ids[:, f] = np.where(values[place] == column, place + 1, 0)
        return torch.from_numpy(ids)


def _columns(columns: Columns) -> Iterator[np.ndarray]:
    """Each field's values as an array of ints or strings."""
    if isinstance(columns, Tensor | np.ndarray):
        if columns.ndim != 2:
            raise Refused(f"columns: a table (n, fields) or a sequence of columns is needed, got shape {tuple(columns.shape)}")
        columns = list(columns.T)
    if not len(columns):
        raise Refused("columns: at least one field is needed, got none")
    n = len(columns[0])
    for f, given in enumerate(columns):
        column = given.cpu().numpy() if isinstance(given, Tensor) else np.asarray(given)
        if column.dtype.kind == "O" and all(isinstance(value, str) for value in column.flat):
            column = column.astype(str)
        if column.dtype.kind not in "biuU":
            raise Refused(f"columns: must hold ints or strings, field {f} holds {column.dtype}")
        if column.shape != (n,):
            raise Refused(f"columns: must be of one length and flat, field {f} is {column.shape}, the first has {n} rows")
        yield column


class FieldEmbedding(nn.Module):
    """``e_f = E[o_f + i_f]``: rows of ids (…, F) to rows of vectors (…, F, D), all fields in one table.

    Args:
        sizes: V_f, the number of ids of each field with its unknown (`Vocabulary.sizes`).
        dim: D.
        out_of_range: what an id outside 0 … V_f − 1 is: "refuse" (the whole batch is `Refused`; one look at the ids, which on a GPU
            waits for it and breaks the graph of `torch.compile`), or "unknown" (it becomes id 0; no waiting).
        std: spread of E at the start; rows of unknowns start at zero.

    Σ V_f · D numbers; O(F D) time and memory a row. `Refused` for no fields or sizes below 1.

    >>> FieldEmbedding([3, 5], dim=4)(torch.tensor([[1, 4], [0, 3]])).shape
    torch.Size([2, 2, 4])
    >>> embed = FieldEmbedding([3, 5], dim=4, out_of_range="unknown")
    >>> embed(torch.tensor([[1, 4], [0, 9]]))[1].count_nonzero().item()
    0
    """

    sizes: Tensor
    offsets: Tensor

    def __init__(self, sizes: Sequence[int], dim: int, out_of_range: str = "refuse", std: float = 1e-4) -> None:
        super().__init__()
        if not len(sizes) or min(sizes) < 1 or dim < 1:
            raise Refused(f"sizes, dim: at least one field and numbers of at least 1 are needed, got {list(sizes)} and {dim}")
        self.out_of_range, self.std = choose("out_of_range", out_of_range, OUT_OF_RANGE), std
        # Not in the state_dict: they follow from the arguments, and weights for other sizes do not fit the table.
        self.register_buffer("sizes", torch.tensor(sizes), persistent=False)
        self.register_buffer("offsets", torch.tensor(sizes).cumsum(0) - torch.tensor(sizes), persistent=False)
        self.table = nn.Parameter(torch.empty(sum(sizes), dim))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw E anew from N(0, std²), unknowns zero."""
        nn.init.normal_(self.table, std=self.std)
        self.table[self.offsets] = 0

    def rows(self, ids: Int[Tensor, "*b f"]) -> Int[Tensor, "*b f"]:
        """The rows o_f + i_f of the table; `Refused` for another number of fields, or ids out of range unless they are unknowns."""
        if ids.shape[-1] != len(self.sizes):
            raise Refused(f"ids: must end in {len(self.sizes)} fields, got {tuple(ids.shape)}")
        outside = (ids < 0) | (ids >= self.sizes)
        if self.out_of_range == "unknown":
            return ids.masked_fill(outside, 0) + self.offsets
        if bool(outside.any()):
            field = int(outside.flatten(0, -2).any(0).nonzero()[0])
            bad = int(ids[..., field][outside[..., field]][0])
            raise Refused(f"ids: field {field} takes 0 … {int(self.sizes[field]) - 1}, got {bad}")
        return ids + self.offsets

    def forward(self, ids: Int[Tensor, "*b f"]) -> Float[Tensor, "*b f d"]:
        """One vector for each field."""
        rows = self.rows(ids)
        if rows.is_cpu:  # the same numbers, but the gradient of embedding takes twice the time of index_select's there
            return self.table.index_select(0, rows.flatten()).unflatten(0, rows.shape)
        return nn.functional.embedding(rows, self.table)

    def extra_repr(self) -> str:
        """Fields, rows and width."""
        return f"fields={len(self.sizes)}, rows={len(self.table)}, dim={self.table.shape[1]}, out_of_range={self.out_of_range}"
