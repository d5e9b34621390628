"""The report: a static HTML gallery of systems, claims, pictures and verdicts, made of the evidence alone.

It needs no network, no JavaScript and no torch, and written twice it is the same byte for byte. Needs the extra ``report``.
"""

from neuropil.report.build import write

__all__ = ["write"]
