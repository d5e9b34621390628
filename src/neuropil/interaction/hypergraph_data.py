"""A real hypergraph: who stood together with whom in a French high school (Mastrandrea, Fournet & Barrat 2015)."""

import functools
import json

import torch
from jaxtyping import Int
from torch import Tensor

from neuropil import data
from neuropil.interaction.hypergraph import Hypergraph


@functools.cache
def school(least: int = 2) -> tuple[Hypergraph, Int[Tensor, "n"]]:
    """The groups of at least `least` of 327 pupils who met, all of weight 1, and the class (0 … 8) of each pupil.

    7,818 groups, 18,192 memberships for `least` = 2. Read from the package of `neuropil.data` once a process.
    """
    records = json.loads(data.path("school").read_bytes())
    pupils = {r["idx"]: r["metadata"]["class"] for r in records if r.get("type") == "node"}
    place = {pupil: i for i, pupil in enumerate(sorted(pupils))}
    groups = [[place[v] for v in r["interaction"]] for r in records if r.get("type") == "edge" and len(r["interaction"]) >= least]
    classes = sorted(set(pupils.values()))
    return Hypergraph.from_lists(groups, len(place)), torch.tensor([classes.index(pupils[pupil]) for pupil in place])
