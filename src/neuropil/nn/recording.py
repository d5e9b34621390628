"""What a model's parts put out, collected while a block runs: `recording` is `neuropil.nn.sites.record` by its older name."""

from neuropil.nn.sites import record as recording

__all__ = ["recording"]
