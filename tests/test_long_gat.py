"""long_gat.py: the same layer as GAT over the causal graph, whatever the length, and nothing of T x T."""

import math

import pytest
import torch
from conftest import Largest, build
from torch.nn import functional as F

import long_gat
from long_gat import StaticAttention, dense_attention


def inputs(T, deviation, N=3, D=5):
    torch.manual_seed(0)
    s, t, V = deviation * torch.randn(N, T), deviation * torch.randn(N, T), torch.randn(N, T, D)
    return [part.requires_grad_() for part in (s, t, V)]


def compare(parts, slope, outputs, gradients):
    ours, theirs = StaticAttention.apply(*parts, slope), dense_attention(*parts, slope)
    torch.testing.assert_close(ours, theirs, atol=outputs, rtol=0)
    direction = torch.randn_like(ours)
    grads = [torch.autograd.grad((out * direction).sum(), parts) for out in (ours, theirs)]
    for mine, by_autograd in zip(*grads):
        torch.testing.assert_close(mine, by_autograd, atol=gradients, rtol=0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("T", [1, 2, 3, 63, 64, 65, 127, 128, 129, 191, 193, 257, 521, 1024, 1031, 2999])
def test_is_dense_attention_at_every_length(T):
    compare(inputs(T, 1.0, N=2 if T > 1000 else 3), 0.2, outputs=1e-12, gradients=1e-10)


@pytest.mark.usefixtures("float64")
def test_is_dense_attention_for_more_heads_than_it_takes_at_once():
    compare(inputs(130, 1.0, N=510), 0.2, outputs=1e-12, gradients=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("deviation", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("slope", [0.01, 0.2, 1.0])
def test_is_dense_attention_at_every_size_of_scores(deviation, slope):
    compare(inputs(600, deviation), slope, outputs=1e-12, gradients=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("kind", ["ties", "all keys equal", "on the kink", "sorted", "reversed"])
def test_is_dense_attention_with_keys_that_are_hard_to_sort(kind):
    s, t, V = (part.detach() for part in inputs(500, 1.0))
    if kind == "ties":
        s, t = s.round(), t.round() + 0.5
    elif kind == "all keys equal":
        t = torch.full_like(t, 0.3)
    elif kind == "on the kink":  # s + t = 0 for many pairs
        s, t = s.round(), t.round()
    else:
        t = t.sort(descending=kind == "reversed").values
    compare([part.requires_grad_() for part in (s, t, V)], 0.2, outputs=1e-12, gradients=1e-10)


@pytest.mark.parametrize("deviation, gradients", [(0.1, 1e-5), (1.0, 1e-5), (10.0, 1e-4), (100.0, 1e-2)])
def test_float32_keeps_its_digits_over_8192_tokens(deviation, gradients):
    parts, found = inputs(8192, deviation, N=1, D=16), []
    for dtype in (torch.float64, torch.float32):
        given = [part.detach().to(dtype).requires_grad_() for part in parts]
        out = StaticAttention.apply(*given, 0.2)
        found.append([out, *torch.autograd.grad((out * parts[2]).sum(), given)])
    for exact, ours, bound in zip(*found, (1e-5, *[gradients] * 3)):
        assert (ours - exact).abs().max() < bound * exact.abs().max()


@pytest.mark.usefixtures("float64")
def test_the_whole_model_is_that_of_pyg_free_gat():
    """The same state_dict; 300 characters, B and H above 1."""
    torch.manual_seed(0)
    sizes = dict(block_size=300, n_layer=2, n_embd=16, n_head=2, dropout=0.0)
    theirs, ours = build("pyg_free_gat", layer="gat", **sizes), build("long_gat", recency=False, **sizes)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    ours.load_state_dict(theirs.state_dict())
    ids = torch.randint(65, (2, 301))
    torch.testing.assert_close(ours(ids[:, 1:]), theirs(ids[:, 1:]), atol=1e-11, rtol=0)
    for model in (theirs, ours):
        model(ids[:, 1:]).square().sum().backward()
    for (name, mine), other in zip(ours.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-8, rtol=1e-9, msg=name)


@pytest.mark.usefixtures("float64")
def test_recency_is_a_score_that_falls_with_the_distance():
    torch.manual_seed(0)
    layer, x, H, D = long_gat.GAT(8, 4, heads=2, recency=True), torch.randn(2, 150, 8), 2, 4
    h = layer.lin(x).unflatten(-1, (H, D)).transpose(1, 2)  # (B, H, T, D)
    s, t = ((h * att[0, :, None]).sum(dim=-1) for att in (layer.att_dst, layer.att_src))
    far = torch.arange(150)[:, None] - torch.arange(150)
    fall = torch.tensor([1 / 16, 1 / 256])[:, None, None] * far  # 2^-4 and 2^-8, ALiBi's for two heads
    scores = F.leaky_relu(s[..., None] + t[:, :, None] - fall, 0.2).masked_fill(far < 0, -math.inf)
    torch.testing.assert_close(layer(x), (scores.softmax(dim=-1) @ h).transpose(1, 2).flatten(2), atol=1e-11, rtol=0)


def test_recency_over_32768_tokens_leaves_float32_some_digits():
    torch.manual_seed(0)
    layer, x = long_gat.GAT(16, 4, heads=4, recency=True), torch.randn(1, 32768, 16)
    with torch.no_grad():
        ours, exact = layer(x), layer.double()(x.double())
    assert (ours - exact).abs().max() < 2e-3 * exact.abs().max()


def test_a_second_derivative_is_refused():
    parts = inputs(5, 1.0)
    (first,) = torch.autograd.grad(StaticAttention.apply(*parts, 0.2).square().sum(), parts[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


def test_no_tensor_grows_faster_than_the_text():
    largest = {}
    for T in (2048, 8192):
        parts = inputs(T, 1.0, N=1)
        with Largest() as seen:
            StaticAttention.apply(*parts, 0.2).sum().backward()
        largest[T] = seen.numbers
    assert largest[8192] == 4 * largest[2048] <= 8192 * 64


def test_bfloat16_is_computed_in_float32_inside():
    torch.manual_seed(0)
    layer, x = long_gat.GAT(8, 4, heads=2), torch.randn(2, 200, 8)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours, h = layer(x), layer.lin(x).float().unflatten(-1, (2, 4)).transpose(1, 2).flatten(0, 1)  # (B * H, T, D)
    s, t = ((h * att[0, :, None].repeat(2, 1, 1)).sum(dim=-1) for att in (layer.att_dst, layer.att_src))
    expected = dense_attention(s, t, h, 0.2).unflatten(0, (2, 2)).transpose(1, 2).flatten(2)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected.detach(), atol=1e-5, rtol=0)


def test_writes_beyond_a_window_of_several_pieces():
    """300 tokens are read at once, and more one by one; the cache gives what a whole pass gives."""
    torch.manual_seed(0)
    model = build("long_gat", block_size=320, dropout=0.0).double().eval()
    ids = torch.randint(65, (2, 320))
    with torch.inference_mode():
        cache = model.new_cache(2)
        logits = [model(ids[:, :300], cache), *(model(ids[:, t : t + 1], cache, past=t) for t in range(300, 320))]
        torch.testing.assert_close(torch.cat(logits, dim=1), model(ids), atol=1e-11, rtol=0)
