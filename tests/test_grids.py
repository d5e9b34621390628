"""Grid encodings: exactness at vertices, refinement, the hash of the paper, derivatives, state."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from neuropil.errors import Refused
from neuropil.fields.grids import DenseGrid, HashGrid, Planes

KINDS = {
    "dense": lambda: DenseGrid(2, 2, 3),
    "hash": lambda: HashGrid(2, levels=2, features=2, table=16, coarsest=3, finest=7),
    "product": lambda: Planes(3, 1, 3, "product"),
    "sum": lambda: Planes(3, 1, 3, "sum"),
    "vm": lambda: Planes(3, 1, 3, "vm"),
}


@pytest.fixture(params=KINDS)
def grid(request):
    torch.manual_seed(0)
    return KINDS[request.param]().double()


@pytest.fixture
def x(grid):
    """Points away from the borders of cells of 3 and 7."""
    return torch.tensor([[-0.8, 0.1, 0.5], [0.2, -0.55, 0.75], [0.05, 0.9, -0.2]], dtype=torch.float64)[:, : grid.d]


def test_first_and_second_derivatives(grid, x):
    assert gradcheck(grid, x.requires_grad_()) and gradgradcheck(grid, x)
    parameters = dict(grid.named_parameters())

    def by_tables(*tables):
        return torch.func.functional_call(grid, dict(zip(parameters, tables, strict=True)), (x,))

    assert gradcheck(by_tables, tuple(parameters.values()))


def test_width_batch_and_vmap(grid, x):
    y = grid(x)
    assert y.shape == (3, grid.width)
    torch.testing.assert_close(grid(x.reshape(3, 1, -1)), y[:, None])
    torch.testing.assert_close(torch.func.vmap(grid)(x), y)


def test_state_goes_round(grid, x, request):
    y = grid(x)
    torch.manual_seed(7)
    other = KINDS[request.node.callspec.params["grid"]]().double()
    assert not torch.equal(other(x), y)
    other.load_state_dict(grid.state_dict())
    assert torch.equal(other(x), y)


def test_dense_grid_reads_its_vertices_and_lines_between():
    grid = DenseGrid(2, 1, 4).double()
    table = grid.table.detach().reshape(5, 5)  # [y, x]: the first axis is the fastest
    at = lambda x, y: float(grid(torch.tensor([[x, y]], dtype=torch.float64)).detach())  # noqa: E731
    assert at(-1.0, -1.0) == float(table[0, 0]) and at(1.0, -1.0) == float(table[0, 4]) and at(0.5, 0.0) == float(table[2, 3])
    assert at(0.25, 0.0) == pytest.approx(float(table[2, 2] + table[2, 3]) / 2)


def test_dense_grid_is_torchs_sampler():
    grid, x = DenseGrid(3, 4, 6).double(), 2 * torch.rand(200, 3, dtype=torch.float64) - 1
    volume = grid.table.detach().T.reshape(1, 4, 7, 7, 7)
    theirs = torch.nn.functional.grid_sample(volume, x[None, None, None], align_corners=True)[0, :, 0, 0].T
    torch.testing.assert_close(grid(x), theirs)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_refined_grid_is_the_same_function(d):
    grid = DenseGrid(d, 2, 3).double()
    finer, x = grid.refined(6), 2 * torch.rand(50, d, dtype=torch.float64) - 1
    torch.testing.assert_close(finer(x), grid(x))
    assert finer.resolution == 6 and finer.table.requires_grad


def test_hash_grids_levels_follow_the_paper():
    """Müller et al. 2022, eq. 2–3 with their defaults N_min = 16, N_max = 2048, L = 16: b = 1.3819."""
    with torch.device("meta"):
        grid = HashGrid(3)
    assert grid.resolutions[:3] == [16, 22, 30] and grid.resolutions[-1] == 2048
    assert grid.sizes[0] == 17**3 and grid.sizes[-1] == 2**19


def test_hash_grid_shares_rows_only_beyond_its_table():
    torch.manual_seed(0)
    grid = HashGrid(2, levels=2, features=1, table=64, coarsest=7, finest=50)
    assert grid.sizes == [64, 64]
    x = 2 * torch.rand(4000, 2) - 1
    grid(x).square().sum().backward()
    assert (grid.table.grad != 0).all()  # the first level is dense and full, the hash of the second reaches every row


def test_sum_of_planes_is_the_sum():
    planes = Planes(3, 2, 3, "sum")
    x = 2 * torch.rand(5, 3) - 1
    expected = planes.planes[0](x[:, [0, 1]]) + planes.planes[1](x[:, [0, 2]]) + planes.planes[2](x[:, [1, 2]])
    torch.testing.assert_close(planes(x), expected)


def test_vm_puts_each_plane_with_the_line_across_it():
    planes = Planes(3, 1, 3, "vm")
    x = 2 * torch.rand(5, 3) - 1
    y = planes(x)
    for k, (pair, line) in enumerate((([0, 1], 2), ([0, 2], 1), ([1, 2], 0))):
        torch.testing.assert_close(y[:, k : k + 1], planes.planes[k](x[:, pair]) * planes.lines[k](x[:, [line]]))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: DenseGrid(2, 0, 4), "features"),
        (lambda: HashGrid(3, table=100), "table"),
        (lambda: HashGrid(3, coarsest=16, finest=8), "finest"),
        (lambda: Planes(1, 2, 4), "d"),
        (lambda: Planes(2, 2, 4, "vm"), "d"),
        (lambda: Planes(3, 2, 4, "pruduct"), "mode"),
    ],
)
def test_refuses(make, name):
    with pytest.raises(Refused, match=f"^{name}:"):
        make()
