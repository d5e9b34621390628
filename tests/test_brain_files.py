import datetime
import sys
import warnings

import numpy as np
import pytest
import torch

from neuropil.data import (
    read_eeg,
    read_events,
    read_gifti,
    read_latents_benchmark,
    read_mask,
    read_nifti,
    read_nwb_units,
    read_recording,
)
from neuropil.data.recordings import Recording, Spikes, Surface, Volume
from neuropil.data.spike_files import LatentsBenchmark
from neuropil.errors import Refused

mne, nibabel = pytest.importorskip("mne"), pytest.importorskip("nibabel")
pynwb, h5py = pytest.importorskip("pynwb"), pytest.importorskip("h5py")


def write_edf(path, signals, rates, labels, units=None, annotations=(), status=None):
    """EDF, or BDF by the suffix, one record a second, ±1,000 units. MNE's own writer needs edfio, which no extra of ours has."""
    bdf = path.suffix == ".bdf"
    low, high = (-(2**23), 2**23 - 1) if bdf else (-(2**15), 2**15 - 1)
    names, units, samples = list(labels), list(units or ["uV"] * len(labels)), list(rates)
    records = len(signals[0]) // rates[0]
    digital = [np.round((np.asarray(s) + 1000) / 2000 * (high - low) + low).astype("<i4") for s in signals]
    if status is not None:
        names, units, samples, digital = (
            [*names, "Status"],
            [*units, "Boolean"],
            [*samples, rates[0]],
            [*digital, status.astype("<i4")],
        )
    count = len(names) + bool(annotations)
    if annotations:
        names, units, samples = [*names, "EDF Annotations"], [*units, ""], [*samples, 60]

    def fixed(value, width):
        return str(value).encode("latin-1").ljust(width)

    head = b"\xffBIOSEMI" if bdf else fixed(0, 8)
    head += fixed("X X X X", 80) + fixed("Startdate 01-JAN-2020 X X X", 80) + fixed("01.01.20", 8) + fixed("00.00.00", 8)
    head += fixed(256 * (count + 1), 8) + fixed("24BIT" if bdf else "EDF+C" if annotations else "", 44)
    head += fixed(records, 8) + fixed(1, 8) + fixed(count, 4)
    for values, width in ((names, 16), ([""] * count, 80), (units, 8), ([-1000] * count, 8), ([1000] * count, 8)):
        head += b"".join(fixed(value, width) for value in values)
    for values, width in (([low] * count, 8), ([high] * count, 8), ([""] * count, 80), (samples, 8), ([""] * count, 32)):
        head += b"".join(fixed(value, width) for value in values)
    body = b""
    for record in range(records):
        for values, rate in zip(digital, samples, strict=False):
            part = values[record * rate : (record + 1) * rate]
            body += part.view("u1").reshape(-1, 4)[:, :3].tobytes() if bdf else part.astype("<i2").tobytes()
        if annotations:
            text = f"+{record}\x14\x14\x00"
            if not record:
                text += "".join(f"+{onset}\x15{duration}\x14{name}\x14\x00" for onset, duration, name in annotations)
            body += text.encode().ljust(120, b"\0")
    path.write_bytes(head + body)
    return path


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape) * 50


def refuses(words, read, *arguments, **named):
    with pytest.raises(Refused, match=words) as caught:
        read(*arguments, **named)
    assert "\n" not in str(caught.value)


def test_edf(tmp_path):
    x = noise(3, 1000)
    annotations = [(1.5, 0.5, "face"), (3, 0, "house")]
    file = write_edf(tmp_path / "a.edf", x, [100] * 3, ["Fz", "Cz", "Temp"], ["uV", "mV", "degC"], annotations)
    recording = read_recording(file)
    assert isinstance(recording, Recording) and (recording.rate, recording.samples, recording.notes) == (100.0, 1000, ())
    assert (recording.channels, recording.kinds) == (("Fz", "Cz", "Temp"), ("eeg", "eeg", "misc"))
    assert recording.units == ("V", "V", "degC")
    scaled = x * np.array([[1e-6], [1e-3], [1]])
    assert np.allclose(recording.read(), scaled, atol=np.array([[2e-8], [2e-5], [0.02]]))  # 16 bits of ±1,000
    assert recording.read(123, 456).equal(recording.read()[:, 123:456])
    assert recording.events.onset.tolist() == [1.5, 3.0] and recording.events.duration.tolist() == [0.5, 0.0]
    assert recording.events.names == ("face", "house")
    trials = recording.epochs(recording.events, before=0.1, after=0.4)
    assert trials.signals.shape == (2, 3, 50) and trials.signals[0].equal(recording.read(140, 190))
    eyes = read_eeg(write_edf(tmp_path / "b.edf", x[:2], [100] * 2, ["EEG Fpz-Cz", "EOG horizontal"]))
    assert eyes.kinds == ("eeg", "eog")
    one = read_eeg(file, channels=["Cz"])
    assert one.channels == ("Cz",) and one.read(5, 9).equal(recording.read(5, 9)[1:2])


def test_bdf_status_steps_are_events(tmp_path):
    status = np.full(800, 1 << 16)  # BioSemi's own bits above the 16 of the triggers
    status[200:220] += 7
    status[500] += 300
    x = noise(2, 800)
    recording = read_recording(write_edf(tmp_path / "a.bdf", x, [100] * 2, ["Fz", "Cz"], status=status))
    assert recording.events.names == ("7", "300") and recording.events.onset.tolist() == [2.0, 5.0]
    assert np.allclose(recording.read()[:2], x * 1e-6, atol=1e-9) and recording.kinds == ("eeg", "eeg", "stim")


def test_broken_edf_is_refused_by_field(tmp_path):
    file = write_edf(tmp_path / "a.edf", noise(2, 500), [100, 100], ["Fz", "Cz"])
    good = file.read_bytes()
    for content, words in (
        (good[:-300], r"a.edf is truncated: 2468 bytes, 2768 expected for 5 records"),
        (good[:300], "truncated in its header"),
        (b"hello world" * 100, "field version"),
        (good[:236] + b"five    " + good[244:], "field number of records is b'five    '"),
        (good[:244] + b"0       " + good[252:], "field record duration 0 s"),
        (good[:184] + b"999     " + good[192:], "field header size 999 for 2 signals"),
    ):
        file.write_bytes(content)
        refuses(words, read_eeg, file)
    refuses("no file", read_eeg, tmp_path / "none.edf")
    refuses("does not end in .edf", read_eeg, tmp_path / "a.txt")


def test_rates_that_disagree_ask_for_a_choice(tmp_path):
    file = write_edf(tmp_path / "a.edf", [noise(500), noise(50)], [100, 10], ["Fz", "Resp"])
    refuses(r"sampling rates disagree \(Fz 100 Hz, Resp 10 Hz\)", read_eeg, file)
    assert read_eeg(file, channels=["Resp"]).samples == 50
    refuses("has no 'Fx'; did you mean 'Fz'", read_eeg, file, channels=["Fx"])


def write_fif(path):
    info = mne.create_info(["EEG1", "EEG2", "STI 014"], 100.0, ["eeg", "eeg", "stim"])
    data = noise(3, 1000) * 1e-6
    data[2] = 0
    data[2, 200:210], data[2, 500] = 5, 7
    raw = mne.io.RawArray(data, info, first_samp=300, verbose="ERROR")
    raw.set_meas_date(1e9)
    raw.set_annotations(mne.Annotations([4.0], [1.0], ["cough"], orig_time=raw.info["meas_date"]))
    raw.info["bads"] = ["EEG2"]
    raw.save(path, verbose="ERROR")
    return data


def test_fif(tmp_path):
    file = tmp_path / "a_raw.fif"
    data = write_fif(file)
    recording = read_recording(file)
    assert np.allclose(recording.read(), data, rtol=1e-6) and recording.bad == ("EEG2",) and recording.units[0] == "V"
    # MNE counts both from the start of the acquisition, 3 s before the first sample.
    assert list(zip(recording.events.onset.tolist(), recording.events.names, strict=True)) == [(1, "cough"), (2, "5"), (5, "7")]
    assert read_eeg(file, stim="STI 014").events.names == ("cough", "5", "7")
    refuses("stim: no channel 'STI 015'; did you mean 'STI 014'", read_eeg, file, stim="STI 015")
    content = file.read_bytes()
    for cut in (50, 2000, len(content) - 4000):
        file.write_bytes(content[:cut])
        refuses("cannot read .*a_raw.fif", read_eeg, file)


def test_what_mne_warns_of_is_noted(tmp_path):
    file = write_edf(tmp_path / "a.edf", noise(2, 500), [100, 100], ["Fz", "Fz"])
    recording = read_eeg(file)
    assert len(recording.notes) == 1 and "unique" in recording.notes[0] and recording.channels == ("Fz-0", "Fz-1")


@pytest.mark.parametrize(
    ("package", "name", "read"),
    [
        ("mne", "a.edf", read_eeg),
        ("nibabel", "a.nii", read_nifti),
        ("pynwb", "a.nwb", read_nwb_units),
        ("h5py", "a.h5", read_latents_benchmark),
    ],
)
def test_a_missing_extra_is_named(package, name, read, monkeypatch, tmp_path):
    (tmp_path / name).write_bytes(b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, package, None)
    refuses(rf"{package} is not installed: pip install 'neuropil\[brain\]'", read, tmp_path / name)


def table(path, rows, header="onset\tduration\ttrial_type\trun"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def test_events_tsv(tmp_path):
    file = table(tmp_path / "a_events.tsv", ["0.5\t1\tface\t1", "2\tn/a\tn/a\t2"])
    events = read_events(file, seconds=2.5)
    assert events.onset.tolist() == [0.5, 2.0] and events.duration.isnan().tolist() == [False, True]
    assert events.names == ("face", "n/a") and read_events(file, label="run").names == ("1", "2")
    assert read_events(table(tmp_path / "b.tsv", ["1\t0"], "onset\tduration")).names == ("event",)
    (tmp_path / "a_events.json").write_text('{"onset": {"Units": "ms"}}')
    refuses("Units of onset must be s, got 'ms'", read_events, file)


def test_bad_events_name_their_row(tmp_path):
    file = tmp_path / "a_events.tsv"
    good = "0.5\t1\tface\t1"
    for rows, words in (
        (
            [good, "3.5\t1\tface\t1", "-1\t1\tface\t1"],
            r"2 of 3 rows lie outside the recording of 3 s \(the first: row 2, onset 3.5 s\)",
        ),
        ([good, "x\t1\tface\t1"], "row 2: onset is 'x', not a number"),
        ([good, "nan\t1\tface\t1"], "row 2: onset is 'nan', not a finite number"),
        ([good, "1\t1"], "row 2 has 2 columns, the header has 4"),
        ([], "no rows below a header"),
    ):
        refuses(words, read_events, table(file, rows), 3.0)
    refuses("no column 'onset'.*split by tabs", read_events, table(file, ["1,0"], "onset,duration"))
    refuses("label: .* no column 'stim'", read_events, table(file, [good]), label="stim")
    refuses("two columns named 'onset'", read_events, table(file, ["1\t1"], "onset\tonset"))
    refuses("cannot read", read_events, tmp_path / "none.tsv")


def write_nwb(path, units=True, trials=True):
    session = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    file = pynwb.NWBFile("test", "id", session)
    times = [np.array([0.2, 0.1, 1.05]), np.array([]), np.array([0.3, 1.2])]
    if units:
        file.add_unit_column("quality", "how well it was sorted")
        for unit in times:
            file.add_unit(spike_times=unit, quality="good")
    if trials:
        file.add_trial_column("side", "of the target")
        file.add_trial_column("place", "of the target")
        for k in range(2):
            file.add_trial(start_time=float(k), stop_time=k + 0.5, side="lr"[k], place=[1.0, 2.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pynwb.NWBHDF5IO(str(path), "w") as handle:
            handle.write(file)
    return path


def test_nwb_units(tmp_path):
    spikes = read_recording(write_nwb(tmp_path / "a.nwb"), label="side")
    assert isinstance(spikes, Spikes) and spikes.units == ("0", "1", "2")
    assert spikes.times.tolist() == [0.1, 0.2, 1.05, 0.3, 1.2] and spikes.pointers.tolist() == [0, 3, 3, 5]
    assert spikes.trials.names == ("l", "r") and spikes.trials.duration.tolist() == [0.5, 0.5]
    assert list(spikes.trials.columns) == ["side"]  # not the column of two values a trial
    counts = spikes.counts(0.25, 0.0, 0.5, spikes.trials.onset)
    assert counts.tolist() == [[[2, 0, 0], [0, 0, 1]], [[1, 0, 1], [0, 0, 0]]]
    assert read_nwb_units(write_nwb(tmp_path / "b.nwb", trials=False)).trials is None


def test_broken_nwb(tmp_path):
    file = write_nwb(tmp_path / "a.nwb")
    refuses("label: unknown 'sied'; did you mean 'side'", read_nwb_units, file, label="sied")
    refuses("label: .* no trials table", read_nwb_units, write_nwb(tmp_path / "b.nwb", trials=False), label="side")
    refuses("no Units table with spike_times", read_nwb_units, write_nwb(tmp_path / "c.nwb", units=False))
    with h5py.File(file, "r+") as handle:
        handle["units/spike_times"][3] = np.nan
    refuses(r"1 spike times are not finite \(the first: of unit 2\)", read_nwb_units, file)
    with h5py.File(file, "r+") as handle:
        handle["units/spike_times_index"][2] = 99
    refuses("cannot read|spike_times_index ends at", read_nwb_units, file)
    file.write_bytes(file.read_bytes()[:5000])
    refuses("cannot read .*a.nwb as NWB .*truncated", read_nwb_units, file)
    file.write_bytes(b"no")
    refuses("not an HDF5 file", read_nwb_units, file)


def test_neural_latents_benchmark(tmp_path):
    file, rng = tmp_path / "mc_maze.h5", np.random.default_rng(0)
    heldin, heldout = rng.poisson(1, (10, 20, 5)), rng.poisson(1, (10, 20, 3)).astype(float)
    heldout[7, 0, 0] = np.nan
    with h5py.File(file, "w") as handle:
        handle["train_spikes_heldin"], handle["train_spikes_heldout"] = heldin, heldout
        handle["train_behavior"] = rng.normal(size=(10, 20, 2))
    found = read_recording(file)
    assert isinstance(found, LatentsBenchmark)
    assert found.shapes == {"train_spikes_heldin": (10, 20, 5), "train_spikes_heldout": (10, 20, 3)}
    assert found.read("train_spikes_heldin", 2, 5).tolist() == heldin[2:5].tolist()
    assert torch.cat(list(found.batches("train_spikes_heldin", 4))).tolist() == heldin.tolist()
    refuses(r"1 of 4 trials have NaN \(the first: 7\)", found.read, "train_spikes_heldout", 6)
    assert found.read("train_spikes_heldout", 7, padding=-1)[0, 0, 0] == -1
    refuses("key: unknown 'train_spikes_heldim'; did you mean", found.read, "train_spikes_heldim")
    refuses("trials 9 to 11 are not in", found.read, "train_spikes_heldin", 9, 11)
    with h5py.File(file, "r+") as handle:
        handle["train_spikes_heldin"][4, 0, 0] = -1
        handle["eval_spikes_heldin"] = heldin[:, :, 0]
    refuses("trial 4 has a count of -1", found.read, "train_spikes_heldin")
    refuses(r"eval_spikes_heldin must be \(trials, bins, neurons\), got \(10, 20\)", read_latents_benchmark, file)
    with h5py.File(file, "w") as handle:
        handle["train_spikes_heldin"], handle["train_spikes_heldout"] = heldin, heldout[:9]
    refuses(r"heldout has \(trials, bins\) \(9, 20\), but its held-in neurons \(10, 20\)", read_latents_benchmark, file)
    with h5py.File(file, "w") as handle:
        handle["spikes"] = heldin
    refuses(r"no key like train_spikes_heldin \(there are spikes\)", read_latents_benchmark, file)
    file.write_bytes(file.read_bytes()[:900])
    refuses("cannot read", read_latents_benchmark, file)


def write_nifti(path, values, affine=None, tr=1500, units="msec"):
    image = nibabel.Nifti1Image(values, np.diag([2.0, 2, 3, 1]) if affine is None else affine)
    if values.ndim == 4:
        image.header.set_zooms((*image.header.get_zooms()[:3], tr))
        image.header.set_xyzt_units("mm", units)
    nibabel.save(image, path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_nifti(tmp_path, name):
    values = noise(4, 5, 6, 20).astype(np.float32)
    volume = read_recording(write_nifti(tmp_path / name, values))
    assert isinstance(volume, Volume) and (volume.shape, volume.times, volume.tr) == ((4, 5, 6), 20, 1.5)
    assert volume.voxel == (2.0, 2.0, 3.0) and volume.affine.diag().tolist() == [2, 2, 3, 1]
    assert volume.read(3, 7).numpy().tolist() == np.moveaxis(values[..., 3:7], -1, 0).tolist()
    mask = read_mask(write_nifti(tmp_path / f"m_{name}", (values[..., 0] > 0).astype(np.uint8)), like=volume)
    assert volume.voxels(mask).numpy().tolist() == values[values[..., 0] > 0].T.tolist()


def test_nifti_scaling_and_unknown_tr(tmp_path):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 2, 2), np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    image.header.set_zooms((1, 1, 1, 0))
    nibabel.save(image, tmp_path / "a.nii")
    volume = read_nifti(tmp_path / "a.nii")
    assert volume.read()[:, 0, 0, 0].tolist() == [10.0, 10.5] and volume.tr is None


def test_broken_nifti_is_refused_by_field(tmp_path, capfd):
    values = noise(4, 5, 6, 20).astype(np.float32)
    file = write_nifti(tmp_path / "a.nii", values)
    good = file.read_bytes()

    def patched(at, content):
        return good[:at] + content + good[at + len(content) :]

    def int16(n):
        return n.to_bytes(2, "little", signed=True)

    for content, words in (
        (good[:-100], "truncated: 9852 bytes, 9952 expected for its field dim"),
        (good[:100], "cannot read"),
        (b"junk" * 1000, "cannot read"),
        (patched(344, b"xx"), "cannot read"),
        (patched(42, int16(-3)), "field dim must give 3 or 4 axes"),
        (patched(70, int16(3333)), "data code 3333"),
        (patched(70, int16(32) + int16(64)), "field datatype must be of real numbers, got complex64"),
        (patched(280, bytes(48)), "field affine"),
        (patched(80, np.float32(np.nan).tobytes()), "field pixdim|cannot read"),
    ):
        file.write_bytes(content)
        refuses(words, read_nifti, file)
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(write_nifti(tmp_path / "b.nii.gz", values).read_bytes()[:-2000])
    refuses("a.nii.gz .*end-of-stream", read_nifti(packed).read)
    packed.write_bytes(good)
    refuses("not a gzip file", read_nifti, packed)
    refuses("no file", read_nifti, tmp_path / "none.nii")
    refuses("does not end in .nii", read_nifti, tmp_path / "a.img")
    assert capfd.readouterr() == ("", "")  # nibabel logs what it cannot read


def test_masks_must_lie_on_their_volume(tmp_path):
    values = np.ones((2, 3, 4, 5), np.float32)
    volume = read_nifti(write_nifti(tmp_path / "a.nii", values))
    refuses("must be one image, got 5", read_mask, tmp_path / "a.nii")
    refuses(r"has \(2, 3, 3\) voxels, but", read_mask, write_nifti(tmp_path / "m.nii", values[:, :, :3, 0]), like=volume)
    refuses("the affine of", read_mask, write_nifti(tmp_path / "n.nii", values[..., 0], np.eye(4)), like=volume)


def test_gifti(tmp_path):
    gifti = nibabel.gifti
    vertices, faces = noise(4, 3).astype(np.float32), np.array([[0, 1, 2], [1, 2, 3]], np.int32)

    def save(name, *arrays):
        darrays = [gifti.GiftiDataArray(data, intent=f"NIFTI_INTENT_{intent}") for data, intent in arrays]
        nibabel.save(gifti.GiftiImage(darrays=darrays), tmp_path / name)
        return tmp_path / name

    mesh = save("lh.surf.gii", (vertices, "POINTSET"), (faces, "TRIANGLE"))
    surface = read_recording(mesh)
    assert isinstance(surface, Surface) and surface.values is None
    assert surface.vertices.tolist() == vertices.tolist() and surface.faces.tolist() == faces.tolist()
    series = read_gifti(save("lh.func.gii", *[(vertices[:, k].copy(), "TIME_SERIES") for k in range(3)]))
    assert series.values.tolist() == vertices.tolist() and series.vertices is None
    refuses("faces with corners that do not exist", read_gifti, save("x.gii", (vertices, "POINTSET"), (faces + 1, "TRIANGLE")))
    refuses(
        r"arrays are of \[3, 4\] vertices",
        read_gifti,
        save("y.gii", (vertices[:3, 0].copy(), "SHAPE"), (vertices[:, 0].copy(), "SHAPE")),
    )
    refuses("one mesh or numbers on one", read_gifti, save("z.gii"))
    mesh.write_bytes(mesh.read_bytes()[:300])
    refuses("cannot read .*lh.surf.gii", read_gifti, mesh)
    refuses("no file", read_gifti, tmp_path / "none.gii")
    refuses("does not end in .gii", read_gifti, tmp_path / "none.stl")
