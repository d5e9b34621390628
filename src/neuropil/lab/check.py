"""Many claims × seeds at once, on a process pool or a Ray cluster: resumable, and one failing claim never stops the others.

Workers only measure; the parent alone writes evidence, one atomic file after another. Whatever is killed, and whenever, what
was recorded stays, and the next call measures only what is missing.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from typing import Any

from neuropil.catalog import find
from neuropil.errors import Refused, optional
from neuropil.lab import evidence
from neuropil.lab.claims import Claim, select
from neuropil.lab.run import Row, measure, record

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Job:
    """One seed of one claim."""

    system: str
    claim: str
    seed: int
    budget: str
    device: str = "cpu"
    draw: bool = False

    @property
    def target(self) -> str:
        """``slug/claim``."""
        return f"{self.system}/{self.claim}"


@dataclass(frozen=True)
class Done:
    """What became of a job: its row and pictures, or the error in one line."""

    job: Job
    row: Row | None = None
    pictures: dict[str, bytes] | None = None
    error: str = ""


def plan(claims: Sequence[Claim], budget: str, seeds: Sequence[int], device: str = "cpu") -> tuple[list[Job], int]:
    """The jobs that evidence still lacks, seed by seed so that every claim gets its first verdict early; and how many it has.

    What killed processes left half-written beside the evidence is swept, also where nothing is left to measure.
    """
    fresh = {}
    for claim in claims:
        path = evidence.path_of(claim.system, claim.name, budget)
        evidence.sweep(path)
        found = evidence.read(path)
        fresh[claim.system, claim.name] = found.fresh(evidence.fingerprint(find(claim.system)))
    jobs = [
        Job(claim.system, claim.name, seed, budget, device, draw=seed == seeds[0])
        for seed in seeds
        for claim in claims
        if seed not in fresh[claim.system, claim.name]
    ]
    return jobs, len(seeds) * len(claims) - len(jobs)


def work(job: Job) -> tuple[Row, dict[str, bytes]]:
    """Measure one job; runs in a worker."""
    (claim,) = select(job.target)
    return measure(claim, job.seed, job.budget, job.device, job.draw)


def check(jobs: Sequence[Job], results: Iterator[Done], finished: Callable[[Done], None]) -> list[Done]:
    """Record every result as it comes, tell `finished`, and return the failures."""
    failures = []
    for done in results:
        if done.row is not None:
            (claim,) = select(done.job.target)
            record(claim, done.job.budget, done.row, done.pictures or {})
        else:
            failures.append(done)
        finished(done)
    return failures


def _outcome(job: Job, result: Callable[[], Any]) -> Done:
    """What a future holds, with any error as one line: a broken claim is a result too."""
    try:
        row, pictures = result()
    except KeyboardInterrupt:
        raise
    except Exception as error:
        words = " ".join(str(error).split()) or "died without a word"
        return Done(job, error=f"{type(error).__name__}: {words[:300]}")
    return Done(job, row, pictures)


def _prepare(parent: int, threads: int) -> None:
    """In a worker: few threads, no Ctrl-C of its own, and no life after its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    import torch

    torch.set_num_threads(threads)


@contextlib.contextmanager
def _few_threads(threads: int) -> Iterator[None]:
    """Numerical libraries read their thread counts at import: set them for the children, and put them back."""
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def on_pool(jobs: Sequence[Job], workers: int) -> Iterator[Done]:
    """Run jobs on `workers` processes of this machine. A worker that dies costs only its own job."""
    from pebble import ProcessPool

    if workers < 1:
        raise Refused(f"workers: at least 1, got {workers}")
    workers = min(workers, max(len(jobs), 1))
    threads = max(1, (os.cpu_count() or 1) // workers)
    context = multiprocessing.get_context("spawn")
    with _few_threads(threads):
        pool = ProcessPool(workers, context=context, initializer=_prepare, initargs=(os.getpid(), threads))
        try:
            waiting: dict[Future[Any], Job] = {pool.schedule(work, args=(job,)): job for job in jobs}
            while waiting:
                finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield _outcome(waiting.pop(future), future.result)
        finally:
            pool.stop()
            pool.join()


def on_ray(jobs: Sequence[Job], address: str) -> Iterator[Done]:
    """Run jobs on the Ray cluster at `address` (``local`` starts one on loopback); one core a job."""
    ray = optional("ray", "cluster")
    started = not ray.is_initialized()
    if started:
        where = {"num_cpus": os.cpu_count(), "include_dashboard": False} if address == "local" else {"address": address}
        try:
            ray.init(logging_level="ERROR", log_to_driver=False, **where)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise Refused(
                f"ray: no cluster at {address!r} ({str(error).splitlines()[0]}); start one with `ray start --head`"
            ) from None
    remote = ray.remote(num_cpus=1, max_retries=1)(_ray_work)
    try:
        waiting = {remote.remote(job): job for job in jobs}
        while waiting:
            ready, _ = ray.wait(list(waiting), num_returns=1)
            for reference in ready:
                yield _outcome(waiting.pop(reference), functools.partial(ray.get, reference))
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()


def _ray_work(job: Job) -> tuple[Row, dict[str, bytes]]:
    import torch

    torch.set_num_threads(1)
    return work(job)
