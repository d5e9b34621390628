"""Ridge for many voxels: what scikit-learn, himalaya and its own frozen numbers say, folds by group, bad input."""

import subprocess
import sys

import numpy
import pytest
import scipy.sparse
import torch

from neuropil.brain.estimator import as_tensor
from neuropil.brain.ridge import VoxelRidge
from neuropil.errors import Refused
from neuropil.numerics import ridge as module
from neuropil.numerics.ridge import eigenbasis, ridge, ridge_errors

LAMBDAS = tuple(10.0**k for k in range(-3, 6))


def recording(n, p, v=12):
    rng = numpy.random.default_rng(0)
    x = rng.standard_normal((n, p)) + 1
    w = rng.standard_normal((p, v)) * (rng.random((p, v)) < 0.3)
    return x, x @ w + rng.standard_normal((n, v)) * numpy.logspace(-2, 2, v) + 3


def smooth(n, p, v):
    """A recording by sines alone, for numbers that stay."""
    x = numpy.sin(numpy.arange(1, n * p + 1).reshape(n, p) ** 1.3)
    return x, x[:, :v] + 0.5 * numpy.cos(numpy.arange(1, n * v + 1).reshape(n, v) ** 1.2)


@pytest.mark.parametrize(("n", "p"), [(60, 20), (40, 90)], ids=["primal", "dual"])
def test_equals_scikit_learn_voxel_by_voxel(n, p):
    linear, selection = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.model_selection")
    x, y = recording(n, p)
    ours = VoxelRidge(LAMBDAS, folds=5).fit(x, y)
    for voxel in range(y.shape[1]):
        search = selection.GridSearchCV(
            linear.Ridge(), {"alpha": LAMBDAS}, cv=selection.KFold(5), scoring="neg_mean_squared_error"
        ).fit(x, y[:, voxel])
        assert search.best_params_["alpha"] == ours.lambda_[voxel]
        assert numpy.allclose(-search.cv_results_["mean_test_score"], ours.errors_[:, voxel], rtol=1e-9)
        assert numpy.allclose(search.best_estimator_.coef_, ours.coef_[voxel], atol=1e-10)
        assert numpy.allclose(search.best_estimator_.intercept_, ours.intercept_[voxel], atol=1e-10)


@pytest.mark.filterwarnings("ignore:Solving")
@pytest.mark.parametrize(("n", "p"), [(60, 20), (40, 90)], ids=["primal", "dual"])
def test_equals_himalaya(n, p):
    himalaya, selection = pytest.importorskip("himalaya.ridge"), pytest.importorskip("sklearn.model_selection")
    x, y = recording(n, p)
    ours = VoxelRidge(LAMBDAS, folds=5).fit(x, y)
    peer = himalaya.RidgeCV(alphas=LAMBDAS, cv=selection.KFold(5), fit_intercept=True).fit(x, y)
    assert numpy.allclose(peer.best_alphas_, ours.lambda_)
    assert numpy.allclose(peer.coef_.T, ours.coef_, atol=1e-10) and numpy.allclose(peer.predict(x), ours.predict(x), atol=1e-10)


@pytest.mark.parametrize(
    ("n", "p", "lambdas", "predicted", "weights", "errors"),
    [
        (
            *(24, 6, [10.0, 10.0, 0.1]),
            [[0.612653674, 0.235848881, -0.988058144], [0.163060572, 0.2841806, -1.035103816]],
            *([0.076280309, 0.359541873, 0.322021872], [0.358902107, 0.38154079, 0.28819918]),
        ),
        (
            *(12, 20, [10.0, 10.0, 10.0]),
            [[0.801646613, 0.194549828, -0.805181516], [0.651756678, -0.057662362, -0.040307409]],
            *([-0.022401115, 0.258427657, 0.193445893], [0.487905766, 0.210674701, 0.334584311]),
        ),
    ],
    ids=["primal", "dual"],
)
def test_numbers_of_himalaya(n, p, lambdas, predicted, weights, errors):
    """What himalaya 0.4.11 gave for the same arrays: penalties, two predictions, sums of weights, least errors."""
    x, y = smooth(n, p, 3)
    model = VoxelRidge(LAMBDAS, folds=4).fit(x, y)
    assert numpy.allclose(model.lambda_, lambdas)
    assert numpy.allclose(model.predict(x[:2]), predicted, atol=1e-8)
    assert numpy.allclose(model.coef_.sum(1), weights, atol=1e-8)
    assert numpy.allclose(model.errors_.min(0), errors, atol=1e-8)


def test_float32_chooses_the_same_and_stays_close():
    x, y = recording(60, 20)
    double, single = VoxelRidge(LAMBDAS).fit(x, y), VoxelRidge(LAMBDAS).fit(x.astype("float32"), y.astype("float32"))
    assert single.coef_.dtype == single.predict(x.astype("float32")).dtype == numpy.float32
    assert numpy.allclose(double.lambda_, single.lambda_) and abs(double.coef_ - single.coef_).max() < 1e-5


def test_blocks_of_voxels_change_nothing(monkeypatch):
    x, y = (torch.from_numpy(a) for a in recording(60, 20))
    whole = VoxelRidge(LAMBDAS).fit(x, y)
    monkeypatch.setattr(module, "BLOCK", 500)
    parts = VoxelRidge(LAMBDAS).fit(x, y)
    assert torch.equal(whole.lambda_, parts.lambda_) and torch.allclose(whole.coef_, parts.coef_, atol=1e-12)


def test_groups_are_left_out_together():
    """Copies in the training folds make any penalty look too small; with each pair of copies in one fold they do not."""
    rng = numpy.random.default_rng(1)
    x, y = rng.standard_normal((30, 40)), rng.standard_normal((30, 3))  # nothing to learn
    x, y, fold = numpy.repeat(x, 2, 0), numpy.repeat(y, 2, 0), numpy.repeat(numpy.arange(30), 2) % 5
    apart = VoxelRidge(LAMBDAS, folds=numpy.tile([0, 1], 30)).fit(x, y)
    together = VoxelRidge(LAMBDAS, folds=fold).fit(x, y)
    assert apart.lambda_.max() < 1 < together.lambda_.min()
    selection, linear = pytest.importorskip("sklearn.model_selection"), pytest.importorskip("sklearn.linear_model")
    scores = selection.cross_val_score(
        linear.Ridge(alpha=LAMBDAS[4]), x, y[:, 0], groups=fold, cv=selection.LeaveOneGroupOut(), scoring="neg_mean_squared_error"
    )
    assert numpy.isclose(-scores.mean(), together.errors_[4, 0])


def test_errors_do_not_know_the_samples_left_out():
    """A wild sample changes the errors only where it trains or is tested: never the fit that predicts it."""
    x = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)).double()
    y, fold = x[:, :1].clone(), torch.arange(30) % 2
    y[0] = 1e3
    errors = ridge_errors(x, y, torch.tensor([1e-9]).double(), fold)
    predicted = x[0, 0]  # by the other fold, which has no noise
    of_even = ((y[fold == 0] - x[fold == 0, :1]).square()).mean()
    odd = VoxelRidge((1e-9,), folds=2).fit(x[fold == 0], y[fold == 0]).predict(x[fold == 1])
    of_odd = (odd - y[fold == 1]).square().mean()
    assert abs(of_even - (1e3 - predicted) ** 2 / 15) < 1e-6 * of_even
    assert torch.allclose(errors[0, 0], (of_even + of_odd) / 2, rtol=1e-6)


def test_tensors_stay_tensors_and_one_voxel_may_be_flat():
    x, y = (torch.from_numpy(a).float() for a in recording(60, 20))
    both, one = VoxelRidge(LAMBDAS).fit(x, y), VoxelRidge(LAMBDAS).fit(x, y[:, 0])
    assert isinstance(both.coef_, torch.Tensor) and both.predict(x).shape == y.shape
    assert one.coef_.shape == (20,) and one.predict(x).shape == (60,)
    assert torch.allclose(one.predict(x), both.predict(x)[:, 0], atol=1e-5)
    assert one.score(x, y[:, 0]) > 0.99 > both.score(x, y) > 0  # the mean over voxels, some of which are noise


def test_scikit_learns_estimator_checks():
    """All that run; the warning that it does not inherit from scikit-learn's base class is what we want."""
    checks = pytest.importorskip("sklearn.utils.estimator_checks")
    with pytest.warns(UserWarning, match="does not inherit"):
        found = checks.check_estimator(VoxelRidge(), on_fail=None, on_skip=None)
    assert not {one["check_name"]: one["exception"] for one in found if one["status"] == "failed"}
    assert sum(one["status"] == "passed" for one in found) >= 40


def test_works_in_pipelines_and_clones():
    base, pipeline = pytest.importorskip("sklearn.base"), pytest.importorskip("sklearn.pipeline")
    scaler = pytest.importorskip("sklearn.preprocessing").StandardScaler()
    x, y = recording(60, 20)
    model = pipeline.make_pipeline(scaler, VoxelRidge(LAMBDAS, folds=3))
    assert model.fit(x, y).score(x, y) > 0.5
    assert base.clone(model).get_params()["voxelridge__folds"] == 3


def test_importing_it_does_not_import_scikit_learn():
    program = "import neuropil.brain.ridge, sys; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0


def test_bad_input_is_refused():
    x, y = recording(20, 5, 3)
    constant, holes = y.copy(), x.copy()
    constant[:, 1], holes[3, 2] = 7.0, numpy.nan
    for message, arguments, options in [
        (r"y: 1 of 3 columns is constant \(the first: 1\)", (x, constant), {}),
        (r"X: contains NaN or inf, first at \(3, 2\)", (holes, y), {}),
        (r"y: must have shape 20 × any or 20, got \(19, 3\)", (x, y[:19]), {}),
        (r"X: must have shape any × any, got \(20,\)", (x[:, 0], y), {}),
        ("lambdas: positive", (x, y), {"lambdas": (0.0, 1.0)}),
        ("folds: from 2 to n_samples = 20 are possible, got 21", (x, y), {"folds": 21}),
        ("folds: a number, or the whole numbers of at least 2 folds", (x, y), {"folds": numpy.zeros(20, dtype=int)}),
        ("folds: a number, or the whole numbers of at least 2 folds", (x, y), {"folds": [0, 1]}),
    ]:
        with pytest.raises(Refused, match=message):
            VoxelRidge(**options).fit(*arguments)
    with pytest.raises(Refused, match=r"^products of x: must be finite"):
        eigenbasis(torch.full((3, 2), torch.inf))
    with pytest.raises(Refused, match=r"^lambdas: must be above 0, got 0"):
        ridge(torch.eye(2), torch.eye(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(Refused, match="X has 4 features, but VoxelRidge is expecting 5"):
        VoxelRidge().fit(x, y).predict(x[:, :4])
    with pytest.raises(Refused, match="set_params: unknown 'lambda'; did you mean 'lambdas'"):
        VoxelRidge().set_params(**{"lambda": 1})
    with pytest.raises(Refused, match="sparse"):
        as_tensor("X", scipy.sparse.eye(3), None)
    with pytest.raises(ValueError, match="call fit before"):
        VoxelRidge().predict(x)
