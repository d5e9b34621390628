"""Small transformers: what they compute, their sites, positions, and nets that are trained once and kept."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from neuropil.errors import Refused
from neuropil.nn.attention import MultiHead
from neuropil.nn.sites import override, record, replace, sites
from neuropil.nn.transformer import GPT, POSITIONS, Attention, Block, Transformer, rotate
from neuropil.training import trained as module
from neuropil.training.trained import code_of, trained


def test_a_block_agrees_with_torchs():
    ours, theirs = (
        Block(8, MultiHead(8, 2), hidden=16),
        nn.TransformerEncoderLayer(8, 2, 16, 0.0, "gelu", batch_first=True, norm_first=True),
    )
    attention = ours.attention
    with torch.no_grad():
        theirs.self_attn.in_proj_weight.copy_(torch.cat([w.weight for w in (attention.query, attention.key, attention.value)]))
        theirs.self_attn.in_proj_bias.copy_(torch.cat([w.bias for w in (attention.query, attention.key, attention.value)]))
        for a, b in (
            (theirs.self_attn.out_proj, attention.out),
            (theirs.norm1, ours.attention_norm),
            (theirs.norm2, ours.mlp_norm),
            (theirs.linear1, ours.mlp[0]),
            (theirs.linear2, ours.mlp[2]),
        ):
            a.load_state_dict(b.state_dict())
    x = torch.randn(3, 5, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("hidden", [0, 16])
def test_nothing_comes_from_the_future(positions, hidden):
    gpt, tokens = GPT(11, d=8, heads=2, layers=2, context=6, positions=positions, hidden=hidden), torch.randint(11, (3, 6))
    later = tokens.clone()
    later[:, 4:] = (later[:, 4:] + 1) % 11
    plain, changed = gpt(tokens), gpt(later)
    torch.testing.assert_close(changed[:, :4], plain[:, :4], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(changed[:, 4:], plain[:, 4:])
    torch.testing.assert_close(gpt(tokens[:, :4]), plain[:, :4], rtol=1e-4, atol=1e-5)
    open_ = GPT(11, d=8, heads=2, layers=2, context=6, positions=positions, hidden=hidden, causal=False)
    assert not torch.allclose(open_(later)[:, :4], open_(tokens)[:, :4])


def test_positions_are_told_apart_or_not():
    x = torch.randn(3, 5, 8)
    for positions in POSITIONS:
        model = Transformer(8, 2, 1, 5, positions=positions, causal=False)
        out, turned = model(x), model(x.flip(1)).flip(1)
        assert torch.allclose(out, turned, atol=1e-5) == (positions == "none"), positions


def test_rotary_scores_depend_on_the_distance_only():
    q, k = torch.randn(8, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    scores = rotate(q.expand(6, 8)) @ rotate(k.expand(6, 8)).T
    for distance in range(-5, 6):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    angles = torch.arange(6)[:, None] * 10_000.0 ** (-torch.arange(4) / 4)
    turned = torch.complex(q[:4], q[4:]) * torch.polar(torch.ones(6, 4), angles).to(torch.complex128)
    torch.testing.assert_close(rotate(q.expand(6, 8)), torch.cat([turned.real, turned.imag], -1), rtol=1e-5, atol=1e-6)


def test_rotary_angles_are_as_fine_as_what_they_turn():
    n, c = 5_000, 8
    angles = torch.arange(n, dtype=torch.float64)[:, None] * 10_000.0 ** (-torch.arange(c // 2, dtype=torch.float64) / (c // 2))
    turned = rotate(torch.cat([torch.ones(n, c // 2), torch.zeros(n, c // 2)], -1).double())
    torch.testing.assert_close(turned, torch.cat([angles.cos(), angles.sin()], -1), rtol=0, atol=1e-11)
    assert rotate(torch.ones(3, 4).bfloat16()).dtype == torch.bfloat16


def test_attended_positions_leave_values_alone():
    model = Attention(8, 2, "attended", context=5)
    x = torch.randn(3, 5, 8)
    with record(model, "v", "q", "value") as seen:
        model(x)
    assert len(seen["value"]) == 1
    value, query = (w(y).unflatten(-1, (2, 4)).transpose(1, 2) for w, y in ((model.value, x), (model.query, x + model.place)))
    torch.testing.assert_close(seen["v"][0], value)
    torch.testing.assert_close(seen["q"][0], query)


def test_the_residual_stream_is_the_sum_of_its_parts():
    gpt, tokens = GPT(11, d=8, heads=2, layers=2, context=6, hidden=16), torch.randint(11, (3, 6))
    with record(gpt, "**") as seen:
        logits = gpt(tokens)
    assert set(seen) == set(sites(gpt)) and "layers" not in seen and "layers.1.attention.scores" in seen
    parts = ["embed", *(f"layers.{i}.{part}" for i in range(2) for part in ("attention", "mlp"))]
    torch.testing.assert_close(sum(seen[name][0] for name in parts), seen["layers.1"][0])
    torch.testing.assert_close(seen["layers.0.middle"][0], seen["embed"][0] + seen["layers.0.attention"][0])
    torch.testing.assert_close(seen["layers.0.mlp.2"][0], seen["layers.0.mlp"][0])
    torch.testing.assert_close(gpt.unembed(gpt.norm(seen["layers.1"][0])), logits)
    assert (seen["layers.0.attention.pattern"][0].triu(1) == 0).all()


def test_frozen_patterns_make_an_unnormed_attention_only_model_linear():
    model, x, y = Transformer(8, 2, 2, 5, norm=False), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    with record(model, "layers.*.attention.pattern") as seen:
        model(x)
    with override(model, {name: replace(pattern) for name, [pattern] in seen.items()}):
        zero = model(torch.zeros_like(x))
        torch.testing.assert_close(model(2 * x + y) - zero, 2 * (model(x) - zero) + model(y) - zero, rtol=1e-4, atol=1e-5)


def test_masks_and_own_attention():
    class Smeared(Attention):
        def project(self, x, memory):
            q, k, v = super().project(x, memory)
            return q, 0.5 * k + 0.5 * torch.cat([k[..., :1, :], k[..., :-1, :]], -2), v

    model, x = Transformer(8, 2, 1, 5, attention=Smeared), torch.randn(3, 5, 8)
    assert isinstance(model.layers[0].attention, Smeared) and model(x).shape == x.shape
    hidden = torch.ones(1, 5, 5, dtype=torch.bool)
    hidden[..., 0] = False
    other = x.clone()
    other[:, 0] = 7.0
    plain = Transformer(8, 2, 1, 5)
    torch.testing.assert_close(plain(x, hidden)[:, 1:], plain(other, hidden)[:, 1:])
    assert plain(x, hidden).isfinite().all()


def test_state_dict_autocast_half_and_refusals():
    make = lambda: GPT(11, d=8, heads=2, layers=2, context=6, positions="attended", hidden=16)  # noqa: E731
    model, twin, tokens = make(), make(), torch.randint(11, (3, 6))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(tokens), model(tokens))
    for positions in POSITIONS:
        model = GPT(11, d=8, heads=2, layers=2, context=6, positions=positions)
        with torch.autocast("cpu", torch.bfloat16):
            low = model(tokens)
            with record(model, "layers.*.attention.pattern"):
                torch.testing.assert_close(model(tokens), low, rtol=0.1, atol=0.05)
        torch.testing.assert_close(low.float(), model(tokens), rtol=0.1, atol=0.05)
        assert model.to(torch.bfloat16)(tokens).dtype == torch.bfloat16
    for bad, message in (
        (lambda: make()(torch.zeros(1, 7, dtype=torch.long)), "at most context = 6 positions, got 7"),
        (lambda: Transformer(8, 2, 1, 5, positions="rotery"), "did you mean 'rotary'"),
        (lambda: Transformer(8, 3, 1, 5), "heads"),
        (lambda: Transformer(6, 2, 1, 5), "even number of features"),
        (lambda: Transformer(8, 2, 0, 5), "layers: must be at least 1"),
        (lambda: rotate(torch.ones(2, 3)), "even number"),
    ):
        with pytest.raises(Refused, match=message):
            bad()


def test_compiles_whole():
    lines = [
        "import torch; from neuropil.nn.transformer import GPT",
        "model = GPT(11, d=8, heads=2, layers=2, context=6, hidden=16); x = torch.randint(11, (3, 6))",
        "torch.testing.assert_close(torch.compile(model, backend='eager', fullgraph=True)(x), model(x))",
    ]
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]


# --- trained once, kept ------------------------------------------------------------------------------------------------------


def make(d):
    return nn.Sequential(nn.Linear(d, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))


def train(model, keep, d):
    """Three steps on noise, from the global generator."""
    losses = []
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        keep(step)
        loss = model(torch.randn(8, d)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {"losses": losses}


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("NEUROPIL_DATA", str(tmp_path))
    return tmp_path


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_trained_once_then_loaded_and_the_program_goes_on_alike(kept):
    first = trained("net", make, train, seed=3, settings={"d": 4})
    after_training = torch.rand(1)
    torch.manual_seed(0)
    again = trained("net", make, train, seed=3, settings={"d": 4})
    assert torch.equal(torch.rand(1), after_training)
    assert (first.note, again.note) == ("trained", "loaded") and again.notes == first.notes and again.seconds == first.seconds
    assert same(first.model, again.model) and not first.model.training and not again.model.training
    assert again.steps == first.steps == [0, 1, 2] and all(same(first.at(s), again.at(s)) for s in first.steps)
    assert not same(again.at(1), again.at(2)) and not same(again.at(2), again.model)
    torch.manual_seed(3)
    model = make(4)
    assert same(model.eval(), again.at(0))  # step 0 is the net as the seed makes it
    model.train()
    assert train(model, lambda step: None, 4) == first.notes and same(model, first.model)
    with pytest.raises(Refused, match=r"step: 7 was not kept \(kept: 0, 1, 2\)"):
        first.at(7)
    assert [path.suffix for path in sorted((kept / "trained" / "net").iterdir())] == [".safetensors", ".lock"]


def test_another_seed_setting_or_code_trains_anew(kept):
    paths = {trained("net", make, train, seed=seed, settings={"d": d}).path for seed in (0, 1) for d in (2, 3)}
    paths.add(trained("net", make, train, seed=0, settings={"d": 2}, code=[Transformer]).path)
    assert len(paths) == 5
    assert code_of(make) == code_of(train) != code_of(Transformer)


@pytest.mark.parametrize(
    "harm", [lambda b: b[:-1], lambda b: b"", lambda b: b[:-5] + bytes([b[-5] ^ 1]) + b[-4:], lambda b: b"{" + b]
)
def test_a_corrupt_file_is_trained_again(kept, harm):
    first = trained("net", make, train, seed=0, settings={"d": 2})
    first.path.write_bytes(harm(first.path.read_bytes()))
    again = trained("net", make, train, seed=0, settings={"d": 2})
    assert again.note == "trained again: the file was corrupt" and same(again.model, first.model)
    assert trained("net", make, train, seed=0, settings={"d": 2}).note == "loaded"


def test_an_interrupted_training_leaves_nothing(kept):
    def stop(model, keep):
        raise KeyboardInterrupt

    before = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        trained("net", lambda: make(2), stop, seed=0)
    assert not list(kept.glob("trained/net/*.safetensors")) and not list(kept.glob("trained/net/.*"))
    assert torch.equal(before, torch.get_rng_state())


def test_what_the_key_would_not_see_is_refused(kept):
    import functools

    d, rest, tensor = 2, (2,), torch.zeros(2)
    for bad, message in (
        (lambda: trained("net", lambda: make(d), train, seed=0), "closes over d, which the key does not see"),
        (lambda: trained("net", lambda: make(*rest), train, seed=0), "closes over rest, which the key does not see"),
        (lambda: trained("net", make, lambda model, keep: tensor, seed=0), "closes over tensor, which the key does not see"),
        (lambda: trained("net", lambda n=d: make(n), train, seed=0), "has defaults for n, which the key does not see"),
        (lambda: trained("net", lambda *, n=[2]: make(*n), train, seed=0), "has defaults for n, which"),
        (lambda: trained("net", functools.partial(make, 2), train, seed=0), "partial"),
        (lambda: trained("a/b", make, train, seed=0, settings={"d": 2}), "name: letters"),
        (lambda: trained("net", make, train, seed=0, settings={"d": make}), "settings must be JSON's plain values"),
        (lambda: trained("net", lambda: make(3), lambda model, keep: make, seed=0), "notes must be JSON's"),
    ):
        with pytest.raises(Refused, match=message):
            bad()


def test_functions_classes_and_modules_may_be_closed_over():
    function, kind, made = make, nn.Linear, module
    assert code_of(lambda: (function, kind, made)) == code_of(make)
    assert code_of(lambda f=function: f) == code_of(make)


def test_a_net_of_other_shape_is_refused(kept, monkeypatch):
    monkeypatch.setattr(module, "code_of", lambda *things: "same")
    trained("net", make, train, seed=0, settings={"d": 2})
    with pytest.raises(Refused, match="make: gives another net than the one in"):
        trained("net", lambda d: nn.Sequential(nn.Linear(d, 5)), train, seed=0, settings={"d": 2})


def test_two_processes_train_once(tmp_path):
    (tmp_path / "both.py").write_text(
        textwrap.dedent("""
        import time
        from torch import nn
        from neuropil.training.trained import trained
        def make(): return nn.Linear(2, 2)
        def train(model, keep):
            time.sleep(1.0)
            return {"when": time.time()}
        if __name__ == "__main__":
            found = trained("both", make, train, seed=0)
            print(found.note, found.notes["when"], found.model.weight.sum().item())
        """)
    )
    environment = os.environ | {"NEUROPIL_DATA": str(tmp_path)}
    command = [sys.executable, str(tmp_path / "both.py")]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=60)[0].split() for process in running]
    assert sorted(words[0] for words in said) == ["loaded", "trained"] and said[0][1:] == said[1][1:]
