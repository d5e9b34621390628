"""Claims, one file a system: ``claims/<wing>/<slug>.py``. The catalogue names them; `neuropil run SLUG` runs them."""
