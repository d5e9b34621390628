"""U-Net in two forms with the same weights: "fixed" to the grid of training, or with kernels "interpolated" between their taps.

    down: v_{l+1} = conv₃, stride 2 (block(v_l))        up: v_l = block([transposed conv₄, stride 2 (v_{l+1}), skip_l])
    block(v) = φ(conv_k φ(conv_k v)) + W v

On a grid s times as fine as the base, the interpolated form reads each kernel at s times as many places (see
`function_layers.KernelConv`) and applies the transposed convolutions on the grids of the base, with resizing before and after.
On the base grid both are equal.

Ronneberger, Fischer & Brox 2015, arXiv:1505.04597; conversion: Berner et al. 2025, arXiv:2506.10973.
Differs: periodic padding, no norm.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import conv_transpose1d, conv_transpose2d, conv_transpose3d, gelu

from neuropil.errors import Refused, choose
from neuropil.nn.checks import at_least
from neuropil.physics.checks import channels
from neuropil.physics.fourier import Pointwise, resample
from neuropil.physics.function_layers import KernelConv

TRANSPOSED = {1: conv_transpose1d, 2: conv_transpose2d, 3: conv_transpose3d}


class UNet(nn.Module):
    """Levels of half the points each; `multiples` of `width` channels at each of them.

    Args:
        c_in, c_out: channels of the functions.
        width: channels at the finest level.
        base: points along each axis of the grid of training; its levels must be whole.
        d: axes.
        multiples: channels of each level, as multiples of `width`.
        k: taps of the kernels, odd.
        form: "fixed" or "interpolated"; may be changed at any time, the weights are the same.
        rule: how kernels are read between their taps, see `KernelConv`.

    A grid that the levels do not divide is `Refused`. O(width² k^d Σ multiples²) numbers; the interpolated form does s^{2d} times
    the work of the base, the fixed one s^d.

    >>> net = UNet(1, 1, width=4, base=16, d=2, multiples=(1, 2), form="interpolated")
    >>> [tuple(net(torch.randn(1, 1, n, n)).shape) for n in (16, 32)]
    [(1, 1, 16, 16), (1, 1, 32, 32)]
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        width: int,
        base: int,
        d: int = 2,
        multiples: tuple[int, ...] = (1, 2, 2),
        k: int = 3,
        form: str = "fixed",
        rule: str = "linear",
    ) -> None:
        super().__init__()
        if width < 1 or not multiples or min(multiples) < 1:
            raise Refused(f"width, multiples: positive numbers are needed, got {width} and {multiples}")
        at_least(1, c_in=c_in, c_out=c_out)
        self.base, self.d, self.factor = base, d, 2 ** (len(multiples) - 1)
        self.form = choose("form", form, ("fixed", "interpolated"))
        if base < 1 or base % self.factor:
            raise Refused(f"base: must be a multiple of {self.factor}, got {base}")
        c = [m * width for m in multiples]
        self.lift, self.project = Pointwise([c_in, c[0]]), Pointwise([c[0], c[0], c_out])
        levels = range(len(c) - 1)
        self.blocks = nn.ModuleList(_Block(c[i], c[i], k, d, rule) for i in range(len(c)))
        self.down = nn.ModuleList(KernelConv(c[i], c[i + 1], 3, d, stride=2, rule=rule) for i in levels)
        self.up = nn.ModuleList(_Up(c[i + 1], c[i], d) for i in levels)
        self.merge = nn.ModuleList(_Block(2 * c[i], c[i], k, d, rule) for i in levels)

    def forward(self, u: Float[Tensor, "b i *grid"]) -> Float[Tensor, "b o *grid"]:
        """The image of a function, on its grid."""
        grid = u.shape[2:]
        if len(grid) != self.d or len(set(grid)) > 1 or grid[0] % self.factor:
            raise Refused(f"u: {self.d} equal axes of a multiple of {self.factor} points are needed, got {tuple(u.shape)}")
        channels("u", u, self.lift[0].in_features, self.d, self.lift[0].weight)  # type: ignore[arg-type]
        scale = grid[0] / self.base if self.form == "interpolated" else 1.0
        skips = []
        v = self.blocks[0](self.lift(u), scale)
        for down, block in zip(self.down, self.blocks[1:], strict=True):
            skips.append(v)
            v = block(down(v, scale), scale)
        for up, merge in zip(reversed(self.up), reversed(self.merge), strict=True):
            v = merge(torch.cat([up(v, scale), skips.pop()], 1), scale)
        return self.project(v)


class _Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, c_in: int, c_out: int, k: int, d: int, rule: str) -> None:
        super().__init__()
        self.first, self.second = KernelConv(c_in, c_out, k, d, rule=rule), KernelConv(c_out, c_out, k, d, rule=rule)
        self.W = Pointwise([c_in, c_out])

    def forward(self, v: Float[Tensor, "b c *grid"], scale: float) -> Float[Tensor, "b o *grid"]:
        return gelu(self.second(gelu(self.first(v, scale)), scale)) + self.W(v)


class _Up(nn.Module):
    """A transposed convolution of 4 taps and stride 2 on the grid of the base, periodic: one point before, one after."""

    def __init__(self, c_in: int, c_out: int, d: int) -> None:
        super().__init__()
        bound = (c_in * 2**d) ** -0.5
        self.d = d
        self.weight = nn.Parameter(torch.empty(c_in, c_out, *[4] * d).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(c_out).uniform_(-bound, bound))

    def forward(self, v: Float[Tensor, "b c *grid"], scale: float) -> Float[Tensor, "b o ..."]:
        n = v.shape[-1]
        v = resample(v, round(n / scale))
        v = nn.functional.pad(v, [1] * (2 * self.d), mode="circular")
        v = TRANSPOSED[self.d](v, self.weight, self.bias, stride=2, padding=3)
        return resample(v, 2 * n)
