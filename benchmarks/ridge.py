"""Ridge with a cross-validated penalty for each of 10,000 voxels.

500 features, 20 penalties, 1,000 samples, 5 folds, float32. `VoxelRidge` against himalaya's RidgeCV with the same folds (torch
backend; its numpy backend was slower), against scikit-learn's grid search over Ridge with the same folds, voxel by voxel: on 2
voxels, times 5,000; and against its RidgeCV with a penalty for each target, which is another and cheaper criterion (leave-one-out).
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy
from rounds import Missing, Ratio, in_turns, main, peer

from neuropil.brain.ridge import VoxelRidge

LAMBDAS, FOLDS = tuple(float(x) for x in numpy.logspace(-2, 7, 20)), 5
Arrays = tuple[numpy.ndarray, numpy.ndarray]


def recording(samples: int, features: int, voxels: int) -> Arrays:
    """Correlated features, and voxels of very different noise."""
    rng = numpy.random.default_rng(0)
    x = rng.standard_normal((samples, features)) @ (
        rng.standard_normal((features, features)) / numpy.arange(1, features + 1) ** 0.5
    )
    y = x @ rng.standard_normal((features, voxels)) / x.std()
    y += y.std() * rng.standard_normal(y.shape) * numpy.logspace(-1, 1, voxels)
    return x.astype("float32"), y.astype("float32")


def himalaya(x: numpy.ndarray, y: numpy.ndarray, batch: int) -> Any:
    peer("himalaya.backend", "himalaya").set_backend("torch")
    folds = peer("sklearn.model_selection", "scikit-learn").KFold(FOLDS)
    options = {"n_targets_batch": batch, "n_targets_batch_refit": batch}
    model = peer("himalaya.ridge", "himalaya").RidgeCV
    return model(alphas=LAMBDAS, fit_intercept=True, cv=folds, solver_params=options).fit(x, y)


def scikit(x: numpy.ndarray, y: numpy.ndarray) -> Any:
    return peer("sklearn.linear_model", "scikit-learn").RidgeCV(alphas=LAMBDAS, alpha_per_target=True).fit(x, y)


def grid_search(x: numpy.ndarray, y: numpy.ndarray, voxels: tuple[int, ...]) -> list[Any]:
    """A search for each of these voxels."""
    search, linear = (peer(f"sklearn.{part}", "scikit-learn") for part in ("model_selection", "linear_model"))
    options = {"cv": search.KFold(FOLDS), "scoring": "neg_mean_squared_error"}
    return [search.GridSearchCV(linear.Ridge(), {"alpha": LAMBDAS}, **options).fit(x, y[:, voxel]) for voxel in voxels]


def same_as_himalaya(ours: VoxelRidge, x: numpy.ndarray, y: numpy.ndarray) -> str:
    """On every hundredth voxel: penalties that tie may differ on a few, weights at the same penalty may not."""
    some = slice(0, None, max(1, y.shape[1] // 100))
    theirs = himalaya(x, y[:, some], 1000)
    same = numpy.isclose(numpy.asarray(theirs.best_alphas_), ours.lambda_[some], rtol=1e-3)
    off = abs(numpy.asarray(theirs.coef_).T - ours.coef_[some])[same].max() / abs(ours.coef_).max()
    assert same.mean() >= 0.95 and off <= 1e-3, f"{(~same).mean():.1%} of the penalties differ, weights by {off:.1e}"
    return f"same penalties for {same.mean():.0%} of the voxels, then weights to {off:.0e}"


def compare(quick: bool) -> Iterator[Ratio]:
    voxels = 1_000 if quick else 10_000
    x, y = recording(1_000, 500, voxels)
    ours, ends = VoxelRidge(LAMBDAS, FOLDS).fit(x, y), (0, voxels - 1)
    ways: dict[str, Callable[[], object]] = {}
    rows: list[dict[str, Any]] = []  # what is said of each way
    try:
        note = same_as_himalaya(ours, x, y)
        for batch in (200, 1_000):
            ways[f"himalaya, {batch:,} voxels at a time"] = lambda batch=batch: himalaya(x, y, batch)
            rows.append({"package": "himalaya", "at_least": 1, "note": note})
    except Missing as why:
        yield Ratio(f"`VoxelRidge`, {voxels:,} voxels", "himalaya", package="himalaya", skipped=str(why))
    try:
        for found, voxel in zip(grid_search(x, y, ends), ends, strict=True):
            assert numpy.isclose(found.best_params_["alpha"], ours.lambda_[voxel], rtol=1e-3)
        ways["scikit-learn, voxel by voxel"] = lambda: grid_search(x, y, ends)
        ways["scikit-learn, RidgeCV"] = lambda: scikit(x, y)
        rows.append({"package": "scikit-learn", "at_least": 5, "note": f"2 voxels, times {voxels // 2:,}"})
        rows.append({"package": "scikit-learn", "note": "leave-one-out: another and cheaper criterion"})
    except Missing as why:
        yield Ratio(f"`VoxelRidge`, {voxels:,} voxels", "scikit-learn", package="scikit-learn", skipped=str(why))

    taken = in_turns({"ours": lambda: VoxelRidge(LAMBDAS, FOLDS).fit(x, y)} | ways, 2 if quick else 3)
    for name, said in zip(ways, rows, strict=True):
        times = voxels / len(ends) if name.endswith("voxel by voxel") else 1
        yield Ratio(f"`VoxelRidge`, {voxels:,} voxels", name, taken["ours"], [times * s for s in taken[name]], **said)


if __name__ == "__main__":
    main(compare)
