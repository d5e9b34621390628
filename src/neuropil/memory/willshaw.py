"""Binary sparse associative memories: Willshaw's, and the clustered cliques of Gripon & Berrou, with the messages they store.

    W_ij = OR over messages of a_i a_j,  W_ii = 0                  a: k active units of N, or one of l in each of c clusters
    Willshaw:  a ← the k units with the largest (x + W x)          ties stay ties
    cliques:   score_i = γ x_i + Σ_clusters max_{j in cluster} W_ij x_j;    a ← the winners of every cluster

Willshaw et al. 1969; Gripon & Berrou 2011, arXiv:1102.4240; the targets of the learning rule in `neuropil.memory.noisy_hebb`.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from neuropil.errors import Refused
from neuropil.nn.checks import at_least, finite, numbers, same_kind


def sparse_messages(m: int, n: int, k: int, generator: torch.Generator | None = None) -> Float[Tensor, "m n"]:
    """`m` random messages of `k` active units among `n`, as 0 and 1. O(m n).

    >>> sparse_messages(3, 10, 2).sum(1)
    tensor([2., 2., 2.])
    """
    at_least(0, m=m)
    if not 1 <= k <= n:
        raise Refused(f"k: must lie between 1 and n={n}, got {k}")
    return torch.zeros(m, n).scatter(1, torch.rand(m, n, generator=generator).topk(k, dim=1).indices, 1.0)


def clustered_messages(m: int, c: int, l: int, generator: torch.Generator | None = None) -> Float[Tensor, "m n"]:
    """`m` random messages with one active unit in each of `c` clusters of `l` units, as 0 and 1 (n = c l). O(m n).

    >>> clustered_messages(2, 4, 8).unflatten(1, (4, 8)).sum(2).unique()
    tensor([1.])
    """
    at_least(0, m=m)
    if min(c, l) < 1:
        raise Refused(f"c, l: must be at least 1, got {c} and {l}")
    return torch.zeros(m, c, l).scatter(2, torch.randint(l, (m, c, 1), generator=generator), 1.0).flatten(1)


def insert_erase(
    messages: Float[Tensor, "m n"], p_i: float, p_e: float, generator: torch.Generator | None = None
) -> Float[Tensor, "m n"]:
    """Noise as a neuron sees it: every active unit is erased with probability `p_e`, every silent one inserted with `p_i`.

    >>> insert_erase(torch.tensor([[1.0, 0.0]]), p_i=1.0, p_e=1.0)
    tensor([[0., 1.]])
    """
    for name, p in (("p_i", p_i), ("p_e", p_e)):
        if not 0 <= p <= 1:
            raise Refused(f"{name}: must lie between 0 and 1, got {p}")
    flip = torch.rand(messages.shape, generator=generator).to(messages.device) < torch.where(messages > 0, p_e, p_i)
    return torch.where(flip, 1 - messages, messages)


def erase_clusters(
    messages: Float[Tensor, "m n"], c: int, erased: int, generator: torch.Generator | None = None
) -> Float[Tensor, "m n"]:
    """Silence `erased` of the `c` clusters of every message, drawn at random.

    >>> erase_clusters(torch.ones(1, 6), c=3, erased=2).sum()
    tensor(2.)
    """
    if not 0 <= erased <= c:
        raise Refused(f"erased: must lie between 0 and c={c}, got {erased}")
    _divides(messages.shape[1], c)
    kept = torch.rand(len(messages), c, generator=generator).argsort(1) >= erased
    return (messages.unflatten(1, (c, -1)) * kept[..., None].to(messages)).flatten(1)


def willshaw(messages: Float[Tensor, "m n"]) -> Float[Tensor, "n n"]:
    """W: the OR of all outer products, with an empty diagonal. O(m n²) time, O(n²) memory.

    >>> willshaw(torch.tensor([[1.0, 1.0, 0.0]])).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    _check(messages)
    return (messages.T @ messages > 0).to(messages.dtype).fill_diagonal_(0)


def active(drive: Float[Tensor, "*b n"], k: int) -> Float[Tensor, "*b n"]:
    """The `k` units with the largest drive above 0, and all that tie with the last of them, as 0 and 1.

    >>> active(torch.tensor([3.0, 1.0, 1.0, 0.0]), k=2)
    tensor([1., 1., 1., 0.])
    """
    at_least(1, k=k)
    numbers("drive", drive)
    least = drive.topk(min(k, drive.shape[-1]), dim=-1).values[..., -1:]
    return ((drive >= least) & (drive > 0)).to(drive.dtype)


def recall(cue: Float[Tensor, "m n"], W: Float[Tensor, "n n"], k: int, steps: int = 4, gamma: float = 1.0) -> Float[Tensor, "m n"]:
    """Recurrent recall: ``a ← the k largest of γ a + W a``, `steps` times, from the cue; the cue is not held. O(steps m n²).

    >>> x = torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0]])
    >>> recall(torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]]), willshaw(x), k=3)
    tensor([[1., 1., 1., 0., 0.]])
    """
    same_kind("W", W, cue)
    finite("cue", cue)
    finite("W", W)
    state = cue
    for _ in range(steps):
        state = active(gamma * state + state @ W, k)
    return state


def cliques(messages: Float[Tensor, "m n"], c: int) -> Float[Tensor, "n n"]:
    """W of clustered messages: as `willshaw`, and never a link inside one of the `c` clusters.

    >>> cliques(torch.tensor([[1.0, 0.0, 0.0, 1.0]]), c=2).sum()
    tensor(2.)
    """
    n = messages.shape[1]
    _divides(n, c)
    cluster = torch.arange(n, device=messages.device) // (n // c)
    return willshaw(messages) * (cluster[:, None] != cluster)


def sum_of_max(state: Float[Tensor, "m n"], W: Float[Tensor, "n n"], c: int, gamma: float = 1.0) -> Float[Tensor, "m n"]:
    """``γ x_i + Σ_clusters max_j W_ij x_j``: how many clusters support unit i (each counts once: never more than c − 1, plus γ).

    One matrix product for every cluster: O(m n²) time, O(m n) memory.
    """
    _divides(state.shape[1], c)
    at_least(0, gamma=gamma)
    same_kind("W", W, state)
    numbers("W", W)
    return _support(state, W, c, gamma)


def _support(state: Tensor, W: Tensor, c: int, gamma: float) -> Tensor:
    l = state.shape[1] // c
    score = gamma * state
    for part in range(0, c * l, l):
        score = score + ((state[:, part : part + l] @ W[part : part + l]) > 0)
    return score


def recall_clique(
    cue: Float[Tensor, "m n"], W: Float[Tensor, "n n"], c: int, steps: int = 4, gamma: float = 1.0
) -> Float[Tensor, "m n"]:
    """Sum-of-max scores, then winner take all in each cluster; tied winners all stay active. O(steps m n²).

    A silent cluster with no support has no winner but all its units, which then support nobody wrongly excluded: the next steps
    narrow them down.

    >>> x = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0, 0.0]])
    >>> recall_clique(torch.tensor([[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]]), cliques(x, c=3), c=3)
    tensor([[1., 0., 0., 1., 1., 0.]])
    """
    _divides(cue.shape[1], c)
    at_least(0, gamma=gamma)
    same_kind("W", W, cue)
    numbers("cue", cue)
    numbers("W", W)
    state = cue
    for _ in range(steps):
        score = _support(state, W, c, gamma).unflatten(1, (c, -1))
        state = (score == score.amax(-1, keepdim=True)).to(cue.dtype).flatten(1)
    return state


def density(m: int, l: int) -> float:
    """``1 − (1 − 1/l²)^m``: the expected share of possible links that `m` random clustered messages have made.

    >>> round(density(4096, 64), 4)
    0.6322
    """
    at_least(0, m=m)
    at_least(1, l=l)
    return 1 - (1 - 1 / l**2) ** m


def _divides(n: int, c: int) -> None:
    at_least(1, c=c)
    if not n or n % c:
        raise Refused(f"c: must divide the {n} units, got {c}")


def _check(messages: Tensor) -> None:
    if not bool(((messages == 0) | (messages == 1)).all()):
        raise Refused("messages: must be 0 or 1")
