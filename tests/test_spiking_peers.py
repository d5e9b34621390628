"""Our LIF layer is snnTorch's `Leaky` and norse's `LIFBox`: against the packages where they are, and against numbers they gave."""

import warnings

import pytest
import torch

from neuropil.nn.scan import scan
from neuropil.nn.spiking import LIF

DECAY, THRESHOLD = 0.85, 0.7


def drive():
    """(12, 4), the same on every machine."""
    t, unit = torch.arange(12.0)[:, None], torch.arange(4.0)
    return 0.35 + 0.5 * torch.sin(1.3 * t + 0.9 * unit * (1 + 0.1 * t))


def ours(reset):
    return scan(LIF(DECAY, THRESHOLD, reset, "fast_sigmoid", 5.0), drive(), torch.zeros(4))


def quiet_import(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name)


def snntorch(reset):
    """The reset without the step of delay that is its default."""
    package = quiet_import("snntorch")
    cell = package.Leaky(DECAY, threshold=THRESHOLD, reset_mechanism={"soft": "subtract", "hard": "zero"}[reset], reset_delay=False)
    u, spikes = torch.zeros(4), []
    for x in drive():
        s, u = cell(x, u)
        spikes.append(s)
    return torch.stack(spikes), u


def norse(reset):
    """dv = dt/τ (i − v): our drive is (1 − λ) i."""
    quiet_import("norse")
    from norse.torch.functional import lif_box
    from norse.torch.functional.reset import reset_subtract, reset_value

    how = {"soft": reset_subtract, "hard": reset_value}[reset]
    dt = 0.001
    p = lif_box.LIFBoxParameters(tau_mem_inv=torch.tensor((1 - DECAY) / dt), v_th=torch.tensor(THRESHOLD), reset_method=how)
    state, spikes = lif_box.LIFBoxFeedForwardState(torch.zeros(4)), []
    for x in drive():
        s, state = lif_box.lif_box_feed_forward_step(x / (1 - DECAY), state, p, dt)
        spikes.append(s)
    return torch.stack(spikes), state.v


@pytest.mark.parametrize("reset", ["soft", "hard"])
@pytest.mark.parametrize("peer", [snntorch, norse])
def test_spikes_and_potentials_are_the_peers(peer, reset):
    spikes, u = ours(reset)
    theirs, v = peer(reset)
    assert torch.equal(spikes, theirs)
    assert torch.allclose(u, v, atol=1e-5)


# what snnTorch 1.0.0 and norse 1.1.0 both gave: a row a unit, and the last potentials
GAVE = {
    "soft": ("011000110001 110001100110 100011001100 000110011001", [0.732608, 0.251042, 0.084964, 0.222513]),
    "hard": ("010001100011 110001000110 100010001000 000100010001", [0.0, 0.118208, 0.42204, 0.0]),
}


@pytest.mark.parametrize("reset", GAVE)
def test_spikes_and_potentials_are_what_the_peers_gave(reset):
    spikes, u = ours(reset)
    rows, potentials = GAVE[reset]
    assert " ".join("".join(str(int(s)) for s in unit) for unit in spikes.T) == rows
    assert torch.allclose(u, torch.tensor(potentials), atol=1e-5)
