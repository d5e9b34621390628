"""Recording and overriding at named sites: what they see and change, what they refuse, and that nothing of them stays behind."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import nn

from neuropil.errors import Refused
from neuropil.nn.attention import MultiHead, masked_softmax
from neuropil.nn.sites import Site, change, clamp, downstream, override, record, replace, scale, sites
from neuropil.nn.transformer import GPT


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


class Forms(nn.Module):
    """A module whose outputs and arguments come in all forms."""

    def forward(self, x, scale=1.0, *, shift=0.0):
        return {"sum": x.sum(), "pair": (x * scale, x + shift)}


class Caller(nn.Module):
    def __init__(self):
        super().__init__()
        self.forms = Forms()

    def forward(self, x):
        return self.forms(x, 2.0, shift=torch.ones(3))


@pytest.fixture
def net():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def test_sites_lists_what_matches(net):
    gpt = GPT(7, d=8, heads=2, layers=2, context=6, hidden=16)
    assert sites(net) == ["0", "1", "2"]
    assert sites(gpt, "layers.*.attention.pattern") == ["layers.0.attention.pattern", "layers.1.attention.pattern"]
    assert set(sites(gpt, "layers.0.mlp.*")) == {"layers.0.mlp.0", "layers.0.mlp.1", "layers.0.mlp.2"}
    assert all(name.endswith("attention") for name in sites(gpt, "**.attention"))


def test_inputs_outputs_and_parts():
    model, x = Caller(), torch.randn(2, 3)
    names = ["forms:in", "forms:in[1]", "forms:in[shift]", "forms[sum]", "forms[pair][1]", "forms[pair][-1]"]
    with record(model, *names, "forms") as seen:
        out = model(x)
    assert torch.equal(seen["forms:in"][0], x) and seen["forms:in[1]"] == [2.0]
    assert torch.equal(seen["forms:in[shift]"][0], torch.ones(3)) and seen["forms[sum]"][0] == x.sum()
    assert torch.equal(seen["forms[pair][1]"][0], x + 1) and torch.equal(seen["forms[pair][-1]"][0], x + 1)
    assert seen["forms"][0].keys() == out.keys()
    with override(model, {"forms:in": 1.0, "forms:in[shift]": 5.0, "forms[pair][0]": lambda y: -y}):
        changed = model(x)
    torch.testing.assert_close(changed["sum"], torch.tensor(6.0))
    torch.testing.assert_close(changed["pair"], (torch.full((2, 3), -2.0), torch.full((2, 3), 6.0)))
    torch.testing.assert_close(model(x)["pair"], out["pair"])


def test_a_recorded_value_put_back_changes_nothing(net):
    x = torch.randn(6, 4)
    plain = net(x)
    with record(net, "**", ":in") as seen:
        net(x)
    assert list(seen) == ["0", "1", "2", ":in"]
    for name, [value] in seen.items():
        with override(net, {name: value}):
            assert torch.equal(net(x), plain)
    with override(net, {}):
        assert torch.equal(net(x), plain)


def test_record_detaches_reduces_or_keeps_the_graph(net):
    x = torch.randn(6, 4)
    with record(net, "0") as plain, record(net, "0", keep=lambda h: h.mean(0)) as mean, record(net, "0", graph=True) as graph:
        loss = net(x).square().sum()
    assert not plain["0"][0].requires_grad and mean["0"][0].shape == (5,)
    [gradient] = torch.autograd.grad(loss, graph["0"])
    h = net[0](x).detach().requires_grad_()
    net[2](torch.relu(h)).square().sum().backward()
    torch.testing.assert_close(gradient, h.grad)


def test_with_frozen_weights_the_graph_starts_at_the_site(net):
    x = torch.randn(6, 4)
    net.requires_grad_(False)
    with record(net, "1", graph=True) as seen:
        loss = net(x).sum()
    [gradient] = torch.autograd.grad(loss, seen["1"])
    torch.testing.assert_close(gradient, net[2].weight.sum(0).expand(6, 5))
    with record(net, ":in", graph=True) as seen:
        net(x)
    assert seen[":in"][0].requires_grad and not x.requires_grad


def test_what_is_overwritten_in_place_is_refused():
    net, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True)), torch.randn(6, 4)
    with pytest.raises(Refused, match="site '0': what was recorded was overwritten in place"), record(net, "0"):
        net(x)
    with record(net, "0", keep=torch.clone) as seen:
        net(x)
    assert torch.equal(seen["0"][0], net[0](x))
    with torch.inference_mode(), record(net, "1") as seen:
        net(x)
    assert torch.equal(seen["1"][0], net(x))


def test_edits_at_single_units(net):
    x, where = torch.randn(6, 4), torch.tensor([True, False, False, False, True])
    h = net[0](x)
    for edit, expected in [
        (replace(7.0, where), torch.where(where, 7.0, h)),
        (replace(torch.arange(5.0)), torch.arange(5.0).expand(6, 5)),
        (scale(torch.arange(6.0)[:, None], where), torch.where(where, h * torch.arange(6.0)[:, None], h)),
        (clamp(-0.1, 0.1, where), torch.where(where, h.clamp(-0.1, 0.1), h)),
        (clamp(high=torch.zeros(5)), h.clamp(max=0)),
        (change(torch.cos, where), torch.where(where, h.cos(), h)),
        (7, torch.full((6, 5), 7.0)),
        (torch.cos, h.cos()),
    ]:
        with override(net, {"0": edit}), record(net, "0") as seen:
            net(x)
        assert torch.equal(seen["0"][0], expected)
    assert torch.equal(net[0](x), h)


def test_a_number_is_not_rounded_to_single_precision():
    net, x = nn.Sequential(nn.Identity()), torch.ones(3, dtype=torch.float64)
    with override(net, {"0": scale(0.1)}):
        assert torch.equal(net(x), 0.1 * x)


def test_constants_get_no_gradient_and_functions_do(net):
    x, constant, gain = torch.randn(6, 4), torch.ones(5, requires_grad=True), torch.ones(5, requires_grad=True)
    where = torch.tensor([True, True, False, False, False])
    with override(net, {"0": replace(constant, where), "1": scale(constant), "2": lambda y: y * gain[:3]}):
        net(x).sum().backward()
    assert constant.grad is None and gain.grad is not None
    assert (net[0].weight.grad[:2] == 0).all() and (net[0].weight.grad[2:] != 0).any()


def test_training_under_an_override_leaves_clamped_units_alone(net):
    before = copy.deepcopy(net.state_dict())
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    with override(net, {"1": replace(0.0, torch.tensor([True, False, False, False, False]))}), record(net, "1") as seen:
        for _ in range(3):
            optimizer.zero_grad()
            net(torch.randn(16, 4)).square().mean().backward()
            optimizer.step()
    assert len(seen["1"]) == 3 and all((h[:, 0] == 0).all() for h in seen["1"])
    assert torch.equal(net[0].weight[0], before["0.weight"][0]) and not torch.equal(net[0].weight[1], before["0.weight"][1])


def test_blocks_nest_in_order_and_one_site_may_be_entered_twice(net):
    x = torch.randn(6, 4)
    with record(net, "0") as before, override(net, {"0": 0.0}), override(net, {"0": lambda h: h + 1}), record(net, "0") as after:
        net(x)
    assert torch.equal(before["0"][0], net[0](x)) and torch.equal(after["0"][0], torch.ones(6, 5))


def test_a_function_may_run_the_model_itself(net):
    x, other = torch.randn(6, 4), torch.randn(6, 4)

    def of_the_other_pass(h):
        with record(net, "0") as seen:
            net(other)
        return seen["0"][0]

    with override(net, {"0": of_the_other_pass}):
        assert torch.equal(net(x), net(other))


def test_a_shared_module_runs_under_both_names():
    layer = nn.Linear(3, 3)
    net, x = nn.Sequential(layer, layer), torch.randn(2, 3)
    with record(net, "1") as seen:
        net(x)
    assert len(seen["1"]) == 2


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"00": 0.0}, "no submodule '00'"),
        ({"*.weight": 0.0}, "no submodule"),
        ({"0:out": 0.0}, "then :in for its arguments"),
        ({"0": torch.zeros(4)}, r"site '0': a value of shape \(4,\) does not fit the site's \(6, 5\)"),
        ({"0": torch.zeros(2, 6, 5)}, r"site '0': a value of shape \(2, 6, 5\) does not fit the site's \(6, 5\)"),
        ({"0": torch.zeros(5, dtype=torch.complex64)}, "a value of torch.complex64 does not fit"),
        ({"0": replace(0.0, torch.ones(6) > 0)}, r"the mask must be boolean and fit \(6, 5\), got torch.bool of \(6,\)"),
        ({"0": replace(0.0, torch.ones(5))}, "the mask must be boolean"),
        ({"0": lambda h: h[:3]}, r"must give a tensor of shape \(6, 5\), got shape \(3, 5\)"),
        ({"0": lambda h: None}, r"must give a tensor of shape \(6, 5\), got a NoneType"),
        ({"0": lambda h: h.mul_(2)}, "changed its argument in place"),
        ({"0[2]": torch.zeros(5)}, "holds a tensor of shape"),
        ({"0[a]": 0.0}, r"has no part \[a\]"),
        ({"0:in[1]": 0.0}, "has no part"),
    ],
)
def test_bad_overrides_are_refused_and_leave_no_hook(net, edits, message):
    with pytest.raises(Refused, match=message), override(net, edits):
        net(torch.randn(6, 4))
    assert hooks(net) == 0


def test_an_output_of_several_parts_must_be_named():
    net = nn.Sequential(nn.GRU(2, 3))
    with (
        pytest.raises(Refused, match=r"holds a tuple of 2 parts, no tensor; name a part of it, as '0\[0\]'"),
        override(net, {"0": 0.0}),
    ):
        net(torch.randn(4, 1, 2))
    with override(net, {"0[1]": 0.0}):
        out, last = net(torch.randn(4, 1, 2))
    assert (last == 0).all() and (out != 0).any()


def test_a_site_that_never_ran_is_refused(net):
    for block in (record(net, "0", "2"), override(net, {"2": 0.0})):
        with pytest.raises(Refused, match="site '2': never ran inside the block"), block:
            net[0](torch.randn(6, 4))
    two = nn.ModuleDict({"ran": nn.Linear(4, 5), "idle": nn.Linear(4, 5), "other": nn.ModuleList([nn.Linear(4, 5)])})
    with record(two, "*", "**") as seen:  # of a pattern, those that ran
        two["ran"](torch.randn(6, 4))
    assert list(seen) == ["ran"]
    with pytest.raises(Refused, match=r"site 'other\.\*': never ran"), override(two, {"other.*": 0.0, "ran": 0.0}):
        two["ran"](torch.randn(6, 4))
    with pytest.raises(Refused, match="at least one site"), record(net):
        pass
    with pytest.raises(KeyError), record(net, "2"):  # the exception inside is the one that is seen
        raise KeyError("mine")
    assert hooks(net) == 0


def test_a_copy_made_inside_the_block_is_free_after_it(net):
    x = torch.randn(6, 4)
    with override(net, {"0": 0.0}):
        twin = copy.deepcopy(net)
        net(x)
    assert torch.equal(twin(x), net(x))


def test_downstream_is_the_rest_of_the_model():
    gpt, tokens = GPT(7, d=8, heads=2, layers=2, context=6), torch.randint(7, (3, 5))
    z, f = downstream(gpt, "layers.0", tokens)
    assert torch.equal(f(z), gpt(tokens))
    torch.testing.assert_close(f(torch.cat([z, 0 * z]))[:3], gpt(tokens))
    z = z.requires_grad_()
    assert torch.autograd.grad(f(z).sum(), z)[0].abs().sum() > 0
    with pytest.raises(Refused, match="or copies of that"):
        f(z[:2])
    with pytest.raises(Refused, match="must pass one tensor once, passed 2 times"):
        downstream(nn.Sequential(*[nn.Tanh()] * 2), "0", torch.ones(2))


# --- attention ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [None, 0.3, torch.tensor(2.5)])
@pytest.mark.parametrize("masked", [False, True])
def test_the_explicit_path_equals_the_fused_one(beta, masked):
    heads, x, memory = MultiHead(8, heads=2), torch.randn(3, 5, 8, requires_grad=True), torch.randn(3, 7, 8)
    mask = torch.rand(3, 5, 7) < 0.5 if masked else None
    if masked:
        mask[:, 2] = False  # a query that may look nowhere
    fused = heads(x, memory, mask, beta)
    with record(heads, "q", "k", "v", "scores", "pattern", "z") as seen:
        explicit = heads(x, memory, mask, beta)
    torch.testing.assert_close(explicit, fused)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (fused, explicit)]
    torch.testing.assert_close(*gradients)
    [pattern], [z] = seen["pattern"], seen["z"]
    assert pattern.shape == (3, 2, 5, 7) and seen["q"][0].shape == (3, 2, 5, 4) and seen["scores"][0].isfinite().all()
    total = torch.ones(3, 2, 5) if mask is None else mask.any(-1)[:, None].expand(3, 2, 5).float()
    torch.testing.assert_close(pattern.sum(-1), total)
    torch.testing.assert_close(z, pattern @ seen["v"][0])
    scale_of = 0.5 if beta is None else beta
    torch.testing.assert_close(seen["scores"][0], scale_of * seen["q"][0] @ seen["k"][0].mT)
    torch.testing.assert_close(pattern, masked_softmax(seen["scores"][0], None if mask is None else mask[:, None]))


def test_the_fused_kernel_runs_unless_scores_or_pattern_are_watched(monkeypatch):
    heads, x, calls = MultiHead(8, heads=2), torch.randn(3, 5, 8), []
    import neuropil.nn.attention as module

    real = module.attend
    monkeypatch.setattr(module, "attend", lambda *a, **k: calls.append(1) or real(*a, **k))
    with record(heads, "q", "k", "v", "z"):
        heads(x)
    assert len(calls) == 1
    for name in ("scores", "pattern"):
        with record(heads, name):
            heads(x)
        assert len(calls) == 1
    heads(x)
    assert len(calls) == 2


def test_pattern_and_head_overrides():
    heads, x = MultiHead(8, heads=2), torch.randn(3, 5, 8)
    with override(heads, {"pattern": torch.eye(5)}):
        torch.testing.assert_close(heads(x), heads.out(heads.value(x)))
    first = torch.tensor([True, False])[:, None, None]
    with override(heads, {"z": replace(0.0, first)}):
        second = heads(x)
    with override(heads, {"v": replace(0.0, ~first)}):
        other = heads(x)
    torch.testing.assert_close(second + other - heads.out.bias, heads(x))


def test_site_has_no_state_and_knows_who_watches():
    site = nn.Sequential(Site())
    assert not site.state_dict() and not site[0].watched
    with record(site, "0"):
        assert site[0].watched
        site(torch.ones(1))
    assert not site[0].watched


# --- other people's models -----------------------------------------------------------------------------------------------------


def test_torchs_own_transformer_layer():
    layer, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(3, 5, 8)
    with torch.no_grad():
        plain = layer(x)
        with record(layer, "linear1") as seen:
            torch.testing.assert_close(layer(x), plain, rtol=1e-4, atol=1e-5)
        with override(layer, {"self_attn[0]": 0.0}):
            assert not torch.allclose(layer(x), plain)
    assert seen["linear1"][0].shape == (3, 5, 16)


def test_a_hugging_face_model_from_a_local_folder(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=11, n_embd=8, n_layer=2, n_head=2, n_positions=6, attn_implementation="eager")
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager", local_files_only=True)
    tokens = torch.randint(11, (3, 5))
    with record(model, "transformer.h.*.mlp.act", "transformer.h.0.attn[1]", "[logits]", "transformer[last_hidden_state]") as seen:
        out = model(tokens, labels=tokens)
    assert seen["transformer.h.1.mlp.act"][0].shape == (3, 5, 32)
    torch.testing.assert_close(seen["transformer.h.0.attn[1]"][0].sum(-1), torch.ones(3, 2, 5))
    assert torch.equal(seen["[logits]"][0], out.logits)
    with override(model, {"transformer[last_hidden_state]": 0.0, "[logits]": lambda y: y + 1}):
        changed = model(tokens)
    assert type(changed) is type(out) and torch.equal(changed.logits, torch.ones_like(out.logits))
    assert torch.equal(model(tokens).logits, out.logits)


COMPILED = """
import torch
from torch import nn
from neuropil.errors import Refused
from neuropil.nn.sites import override, record
net, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.randn(2, 3)
late = torch.compile(lambda x: net(x), backend="eager")
early = torch.compile(lambda x: 2 * net(x), backend="eager")
early(x)
def refused(model, call):
    try:
        with override(model, {"0": 0.0}):
            call(x)
    except Refused as error:
        return str(error)
assert "compiled" in refused(torch.compile(net, backend="eager"), net)
inner = nn.Sequential(nn.Linear(3, 3)); inner[0].compile(backend="eager")
assert "compiled" in refused(inner, inner)
assert "never ran" in refused(net, early)
with override(net, {"0": 0.0}):
    assert (late(x) == 0).all()
torch.testing.assert_close(late(x), net(x)); torch.testing.assert_close(early(x), 2 * net(x))
"""


def test_under_torch_compile_it_works_or_is_refused_and_nothing_stays():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
