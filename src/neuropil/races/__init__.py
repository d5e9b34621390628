"""Races: one file a role, with the data, the metric, the builders that join it and the picture; `neuropil.lab.race` runs them.

What all roles share: `training` (the best of a few learning rates, sizes that meet a budget), `spatial` (fields), `own` (files),
`panels` (pictures).
"""
