"""Whole trainings on MovieLens-100k against fuxictr: seconds, the same for rows a second.

The authors' FinalMLP.py and DualMLP.py (reczoo/FuxiCTR, model_zoo/FinalMLP/src; the folder's name is in FUXICTR_MODELS) run on an
installed fuxictr. Both sides start from the same weights and train for 3 epochs of 40,000 rows: batches of 4,096, Adam at 1e-3,
decay of embeddings 1e-4, gradients clipped at 10, the AUC of 5,000 validation rows after each epoch. fuxictr runs twice: with its
own loader (one process), and with our batches in our order.
"""

import importlib
import logging
import os
import statistics
import sys
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from rounds import Missing, Ratio, in_turns, main, peer
from torch import Tensor, nn

from neuropil import data
from neuropil.interaction.click_models import fit_clicks, score
from neuropil.interaction.finalmlp import DualMLP, FinalMLP
from neuropil.nn.field_embedding import Vocabulary
from neuropil.numerics.detection import auroc
from neuropil.training.fit import minibatches

EPOCHS, BATCH, DIM, HIDDEN, DECAY = 3, 4096, 10, (64, 64, 64), 1e-4
ZOO, FUXICTR = "FUXICTR_MODELS", ("fuxictr", "pip install --no-deps fuxictr polars pyarrow")
Rows = tuple[Tensor, Tensor]


def ours(name: str, sizes: tuple[int, ...]) -> FinalMLP:
    """The model of this name with the widths that are the default of the authors' classes."""
    if name == "DualMLP":
        return DualMLP(sizes, DIM, (HIDDEN, HIDDEN))
    contexts = ((0,), (1,)) if name == "FinalMLP" else ((), ())
    return FinalMLP(sizes, DIM, (HIDDEN, HIDDEN), contexts=contexts, gate_hidden=(64,))


class Batches:
    """Our batches as fuxictr takes them: a dictionary of columns for each step of the next epoch."""

    def __init__(self, rows: Rows, names: list[str]) -> None:
        self.rows, self.names, self.batch, self.step = rows, names, minibatches(rows, BATCH, 0), 0

    def __len__(self) -> int:
        return len(self.rows[1]) // BATCH

    def __iter__(self):
        for _ in range(len(self)):
            ids, y = self.batch(self.step)
            self.step += 1
            yield dict(zip(self.names, ids.unbind(1), strict=True)) | {"y": y}


class Peer:
    """The authors' classes on fuxictr, given our weights."""

    def __init__(self, folder: str, home: str, parts: list[Rows], fields: tuple[str, ...], sizes: tuple[int, ...]) -> None:
        sys.path.insert(0, folder)
        logging.disable(logging.INFO)
        self.home, self.names, self.sizes = home, list(fields), sizes
        self.map = peer("fuxictr.features", *FUXICTR).FeatureMap("films", home)
        self.map.features = OrderedDict(
            (f, {"type": "categorical", "source": "", "vocab_size": v}) for f, v in zip(fields, sizes, strict=True)
        )
        self.map.num_fields, self.map.labels = len(fields), ["y"]
        self.map.set_column_index()
        Path(home, "films").mkdir()  # where fuxictr keeps its best weights
        self.loader = peer("fuxictr.pytorch.dataloaders.npz_dataloader", *FUXICTR).NpzDataLoader
        for part, (ids, y) in zip(("training", "validation"), parts, strict=False):
            columns = dict(zip(fields, ids.T.numpy(), strict=True))
            np.savez(f"{home}/{part}.npz", y=y.numpy(), **columns)

    def model(self, name: str, mine: FinalMLP) -> nn.Module:
        kind, *_ = name.split(",")
        options = {"optimizer": "adam", "loss": "binary_crossentropy", "metrics": ["AUC"], "verbose": 0, "model_root": self.home}
        options |= {"early_stop_patience": EPOCHS + 1, "embedding_regularizer": DECAY, "learning_rate": 1e-3, "embedding_dim": DIM}
        options |= {"mlp1_hidden_units": list(HIDDEN), "mlp2_hidden_units": list(HIDDEN)}
        if kind == "FinalMLP":
            contexts = [[self.names[f] for f in gate.context] for gate in mine.gates]
            options |= {"fs_hidden_units": [64], "fs1_context": contexts[0], "fs2_context": contexts[1]}
        net = getattr(importlib.import_module(kind), kind)(self.map, **options)
        with torch.no_grad():
            self.copy(mine, net)
        return net

    def copy(self, mine: FinalMLP, net: nn.Module) -> None:
        """Our weights into theirs; their second bias, which we do not have, stays at zero."""

        def table(embed: nn.Module, whole: Tensor, fields: list[int]) -> None:
            for f, rows in zip(fields, whole.split([self.sizes[f] for f in fields]), strict=True):
                embed.embedding_layer.embedding_layers[self.names[f]].weight.copy_(rows)

        def mlp(from_: nn.Module, to: nn.Module) -> list[nn.Linear]:
            one, two = ([m for m in part.modules() if isinstance(m, nn.Linear)] for part in (from_, to))
            for a, b in zip(one, two, strict=False):
                b.load_state_dict(a.state_dict())
            return two

        table(net.embedding_layer, mine.embed.table, list(range(len(self.sizes))))
        tops = [mlp(stream, getattr(net, f"mlp{s}"))[-1] for s, stream in enumerate(mine.streams, 1)]
        if mine.form is not None:
            tops = [net.fusion_module.w_x, net.fusion_module.w_y]
            net.fusion_module.w_xy.copy_(mine.form.weight.reshape(-1, 1))
        for s, gate in enumerate(mine.gates, 1):
            mlp(gate.mlp, getattr(net.fs_module, f"fs{s}_gate"))
            if gate.context:
                table(getattr(net.fs_module, f"fs{s}_ctx_emb"), gate.embed.table, gate.context)
        for top, linear in zip(tops, mine.linear, strict=True):
            top.weight.copy_(linear.weight)

    def train(self, net: nn.Module, training: Rows, own: bool) -> None:
        """The whole training, with its own loader or with our batches."""
        load = {"batch_size": BATCH, "num_workers": 0}
        validation = self.loader(self.map, f"{self.home}/validation.npz", **load)
        batches = self.loader(self.map, f"{self.home}/training.npz", shuffle=True, **load) if own else Batches(training, self.names)
        net.fit(batches, epochs=EPOCHS, validation_data=validation)

    def probabilities(self, net: nn.Module, ids: Tensor) -> Tensor:
        with torch.no_grad():
            return net.eval()(dict(zip(self.names, ids.unbind(1), strict=True)))["y_pred"][:, 0]


class Trainings:
    """Trainings of one model, each from the same weights: ours, and the peer's with its loader or with our batches."""

    def __init__(self, name: str, fuxictr: Peer, parts: list[Rows], sizes: tuple[int, ...]) -> None:
        self.name, self.fuxictr, self.sizes = name, fuxictr, sizes
        self.training, self.validation, self.test, _ = parts
        self.nets: dict[str, nn.Module] = {}  # the last of each way
        self.ways = {
            "neuropil": self.train,
            "its loader": lambda: fuxictr.train(self.nets["its loader"], self.training, own=True),
            "our batches": lambda: fuxictr.train(self.nets["our batches"], self.training, own=False),
        }

    def fresh(self, way: str) -> nn.Module:
        torch.manual_seed(0)
        net = ours(self.name, self.sizes)
        self.nets[way] = net if way == "neuropil" else self.fuxictr.model(self.name, net)
        return self.nets[way]

    def train(self) -> None:
        rest = {"decay": DECAY, "size": BATCH, "epochs": EPOCHS, "patience": EPOCHS + 1}
        fit_clicks(self.nets["neuropil"], self.training, self.validation, **rest)

    def same_start(self) -> None:
        ids = self.test[0]
        with torch.no_grad():
            p = self.fresh("neuropil").eval()(ids).sigmoid()
        torch.testing.assert_close(p, self.fuxictr.probabilities(self.fresh("our batches"), ids), atol=1e-5, rtol=1e-4)

    def auc(self, way: str) -> float:
        """Of the test rows."""
        (ids, y), net = self.test, self.nets[way]
        if way == "neuropil":
            return score(net, ids, y).auc
        p = self.fuxictr.probabilities(net, ids)
        return float(auroc(p[y == 1], p[y == 0]))


def compare(quick: bool) -> Iterator[Ratio]:
    peer("fuxictr.features", *FUXICTR)
    if not Path(os.environ.get(ZOO, ""), "FinalMLP.py").is_file():
        raise Missing("fuxictr", f"no FinalMLP.py: set {ZOO} to the folder model_zoo/FinalMLP/src of reczoo/FuxiCTR")
    log = data.movielens_clicks()
    cut = log.split(torch.Generator().manual_seed(0), (0.4, 0.05, 0.05, 0.5))
    vocabulary = Vocabulary.fit(cut[0].codes)
    parts = [(vocabulary.encode(part.codes), part.labels) for part in cut]
    with tempfile.TemporaryDirectory() as home:
        fuxictr = Peer(os.environ[ZOO], home, parts, log.fields, vocabulary.sizes)
        for name in ("FinalMLP", "FinalMLP, learned gates", "DualMLP"):
            job = Trainings(name, fuxictr, parts, vocabulary.sizes)
            job.same_start()

            taken = in_turns(job.ways, 2 if quick else 5, before=job.fresh)
            auc = {way: job.auc(way) for way in job.ways}
            off = abs(auc["neuropil"] - auc["our batches"])
            assert off <= 0.005, f"on the same batches the AUC differs by {off:.4f}"
            speed = EPOCHS * (len(parts[0][1]) // BATCH) * BATCH / statistics.median(taken["neuropil"])
            for way in ("its loader", "our batches"):
                note = f"{speed:,.0f} rows/s; AUC {auc['neuropil']:.3f}, {auc[way]:.3f}"
                what, against = f"training {name}, batch {BATCH:,}", f"fuxictr, {way}"
                yield Ratio(what, against, taken["neuropil"], taken[way], at_least=3, note=note, package="fuxictr")


if __name__ == "__main__":
    main(compare)
