import numpy as np
import pytest
import torch

from neuropil.brain.neural_estimators import LangevinRates, MVCNetClassifier
from neuropil.brain.spikes import bits_per_spike
from neuropil.data.motor_imagery import FEW, imagery
from neuropil.errors import Refused


def test_a_classifier_of_arrays_with_words_for_classes():
    data = imagery(
        torch.Generator().manual_seed(0), subjects=2, trials=80, seconds=2.0, rate=64.0, names=FEW, noise=0.3, depth=(0.8, 0.9)
    )
    x, y = data.trials.signals.numpy(), np.array(["left", "right"])[data.trials.labels.numpy()]
    group = data.subject.numpy()
    model = MVCNetClassifier(64.0, FEW, epochs=15, weights=(0.0, 0.0)).fit(x[::2], y[::2], group[::2])
    assert model.score(x[1::2], y[1::2], group[1::2]) > 0.7
    assert model.classes_.tolist() == ["left", "right"]
    assert isinstance(model.predict_proba(x[:3]), np.ndarray)
    again = MVCNetClassifier(64.0, FEW, epochs=15, weights=(0.0, 0.0)).fit(x[::2], y[::2], group[::2])
    assert np.array_equal(model.predict_proba(x[:9]), again.predict_proba(x[:9]))
    assert model.get_params()["epochs"] == 15


def test_rates_learn_and_score_what_was_hidden():
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(40, 1, 6, generator=generator).expand(40, 12, 6) * 3 + 0.1  # a rate a trial and neuron pair
    rates = torch.cat([rates[..., :3], rates[..., :3]], -1)
    counts = torch.poisson(rates, generator=generator)
    model = LangevinRates(seen=3, ahead=2, hidden=16, steps=60, lr=1e-2).fit(counts.numpy())
    assert model.score(counts) > 0.05
    found = torch.as_tensor(model.predict(counts[:, :10]))
    assert found.shape == counts.shape
    everything = LangevinRates(hidden=8, steps=2).fit(counts)
    log = everything.predict(counts).clamp(min=1e-6).log()
    assert everything.score(counts) == pytest.approx(bits_per_spike(log, counts))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MVCNetClassifier(20.0).fit(torch.zeros(4, 2, 40), [1, 1, 1, 1]), "two classes"),
        (lambda: MVCNetClassifier(20.0).fit(torch.full((4, 2, 40), float("nan")), [0, 1, 0, 1]), "X: contains NaN"),
        (lambda: MVCNetClassifier(20.0).fit(torch.randn(4, 2, 40), [0, 1]), "y: one class for each of 4"),
        (lambda: MVCNetClassifier(20.0).fit(torch.randn(4, 2, 40), [0, 1, 0, 1], groups=[0]), "groups"),
        (lambda: LangevinRates(ahead=9).fit(torch.ones(3, 9, 2)), "ahead"),
        (lambda: LangevinRates().fit(-torch.ones(3, 9, 2)), "none negative"),
        (lambda: LangevinRates(seen=5).fit(torch.ones(3, 9, 2)), "seen"),
    ],
)
def test_bad_input_is_refused(make, words):
    with pytest.raises(Refused, match=words):
        make()
