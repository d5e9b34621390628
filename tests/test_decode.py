import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from neuropil.brain import decoding
from neuropil.brain.decoding import BANDS, decode, decode_file, log_band_power, log_covariance
from neuropil.cli import neuropil
from neuropil.errors import Refused

mne, nibabel = pytest.importorskip("mne"), pytest.importorskip("nibabel")
pynwb = pytest.importorskip("pynwb")
linear, pipeline = pytest.importorskip("sklearn.linear_model"), pytest.importorskip("sklearn.pipeline")

EVENTS = 24
ONSETS = 2 + 2.5 * np.arange(EVENTS)
SIDES = np.array(["left", "right"])[np.random.default_rng(3).permutation(np.arange(EVENTS) % 2)]


@pytest.fixture(scope="module")
def tsv(tmp_path_factory):
    rows = [f"{onset:.2f}\t0.5\t{side}\t{k // 6}\tsame" for k, (onset, side) in enumerate(zip(ONSETS, SIDES, strict=True))]
    file = tmp_path_factory.mktemp("events") / "a_events.tsv"
    file.write_text("\n".join(["onset\tduration\ttrial_type\trun\tconstant", *rows]) + "\n")
    return file


def bursts(rate=100, seconds=70):
    """Noise, and 10 Hz on the left or right channel after each event."""
    t = np.arange(seconds * rate) / rate
    x = np.random.default_rng(0).normal(size=(3, len(t)))
    for onset, side in zip(ONSETS, SIDES, strict=True):
        at = (t >= onset) & (t < onset + 0.8)
        x[0 if side == "left" else 1, at] += 1.5 * np.sin(2 * np.pi * 10 * t[at])
    return x * 1e-5


@pytest.fixture(scope="module")
def fif(tmp_path_factory):
    info = mne.create_info(["C3", "C4", "Cz", "STI 014"], 100.0, ["eeg"] * 3 + ["stim"])
    data = np.concatenate([bursts(), np.zeros((1, 7000))])
    for onset, side in zip(ONSETS, SIDES, strict=True):
        data[3, round(onset * 100)] = 1 + (side == "right")
    file = tmp_path_factory.mktemp("fif") / "a_raw.fif"
    mne.io.RawArray(data, info, verbose="ERROR").save(file, verbose="ERROR")
    return file


@pytest.fixture(scope="module")
def nwb(tmp_path_factory):
    import datetime

    file, rng = pynwb.NWBFile("t", "id", datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)), np.random.default_rng(1)
    fired = [rng.uniform(0, 70, 300)]
    fired += [
        np.concatenate([o + rng.uniform(0, 0.5, rng.poisson(2 + 8 * (s == w))) for o, s in zip(ONSETS, SIDES, strict=True)])
        for w in ("left", "right")
    ]
    for times in (*fired, np.array([0.01])):
        file.add_unit(spike_times=np.sort(times))
    file.add_trial_column("side", "of the target")
    for onset, side in zip(ONSETS, SIDES, strict=True):
        file.add_trial(start_time=float(onset), stop_time=float(onset) + 0.5, side=str(side))
    path = tmp_path_factory.mktemp("nwb") / "a.nwb"
    with pynwb.NWBHDF5IO(str(path), "w") as handle:
        handle.write(file)
    return path


@pytest.fixture(scope="module")
def nifti(tmp_path_factory):
    values = np.random.default_rng(2).normal(size=(5, 5, 4, 80)).astype(np.float32) + 100
    values[0] = 0  # outside the brain
    at = np.arange(80)
    for onset, side in zip(ONSETS, SIDES, strict=True):
        values[2, :, :2, (at >= onset + 4) & (at < onset + 6)] += 3 if side == "left" else -3
    image = nibabel.Nifti1Image(values, np.eye(4))
    image.header.set_zooms((1, 1, 1, 1))
    image.header.set_xyzt_units("mm", "sec")
    path = tmp_path_factory.mktemp("nifti") / "a.nii.gz"
    nibabel.save(image, path)
    return path


def run(*arguments):
    return CliRunner().invoke(neuropil, ["decode", *map(str, arguments)], catch_exceptions=False)


@pytest.mark.parametrize("features", ["power", "covariance"])
def test_eeg(fif, tsv, features):
    calls = []
    result = decode_file(fif, tsv, groups="run", features=features, times=19, advance=lambda: calls.append(1))
    assert result.control.score > 0.9 and result.control.p == 0.05 and result.chance == 0.5 and len(calls) == 20
    assert (result.folds, result.classes, result.window) == (4, {"left": 12, "right": 12}, (-0.2, 0.8))
    assert result.width == (15 if features == "power" else 6)
    assert result.notes == ("used 3 of 4 channels: good ones of kind eeg",)
    assert 0.3 < result.control.null.mean() < 0.7


def test_the_files_own_events(fif, nwb):
    assert decode_file(fif, times=9).classes == {"1": 12, "2": 12}
    result = decode_file(nwb, label="side", times=19)
    assert result.control.score > 0.9 and result.control.p == 0.05 and result.width == 3
    assert result.notes[0] == "left out 1 of 4 units whose count is the same in all windows (the first: 3)"


def test_bold(nifti, tsv, tmp_path):
    result = decode_file(nifti, tsv, groups="run", window=(4.0, 6.0), times=19)
    assert result.control.score > 0.8 and result.control.p == 0.05
    assert "no mask: used the 80 of 100 voxels that vary" in result.notes
    mask = np.zeros((5, 5, 4), np.uint8)
    mask[2, 2, :2] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "m.nii")
    assert decode_file(nifti, tsv, window=(4.0, 6.0), mask=tmp_path / "m.nii", times=9).width == 2
    mask[0, 1, 1] = 1
    nibabel.save(nibabel.Nifti1Image(mask, np.eye(4)), tmp_path / "m.nii")
    with pytest.raises(Refused, match=r"a.nii.gz: 1 of 3 voxels of the mask are constant \(the first: \(0, 1, 1\)\)"):
        decode_file(nifti, tsv, mask=tmp_path / "m.nii")
    late = decode_file(nifti, tsv, window=(17.0, 21.0), times=9)  # the last sample is at 80 s
    assert late.notes[0] == "left out 1 of 24 events: their window leaves the recording (the first: at 59.5 s)"


def test_nothing_is_at_chance():
    x, labels = torch.randn(60, 100), torch.arange(60) % 3
    control = decode(x, labels, times=19)
    assert 0.1 < control.score < 0.6 and control.p > 0.05 and abs(control.null.mean() - 1 / 3) < 0.05


def test_unequal_classes_have_no_advantage():
    labels = (torch.arange(60) % 6 == 0).long()
    assert abs(decode(torch.randn(60, 3), labels, times=39).null.mean() - 0.5) < 0.06


@pytest.mark.parametrize("d", [3, 50])
def test_decode_is_scikit_learns_pipeline(d):
    labels, groups = torch.arange(40) % 2, torch.arange(40) // 8
    x = torch.randn(40, d) + 0.3 * labels[:, None]
    preprocessing, selection = pytest.importorskip("sklearn.preprocessing"), pytest.importorskip("sklearn.model_selection")
    metrics = pytest.importorskip("sklearn.metrics")
    model = pipeline.make_pipeline(
        preprocessing.StandardScaler(), linear.LogisticRegression(class_weight="balanced", max_iter=2000)
    )
    guess = selection.cross_val_predict(
        model, x.double().numpy(), labels.numpy(), groups=groups.numpy(), cv=selection.GroupKFold(5)
    )
    assert decode(x, labels, groups, 5, times=1).score == pytest.approx(metrics.balanced_accuracy_score(labels.numpy(), guess))


def test_band_power_is_per_channel_and_band():
    t = torch.arange(200) / 100
    x = torch.stack([torch.sin(2 * torch.pi * 6 * t), torch.sin(2 * torch.pi * 20 * t)])[None] + 1e-3 * torch.randn(1, 2, 200)
    power, bands = log_band_power(x, 100.0)
    assert bands == tuple(BANDS) and power.view(2, 5).argmax(1).tolist() == [1, 3]
    assert torch.allclose(log_band_power(x * 1e-13, 100.0)[0], power + 2 * np.log(1e-13), atol=1e-4)  # MEG is in T
    assert log_band_power(x[..., :50], 100.0)[1] == ("delta", "theta", "alpha", "beta", "gamma")
    assert log_band_power(x[..., :10], 100.0)[1] == ("alpha", "beta", "gamma")  # 10, 20, 30 Hz …
    with pytest.raises(Refused, match="resolve none of the bands"):
        log_band_power(x[..., :2], 100.0)


def test_log_covariance_is_the_matrix_logarithm():
    from scipy.linalg import logm

    x = torch.randn(2, 4, 60)
    for trial, found in zip(x, log_covariance(x, shrinkage=0.0), strict=True):
        expected = logm(np.cov(trial.numpy().astype(float), bias=True))
        row, column = np.triu_indices(4)
        assert np.allclose(found, expected[row, column] * np.where(row == column, 1, np.sqrt(2)), atol=1e-5)
        assert float(found.norm()) == pytest.approx(np.linalg.norm(expected), rel=1e-5)
    assert log_covariance(torch.randn(1, 9, 5)).isfinite().all()  # fewer samples than channels


def test_features_are_computed_where_the_signals_are():
    signals = torch.zeros(2, 3, 200, device="meta")
    power, bands = log_band_power(signals, 100.0)
    assert power.device.type == log_covariance(signals).device.type == "meta" and power.shape == (2, 3 * len(bands))


def test_the_command(fif, tsv, tmp_path):
    done = run(fif, "--events", tsv, "--groups", "run", "--permutations", 19, "--picture", tmp_path / "p.png")
    assert done.exit_code == 0 and "balanced accuracy 1.000, chance 0.500, p = 0.05" in done.stdout
    assert "12 left, 12 right; 15 features" in done.stdout and "4 folds by run" in done.stdout
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"
    facts = [json.loads(run(fif, "--events", tsv, "--permutations", 9, "--window", -0.2, 0.8, "--json").stdout) for _ in range(2)]
    assert (
        facts[0] == facts[1]
        and facts[0]["score"] > 0.9
        and facts[0]["p"] == 0.1
        and facts[0]["classes"] == {"left": 12, "right": 12}
    )
    only = run(fif, "--events", tsv, "--channels", "Cz", "--permutations", 19, "--json")
    assert json.loads(only.stdout)["p"] > 0.05  # the channel without bursts


def test_bad_input_is_one_line_with_file_and_field(fif, nwb, nifti, tsv, tmp_path):
    outside = tmp_path / "outside.tsv"
    outside.write_text("onset\tduration\ttrial_type\n1\t0\ta\n99\t0\tb\n")
    missing = tmp_path / "missing.tsv"
    missing.write_text("onset\tduration\ttrial_type\n" + "".join(f"{k + 1}\t0\t{'a' if k % 2 else 'n/a'}\n" for k in range(10)))
    for arguments, words in (
        (
            (fif, "--events", outside),
            r"outside.tsv: 1 of 2 rows lie outside the recording of 70 s \(the first: row 2, onset 99 s\)",
        ),
        ((fif, "--events", tsv, "--label", "constant"), r"a_raw.fif: constant: one class only \('same'\) in 24 events"),
        ((fif, "--events", missing), r"a_raw.fif: the events' names: one class only \('a'\) in 5 events"),
        ((fif, "--events", tsv, "--label", "trial"), "label: .*a_events.tsv has no column 'trial'; did you mean 'trial_type'"),
        ((fif, "--events", tsv, "--groups", "session"), "events: no column 'session'"),
        ((fif, "--events", tsv, "--groups", "run", "--folds", 5), "groups: 4 different ones cannot make 5 folds"),
        ((fif, "--events", tsv, "--classes", "left,up"), "none is named 'up'"),
        ((fif, "--events", tsv, "--features", "csp"), "features: unknown 'csp'"),
        ((fif, "--events", tsv, "--channels", "C5"), "no channel 'C5'"),
        ((fif, "--events", tsv, "--window", 1, 1), "window: must rise"),
        ((fif, "--events", tsv, "--picture", "p.gif"), "picture: must end in"),
        ((nwb,), "a.nwb: the events' names: one class only"),
        ((nifti,), "a.nii.gz has none of its own; give an events.tsv"),
        ((nifti, "--events", tsv, "--window", 4.1, 4.2), "no sample of .*a.nii.gz .*widen it"),
        ((nwb, "--events", tsv, "--channels", "C3"), "channels: read_nwb_units .* knows no such option"),
        ((tmp_path / "none.edf", "--events", tsv), "no file"),
    ):
        with pytest.raises(Refused, match=words) as caught:
            run(*arguments, "--permutations", 3)
        assert "\n" not in str(caught.value)


def test_a_flat_channel_is_named(tsv, tmp_path):
    data = bursts()
    data[2, 1000:] = 1e-5
    info = mne.create_info(["C3", "C4", "Cz"], 100.0, ["eeg"] * 3)
    mne.io.RawArray(data, info, verbose="ERROR").save(tmp_path / "a_raw.fif", verbose="ERROR")
    with pytest.raises(Refused, match=r"1 of 3 channels are constant in a trial \(the first: Cz, event at 12 s\)"):
        decode_file(tmp_path / "a_raw.fif", tsv)


def test_decode_refuses():
    x, labels, groups = torch.randn(8, 2), torch.arange(8) % 2, torch.arange(8) % 2
    broken = x.clone()
    broken[3, 1] = float("nan")
    for arguments, words in (
        ((x, torch.zeros(8, dtype=torch.int64)), "one class only in 8 events"),
        ((x, labels[:7]), "labels: one for each of 8"),
        ((broken, labels), r"1 of 8 events have features that are not finite \(the first: 3\)"),
        ((x, labels, groups, 2), "fold 0 trains on one class only"),
        ((x, labels, torch.arange(8) % 4, 4), "each has one class only, so labels cannot be shuffled"),
    ):
        with pytest.raises(Refused, match=words):
            decode(*arguments)


def test_epochs_are_read_in_parts(fif, tsv, monkeypatch):
    whole = decode_file(fif, tsv, times=1)
    monkeypatch.setattr(decoding, "_TRIALS", 5)
    assert decode_file(fif, tsv, times=1).control.score == whole.control.score
