"""The paired bench: a net equals itself, seeds share everything but the net, and what is worse is found out."""

import functools

import numpy
import pytest
import torch
from torch import nn

from neuropil.data.containers import Images
from neuropil.errors import Refused
from neuropil.training.image_bench import batches, image_bench, shifted, split


def strokes(n, side=8, seed=0):
    """Noisy images of a bar in one of four places, the label: a simulator, learned within some steps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 4
    pixels = 0.7 * torch.rand(n, side, side, generator=generator)
    pixels[torch.arange(n), 2 * labels] += 0.3
    return Images(pixels, labels)


def linear(classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], classes))


def hidden(classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1], 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, classes))


class Blind(nn.Module):
    """Sees the mean of the image alone."""

    def __init__(self, classes, shape):
        super().__init__()
        self.out = nn.Linear(1, classes)

    def forward(self, x):
        return self.out(x.flatten(1).mean(1, keepdim=True))


@pytest.mark.parametrize("shift", [0, 1])
def test_a_net_against_itself_differs_by_exactly_0(shift):
    bench = image_bench({"a": hidden, "b": hidden}, strokes(80), seeds=(0, 5, 7), steps=10, batch=16, shift=shift)
    for measure in ("accuracy", "loss"):
        assert bench.differences("a", "b", measure) == (0.0, 0.0, 0.0)
        assert bench.difference("a", "b", measure) == (0.0, 0.0, 0.0)
    assert len(set(bench.loss["a"])) == 3  # seeds do differ


def test_the_order_of_nets_changes_nothing_without_a_common_start_and_runs_repeat():
    options = {"seeds": (1, 2), "steps": 8, "batch": 16, "same_start": False}
    bench = image_bench({"one": hidden, "two": linear}, strokes(80), **options)
    other = image_bench({"two": linear, "one": hidden}, strokes(80), **options)
    assert {**bench.loss} == {**other.loss} and bench.weights == {"one": 64 * 16 + 16 + 16 * 4 + 4, "two": 260}


def test_seeds_are_paired_by_batch_shift_start_and_dropout():
    """Nets that note what they are given, with another random draw at birth: all of it is the same."""
    seen = {}

    def noting(name, births):
        def maker(classes, shape):
            torch.rand(births)
            net = hidden(classes, shape)
            seen[name] = found = {"x": [], "hidden": []}

            def note(module, inputs, output):
                if module.training:
                    found["x"].append(inputs[0].clone())
                    found["hidden"].append(output.detach().clone())

            net.register_forward_hook(note)
            return net

        return maker

    makers = {"a": noting("a", 0), "b": noting("b", 3)}
    image_bench(makers, strokes(80), seeds=(4,), steps=6, batch=16, shift=2)
    a, b = seen["a"], seen["b"]
    assert len(a["x"]) == 6 and all(map(torch.equal, a["x"], b["x"])) and all(map(torch.equal, a["hidden"], b["hidden"]))
    image_bench(makers, strokes(80), seeds=(4,), steps=6, batch=16, shift=2, same_start=False)
    a, b = seen["a"], seen["b"]
    assert all(map(torch.equal, a["x"], b["x"])) and not torch.equal(a["hidden"][0], b["hidden"][0])


def test_only_parameters_of_the_same_name_and_shape_start_alike():
    starts = []

    def born(maker):
        def make(classes, shape):
            net = maker(classes, shape)
            starts.append(net)
            return net

        return make

    def wider(classes, shape):
        torch.rand(7)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, classes))

    image_bench({"a": born(hidden), "b": born(wider)}, strokes(80), seeds=(0,), steps=1, batch=16)
    a, b = starts
    assert torch.equal(a[4].bias, b[4].bias) and not torch.equal(a[1].weight, b[1].weight[:16])


def test_a_crippled_net_loses():
    bench = image_bench({"linear": linear, "blind": Blind}, strokes(200), seeds=range(4), steps=40, batch=32, lr=0.03)
    mean, low, high = bench.difference("blind", "linear")
    assert low < mean < high < -0.3 and bench.difference("blind", "linear", "loss")[1] > 0
    assert "linear" in str(bench) and f"{mean:+.4f}" in str(bench)


def test_pairing_makes_the_spread_smaller():
    """Two nets that differ little: their differences vary less between seeds than what each of them reaches."""

    def bolder(classes, shape):
        class Scale(nn.Module):
            def forward(self, x):
                return 1.1 * x

        return linear(classes, shape).append(Scale())

    bench = image_bench({"a": linear, "b": bolder}, strokes(120), seeds=range(4), steps=20, batch=16, lr=0.01)
    differences = bench.differences("b", "a", "loss")
    assert all(d != 0 for d in differences)
    assert numpy.std(differences) < 0.5 * numpy.std(bench.loss["a"])


def test_the_rate_is_chosen_on_images_that_neither_train_nor_test():
    bench = image_bench({"linear": linear}, strokes(200), seeds=(0, 1), steps=40, batch=32, lr=(1e-6, 0.03))
    assert bench.rates["linear"] == (0.03, 0.03) and min(bench.accuracy["linear"]) > 0.8


def test_splits_are_of_every_class_and_never_overlap():
    labels = torch.arange(100) % 5
    parts = split(labels, seed=3, test=0.2, check=0.25)
    assert [len(p) for p in (parts.train, parts.check, parts.test)] == [60, 20, 20]
    assert torch.cat([parts.train, parts.check, parts.test]).sort().values.tolist() == list(range(100))
    assert torch.bincount(labels[parts.test]).tolist() == [4] * 5
    assert not torch.equal(parts.test, split(labels, seed=4, test=0.2, check=0.25).test)


@pytest.mark.parametrize("colours", [(), (3,)])
def test_shifts_move_whole_images(colours):
    x = torch.rand(20, 5, 6, *colours)
    moved = shifted(x, 2, numpy.random.default_rng(0))
    for before, after in zip(x, moved, strict=True):
        framed = torch.zeros(9, 10, *colours)
        framed[2:7, 2:8] = before
        assert any(torch.equal(after, framed[i : i + 5, j : j + 6]) for i in range(5) for j in range(5))
    assert not torch.equal(x, moved)


def test_a_batch_depends_on_seed_and_step_alone():
    images = strokes(40)
    one, other = (batches(images.pixels, images.labels, 8, seed=2, shift=1) for _ in range(2))
    backwards = {step: other(step) for step in (6, 3, 0)}
    assert all(torch.equal(a, b) for step in backwards for a, b in zip(one(step), backwards[step], strict=True))


def test_colour_images_and_the_callers_random_numbers():
    pixels = torch.rand(40, 4, 4, 3)
    maker = lambda classes, shape: nn.Sequential(nn.Flatten(), nn.Linear(48, classes))  # noqa: E731
    torch.manual_seed(11)
    image_bench({"a": maker}, Images(pixels, torch.arange(40) % 2), seeds=(0,), steps=1, batch=4)
    after = torch.rand(3)
    torch.manual_seed(11)
    assert torch.equal(torch.rand(3), after)


def test_results_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path))
    calls = []
    monkeypatch.setattr("neuropil.training.image_bench._Task.learn", _counted(calls))
    run = functools.partial(image_bench, {"a net": linear}, seeds=(0, 1), steps=4, batch=16, keep=True)
    first, again = run(strokes(80)), run(strokes(80))
    assert first == again and len(calls) == 2
    assert run(strokes(80, seed=1)) != first and len(calls) == 4
    with pytest.raises(Refused, match="partial"):
        image_bench({"a": functools.partial(linear)}, strokes(80), steps=1, batch=16, keep=True)


def _counted(calls):
    from neuropil.training.image_bench import _Task

    learn = _Task.learn

    def counted(self, model, rate):
        calls.append(rate)
        return learn(self, model, rate)

    return counted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"makers": {}}, "makers"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"lr": ()}, "lr"),
        ({"shift": 8}, "shift"),
        ({"shift": -1}, "shift"),
        ({"test": 1.0}, "test"),
        ({"test": 0.01}, "class 0 has 20 images"),
        ({"batch": 1000}, "size"),
        ({"steps": 0}, "steps"),
        ({"makers": {"a": lambda classes, shape: nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}}, r"\(2, 4\).*\(2, 3\)"),
        ({"images": Images(torch.rand(8, 8, 8), torch.arange(8) - 1)}, "labels"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_refuses(change, message):
    with pytest.raises(Refused, match=message):
        image_bench(**({"makers": {"a": linear}, "images": strokes(80), "steps": 1, "batch": 16} | change))


def test_an_unknown_net_or_measure_is_refused():
    bench = image_bench({"a": linear}, strokes(80), seeds=(0,), steps=1, batch=16)
    with pytest.raises(Refused, match="'b'"):
        bench.difference("a", "b")
    with pytest.raises(Refused, match="measure"):
        bench.differences("a", "a", "speed")
