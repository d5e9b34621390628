"""``python -m neuropil`` is the command ``neuropil``."""

from neuropil.cli import main

main()
