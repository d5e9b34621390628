import math

import numpy as np
import pytest
import torch

from neuropil.data.recordings import Events, Recording, Spikes, Volume, concatenate, joined, read_recording
from neuropil.errors import Refused


def recording(name="one", rate=10.0, samples=50, channels=("Fz", "Cz"), units=None, events=None, reads=None, values=None):
    values = torch.arange(len(channels) * samples).view(len(channels), samples).float() if values is None else values

    def fetch(start, stop):
        if reads is not None:
            reads.append((start, stop))
        return values[:, start:stop].clone()

    units = units or ("V",) * len(channels)
    events = events or Events.of([1.0, 2.0], ["b", "a"])
    return Recording(name, rate, samples, channels, ("eeg",) * len(channels), units, events, fetch, bad=channels[:1])


def test_epochs_read_their_stretches_only():
    reads = []
    trials = recording(reads=reads).epochs(Events.of([1.0, 3.04], ["b", "a"]), before=0.2, after=0.5)
    assert reads == [(8, 15), (28, 35)]
    assert trials.signals[:, 0].tolist() == [list(range(8, 15)), list(range(28, 35))]
    assert (trials.labels.tolist(), trials.classes, trials.rate) == ([1, 0], ("a", "b"), 10.0)
    assert recording().epochs(Events.of([1.0], ["b"]), before=-0.2, after=0.5).signals[0, 0].tolist() == [12, 13, 14]


def test_epochs_refuse():
    one = recording()
    with pytest.raises(Refused, match=r"one: 1 of 2 events .* recording of 5 s \(the first: row 2, onset 4.9 s"):
        one.epochs(Events.of([1.0, 4.9], ["a", "b"]), 0.2, 0.5)
    with pytest.raises(Refused, match="no sample at 10 Hz"):
        one.epochs(one.events, 0.0, 0.01)
    with pytest.raises(Refused, match="no events"):
        one.epochs(Events.of([], []), 0.2, 0.5)
    broken = torch.zeros(2, 50)
    broken[1, 21] = math.nan
    with pytest.raises(Refused, match=r"1 of 2 trials .* not finite \(the first: a at 2 s, channel Cz\)"):
        recording(values=broken).epochs(one.events, 0.2, 0.5)
    with pytest.raises(Refused, match="samples 3 to 51 are not in the recording of 50"):
        one.read(3, 51)


def test_pick_keeps_order_and_what_is_bad():
    picked = recording().pick(["Cz"])
    assert picked.read(0, 2).tolist() == [[50, 51]]
    assert (picked.channels, picked.bad, recording().pick(["Cz", "Fz"]).bad) == (("Cz",), (), ("Fz",))
    with pytest.raises(Refused, match="no channel 'Pz'"):
        picked.pick(["Pz"])


def test_concatenate_reads_across_the_border():
    reads = []
    first, second = recording("one", samples=20), recording("two", channels=("Cz", "Fz"), reads=reads)
    both = concatenate([first, second])
    assert both.samples == 70 and not reads
    assert both.read(18, 22).tolist() == [[18, 19, 50, 51], [38, 39, 0, 1]]  # by the first one's channels
    assert both.read().equal(torch.cat([first.read(), second.read().flip(0)], 1))
    assert both.events.onset.tolist() == [1, 2, 3, 4] and both.events.column("recording") == ("0", "0", "1", "1")
    assert both.bad == ("Fz", "Cz")
    assert concatenate([first]).read(3, 7).equal(first.read(3, 7))


def test_concatenate_refuses():
    one = recording()
    with pytest.raises(Refused, match="two: rate is 20 Hz, but 10 Hz in one"):
        concatenate([one, recording("two", rate=20.0)])
    with pytest.raises(Refused, match=r"two: lacks 1 of the channels of one \(the first: Cz\)"):
        concatenate([one, recording("two", channels=("Fz",))])
    with pytest.raises(Refused, match=r"one: lacks 1 of the channels of two \(the first: Pz\)"):
        concatenate([one, recording("two", channels=("Fz", "Cz", "Pz"))])
    with pytest.raises(Refused, match="two: channel Cz is eeg in T, but eeg in V in one"):
        concatenate([one, recording("two", units=("V", "T"))])
    with pytest.raises(Refused, match="at least one"):
        concatenate([])


def test_events():
    events = Events(torch.tensor([0.0, 1.0, 2.0]).double(), torch.zeros(3).double(), ("b", "a", "b"), {"run": ("1", "1", "2")})
    assert events.pick(torch.tensor([2, 0])).names == ("b", "b") and events.named("a").column("run") == ("1",)
    assert joined([events, events], [0.0, 10.0]).onset.tolist() == [0, 1, 2, 10, 11, 12]
    for refused, words in (
        (lambda: events.named("c"), "none is named 'c'"),
        (lambda: events.column("runs"), "no column 'runs'; did you mean 'run'"),
        (lambda: Events.of([1.0], ["a", "b"]), "one for each of 1 events, got 2"),
    ):
        with pytest.raises(Refused, match=words):
            refused()


def spikes():
    generator = np.random.default_rng(0)
    times = [np.sort(generator.uniform(0, 10, n)) for n in (40, 0, 25)]
    pointers = torch.tensor([0, 40, 40, 65])
    return Spikes("s", torch.from_numpy(np.concatenate(times)), pointers, ("a", "silent", "c")), times


def test_counts_are_numpys_histogram():
    made, times = spikes()
    onsets = torch.tensor([5.0, 0.0, 0.3, 9.5], dtype=torch.float64)  # in no order, overlapping, at both ends
    counts = made.counts(0.25, -0.5, 1.0, onsets)
    assert counts.shape == (4, 6, 3) and counts.dtype == torch.int32
    for trial, onset in enumerate(onsets.tolist()):
        for unit in range(3):
            expected, _ = np.histogram(times[unit] - onset, np.linspace(-0.5, 1.0, 7))
            assert counts[trial, :, unit].tolist() == expected.tolist()
    assert int(made.counts(0.5, 0.0, 10.0).sum()) == 65


def test_bins_are_half_open_whatever_the_rounding():
    k = torch.arange(10).double()
    edges = Spikes("s", k * 0.1, torch.tensor([0, 10]), ("a",))
    assert edges.counts(0.1, 0.0, 1.0)[0, :, 0].tolist() == [1] * 10  # 3 · 0.1 is above 0.3, and 0.3 / 0.1 below 3
    assert edges.counts(0.1, 0.0, 0.5)[0, :, 0].tolist() == [1] * 5  # the spike at 0.5 is outside
    assert edges.counts(0.1, 0.05, 0.45)[0, :, 0].tolist() == [1] * 4


def test_spikes_refuse():
    made, _ = spikes()
    with pytest.raises(Refused, match="whole number of bins"):
        made.counts(0.3, 0.0, 1.0)
    with pytest.raises(Refused, match="whole number of bins"):
        made.counts(0.0, 0.0, 1.0)
    with pytest.raises(Refused, match=r"spike 1 \(unit b\) has no finite time"):
        Spikes("s", torch.tensor([0.0, math.inf]), torch.tensor([0, 1, 2]), ("a", "b"))
    with pytest.raises(Refused, match="rise within each unit"):
        Spikes("s", torch.tensor([1.0, 0.0]), torch.tensor([0, 2]), ("a",))
    with pytest.raises(Refused, match="pointers: must rise from 0 to 2"):
        Spikes("s", torch.tensor([0.0, 1.0]), torch.tensor([0, 1]), ("a",))


def volume(values, reads=None):
    def fetch(start, stop):
        if reads is not None:
            reads.append((start, stop))
        return values[start:stop]

    return Volume("v", tuple(values.shape[1:]), len(values), torch.eye(4).double(), (1.0, 1.0, 1.0), 2.0, fetch)


def test_voxels_come_in_blocks(monkeypatch):
    monkeypatch.setattr("neuropil.data.recordings._BLOCK", 3 * 24 * 4)
    values, reads = torch.randn(7, 2, 3, 4), []
    mask = torch.rand(2, 3, 4) > 0.5
    assert volume(values, reads).voxels(mask).equal(values[:, mask])
    assert reads == [(0, 3), (3, 6), (6, 7)]


def test_voxels_refuse_and_varying_leaves_out():
    values = torch.randn(6, 2, 3, 4)
    values[:, 1, 0, 2] = 7.0
    values[3, 0, 2, 1] = math.nan
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[0, 2, 1] = False
    with pytest.raises(Refused, match=r"v: 1 of 23 voxels of the mask are constant \(the first: \(1, 0, 2\)\)"):
        volume(values).voxels(mask)
    with pytest.raises(Refused, match=r"1 of 24 voxels of the mask are not finite \(the first: \(0, 2, 1\)\)"):
        volume(values).voxels(torch.ones_like(mask))
    mask[1, 0, 2] = False
    assert volume(values).varying().equal(mask)
    with pytest.raises(Refused, match="no voxel of v"):
        volume(values).voxels(torch.zeros_like(mask))
    with pytest.raises(Refused, match="must have the shape"):
        volume(values).voxels(torch.ones(2, 2, 2, dtype=torch.bool))
    with pytest.raises(Refused, match="samples 5 to 7"):
        volume(values).read(5, 7)


def test_read_recording_says_what_is_supported(tmp_path):
    file = tmp_path / "session.txt"
    file.write_bytes(b"\x89HDF\r\n\x1a\n and more")
    with pytest.raises(Refused, match=r"suffix '.txt' \(it looks like .nwb or .h5, supported: .edf"):
        read_recording(file)
    with pytest.raises(Refused, match=r"it looks like \.nwb or \.h5"):
        read_recording(file.rename(tmp_path / "session.edf"))
    with pytest.raises(Refused, match="no file"):
        read_recording(file)
    (tmp_path / "x.nii").write_bytes(b"0" * 9)
    with pytest.raises(Refused, match=r"channels: read_nifti .* knows no such option"):
        read_recording(tmp_path / "x.nii", channels=["Cz"])
