"""The wave net's exact invariants: a shift register, a horizon of n steps, the circulant matrix, speed one."""

import pytest
import torch

from neuropil.dynamics.wave_rnn import IdentityCell, WaveCell, wave_speed
from neuropil.errors import Refused
from neuropil.lab.claims import select
from neuropil.lab.run import measure
from neuropil.nn.scan import scan
from neuropil.numerics.linear_scan import linear_scan


def test_a_started_wave_is_a_shift_register():
    n, steps = 12, 9
    x = torch.randn(steps, 3, 1, generator=torch.Generator().manual_seed(0))
    cell = WaveCell(1, n, rings=2, phi="identity")
    _, h = scan(cell, x, cell.start(3))
    for back in range(steps):
        assert torch.equal(h[:, :, -back % n], x[-1 - back].expand(3, 2))
    assert (h[:, :, 1 : n - steps + 1] == 0).all()


def test_a_ring_of_n_units_remembers_n_steps():
    n = 6
    x = torch.zeros(n + 1, 1, 1)
    x[0] = 1
    cell = WaveCell(1, n, rings=1, phi="identity")
    h = scan(cell, x, cell.start(1))[0].detach()
    assert [int(row.argmax()) for row in h[:, 0]] == [0, 5, 4, 3, 2, 1, 0]  # after n steps it lies where the new input comes in


def test_convolution_is_the_circulant_matrix_and_torchs_circular_conv():
    torch.manual_seed(0)
    cell = WaveCell(2, 7, rings=3, init="random").double()
    h = torch.randn(5, 3, 7, dtype=torch.float64)
    padded = torch.nn.functional.pad(h, (1, 1), mode="circular")
    assert torch.allclose(cell.convolve(h), torch.nn.functional.conv1d(padded, cell.w))
    assert torch.allclose(cell.convolve(h).flatten(1), h.flatten(1) @ cell.matrix().T)


def test_linear_cell_by_associative_scan():
    """In the Fourier basis of the ring the recurrence is a product at each wave number."""
    torch.manual_seed(0)
    cell = WaveCell(1, 8, rings=1, phi="identity", init="random").double()
    x = torch.randn(50, 4, 1, dtype=torch.float64)
    y, _ = scan(cell, x, cell.start(4))
    drive = torch.fft.fft(cell.V(x) + cell.b[0], dim=-1)
    eigenvalues = torch.fft.fft(cell.convolve(torch.eye(8, dtype=torch.float64)[0].view(1, 8)))[0]
    assert torch.allclose(torch.fft.ifft(linear_scan(eigenvalues, drive), dim=-1).real, y, atol=1e-10)


def test_the_still_start_keeps_everything_in_place():
    cell = WaveCell(1, 5, rings=1, init="still")
    _, h = scan(cell, torch.ones(4, 1, 1), cell.start(1))
    assert h[0, 0].tolist() == [4, 0, 0, 0, 0]


def test_state_of_the_wrong_size_and_bad_sizes_are_refused():
    with pytest.raises(Refused, match=r"state: must end in \(rings, units\) = \(2, 5\)"):
        WaveCell(1, 5, 2)(torch.zeros(1, 1), torch.zeros(1, 1, 5))
    with pytest.raises(Refused, match="units"):
        WaveCell(1, 1, 2)
    with pytest.raises(Refused, match=r"^h: float32 or float64"):
        wave_speed(torch.zeros(4, 4).half())
    with pytest.raises(Refused, match="init"):
        WaveCell(1, 5, 2, init="forward")
    with pytest.raises(Refused, match="phi"):
        IdentityCell(1, 5, phi="sine")


def test_identity_cell_keeps_its_state():
    cell = IdentityCell(1, 4, phi="identity")
    h = torch.randn(2, 4)
    cell.V.bias.data.zero_()
    assert torch.equal(cell(torch.zeros(2, 1), h)[0], h)


@pytest.mark.parametrize(("speed", "direction"), [(1.0, 1), (-1.0, -1), (0.0, 0)])
def test_wave_speed_of_pulses(speed, direction):
    place = torch.arange(32.0)
    pulse = torch.stack([torch.exp(-0.5 * ((place - 16 + direction * t + 16) % 32 - 16.0) ** 2 / 4) for t in range(32)])
    assert abs(wave_speed(pulse) - speed) < 0.05


def test_wave_speed_works_where_the_states_are():
    with pytest.raises(RuntimeError, match="item"):  # all but the last step, to read the number: there is none on this device
        wave_speed(torch.zeros(8, 4, device="meta"))


@pytest.mark.parametrize("claim", select("wave-rnn"), ids=lambda c: c.name)
def test_claims_run(claim):
    row, pictures = measure(claim, 0, "smoke", draw=True)
    assert pictures
    assert all(0 <= row[side] <= 100 for side in ("method", "baseline"))
