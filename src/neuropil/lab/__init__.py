"""The lab: a paper's claim as a program, run over seeds against a fair baseline, with an honest verdict.

A claim is a function ``Trial -> Outcome`` with `claim` above it; the lab runs its seeds, takes the paired effect and its
95 % t-interval, and says ``holds``, ``fails`` or ``undecided``. Nothing here imports torch until a claim is run.
"""

from neuropil.lab.claims import Claim, claim
from neuropil.lab.expect import Close, Less, Metric, More, Ratio, Verdict
from neuropil.lab.trial import BUDGETS, Outcome, Trial

__all__ = ["BUDGETS", "Claim", "Close", "Less", "Metric", "More", "Outcome", "Ratio", "Trial", "Verdict", "claim"]
