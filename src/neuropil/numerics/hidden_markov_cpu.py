"""The Numba kernels of `hidden_markov`: both passes and Viterbi's, in log space and double precision, a chain after the other.

A chain's bins after its last one seen (`lengths`) are left as they are: the caller hands in zeros. The tests' type checker must
not wrap the kernels: hence `no_type_check`.
"""

import functools
from typing import no_type_check

import numba
import numpy
import torch
from torch import Tensor

from neuropil.numerics.threads import ranges, share

MOST = 1 << 10  # the most chains a task takes


def posterior(log_b: Tensor, log_p: Tensor, log_start: Tensor, lengths: Tensor, full: bool) -> tuple[Tensor, Tensor, Tensor]:
    """gamma (b, t, s), xi (b, t − 1, s, s) or its sum (b, 1, s, s), and log-likelihoods (b,), all double."""
    b, t, s = log_b.shape
    gamma, xi, total = log_b.new_zeros(b, t, s), log_b.new_zeros(b, t - 1 if full else 1, s, s), log_b.new_zeros(b)
    arrays = [x.detach().contiguous().numpy() for x in (log_b, log_p, log_start, lengths, gamma, xi, total)]
    share(_posterior, ranges(b, MOST), *arrays, full)
    return gamma, xi, total


def viterbi(log_b: Tensor, log_p: Tensor, log_start: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The best path (b, t) and its log-probability (b,), NaN where an emission is."""
    b, t, _ = log_b.shape
    path, best = torch.zeros(b, t, dtype=torch.long), log_b.new_zeros(b)
    arrays = [x.detach().contiguous().numpy() for x in (log_b, log_p, log_start, lengths, path, best)]
    share(_viterbi, ranges(b, MOST), *arrays)
    best[log_b.isnan().any(-1).any(-1)] = torch.nan  # which the kernel's comparisons pass over
    return path, best


_jit = functools.partial(numba.njit, cache=True, nogil=True, error_model="numpy")


@no_type_check
@_jit(inline="always")
def _log_sum(x):
    top = x.max()
    if top == -numpy.inf:
        return top
    total = 0.0
    for v in x:
        total += numpy.exp(v - top)
    return top + numpy.log(total)


@no_type_check
@_jit()
def _posterior(first, last, log_b, log_p, log_start, lengths, gamma, xi, total, full):
    """alpha is kept where gamma will be, so that a chain takes no memory beyond its answer."""
    s = len(log_start)
    beta, ahead, terms = numpy.empty(s), numpy.empty(s), numpy.empty(s)
    for b in range(first, last):
        n, alpha = lengths[b], gamma[b]
        for j in range(s):
            alpha[0, j] = log_start[j] + log_b[b, 0, j]
        for t in range(1, n):
            for j in range(s):
                for i in range(s):
                    terms[i] = alpha[t - 1, i] + log_p[i, j]
                alpha[t, j] = log_b[b, t, j] + _log_sum(terms)
        whole = _log_sum(alpha[n - 1])
        total[b] = whole
        if whole == -numpy.inf:
            continue
        beta[:] = 0.0
        for i in range(s):
            alpha[n - 1, i] = numpy.exp(alpha[n - 1, i] - whole)
        for t in range(n - 2, -1, -1):
            for j in range(s):
                ahead[j] = log_b[b, t + 1, j] + beta[j]
            for i in range(s):
                for j in range(s):
                    terms[j] = log_p[i, j] + ahead[j]
                    xi[b, t if full else 0, i, j] += numpy.exp(alpha[t, i] + terms[j] - whole)
                beta[i] = _log_sum(terms)
                alpha[t, i] = numpy.exp(alpha[t, i] + beta[i] - whole)


@no_type_check
@_jit()
def _viterbi(first, last, log_b, log_p, log_start, lengths, path, best):
    s, longest = len(log_start), log_b.shape[1]
    before, now, came = numpy.empty(s), numpy.empty(s), numpy.empty((longest, s), numpy.int64)
    for b in range(first, last):
        n = lengths[b]
        for j in range(s):
            before[j] = log_start[j] + log_b[b, 0, j]
        for t in range(1, n):
            for j in range(s):
                top, at = -numpy.inf, 0
                for i in range(s):
                    if before[i] + log_p[i, j] > top:
                        top, at = before[i] + log_p[i, j], i
                now[j], came[t, j] = top + log_b[b, t, j], at
            before[:] = now
        z = before.argmax()
        best[b], path[b, n - 1] = before[z], z
        for t in range(n - 1, 0, -1):
            z = came[t, z]
            path[b, t - 1] = z
