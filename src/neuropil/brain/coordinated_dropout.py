"""Coordinated dropout: an autoencoder of spikes must not learn to copy its input (Keshtkaran & Pandarinath 2019, arXiv:1908.07896).

Each input number is kept with probability ρ (and divided by ρ, so that its expectation stays); gradients of the loss pass through
outputs whose input was dropped, and through a further share 1 − ρ of the rest. Outputs with no input (neurons held out, later bins)
always pass.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from neuropil.errors import Refused


def coordinated_dropout(
    x: Float[Tensor, "b t n"], keep: float = 0.5, generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "b t n"], Bool[Tensor, "b t n"]]:
    """The input with numbers dropped, and where gradients may pass. O(b t n). `Refused` for a `keep` outside (0, 1].

    >>> x, passes = coordinated_dropout(torch.ones(1, 2, 3), keep=1.0)
    >>> bool((x == 1).all()), bool(passes.any())
    (True, False)
    """
    if not 0 < keep <= 1:
        raise Refused(f"keep: must lie in (0, 1], got {keep}")

    def draw(share: float) -> Tensor:
        source = generator.device if generator is not None else x.device
        return torch.rand(x.shape, generator=generator, device=source).to(x.device) < share

    kept = draw(keep)
    return x * kept / keep, ~kept | draw(1 - keep)


def passing(loss: Float[Tensor, "b s m"], passes: Bool[Tensor, "b t n"]) -> Float[Tensor, "b s m"]:
    """The loss with its values as they are and its gradients where they may pass; bins and neurons beyond the mask pass.

    >>> loss = torch.ones(1, 1, 2, requires_grad=True)
    >>> passing(loss, torch.tensor([[[False]]])).sum().backward()
    >>> loss.grad
    tensor([[[0., 1.]]])
    """
    t, n = passes.shape[1:]
    if loss.shape[0] != len(passes) or loss.shape[1] < t or loss.shape[2] < n:
        raise Refused(f"passes: must be no larger than the loss {tuple(loss.shape)}, got {tuple(passes.shape)}")
    whole = torch.nn.functional.pad(passes, (0, loss.shape[2] - n, 0, loss.shape[1] - t), value=True)
    return torch.where(whole, loss, loss.detach())
