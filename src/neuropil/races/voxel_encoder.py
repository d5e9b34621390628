"""From a picture's tokens to what voxels answer: which encoder predicts new pictures best?

Data: a SIMULATOR, for no responses to pictures are packaged: a visual cortex of 8 regions of 30 voxels before pictures with
objects, four regions answering to places and four to kinds of object wherever they are, each voxel with known noise. 200
pictures (1,000 at the full budget), the mean of 3 repeats, train, and 100 (300) others test. All nets are trained in one way, by
AdamW for 40 epochs, the rate falling by a cosine; of the training pictures 15 %, drawn at random, choose the best epoch and the
learning rate out of 1e-3, 5e-3 and 2e-2; while the best rate is the least or the largest of those tried, up to three others
beyond it are tried. Ridge chooses each voxel's penalty by five folds. The metric is Pearson's r on test pictures over the root of
the noise ceiling, mean over voxels (over 1, the ceiling being unknown, for own data). The widths of the attention and of the
perceptron meet the budget; the sizes of ridge and fixed maps follow from the data. `--data` takes an .npz: `tokens` (n, h, w, c),
`responses` (n, v), and perhaps `rois` (regions, v) booleans.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from neuropil.brain.ridge import VoxelRidge
from neuropil.brain.routing_encoder import EncodingModel, TransformerBrainEncoder
from neuropil.brain.scores import pearson
from neuropil.data.visual_cortex import visual_cortex_simulator
from neuropil.errors import Refused
from neuropil.fields.field import parameters_of
from neuropil.lab.expect import Metric
from neuropil.lab.race import Course, Role, Score, Shown
from neuropil.nn.mlp import MLP
from neuropil.races.own import arrays, rows
from neuropil.races.training import explored, to_budget

RATES = (1e-3, 5e-3, 2e-2)


@dataclass(frozen=True)
class Cortex:
    """Tokens (n, h, w, c) and responses (n, v) to train on and to test with, regions (r, v), and each voxel's ceiling of r."""

    tokens: Tensor
    responses: Tensor
    new_tokens: Tensor
    new_responses: Tensor
    rois: Tensor
    ceiling: Tensor


Encoder = tuple[Callable[[Tensor], Tensor], int, dict[str, object]]  # tokens to responses, its numbers, what it chose
Build = Callable[[Cortex, Course], Encoder]


def prepare(course: Course) -> Cortex:
    """A cortex for every seed, or the user's."""
    trial = course.trial
    train, test = trial.pick(smoke=(60, 30), quick=(200, 100), full=(1_000, 300))
    if course.source is not None:
        return own(course.source, trial.generator(1))
    seen = visual_cortex_simulator(train + test, generator=trial.generator(1))
    answers = seen.responses.mean(0)
    return Cortex(seen.tokens[:train], answers[:train], seen.tokens[train:], answers[train:], seen.rois, seen.ceiling.sqrt())


def own(source: str, generator: torch.Generator) -> Cortex:
    """The user's recordings: 80 % of the pictures train, 20 % test."""
    named = arrays(source, {"tokens": 4, "responses": 2}, {"rois": 2})
    tokens, responses = named["tokens"].float(), named["responses"].float()
    n = rows(source, tokens, responses, least=20)
    rois = named.get("rois", torch.ones(1, responses.shape[1])).bool()
    if rois.shape[1] != responses.shape[1] or not bool(rois.any(1).all()):
        raise Refused(
            f"data: rois of {source} must be (regions, {responses.shape[1]}) with a voxel in each, got {tuple(rois.shape)}"
        )
    test, train = torch.randperm(n, generator=generator).tensor_split([n // 5])
    if bool((responses[train].std(0) == 0).any() | (responses[test].std(0) == 0).any()):
        raise Refused(f"data: responses of {source} have a voxel that never changes; leave it out")
    return Cortex(tokens[train], responses[train], tokens[test], responses[test], rois, torch.ones(responses.shape[1]))


def measure(build: Build, seen: Cortex, course: Course) -> Score:
    """r over the ceiling on test pictures."""
    predict, size, notes = build(seen, course)
    with torch.no_grad():
        guess = predict(seen.new_tokens)
    r = pearson(guess, seen.new_responses).nan_to_num(0.0) / seen.ceiling.clamp_min(1e-6)
    by_region = torch.stack([r[roi].mean() for roi in seen.rois])
    return Score(float(r.mean()), size, notes, {"regions": by_region})


def attention_routing(seen: Cortex, course: Course) -> Encoder:
    """Each region's learned query fetches from the tokens what its voxels are read from (Adeli et al. 2025)."""
    c, h, w = seen.tokens.shape[3], *seen.tokens.shape[1:3]

    def count(d: int, hidden: int) -> int:
        return parameters_of(TransformerBrainEncoder(c, h, w, seen.rois, d, 4, hidden))

    d = 4 * to_budget(lambda width: width, course.parameters, lambda width: count(4 * width, 8 * width))
    hidden = to_budget(lambda units: units, course.parameters, lambda units: count(d, units), least=2 * d)
    return _fitted(
        lambda rate: EncodingModel(seen.rois, "attention", d=d, heads=4, hidden=hidden, **_options(rate, course)), seen, course
    )


def factorised(seen: Cortex, course: Course) -> Encoder:
    """Each region sees the same places of every picture."""
    return _fitted(lambda rate: EncodingModel(seen.rois, "factorised", **_options(rate, course)), seen, course)


def ridge(seen: Cortex, course: Course) -> Encoder:
    """Ridge regression on all tokens side by side, a penalty for each voxel."""
    model = VoxelRidge().fit(seen.tokens.flatten(1), seen.responses)
    p, v = seen.tokens[0].numel(), seen.responses.shape[1]
    return lambda x: model.predict(x.flatten(1)), (p + 1) * v, {}


def pooled_ridge(seen: Cortex, course: Course) -> Encoder:
    """Ridge regression on the mean token: what is there, not where."""
    model = VoxelRidge().fit(seen.tokens.mean((1, 2)), seen.responses)
    c, v = seen.tokens.shape[3], seen.responses.shape[1]
    return lambda x: model.predict(x.mean((1, 2))), (c + 1) * v, {}


def nearest_pictures(seen: Cortex, course: Course) -> Encoder:
    """The mean answer to the nearest training pictures; how many is chosen among 1, 4 and 16 on the last 15 % of them."""
    x, y = seen.tokens.flatten(1), seen.responses
    known = len(x) - max(2, round(0.15 * len(x)))

    def answers(cue: Tensor, k: int, n: int) -> Tensor:
        return y[torch.cdist(cue, x[:n]).topk(min(k, n), largest=False).indices].mean(1)

    scores = {k: float(pearson(answers(x[known:], k, known), y[known:]).nan_to_num(0.0).mean()) for k in (1, 4, 16)}
    best = max(scores, key=lambda k: scores[k])
    return lambda cue: answers(cue.flatten(1), best, len(x)), x.numel() + y.numel(), {"neighbours": best}


def perceptron(seen: Cortex, course: Course) -> Encoder:
    """One hidden layer on all tokens side by side, trained as the other nets are; its width meets the budget."""
    d, v = seen.tokens[0].numel(), seen.responses.shape[1]
    width = to_budget(lambda width: width, course.parameters, count=lambda width: parameters_of(MLP([d, width, v])))
    return _fitted(lambda rate: Perceptron(seen.rois, hidden=width, dropout=0.3, **_options(rate, course)), seen, course)


class Perceptron(EncodingModel):
    """`EncodingModel` about another net, so that it is trained by the same lines."""

    def _net(self, channels: int, height: int, width: int, rois: Tensor) -> nn.Module:
        sizes = [channels * height * width, self.hidden, rois.shape[1]]
        return nn.Sequential(nn.Flatten(), MLP(sizes, dropout=self.dropout))


def _options(rate: float, course: Course) -> dict[str, Any]:
    epochs = course.trial.pick(smoke=1, quick=40, full=40)
    return {"batch": 32, "epochs": epochs, "lrs": (rate,), "decays": (1e-2,), "seed": course.trial.seed}


def _fitted(make: Callable[[float], EncodingModel], seen: Cortex, course: Course) -> Encoder:
    """The model of the rate that errs least on the pictures held out."""

    def fit(rate: float) -> tuple[EncodingModel, float, dict[str, Any]]:
        model = make(rate)
        try:
            errors = model.fit(seen.tokens, seen.responses).errors_[rate, 1e-2]
        except Refused as error:
            if not str(error).startswith("loss: "):
                raise
            return model, math.nan, {}  # the loss is no finite number any more: this rate is out
        return model, min(errors), {"epoch": errors.index(min(errors)) + 1}

    rates = course.trial.pick(smoke=RATES[1:2], quick=RATES, full=RATES)
    found = explored(fit, rates, "lower", report=course.trial.report)
    return found.net.predict, parameters_of(found.net.net_), found.notes


def draw(seen: Cortex, found: Sequence[tuple[str, float, Shown]]) -> object:
    """The score of each encoder in each region, best first."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(9, 3.6))
    for i, (name, value, shown) in enumerate(found):
        places = [x + 0.8 * (i + 0.5) / len(found) - 0.4 for x in range(len(seen.rois))]
        axes.bar(places, shown["regions"].tolist(), 0.8 / len(found), label=f"{name}: {value:.3f}")
    axes.axhline(1, color="0.5", ls="--", lw=1)
    axes.set(xticks=range(len(seen.rois)), xlabel="region", ylabel="r over the noise ceiling")
    axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")
    return figure


ROLE = Role(
    name="voxel-encoder",
    metric=Metric("r over the noise ceiling", better="higher"),
    parameters=60_000,
    wanted="an .npz: tokens (n, h, w, c), responses (n, v), perhaps rois (regions, v)",
    prepare=prepare,
    measure=measure,
    draw=draw,
    baselines=(pooled_ridge, nearest_pictures, perceptron),
    timed=False,
)
