"""Small trained nets that instruments are pointed at: a CNN and a ViT on digits, a GPT on text. Each is trained once and kept.

    digit_cnn(seed=0).model          28 × 28 pixels → 10 logits, two convolutions
    digit_vit(seed=0).model          the same from patches, by a transformer          Dosovitskiy et al. 2021, arXiv:2010.11929
    text_gpt(seed=0).model           characters → logits of the next, by `nn.transformer.GPT`

They return `training.trained.Trained`: the net in eval mode, weights of steps kept on the way, and notes: the loss of each step
and, on digits or documents not trained on, the accuracy or the loss in nats a character. Same arguments, same net, until torch or
the code changes.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from neuropil.data.loaders import digits
from neuropil.data.texts import ALPHABET, encode, text, windows
from neuropil.errors import Refused
from neuropil.nn.attention import MultiHead
from neuropil.nn.mlp import MLP
from neuropil.nn.transformer import GPT, Transformer
from neuropil.training.fit import cosine, fit, minibatches
from neuropil.training.trained import Trained, trained


class CNN(nn.Sequential):
    """Two 5 × 5 convolutions of `width` and 2 `width` channels, each with ReLU and 2 × 2 max pooling, and a linear read-out.

    Sites: ``1`` and ``4`` the convolutions, ``2`` and ``5`` the rectified maps, ``8`` the logits.

    >>> CNN(width=4)(torch.zeros(3, 28, 28)).shape
    torch.Size([3, 10])
    """

    def __init__(self, width: int = 16, side: int = 28, classes: int = 10) -> None:
        if width < 1 or side < 4 or side % 4:
            raise Refused(f"width, side: at least 1 channel and a multiple of 4 pixels are needed, got {width} and {side}")
        super().__init__(
            nn.Unflatten(1, (1, side)),
            nn.Conv2d(1, width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * width * (side // 4) ** 2, classes),
        )


class ViT(Transformer):
    """A transformer on the patches of an image: ``logits = head(mean over patches of transformer(embed(patch) + p))``.

    `patch` is the side of a patch in pixels; places are learned vectors; further arguments are those of `Transformer`. Patches come
    row by row. Differs from the paper: the mean of the patches is read, no token of its own. Sites: those of `Transformer`,
    ``embed``, ``head``.

    >>> ViT(patch=7, d=8, heads=2, layers=1, hidden=16)(torch.zeros(3, 28, 28)).shape
    torch.Size([3, 10])
    """

    def __init__(
        self, patch: int = 7, d: int = 64, heads: int = 4, layers: int = 2, side: int = 28, classes: int = 10, **options: Any
    ) -> None:
        if patch < 1 or side % patch:
            raise Refused(f"patch: must divide the side of {side} pixels, got {patch}")
        super().__init__(d, heads, layers, (side // patch) ** 2, positions="learned", causal=False, **options)
        self.patch = patch
        self.embed = nn.Linear(patch**2, d)
        self.head = nn.Linear(d, classes)

    def patches(self, images: Float[Tensor, "b h w"]) -> Float[Tensor, "b n p"]:
        """The patches of each image, row by row, each as a vector of its pixels."""
        squares = images.unfold(1, self.patch, self.patch).unfold(2, self.patch, self.patch)
        return squares.flatten(3).flatten(1, 2)

    def forward(self, images: Float[Tensor, "b h w"], mask: None = None) -> Float[Tensor, "b classes"]:  # type: ignore[override]
        """Logits."""
        return self.head(super().forward(self.embed(self.patches(images))).mean(1))


def digit_cnn(
    seed: int = 0,
    *,
    width: int = 16,
    steps: int = 400,
    batch: int = 64,
    lr: float = 3e-3,
    checkpoints: int = 0,
    device: str = "cpu",
) -> Trained:
    """A `CNN` on 4,000 handwritten digits (MNIST); `checkpoints` weights are kept on the way, evenly from step 0, and the last.

    >>> digit_cnn(width=2, steps=1, batch=8).notes.keys()
    dict_keys(['losses', 'test accuracy'])
    """
    training = {"steps": steps, "batch": batch, "lr": lr, "checkpoints": checkpoints}
    return _trained("digit-cnn", _make_cnn, _train_on_digits, seed, {"width": width}, training, device)


def digit_vit(
    seed: int = 0,
    *,
    patch: int = 7,
    d: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 128,
    steps: int = 800,
    batch: int = 64,
    lr: float = 3e-3,
    checkpoints: int = 0,
    device: str = "cpu",
) -> Trained:
    """A `ViT` on 4,000 handwritten digits (MNIST).

    >>> digit_vit(patch=14, d=4, heads=2, layers=1, hidden=4, steps=1, batch=8).model.patch
    14
    """
    net = {"patch": patch, "d": d, "heads": heads, "layers": layers, "hidden": hidden}
    training = {"steps": steps, "batch": batch, "lr": lr, "checkpoints": checkpoints}
    return _trained("digit-vit", _make_vit, _train_on_digits, seed, net, training, device)


def text_gpt(
    seed: int = 0,
    *,
    corpus: str = "wikipedia",
    d: int = 64,
    heads: int = 4,
    layers: int = 2,
    hidden: int = 128,
    context: int = 64,
    steps: int = 600,
    batch: int = 32,
    lr: float = 3e-3,
    checkpoints: int = 0,
    device: str = "cpu",
) -> Trained:
    """A `nn.transformer.GPT` with rotary positions on the characters of `data.texts`; `hidden` = 0 makes it attention-only.

    >>> text_gpt(corpus="news", d=4, heads=1, layers=1, hidden=0, context=4, steps=1, batch=2).notes.keys()
    dict_keys(['losses', 'test loss'])
    """
    net = {"d": d, "heads": heads, "layers": layers, "hidden": hidden, "context": context}
    training = {"corpus": corpus, "steps": steps, "batch": batch, "lr": lr, "checkpoints": checkpoints}
    return _trained("text-gpt", _make_gpt, _train_on_text, seed, net, training, device)


Settings = dict[str, Any]


def _trained(name: str, make: Any, train: Any, seed: int, net: Settings, training: Settings, device: str) -> Trained:
    settings = {"net": net, "training": training}
    code = (digits, text, fit, Transformer, MultiHead, MLP)
    return trained(name, make, train, seed=seed, settings=settings, code=code, device=device)


def _make_cnn(net: Settings, training: Settings) -> CNN:
    return CNN(**net)


def _make_vit(net: Settings, training: Settings) -> ViT:
    return ViT(**net)


def _make_gpt(net: Settings, training: Settings) -> GPT:
    return GPT(len(ALPHABET), **net)


def _train_on_digits(model: nn.Module, keep: Any, net: Settings, training: Settings) -> Settings:
    """Cross-entropy on the 4,000 training digits; accuracy on the other 1,000."""
    train, test = digits("mnist", "train"), digits("mnist", "test")
    batches = minibatches([train.pixels, train.labels], training["batch"], seed=int(torch.randint(2**31, ())))
    losses = _train(model, lambda net, b: cross_entropy(net(b[0]), b[1]), batches, keep, training)
    with torch.no_grad():
        answers = model.eval()(test.pixels.to(next(model.parameters()).device)).argmax(-1).cpu()
    return {"losses": losses, "test accuracy": float((answers == test.labels).double().mean())}


def _train_on_text(model: nn.Module, keep: Any, net: Settings, training: Settings) -> Settings:
    """Cross-entropy of the next character in pieces of the training documents; in nats on pieces of the others."""
    train, test = (encode(text(training["corpus"], split)) for split in ("train", "test"))
    losses = _train(model, next_token_loss, lambda step: windows(train, net["context"], training["batch"]), keep, training)
    pieces = windows(test, net["context"], 128, torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = next_token_loss(model.eval(), pieces.to(next(model.parameters()).device))
    return {"losses": losses, "test loss": float(loss)}


def next_token_loss(model: nn.Module, tokens: Tensor) -> Tensor:
    """Mean cross-entropy, in nats, of each token but the first, given those before it.

    >>> model = nn.Sequential(nn.Embedding(4, 2), nn.Linear(2, 4))
    >>> next_token_loss(model, torch.tensor([[0, 1, 2]])).shape
    torch.Size([])
    """
    return cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def _train(
    model: nn.Module, loss: Any, batches: Callable[[int], Any], keep: Callable[[int], Any], training: Settings
) -> list[float]:
    """AdamW with a warm-up over a tenth and a cosine down to 0, gradients clipped to 1; the loss of each step."""
    steps, checkpoints = training["steps"], training["checkpoints"]
    kept = {steps * part // checkpoints for part in range(checkpoints)}

    def noted(step: int) -> Any:
        if step in kept:
            keep(step)
        return batches(step)

    device, schedule = str(next(model.parameters()).device), cosine(warmup=0.1)
    quiet = lambda what, done: None  # noqa: E731
    history = fit(model, loss, noted, steps=steps, lr=training["lr"], schedule=schedule, clip=1.0, device=device, report=quiet)
    if checkpoints:
        keep(steps)
    return [round(x, 4) for x in history.losses]
