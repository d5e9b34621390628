"""Training: the loop is the formula, a run that was cut off goes on bit-equal, and nothing is ever half-written."""

import dataclasses
import errno
import json
import random
import signal
import subprocess
import sys
import threading

import numpy
import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from neuropil.errors import Refused
from neuropil.nn.mlp import MLP
from neuropil.training import checkpoint
from neuropil.training.fit import cosine, fit, minibatches

STEPS = 12
X = torch.linspace(-3, 3, 60)[:, None]
BATCHES = minibatches([X, X.sin()], size=16, seed=0)


def net(dropout=0.3):
    torch.manual_seed(1)
    numpy.random.seed(1)
    return MLP([1, 16, 1], dropout=dropout)


def noisy(model, batch):
    return mse_loss(model(batch[0]), batch[1] * (1 + 0.1 * numpy.random.rand()))


def train(folder=None, model=None, loss=noisy, **more):
    """A training with everything that a checkpoint must keep: Adam's moments, dropout, two generators, a schedule.

    Python's own generator has its test apart: beartype, which is on here, draws from it.
    """
    settings = {"steps": STEPS, "lr": 0.01, "schedule": cosine(0.2), "clip": 1.0, "folder": folder, "every": 5} | more
    model = net() if model is None else model
    return model, fit(model, loss, BATCHES, **settings)


def assert_equal(one, other):
    assert one[1].losses == other[1].losses
    for value, expected in zip(one[0].state_dict().values(), other[0].state_dict().values(), strict=True):
        assert torch.equal(value, expected)


def stop_at(step):
    """A report that is Ctrl-C while `step` steps are done."""

    def report(what, fraction):
        if round(fraction * STEPS) == step:
            signal.raise_signal(signal.SIGINT)

    return report


def steps_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


@pytest.fixture
def ctrl_c():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_the_loop_is_its_formula():
    model, expected = net(0.0), net(0.0)
    history = fit(
        model, lambda f, b: mse_loss(f(b[0]), b[1]), BATCHES, steps=4, lr=0.1, optimizer=torch.optim.SGD, schedule=cosine()
    )
    for step in range(4):
        x, y = BATCHES(step)
        value = mse_loss(expected(x), y)
        assert history.losses[step] == pytest.approx(value.item(), rel=1e-5)  # SGD rounds p − lr g as the processor likes
        for p, g in zip(expected.parameters(), torch.autograd.grad(value, list(expected.parameters())), strict=True):
            p.data -= 0.1 * cosine()(step / 4) * g
    for p, q in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q)
    assert json.loads(json.dumps(dataclasses.asdict(history)))["steps"] == 4
    assert history.seconds > 0


def test_report_gets_every_step_and_the_mode_comes_back():
    seen = []
    model = net().eval()
    train(model=model, report=lambda what, fraction: seen.append(fraction))
    assert seen == [(step + 1) / STEPS for step in range(STEPS)]
    assert not model.training


def test_frozen_parts_stay_frozen():
    """In the steps, where a report changes modes, and afterwards."""
    model = nn.Sequential(nn.BatchNorm1d(1).eval(), nn.Linear(1, 1), nn.Dropout(0.1))
    seen = []

    def loss(f, b):
        seen.append([m.training for m in f])
        return noisy(f, b)

    train(model=model, loss=loss, report=lambda what, fraction: model.eval() if fraction < 0.5 else model.train())
    assert seen == [[False, True, True]] * STEPS
    assert [m.training for m in model] == [False, True, True] and not model[0].running_mean.any()


def test_every_epoch_is_a_permutation():
    batch = minibatches([torch.arange(12)], size=4, seed=3)
    epochs = [torch.cat([batch(3 * epoch + part)[0] for part in range(3)]) for epoch in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert torch.equal(batch(4)[0], minibatches([torch.arange(12)], size=4, seed=3)(4)[0])


@pytest.mark.parametrize(("rows", "size"), [((), 1), ((5, 4), 2), ((5, 5), 6), ((5,), 0)])
def test_rows_that_do_not_fit_are_refused(rows, size):
    with pytest.raises(Refused, match="tensors, size"):
        minibatches([torch.zeros(n) for n in rows], size, seed=0)


def test_checkpoints_change_nothing_and_the_newest_two_stay(tmp_path):
    assert_equal(train(tmp_path), train())
    assert steps_in(tmp_path) == ["step-00000010", "step-00000012"]
    assert {p.name for p in (tmp_path / "step-00000012").iterdir()} == {"model.safetensors", "state.safetensors", "state.json"}
    assert set(json.loads((tmp_path / "step-00000012" / "state.json").read_text())["sha256"]) >= {
        "model.safetensors",
        "state.safetensors",
    }


@pytest.mark.parametrize("step", [1, 7, STEPS])
def test_ctrl_c_leaves_a_checkpoint_that_goes_on_bit_equal(tmp_path, ctrl_c, step):
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, report=stop_at(step))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert steps_in(tmp_path)[-1] == f"step-{min(step + 1, STEPS):08d}"
    _ = torch.rand(3), numpy.random.rand()  # the resumed run must not go on from here
    assert_equal(train(tmp_path, MLP([1, 16, 1], dropout=0.3)), train())


def test_ctrl_c_inside_the_loss_waits_for_the_step_and_a_second_one_does_not(tmp_path, ctrl_c):
    def pressed(times):
        def loss(model, batch):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
            return noisy(model, batch)

        return loss

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loss=pressed(1))
    assert steps_in(tmp_path) == ["step-00000001"]
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loss=pressed(2))
    assert steps_in(tmp_path) == ["step-00000001"]
    assert_equal(train(tmp_path), train())


def test_all_generators_are_kept(tmp_path):
    cpu = torch.device("cpu")
    checkpoint.save(tmp_path, 1, {}, checkpoint.random_state(cpu))
    state = checkpoint.load(tmp_path)[2]
    drawn = []
    for _ in range(2):
        checkpoint.restore_random_state(state, cpu)
        drawn.append((random.random(), random.gauss(), numpy.random.rand(), numpy.random.randn(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]
    before = checkpoint.random_state(cpu)
    expected = random.random(), numpy.random.rand(), torch.rand(1).item()
    checkpoint.restore_random_state(before, cpu)
    assert expected == (random.random(), numpy.random.rand(), torch.rand(1).item())


class Generators:
    """What torch.cuda would have: the state of each device is a number."""

    def __init__(self, monkeypatch, in_use):
        self.states = [11, 12]
        for name, fake in {
            "is_initialized": lambda: in_use,
            "device_count": lambda: 2,
            "get_rng_state": lambda device: self.states[device],
            "set_rng_state": lambda state, device: self.states.__setitem__(device, state),
            "manual_seed_all": lambda seed: self.states.__setitem__(slice(None), [seed, seed]),
        }.items():
            monkeypatch.setattr(torch.cuda, name, fake)


@pytest.mark.parametrize("in_use", [True, False])
def test_seeds_in_a_block_do_not_reach_the_devices_generators_after_it(monkeypatch, in_use):
    torch.manual_seed(5)
    cuda = Generators(monkeypatch, in_use)
    with pytest.raises(KeyError), checkpoint.randomness_kept():
        torch.manual_seed(6)
        random.seed(6)
        assert cuda.states == [6, 6]
        raise KeyError
    assert cuda.states == ([11, 12] if in_use else [5, 5])


def test_a_dict_that_would_be_read_as_a_tensor_is_refused(tmp_path):
    for state in ({"tensor": "x"}, {"a": [torch.zeros(1), {"tensor": "0"}]}, {"tensor": {"tensor": 1}}, {"tensor": torch.zeros(1)}):
        with pytest.raises(Refused, match="state: a dict whose only key is 'tensor'"):
            checkpoint.save(tmp_path, 1, {}, state)
    both = {"tensor": "x", "other": torch.ones(1)}
    assert checkpoint.unflatten(*checkpoint.flatten(both)) == both


def test_an_error_anywhere_goes_on_from_the_checkpoint_before(tmp_path):
    def broken(model, batch):
        broken.calls += 1
        if broken.calls == 9:
            raise RuntimeError("out of memory")
        return noisy(model, batch)

    broken.calls = 0
    with pytest.raises(RuntimeError, match="memory"):
        train(tmp_path, loss=broken)
    assert steps_in(tmp_path) == ["step-00000005"]
    assert_equal(train(tmp_path), train())


def test_a_finished_run_is_not_done_again(tmp_path):
    done = train(tmp_path)
    again = train(tmp_path, MLP([1, 16, 1], dropout=0.3), loss=lambda model, batch: pytest.fail("a step was done"))
    assert_equal(again, done)


def test_training_works_outside_the_main_thread():
    result = []
    thread = threading.Thread(target=lambda: result.append(train()))
    thread.start()
    thread.join()
    assert_equal(result[0], train())


def damage(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"truncated": content[:-9], "empty": b"", "flipped": flipped}[how])


@pytest.mark.parametrize("how", ["truncated", "empty", "flipped", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "state.safetensors", "state.json"])
def test_a_corrupt_checkpoint_falls_back_and_is_named(tmp_path, name, how):
    done = train(tmp_path)
    damage(tmp_path / "step-00000012" / name, how)
    with pytest.warns(UserWarning, match=f"going back to the checkpoint of step 10.*step-00000012/{name}"):
        again = train(tmp_path, MLP([1, 16, 1], dropout=0.3))
    assert_equal(again, done)
    damage(tmp_path / "step-00000012" / name, how)
    damage(tmp_path / "step-00000010" / name, how)
    with pytest.raises(Refused, match=f"step-00000012/{name}.*step-00000010/{name}.*delete") as refused:
        train(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("call", [1, 2, 3])
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, call):
    train(tmp_path, steps=10)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    calls = []

    def full(handle):
        calls.append(handle)
        if len(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        train(tmp_path, every=1)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    assert checkpoint.load(tmp_path)[0] == 10


def test_what_a_killed_process_left_is_swept_up(tmp_path):
    (tmp_path / ".step").mkdir()
    (tmp_path / ".step" / "model.safetensors").write_bytes(b"half")
    train(tmp_path, steps=6)
    (tmp_path / "step-00000003").mkdir()  # killed while it was deleted
    assert_equal(train(tmp_path, steps=6), train(steps=6))
    train(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"step-00000010", "step-00000012", "checkpoints.lock"}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_loss_that_is_not_finite_names_the_step(bad):
    model = net()
    with pytest.raises(Refused, match=r"loss: (nan|inf) at step 0"):
        train(model=model, loss=lambda model, batch: noisy(model, batch) * bad)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"steps": 0}, "steps"),
        ({"lr": -1.0}, "lr"),
        ({"clip": float("nan")}, "clip"),
        ({"every": 0}, "every"),
        ({"devices": 0}, "devices"),
        ({"devices": 2, "device": "cuda"}, "devices: 2 from cuda on.*torch sees"),
        ({"device": "gpu"}, "device: 'gpu'"),
        ({"device": "cuda:99"}, "device: 'cuda:99'"),
        ({"precision": "bf16"}, "did you mean 'bf16-mixed'"),
        ({"folder": __file__}, "folder.*is a file"),
        ({"loss": lambda model, batch: model(batch[0])}, r"loss: must be one number, got shape \(16, 1\)"),
        ({"model": torch.nn.ReLU()}, "model"),
    ],
)
def test_bad_input_is_refused(settings, says):
    with pytest.raises(Refused, match=says) as refused:
        train(**settings)
    assert "\n" not in str(refused.value)


def test_a_folder_of_something_else_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(Refused, match="another model"):
        train(tmp_path, MLP([1, 8, 1]))
    with pytest.raises(Refused, match=r"steps.*step 12.*got 11"):
        train(tmp_path, steps=11)
    with pytest.raises(Refused, match="set"):
        checkpoint.save(tmp_path, 13, {}, {"a": {1, 2}})
    assert steps_in(tmp_path) == ["step-00000010", "step-00000012"]


def test_bfloat16_runs_under_autocast_and_resumes(tmp_path, ctrl_c):
    seen = []

    def loss(model, batch):
        out = model(batch[0])
        seen.append(out.dtype)
        return mse_loss(out.float(), batch[1])

    whole = train(loss=loss, precision="bf16-mixed")
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in whole[0].parameters())
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, loss=loss, precision="bf16-mixed", report=stop_at(4))
    assert_equal(train(tmp_path, loss=loss, precision="bf16-mixed"), whole)


def test_the_package_imports_neither_torch_nor_lightning():
    code = "import sys, neuropil.training; assert not [name for name in sys.modules if 'torch' in name or 'lightning' in name]"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


TOGETHER = """
import json, sys
from pathlib import Path
import torch
from neuropil.nn.mlp import MLP
from neuropil.training.fit import fit, minibatches

x = torch.linspace(-3, 3, 64, dtype=torch.float64)[:, None]
single = minibatches([x, x.sin()], 8, 0)
double = lambda step: tuple(torch.cat(pair) for pair in zip(single(2 * step), single(2 * step + 1)))

def train(devices, batches, steps, folder=None):
    torch.manual_seed(0)
    model = MLP([1, 16, 1]).double()
    loss = lambda f, b: (f(b[0]) - b[1]).square().mean()
    history = fit(model, loss, batches, steps=steps, lr=0.01, clip=0.5, devices=devices, folder=folder)
    return torch.tensor(history.losses), torch.cat([p.detach().flatten() for p in model.parameters()])

alone = train(1, double, 20)
assert not any("lightning" in name for name in sys.modules)
train(2, single, 8, sys.argv[1])
together = train(2, single, 20, sys.argv[1])  # goes on from step 8
apart = [float((a - b).abs().max()) for a, b in zip(alone, together, strict=True)]
rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
Path(sys.argv[1], f"rank-{rank}.json").write_text(json.dumps([size, len(together[0]), *apart]))
"""


def test_two_processes_equal_one_on_the_doubled_batch(tmp_path):
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    done = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        world, steps, weights, losses = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        assert (world, steps) == (2, 20)
        assert weights < 1e-6 and losses < 1e-6
    assert steps_in(tmp_path) == ["step-00000018", "step-00000020"]
    found = checkpoint.load(tmp_path)
    assert found is not None and len(found[2]["random"]) == 2
