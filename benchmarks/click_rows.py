"""Rows a second of whole trainings on MovieLens-100k against fuxictr: `python benchmarks/click_rows.py FOLDER [threads] [rounds]`.

FOLDER holds FinalMLP.py and DualMLP.py of reczoo/FuxiCTR (model_zoo/FinalMLP/src); they run on an installed fuxictr. Both sides
start from the same weights and train for 3 epochs of 40,000 rows: batches of 4,096, Adam at 1e-3, decay of embeddings 1e-4,
gradients clipped at 10, the AUC of 5,000 validation rows after each epoch. fuxictr runs twice: with its own loader (one process),
and with our batches in our order, where the AUC on test rows must be ours. All in turns; without FOLDER or fuxictr our side alone
is timed.
"""

import importlib
import json
import logging
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from rounds import spread
from torch import Tensor, nn

from neuropil import data
from neuropil.interaction.click_models import fit_clicks, score
from neuropil.interaction.finalmlp import DualMLP, FinalMLP
from neuropil.nn.field_embedding import Vocabulary
from neuropil.numerics.detection import auroc
from neuropil.training.fit import minibatches

EPOCHS, BATCH, DIM, HIDDEN, DECAY = 3, 4096, 10, (64, 64, 64), 1e-4
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
        self.map = importlib.import_module("fuxictr.features").FeatureMap("films", home)
        self.map.features = OrderedDict(
            (f, {"type": "categorical", "source": "", "vocab_size": v}) for f, v in zip(fields, sizes, strict=True)
        )
        self.map.num_fields, self.map.labels = len(fields), ["y"]
        self.map.set_column_index()
        Path(home, "films").mkdir()  # where fuxictr keeps its best weights
        self.loader = importlib.import_module("fuxictr.pytorch.dataloaders.npz_dataloader").NpzDataLoader
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
        peer = getattr(importlib.import_module(kind), kind)(self.map, **options)
        with torch.no_grad():
            self.copy(mine, peer)
        return peer

    def copy(self, mine: FinalMLP, peer: nn.Module) -> None:
        """Our weights into theirs; their second bias, which we do not have, stays at zero."""

        def table(embed: nn.Module, whole: Tensor, fields: list[int]) -> None:
            for f, rows in zip(fields, whole.split([self.sizes[f] for f in fields]), strict=True):
                embed.embedding_layer.embedding_layers[self.names[f]].weight.copy_(rows)

        def mlp(from_: nn.Module, to: nn.Module) -> list[nn.Linear]:
            one, two = ([m for m in net.modules() if isinstance(m, nn.Linear)] for net in (from_, to))
            for a, b in zip(one, two, strict=False):
                b.load_state_dict(a.state_dict())
            return two

        table(peer.embedding_layer, mine.embed.table, list(range(len(self.sizes))))
        tops = [mlp(stream, getattr(peer, f"mlp{s}"))[-1] for s, stream in enumerate(mine.streams, 1)]
        if mine.form is not None:
            tops = [peer.fusion_module.w_x, peer.fusion_module.w_y]
            peer.fusion_module.w_xy.copy_(mine.form.weight.reshape(-1, 1))
        for s, gate in enumerate(mine.gates, 1):
            mlp(gate.mlp, getattr(peer.fs_module, f"fs{s}_gate"))
            if gate.context:
                table(getattr(peer.fs_module, f"fs{s}_ctx_emb"), gate.embed.table, gate.context)
        for top, linear in zip(tops, mine.linear, strict=True):
            top.weight.copy_(linear.weight)

    def train(self, peer: nn.Module, training: Rows, own: bool) -> float:
        """Seconds of the whole training, with its own loader or with our batches."""
        load = {"batch_size": BATCH, "num_workers": 0}
        validation = self.loader(self.map, f"{self.home}/validation.npz", **load)
        batches = self.loader(self.map, f"{self.home}/training.npz", shuffle=True, **load) if own else Batches(training, self.names)
        start = time.perf_counter()
        peer.fit(batches, epochs=EPOCHS, validation_data=validation)
        return time.perf_counter() - start

    def score(self, peer: nn.Module, rows: Rows) -> float:
        with torch.no_grad():
            p = peer.eval()(dict(zip(self.names, rows[0].unbind(1), strict=True)))["y_pred"][:, 0]
        return float(auroc(p[rows[1] == 1], p[rows[1] == 0]))


if __name__ == "__main__":
    threads = int(sys.argv[2]) if len(sys.argv) > 2 else 1
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    torch.set_num_threads(threads)
    log = data.movielens_clicks()
    cut = log.split(torch.Generator().manual_seed(0), (0.4, 0.05, 0.05, 0.5))
    vocabulary = Vocabulary.fit(cut[0].codes)
    parts = [(vocabulary.encode(part.codes), part.labels) for part in cut]
    training, validation, test, _ = parts
    found: dict[str, object] = {
        "torch": torch.__version__,
        "threads": threads,
        "python": platform.python_version(),
        "rounds": rounds,
    }
    rows = EPOCHS * (len(training[1]) // BATCH) * BATCH
    with tempfile.TemporaryDirectory() as home, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            peer = Peer(sys.argv[1], home, parts, log.fields, vocabulary.sizes) if len(sys.argv) > 1 else None
        except ImportError as missing:
            peer, found["skipped"] = None, f"fuxictr: {missing}"
        for name in ("FinalMLP", "FinalMLP, learned gates", "DualMLP"):
            seconds: dict[str, list[float]] = {"neuropil": []}
            aucs: dict[str, list[float]] = {"neuropil": []}
            for k in range(rounds):
                torch.manual_seed(k)
                mine = ours(name, vocabulary.sizes)
                theirs = {} if peer is None else {way: peer.model(name, mine) for way in ("its loader", "our batches")}
                start = time.perf_counter()
                fit_clicks(mine, training, validation, decay=DECAY, size=BATCH, epochs=EPOCHS, patience=EPOCHS + 1)
                seconds["neuropil"].append(time.perf_counter() - start)
                aucs["neuropil"].append(score(mine, *test).auc)
                for way, net in theirs.items():
                    seconds.setdefault(way, []).append(peer.train(net, training, own=way == "its loader"))
                    aucs.setdefault(way, []).append(peer.score(net, test))
            table: dict[str, object] = {"rows a second": {side: round(rows / statistics.median(s)) for side, s in seconds.items()}}
            table["AUC"] = {side: [round(a, 4) for a in values] for side, values in aucs.items()}
            for way in list(seconds)[1:]:
                ratios = [b / a for a, b in zip(seconds["neuropil"], seconds[way], strict=True)]
                table[f"times faster than fuxictr, {way}"] = spread(ratios, 2)
            found[name] = table
    found["folder"] = Path(sys.argv[1]).name if peer is not None else None
    print(json.dumps(found, indent=1))
