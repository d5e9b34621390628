"""The parts under torch.compile without a graph break; in own processes, as dynamo cannot see through the tests' type checker."""

import subprocess
import sys

import pytest

PARTS = {
    "lookup": "from neuropil.memory.lookup import lookup, Ball; f = lambda: lookup(x, y, separation=Ball(0.1))",
    "retrieve": "from neuropil.memory.hopfield import retrieve; f = lambda: retrieve(x, y, steps=2)",
    "layer": "from neuropil.memory.hopfield_layers import *; h = Hopfield(8, heads=2, steps=3); f = lambda: h(x[None], y[None])",
    "pooling": "from neuropil.memory.hopfield_layers import *; h = HopfieldPooling(8); f = lambda: h(y[None], mask=m)",
    "heads": "from neuropil.nn.attention import MultiHead; h = MultiHead(8, heads=2); f = lambda: h(x[None], y[None])",
}


@pytest.mark.parametrize("part", PARTS)
def test_compiles_whole(part):
    lines = [
        "import torch; torch.manual_seed(0); x, y = torch.randn(4, 8), torch.randn(6, 8); m = torch.ones(1, 6) > 0",
        PARTS[part],
        "g = torch.compile(f, backend='eager', fullgraph=True)",
        "torch.testing.assert_close(g(), f())",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
