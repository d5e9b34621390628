"""Ridge with a cross-validated penalty for each of 10,000 voxels: `python benchmarks/ridge.py [threads]`.

500 features, 20 penalties, 1,000 samples, 5 folds, float32. `VoxelRidge` against himalaya's RidgeCV with the same folds (torch
backend; its numpy backend was slower), against scikit-learn's RidgeCV with a penalty for each target (leave-one-out, so another and
cheaper criterion) and against scikit-learn's grid search over Ridge with the same folds, voxel by voxel: on 2 voxels, times 5,000.
All run in turns in one process. A peer that is not installed is skipped by name.
"""

import importlib
import importlib.util
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy
import torch
from rounds import spread

from neuropil.brain.ridge import VoxelRidge

SIZES = {"samples": 1_000, "features": 500, "voxels": 10_000}
LAMBDAS, FOLDS, ROUNDS = tuple(float(x) for x in numpy.logspace(-2, 7, 20)), 5, 3


def recording(samples: int, features: int, voxels: int) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Correlated features, and voxels of very different noise."""
    rng = numpy.random.default_rng(0)
    x = rng.standard_normal((samples, features)) @ (
        rng.standard_normal((features, features)) / numpy.arange(1, features + 1) ** 0.5
    )
    y = x @ rng.standard_normal((features, voxels)) / x.std()
    y += y.std() * rng.standard_normal(y.shape) * numpy.logspace(-1, 1, voxels)
    return x.astype("float32"), y.astype("float32")


def himalaya(x: numpy.ndarray, y: numpy.ndarray, batch: int = 1000) -> Any:
    importlib.import_module("himalaya.backend").set_backend("torch")
    model = importlib.import_module("himalaya.ridge").RidgeCV
    folds = importlib.import_module("sklearn.model_selection").KFold(FOLDS)
    options = {"n_targets_batch": batch, "n_targets_batch_refit": batch}
    return model(alphas=LAMBDAS, fit_intercept=True, cv=folds, solver_params=options).fit(x, y)


def scikit(x: numpy.ndarray, y: numpy.ndarray) -> object:
    model = importlib.import_module("sklearn.linear_model").RidgeCV
    return model(alphas=LAMBDAS, alpha_per_target=True).fit(x, y)


def seconds(way: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    way(*arguments)
    return time.perf_counter() - start


def grid_search(x: numpy.ndarray, y: numpy.ndarray) -> float:
    """Seconds for all voxels, from two of them."""
    search = importlib.import_module("sklearn.model_selection")
    ridge = importlib.import_module("sklearn.linear_model").Ridge
    options = {"cv": search.KFold(FOLDS), "scoring": "neg_mean_squared_error"}
    some = (0, y.shape[1] - 1)
    model = search.GridSearchCV(ridge(), {"alpha": LAMBDAS}, **options)
    return sum(seconds(model.fit, x, y[:, voxel]) for voxel in some) * y.shape[1] / len(some)


def run(sizes: dict[str, int], rounds: int) -> dict[str, object]:
    x, y = recording(**sizes)
    ours = VoxelRidge(LAMBDAS, FOLDS)
    ways: dict[str, Callable[..., object]] = {"VoxelRidge": ours.fit}
    peers = {
        "himalaya, 200 voxels at a time": lambda x, y: himalaya(x, y, 200),
        "himalaya, 1,000 voxels at a time": himalaya,
        "sklearn": scikit,
    }
    ways |= {name: way for name, way in peers.items() if importlib.util.find_spec(name.split(",")[0])}
    ours.fit(x[:, :20], y[:, :100])  # what is only done once
    ours.fit(x, y)
    taken, differ = [], {}
    for _ in range(rounds):
        taken.append({name: seconds(way, x, y) for name, way in ways.items()})
    if "sklearn" in ways:
        slow = grid_search(x, y)
        taken = [t | {"sklearn, voxel by voxel": slow} for t in taken]
    if importlib.util.find_spec("himalaya"):
        some = slice(0, None, max(1, y.shape[1] // 100))
        peer = himalaya(x, y[:, some])
        same = numpy.isclose(numpy.asarray(peer.best_alphas_), ours.lambda_[some], rtol=1e-3)
        difference = abs(numpy.asarray(peer.coef_).T - ours.coef_[some])[same].max() / abs(ours.coef_).max()
        differ = {"voxels of 100 with another penalty": int((~same).sum()), "largest difference of weights": float(difference)}
    return {
        "fit, seconds": {name: spread([t[name] for t in taken]) for name in taken[0]},
        "VoxelRidge is times faster than": {
            name: spread([t[name] / t["VoxelRidge"] for t in taken], 2) for name in taken[0] if name != "VoxelRidge"
        },
        "himalaya against VoxelRidge": differ,
        "skipped": [f"{name}: not installed" for name in peers if name not in ways],
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 2)
    short = sys.argv[2:] == ["short"]  # only to see that it runs
    facts = {"python": platform.python_version(), "torch": torch.__version__, "threads": torch.get_num_threads()}
    print(
        json.dumps(
            {**facts, **run({name: n // 20 for name, n in SIZES.items()} if short else SIZES, 1 if short else ROUNDS)}, indent=1
        )
    )
