"""AKOrN, nets of Kuramoto layers, and their twin without sphere, projection and rotation: iterated self-attention (ItrSA).

    AKOrN   x ← T Kuramoto steps of x under c,      c ← mix(|U x| + b)                               in each of L layers
    ItrSA   x ← x + A(LN x),  T times,              x ← x + MLP(LN x)                                in each of L blocks

Both have one attention A (or one convolution J) a layer, used at every step. For Sudoku, c is the embedding of the digits and x
starts as c at the givens and as noise elsewhere; steps and noise are chosen at test time: more steps, or K starts of which the one
with the smallest energy, summed over the steps, is kept (`vote`). For images, c are embedded patches and x starts as noise.

Miyato, Löwe, Geiger & Welling 2024, arXiv:2410.13821 (ICLR 2025), whose mechanism is in `neuropil.dynamics.kuramoto`. Differs: the
twin gets the same positions in its attention as AKOrN (the authors add a code to its input); `hidden` of its MLP is free, so that
numbers can be matched; sizes of boards and images are free.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from neuropil.dynamics.kuramoto import Attention, AttentionJ, KuramotoLayer, Omega, Readout
from neuropil.errors import Refused
from neuropil.nn.checks import at_least, fits, same_kind, some, within


def noise(shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Standard Gaussian numbers with dtype and device of `like`, drawn on the generator's device. `Refused` for whole numbers.

    >>> noise((2, 3), torch.zeros(1), torch.Generator().manual_seed(0)).shape
    torch.Size([2, 3])
    """
    if not (like.is_floating_point() or like.is_complex()):
        raise Refused(f"like: must be of floating point, got {like.dtype}")
    where = like.device if generator is None else generator.device
    return torch.randn(*shape, generator=generator, device=where, dtype=like.dtype).to(like.device)


class AKOrN(nn.Module):
    """Kuramoto layers one after the other: x passes on, the next c is the read-out of x, through a small MLP if `mix`.

    Args:
        layers: all with the same C and N; each needs its own J (`Refused` if they share one by accident).
        mix: c ← c + W₂ φ(W₁ φ(c)), then c ← W₃ φ(c), φ = ReLU: as in the Sudoku net.

    >>> net = AKOrN([KuramotoLayer(AttentionJ(2, 4, heads=2), 2, 4)])
    >>> c, x, E = net(torch.randn(3, 9, 2, 4), torch.randn(3, 9, 2, 4), steps=5)
    >>> c.shape, x.shape, E.shape
    (torch.Size([3, 9, 8]), torch.Size([3, 9, 2, 4]), torch.Size([5, 3]))
    """

    def __init__(self, layers: Sequence[KuramotoLayer], mix: bool = False) -> None:
        super().__init__()
        if not layers or len({(layer.c, layer.n) for layer in layers}) > 1:
            raise Refused(f"layers: at least one, all of one size, are needed, got {[(layer.c, layer.n) for layer in layers]}")
        if len({id(layer.J) for layer in layers}) < len(layers):
            raise Refused("layers: each needs a J of its own, two have the same")
        c, n = layers[0].c, layers[0].n
        self.layers = nn.ModuleList(layers)
        self.readouts = nn.ModuleList(Readout(c, n, c * n) for _ in layers)
        self.mixes = nn.ModuleList(Mix(c * n) if mix else nn.Identity() for _ in layers)

    def forward(
        self, c: Float[Tensor, "b *places c n"], x: Float[Tensor, "b *places c n"], steps: int
    ) -> tuple[Float[Tensor, "b *places d"], Float[Tensor, "b *places c n"], Float[Tensor, "{steps} b"]]:
        """Features, last states, and the energies of the last layer before each of its steps."""
        for layer, readout, mix in zip(self.layers, self.readouts, self.mixes, strict=True):
            x, energies = layer(x, c, steps)
            features = mix(readout(x))
            c = features.view(x.shape)
        return features, x, energies


class Mix(nn.Module):
    """``W₃ φ(c + W₂ φ(W₁ φ(c)))`` place by place, φ = ReLU; 3 d² + 3 d numbers.

    >>> Mix(8)(torch.randn(2, 5, 8)).shape
    torch.Size([2, 5, 8])
    """

    def __init__(self, d: int) -> None:
        super().__init__()
        at_least(1, d=d)
        self.inner = nn.Sequential(nn.ReLU(), nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d))
        self.outer = nn.Sequential(nn.ReLU(), nn.Linear(d, d))

    def forward(self, c: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """Mixed features."""
        fits("c", c, self.outer[1].in_features, self.outer[1].weight)  # type: ignore[arg-type]
        return self.outer(c + self.inner(c))


class ItrSA(nn.Module):
    """The twin: ``x ← x + A(LN x)`` T times and ``x ← x + W₂ GELU(W₁ LN x)``, in each of L blocks.

    Args:
        d, heads, grid: as in `Attention`.
        hidden: the width of W₁ x.
        blocks: L.

    >>> ItrSA(8, heads=2, grid=(3, 3), hidden=16)(torch.randn(4, 9, 8), steps=5).shape
    torch.Size([4, 9, 8])
    """

    def __init__(self, d: int, heads: int, grid: Sequence[int] | None, hidden: int, blocks: int = 1) -> None:
        super().__init__()
        at_least(1, d=d)
        if blocks < 1 or hidden < 1:
            raise Refused(f"hidden, blocks: at least 1, got {hidden} and {blocks}")
        self.attentions = nn.ModuleList(nn.Sequential(nn.LayerNorm(d), Attention(d, heads, grid)) for _ in range(blocks))
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(d), nn.Linear(d, hidden), nn.GELU(), nn.Linear(hidden, d)) for _ in range(blocks)
        )

    def forward(self, x: Float[Tensor, "b p d"], steps: int) -> Float[Tensor, "b p d"]:
        """Features after `steps` looks around in each block."""
        if steps < 1:
            raise Refused(f"steps: at least 1, got {steps}")
        norm = self.mlps[0][0]  # type: ignore[index]
        fits("x", x, norm.normalized_shape[0], norm.weight)
        for look, mlp in zip(self.attentions, self.mlps, strict=True):
            for _ in range(steps):
                x = x + look(x)
            x = x + mlp(x)
        return x


class SudokuAKOrN(nn.Module):
    """Scores of the digits of every cell of an n × n Sudoku, by oscillators that attend to one another.

    Args:
        c, n: oscillators a cell and their dimension; the authors' 9 × 9 net has 128 of 4.
        side: of the board.
        heads, layers: as in `Attention`, and L.
        omega: frequency of all pairs at the start, trained on (0.5 in the authors' script).

    γ starts at 1 and is trained. One call costs T attentions over side² cells.

    >>> net = SudokuAKOrN(4, 4, heads=2)
    >>> puzzle = torch.zeros(3, 4, 4, dtype=torch.long)
    >>> scores, x, E = net(puzzle, net.start(puzzle), steps=8)
    >>> scores.shape, E.shape
    (torch.Size([3, 4, 4, 4]), torch.Size([8, 3]))
    """

    def __init__(self, c: int, n: int = 4, side: int = 4, heads: int = 4, layers: int = 1, omega: float = 0.5) -> None:
        super().__init__()
        at_least(1, c=c, n=n, side=side)
        self.c, self.n = c, n
        self.embedding = nn.Embedding(side + 1, c * n)

        def layer() -> KuramotoLayer:
            J = AttentionJ(c, n, heads, (side, side))
            return KuramotoLayer(J, c, n, omega=Omega(c, n, omega, shared=True), norm=False, learn_gamma=True)

        self.body = AKOrN([layer() for _ in range(layers)], mix=True)
        self.out = nn.Sequential(nn.ReLU(), nn.Linear(c * n, side))

    def start(self, puzzle: Int[Tensor, "b s s"], generator: torch.Generator | None = None) -> Float[Tensor, "b s s c n"]:
        """x_0: the embedded digits at the givens, Gaussian noise elsewhere (from torch's global generator if none is given)."""
        c = self.embed(puzzle)
        return torch.where((puzzle > 0)[..., None, None], c, noise(c.shape, c, generator))

    def embed(self, puzzle: Int[Tensor, "b s s"]) -> Float[Tensor, "b s s c n"]:
        """c: the embedded digits, 0 for blanks."""
        _check_puzzle(puzzle, self.embedding)
        return self.embedding(puzzle).unflatten(-1, (self.c, self.n))

    def forward(
        self, puzzle: Int[Tensor, "b s s"], x: Float[Tensor, "b s s c n"], steps: int
    ) -> tuple[Float[Tensor, "b s s digits"], Float[Tensor, "b s s c n"], Float[Tensor, "{steps} b"]]:
        """Scores of digits 1 … n, the last state, and the energies of the last layer."""
        c, x, energies = self.body(self.embed(puzzle), x, steps)
        return self.out(c), x, energies


class SudokuItrSA(nn.Module):
    """The same task by the twin; it starts from the embedded digits, so nothing is random.

    >>> SudokuItrSA(16, hidden=32, heads=2)(torch.zeros(3, 4, 4, dtype=torch.long), steps=8).shape
    torch.Size([3, 4, 4, 4])
    """

    def __init__(self, d: int, hidden: int, side: int = 4, heads: int = 4, blocks: int = 1) -> None:
        super().__init__()
        at_least(1, d=d, side=side)
        self.embedding = nn.Embedding(side + 1, d)
        self.body = ItrSA(d, heads, (side, side), hidden, blocks)
        self.out = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, side))

    def forward(self, puzzle: Int[Tensor, "b s s"], steps: int) -> Float[Tensor, "b s s digits"]:
        """Scores of digits 1 … n."""
        _check_puzzle(puzzle, self.embedding)
        some("puzzle", puzzle, 0)
        c = self.embedding(puzzle)
        return self.out(self.body(c.flatten(1, 2), steps)).view(*puzzle.shape, -1)


def _check_puzzle(puzzle: Tensor, digits: nn.Embedding) -> None:
    side = digits.num_embeddings - 1
    if puzzle.shape[1:] != (side, side):
        raise Refused(f"puzzle: must be of shape (b, {side}, {side}), got {tuple(puzzle.shape)}")
    within("puzzle", puzzle, side + 1)


def fill(puzzle: Int[Tensor, "*b s s"], scores: Float[Tensor, "*b s s digits"]) -> Int[Tensor, "*b s s"]:
    """The board: the puzzle's digits, and the best-scored one where it is blank.

    >>> fill(torch.tensor([[1]]), torch.tensor([[[0.0, 9.0]]]))
    tensor([[1]])
    """
    some("scores", scores)
    return torch.where(puzzle > 0, puzzle, scores.argmax(-1) + 1)


@torch.no_grad()
def vote(
    net: SudokuAKOrN, puzzle: Int[Tensor, "b s s"], starts: int, steps: int, generator: torch.Generator | None = None
) -> tuple[Int[Tensor, "b s s"], Int[Tensor, "{starts} b s s"], Float[Tensor, "{starts} b"]]:
    """The board with the smallest energy summed over the steps out of `starts` noise starts; and all boards with their energies.

    O(starts · steps) attentions a puzzle, one start at a time. Raises `Refused` for fewer than one start.

    >>> puzzle = torch.zeros(3, 4, 4, dtype=torch.long)
    >>> [tuple(x.shape) for x in vote(SudokuAKOrN(4, heads=2), puzzle, starts=5, steps=2)]
    [(3, 4, 4), (5, 3, 4, 4), (5, 3)]
    """
    if starts < 1:
        raise Refused(f"starts: at least 1, got {starts}")
    boards, sums = [], []
    for _ in range(starts):
        scores, _, energies = net(puzzle, net.start(puzzle, generator), steps)
        boards.append(fill(puzzle, scores))
        sums.append(energies.sum(0))
    every, energy = torch.stack(boards), torch.stack(sums)
    best = energy.argmin(0)
    return every[best, torch.arange(len(puzzle), device=best.device)], every, energy


class PatchAKOrN(nn.Module):
    """Images cut into patches, embedded, and bound by oscillators: what moves together is x_T, what it says is its read-out.

    Args:
        c, n: oscillators a patch and their dimension; the authors' net has 64 of 4.
        size, patch: sides of the square image and of a patch, in pixels.
        heads, layers: as in `Attention`, and L.
        channels: of the image.
        norm: the group norm of c.

    >>> net = PatchAKOrN(2, 4, size=8, patch=4, heads=2)
    >>> images = torch.rand(3, 1, 8, 8)
    >>> [tuple(y.shape) for y in net(images, net.start(images), steps=5)]
    [(3, 2, 2, 8), (3, 2, 2, 2, 4), (5, 3)]
    """

    def __init__(
        self, c: int, n: int, size: int, patch: int, heads: int, layers: int = 1, channels: int = 1, norm: bool = True
    ) -> None:
        super().__init__()
        at_least(1, c=c, n=n, patch=patch)
        self.c, self.n, grid = c, n, (size // patch, size // patch)
        self.patches = patches(channels, c * n, size, patch)
        self.body = AKOrN([KuramotoLayer(AttentionJ(c, n, heads, grid), c, n, norm=norm) for _ in range(layers)])

    def embed(self, images: Float[Tensor, "b channels s s"]) -> Float[Tensor, "b h w c n"]:
        """c: the embedded patches; images have values in [0, 1]."""
        _check_images(images, self.patches)
        return self.patches(2 * images - 1).movedim(1, -1).unflatten(-1, (self.c, self.n))

    def start(
        self, images: Float[Tensor, "b channels s s"], generator: torch.Generator | None = None
    ) -> Float[Tensor, "b h w c n"]:
        """x_0: Gaussian noise."""
        side = images.shape[-1] // self.patches.kernel_size[0]
        return noise((len(images), side, side, self.c, self.n), images, generator)

    def forward(
        self, images: Float[Tensor, "b channels s s"], x: Float[Tensor, "b h w c n"], steps: int
    ) -> tuple[Float[Tensor, "b h w d"], Float[Tensor, "b h w c n"], Float[Tensor, "{steps} b"]]:
        """Features, x_T, and the energies of the last layer."""
        return self.body(self.embed(images), x, steps)


class PatchItrSA(nn.Module):
    """The same by the twin, from the embedded patches; nothing is random.

    >>> PatchItrSA(8, hidden=16, size=8, patch=4, heads=2)(torch.rand(3, 1, 8, 8), steps=5).shape
    torch.Size([3, 2, 2, 8])
    """

    def __init__(self, d: int, hidden: int, size: int, patch: int, heads: int, blocks: int = 1, channels: int = 1) -> None:
        super().__init__()
        at_least(1, d=d)
        self.patches = patches(channels, d, size, patch)
        self.body = ItrSA(d, heads, (size // patch, size // patch), hidden, blocks)
        self.out = nn.LayerNorm(d)

    def forward(self, images: Float[Tensor, "b channels s s"], steps: int) -> Float[Tensor, "b h w d"]:
        """Normalised features."""
        _check_images(images, self.patches)
        x = self.patches(2 * images - 1).movedim(1, -1)
        return self.out(self.body(x.flatten(1, 2), steps)).view(x.shape)


def patches(channels: int, d: int, size: int, patch: int) -> nn.Conv2d:
    """The embedding of patches that do not overlap.

    >>> patches(1, 8, size=8, patch=4).stride
    (4, 4)
    """
    at_least(1, channels=channels, d=d)
    if patch < 1 or size % patch or size < 1:
        raise Refused(f"patch: must divide size={size}, got {patch}")
    return nn.Conv2d(channels, d, patch, patch)


def _check_images(images: Tensor, patches: nn.Conv2d) -> None:
    if images.ndim != 4 or images.shape[1] != patches.in_channels:
        raise Refused(f"images: must be of shape (b, {patches.in_channels}, s, s), got {tuple(images.shape)}")
    if min(images.shape[2:]) < patches.kernel_size[0]:
        raise Refused(f"images: sides of at least a patch, {patches.kernel_size[0]}, are needed, got {tuple(images.shape)}")
    same_kind("images", images, patches.weight)
