"""windowed_gpt.py and studies/gates.py: each attention against loops that spell out its equations."""

import math

import pytest
import torch
from conftest import Largest, build
from torch.nn import functional as F
from torch.utils._pytree import tree_map

import windowed_gpt
from results.metrics import read
from studies.gates import HardWindow
from windowed_gpt import Config, SoftWindow

B, T, H, C = 2, 9, 2, 8
CLOSE = dict(atol=1e-11, rtol=1e-9)
WINDOWED = ("plain", "soft_window")
GATED = ("head_gate", "location_mlp", "location_gate")
ATTENTIONS = (*WINDOWED, "hard_window", *GATED)


def rung_of(attention):
    return "windowed_gpt" if attention in WINDOWED else "gates"


def block_of(attention, scale=0.7, **sizes):
    """One block with weights far from those it starts with, in float64."""
    torch.manual_seed(0)
    sizes = dict(block_size=T, n_head=H, n_embd=C, n_layer=1, attention=attention) | sizes
    block = build(rung_of(attention), 5, **sizes, dropout=0.0).double().blocks[0]
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return block


def by_loops(block, attention, x):
    """What a block returns for x (B, T, C), number by number."""
    part, D, n = block.attention, C // H, block.norm_1(x)
    q, k, v = (f(n).view(B, -1, H, D) for f in (part.query, part.key, part.value))
    read, seen = [], []
    for b in range(B):
        for i in range(x.shape[1]):
            heads, facts = [], []
            for h in range(H):
                logits = [q[b, i, h] @ k[b, j, h] / math.sqrt(D) for j in range(i + 1)]
                factors = [torch.ones(())] * (i + 1)
                if "window" in attention:
                    w = 1 + T / 2 * part.window(n[b, i])[h].exp()
                    near = [1 - (i - j + 1) / w for j in range(i + 1)]
                    if attention == "soft_window":
                        factors = [r.exp() for r in near]
                    else:
                        factors = [1 - (-r.relu()).exp() for r in near]
                weights = [score.exp() * f for score, f in zip(logits, factors)]
                a = [w / sum(weights) for w in weights]
                heads.append(sum(a[j] * v[b, j, h] for j in range(i + 1)))
                place = sum(a[j] * j / T for j in range(i + 1))
                variance = sum(a[j] * (j / T - place) ** 2 for j in range(i + 1))
                score = sum(a[j] * logits[j] for j in range(i + 1))
                facts.append((score, place - i / T, variance.clamp(min=1e-6).sqrt()))
            score, location, deviation = (torch.stack(fact) for fact in zip(*facts))  # (H,) each
            if attention == "head_gate":
                gate = part.gate(torch.cat([F.layer_norm(fact, (H,)) for fact in (score, location, deviation)]))
                heads = [2 * gate[h].sigmoid() * heads[h] for h in range(H)]
            read.append(torch.cat(heads))
            seen.append(torch.cat((location, deviation)))
    read = part.projection(torch.stack(read).view(B, -1, C))
    seen = torch.stack(seen).view(B, -1, 2 * H)
    if attention == "location_mlp":
        x = x + read
        means = torch.stack([seen[:, : t + 1].mean(dim=1) for t in range(x.shape[1])], dim=1)
        seen = F.layer_norm((seen - means) * block.scale + block.shift, (2 * H,))
        first, *rest = block.feed_forward
        weight = torch.cat((first.weight, block.where.weight), dim=1)
        hidden = F.linear(torch.cat((block.norm_2(x), seen), dim=-1), weight, first.bias)
        return x + torch.nn.Sequential(*rest)(hidden)
    if attention == "location_gate":
        own = torch.arange(x.shape[1])[:, None].expand(B, -1, 1) / T
        f, g, h = (gate(torch.cat((seen, own), dim=-1)) for gate in block.gates)
        x = x + read * (1 + f) + g
        return x + block.feed_forward(block.norm_2(x)) + h
    x = x + read
    return x + block.feed_forward(block.norm_2(x))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("length", [1, 2, T])
def test_values_and_gradients_are_those_of_loops(attention, length):
    block = block_of(attention)
    x = torch.randn(B, length, C, requires_grad=True)
    ours, theirs = block(x), by_loops(block, attention, x)
    torch.testing.assert_close(ours, theirs, **CLOSE)
    direction, inputs = torch.randn(B, length, C), [x, *block.parameters()]
    grads = [torch.autograd.grad((out * direction).sum(), inputs, allow_unused=True) for out in (ours, theirs)]
    for mine, by_hand in zip(*(tree_map(lambda g: torch.zeros(()) if g is None else g, grad) for grad in grads)):
        torch.testing.assert_close(mine, by_hand.expand_as(mine), **CLOSE)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_no_logit_depends_on_a_later_token(attention):
    torch.manual_seed(0)
    model, ids = build(rung_of(attention), attention=attention).eval(), torch.randint(65, (2, 16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    for t in (1, 7, 15):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 65
        with torch.inference_mode():
            before, after = model(ids), model(changed)
        assert torch.equal(before[:, :t], after[:, :t]) and not torch.equal(before[:, t], after[:, t])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("prompt", [1, 5, 16])
def test_cached_logits_equal_uncached_ones_at_every_position(attention, prompt):
    torch.manual_seed(0)
    model, ids = build(rung_of(attention), attention=attention, dropout=0.0).eval(), torch.randint(65, (3, 16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.inference_mode():
        cache = tree_map(lambda room: room.fill_(torch.nan), model.new_cache(3))
        logits = [model(ids[:, :prompt], cache)]
        logits += [model(ids[:, t : t + 1], cache, past=t) for t in range(prompt, 16)]
        torch.testing.assert_close(torch.cat(logits, dim=1), model(ids), atol=1e-10, rtol=0)


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_every_attention_learns(train, tmp_path, attention):
    """Its letters alone leave 2.4 nats a character of the text, its phrases 0.16."""
    state = train(rung_of(attention), attention=attention, max_iters=60, eval_interval=60, warmup_iters=5, dropout=0.0)
    assert state["config"]["attention"] == attention and read(tmp_path / "run")["val_loss"][-1] < 2.1


def test_plain_is_gpt():
    torch.manual_seed(0)
    theirs = build("gpt", dropout=0.0)
    torch.manual_seed(0)
    ours, ids = build("windowed_gpt", attention="plain", dropout=0.0), torch.randint(65, (2, 16))
    assert [*ours.state_dict()] == [*theirs.state_dict()]
    assert torch.equal(ours(ids), theirs(ids))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("attention", GATED)
def test_gates_begin_as_plain_attention(attention):
    torch.manual_seed(0)
    sizes = dict(n_embd=192, n_head=4, block_size=128, dropout=0.0, n_layer=3)
    gated, plain = (build(rung_of(name), attention=name, **sizes) for name in (attention, "plain"))
    plain.load_state_dict({name: weight for name, weight in gated.state_dict().items() if name in plain.state_dict()})
    ids = torch.randint(65, (2, 128))
    torch.testing.assert_close(gated(ids), plain(ids), **CLOSE)
    windowed_gpt.loss_of(gated, ids[:, :-1], ids[:, 1:]).backward()
    told = [p.grad for name, p in gated.named_parameters() if name not in plain.state_dict()]
    assert told and any(grad.abs().max() > 0 for grad in told)  # and do not stay so


def weights_of(part, x, q, k):
    """The weights (B, H, T, T) of an attention: what it reads when each token's value is a one at its own place."""
    T = x.shape[1]
    return part.attend(x, q, k, torch.eye(T).expand(*q.shape[:2], T, T), 0)


@pytest.mark.usefixtures("float64")
def test_a_hard_window_ends_where_it_says():
    torch.manual_seed(0)
    part = HardWindow(Config(block_size=64, n_head=H, n_embd=C)).double()
    torch.nn.init.normal_(part.window.weight, std=1.0)
    x, q, k = torch.randn(B, 64, C), *torch.randn(2, B, H, 64, 64)
    weights = weights_of(part, x, q, k)
    w = 1 + 32 * part.window(x).mT.exp()[..., None]  # (B, H, T, 1)
    d = torch.arange(64)[:, None] - torch.arange(64)
    assert torch.equal(weights == 0, (d < 0) | (d + 1 >= w))
    assert (w < 60).any() and (w > 2).any()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(B, H, 64))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("block", [1, 5, 16, 64])
def test_a_hard_window_is_the_same_in_blocks_and_reads_nothing_beyond(block, monkeypatch):
    torch.manual_seed(0)
    part = HardWindow(Config(block_size=64, n_head=H, n_embd=C)).double()
    torch.nn.init.constant_(part.window.bias, -2.0)  # about 5 tokens
    torch.nn.init.normal_(part.window.weight, std=0.1)
    x, q, k, v = torch.randn(B, 64, C), *torch.randn(3, B, H, 64, 4)
    whole = part.attend(x, q, k, v, 0)
    monkeypatch.setattr(HardWindow, "block", block)
    torch.testing.assert_close(part.attend(x, q, k, v, 0), whole, **CLOSE)
    if block < 64:
        k[:, :, :20], v[:, :, :20] = torch.nan, torch.nan
        torch.testing.assert_close(part.attend(x, q, k, v, 0)[:, :, 48:], whole[:, :, 48:], **CLOSE)


@pytest.mark.parametrize("kind", [SoftWindow, HardWindow])
@pytest.mark.parametrize("u", [-1e4, -100.0, -20.0, 20.0, 100.0, 1e4])
def test_windows_of_any_size_are_finite(kind, u):
    """A window that holds nothing reads the token itself; one without end reads as plain attention does."""
    torch.manual_seed(0)
    part = kind(Config(block_size=16, n_head=H, n_embd=C))
    torch.nn.init.constant_(part.window.bias, u)
    x, q, k = torch.randn(B, 16, C, requires_grad=True), *torch.randn(2, B, H, 16, 16)
    weights = weights_of(part, x, q, k)
    (weights[..., 0].sum()).backward()
    assert all(p.grad.isfinite().all() for p in (x, part.window.weight, part.window.bias))
    if u > 0:
        plain = (q @ k.mT / 4).masked_fill(torch.ones(16, 16).triu(1) == 1, -math.inf).softmax(-1)
        torch.testing.assert_close(weights, plain, atol=1e-4, rtol=0)
    elif kind is HardWindow:
        assert torch.equal(weights, torch.eye(16).expand_as(weights))


@pytest.mark.parametrize("kind", [SoftWindow, HardWindow])
def test_bfloat16_sees_the_same_windows(kind):
    """The mean distance that each of 512 queries looks back, to a fortieth: more places than bfloat16 can count to."""
    torch.manual_seed(0)
    part, x = kind(Config(block_size=512, n_head=H, n_embd=C)), torch.randn(B, 512, C)
    torch.nn.init.normal_(part.window.weight, std=0.3)
    torch.nn.init.constant_(part.window.bias, -3.0)
    far, q = torch.arange(512)[:, None] - torch.arange(512), torch.zeros(B, H, 512, 512)
    distances = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled), torch.no_grad():
            distances.append((weights_of(part, x, q, q).float() * far).sum(dim=-1))
    assert distances[0].max() > 50
    assert ((distances[1] - distances[0]).abs() / (1 + distances[0])).max() < 0.025


def test_bfloat16_counts_the_places_of_a_soft_window_in_a_long_text():
    """Of 70,000, where the places before and after a multiple of 128 must not run together."""
    torch.manual_seed(0)
    T = 546 * 128 + 6
    part, x = SoftWindow(Config(block_size=T, n_head=1, n_embd=8)), torch.zeros(1, 1, 8)
    torch.nn.init.constant_(part.window.bias, -9.0)  # a window of 5
    q, k, v = torch.zeros(1, 1, 1, 8), torch.zeros(1, 1, T, 8), torch.zeros(1, 1, T, 8)
    v[0, 0, -8:] = torch.eye(8)  # what is read is the weights of the last 8 places
    w = 1 + T / 2 * math.exp(-9.0)
    expected = (torch.arange(-7, 1).double() / w).exp() * (1 - math.exp(-1 / w))
    with torch.no_grad():
        read = part.attend(x, *(part.bfloat16() for part in (q, k, v)), past=T - 1)
    torch.testing.assert_close(read.flatten().double(), expected, rtol=0.03, atol=0)


@pytest.mark.parametrize("attention", [name for name in ATTENTIONS if name != "hard_window"])
def test_nothing_of_t_by_t_is_written(attention):
    torch.manual_seed(0)
    model, ids = build(rung_of(attention), attention=attention, block_size=512, n_layer=1), torch.randint(65, (1, 512))
    with Largest() as seen:
        model(ids).sum().backward()
    assert seen.numbers < 512 * 512


def test_windows_that_are_no_numbers_are_left_to_the_loss():
    part = HardWindow(Config(block_size=256, n_head=H, n_embd=C))
    torch.nn.init.constant_(part.window.bias, torch.nan)
    x, q, k, v = torch.randn(B, 256, C), *torch.randn(3, B, H, 256, 4)
    assert part.attend(x, q, k, v, 0).shape == v.shape  # and the run says that its loss is nan
