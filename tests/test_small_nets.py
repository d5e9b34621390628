"""Small trained nets: they learn, are kept, and their parts are what they say."""

import pytest
import torch
from torch import nn

from neuropil.data.loaders import digits
from neuropil.data.sources import cache, path
from neuropil.data.texts import encode, text, windows
from neuropil.errors import Refused
from neuropil.training.small_nets import CNN, ViT, digit_cnn, digit_vit, next_token_loss, text_gpt


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache without trained nets, with the real data if it is there."""
    real = cache()
    for name in ("mnist", "text"):
        try:
            path(name)
        except Refused as refused:
            pytest.skip(str(refused))
        (tmp_path / name).symlink_to(real / name)
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path))


@pytest.mark.parametrize(
    ("train", "few"),
    [
        (digit_cnn, {"width": 4, "steps": 40, "batch": 32}),
        (digit_vit, {"d": 16, "heads": 2, "layers": 1, "hidden": 16, "steps": 150, "batch": 32}),
    ],
)
def test_digits_are_learned_and_kept(fresh, train, few):
    found = train(seed=3, checkpoints=2, **few)
    assert found.note == "trained" and found.notes["test accuracy"] > 0.5 and len(found.notes["losses"]) == few["steps"]
    assert found.steps == [0, few["steps"] // 2, few["steps"]]
    test = digits("mnist", "test")

    def accuracy(net):
        with torch.no_grad():
            return float((net(test.pixels).argmax(-1) == test.labels).double().mean())

    assert accuracy(found.model) == pytest.approx(found.notes["test accuracy"]) and accuracy(found.at(0)) < 0.25
    again = train(seed=3, checkpoints=2, **few)
    assert again.note == "loaded" and all(map(torch.equal, again.model.parameters(), found.model.parameters()))
    assert again.notes == found.notes


@pytest.mark.parametrize(
    ("checkpoints", "kept"), [(0, []), (1, [0, 6]), (4, [0, 1, 3, 4, 6]), (6, list(range(7))), (9, list(range(7)))]
)
def test_as_many_checkpoints_as_asked_for_are_kept(fresh, checkpoints, kept):
    assert digit_cnn(seed=3, width=1, steps=6, batch=2, checkpoints=checkpoints).steps == kept


@pytest.mark.parametrize("hidden", [0, 32])
def test_text_is_learned(fresh, hidden):
    found = text_gpt(seed=3, corpus="news", d=32, heads=2, layers=1, hidden=hidden, context=16, steps=60, batch=32)
    assert found.notes["losses"][0] > 3.5 and found.notes["test loss"] < 2.9  # single letters alone come to 2.88
    pieces = windows(encode(text("news", "test")), 16, 128, torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert float(next_token_loss(found.model, pieces)) == pytest.approx(found.notes["test loss"], abs=1e-5)
    assert text_gpt(seed=3, corpus="news", d=32, heads=2, layers=1, hidden=hidden, context=16, steps=60, batch=32).note == "loaded"


def test_patches_are_those_of_the_image():
    image = torch.arange(36.0).view(1, 6, 6)
    cut = ViT(patch=3, d=8, heads=2, layers=1, side=6).patches(image)
    assert torch.equal(cut[0, 1].view(3, 3), image[0, :3, 3:]) and torch.equal(cut[0, 2].view(3, 3), image[0, 3:, :3])
    torch.testing.assert_close(cut, nn.functional.unfold(image[:, None], 3, stride=3).mT)


def test_the_vit_sees_places_and_all_patches():
    net = ViT(patch=3, d=8, heads=2, layers=2, side=6, hidden=16).eval()
    x = torch.randn(2, 6, 6)
    out = net(x)
    assert not torch.allclose(net(x.roll(3, 1)), out)  # the same patches elsewhere
    net.place.data.zero_()
    torch.testing.assert_close(net(x.roll(3, 1)), net(x))
    with pytest.raises(Refused, match="patch: must divide the side of 28 pixels, got 5"):
        ViT(patch=5)
    with pytest.raises(Refused, match="width, side: at least 1 channel and a multiple of 4 pixels"):
        CNN(side=30)


def test_next_token_loss():
    logits = torch.randn(2, 5, 4)
    tokens = torch.randint(4, (2, 5))
    expected = -torch.stack([logits[b, i].log_softmax(-1)[tokens[b, i + 1]] for b in range(2) for i in range(4)]).mean()

    class Fixed(nn.Module):
        def forward(self, tokens):
            return logits

    torch.testing.assert_close(next_token_loss(Fixed(), tokens), expected)
