"""One registry of 420 activation functions, by the names and sections of Kunc and Kléma's survey (2024, arXiv:2402.09092).

- `activation(name, **params)` is a module, `functional(name)` the function ``f(z, **params)``; `gain(name)` scales initial weights.
- `find(name)` is what the table says of one, torch-free: formula, initial values, what is trained, flags, section; `entries()` all,
  `gaps()` what is missing and why. `gallery()` draws them.

Initial values are the papers' where our reading of the survey gives them, else ours, marked ``own``. Where the survey prints a slip
(SoftModulusQ, LAF, VBAF, OPLAF, IpLU, LinQ, SqSoftplus) the continuous or original form is used, with a ``note``. What no primary
text confirmed is marked ``uncertain``. Every formula is tested against torch's code, in value and gradient, by evaluating its text.

>>> from neuropil.nn.activations import activation
>>> activation("acon_c", size=16)
Activation(acon_c, a trained, b trained, c trained, size=16)
>>> find("dlu").name, "monotone" in find("mish").flags, len(entries()) > 400
('signrelu', False, True)
"""

from typing import Any

from neuropil.nn.activations.table import Entry, Gap, entries, find, gaps

__all__ = ["Entry", "Gap", "activation", "entries", "find", "functional", "gain", "gallery", "gaps"]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for: the table alone does not."""
    if name in ("activation", "functional", "gain"):
        from neuropil.nn.activations import modules

        return getattr(modules, name)
    if name == "gallery":
        from neuropil.nn.activations.picture import gallery

        return gallery
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
