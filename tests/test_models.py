"""Facts of mathematics about every rung, and equality with the reference implementations."""

import dataclasses
import importlib
import math

import pytest
import torch
from conftest import CACHED, GPTS, RUNGS, build, far_from_start, tiny_flags
from torch.utils._pytree import tree_map

import block
import gpt
import modern_gpt
import multi_head
from results import sample_token


def trained(rung, **sizes):
    """A rung's model with weights far from those it starts with, in training mode, with dropout."""
    return far_from_start(build(rung, **sizes))


def logits_before_and_after_a_change(rung, t, T=16):
    model = build(rung).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.randint(65, (2, T))
    changed = ids.clone()
    changed[:, t] = (changed[:, t] + 1) % 65
    with torch.inference_mode():
        return model(ids), model(changed)


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("seed", range(4))
def test_no_logit_depends_on_a_later_token(rung, seed):
    torch.manual_seed(seed)
    t = int(torch.randint(1, 16, ()))
    before, after = logits_before_and_after_a_change(rung, t)
    assert torch.equal(before[:, :t], after[:, :t])
    assert not torch.equal(before[:, t], after[:, t])


@pytest.mark.parametrize("rung", RUNGS[1:])
def test_attention_reads_an_early_token_everywhere(rung):
    before, after = logits_before_and_after_a_change(rung, t=0)
    assert (before != after).any(dim=-1).all()


@pytest.mark.parametrize("rung", RUNGS)
def test_initial_loss_is_that_of_guessing(rung):
    torch.manual_seed(0)
    ids = torch.randint(65, (32, 33))
    module = importlib.import_module(rung)
    model = build(rung, **dataclasses.asdict(module.Config()) | {"vocab_size": 65})
    # block.py has a LayerNorm before its head and not yet GPT-2's small initial weights.
    bound = 0.25 if rung == "block" else 0.1
    assert module.loss_of(model, ids[:, :-1], ids[:, 1:]).item() == pytest.approx(math.log(65), abs=bound)


@pytest.mark.parametrize("rung", [rung for rung in RUNGS if "gat" not in rung])  # those ask the device something
def test_runs_on_the_meta_device(rung):
    with torch.device("meta"):
        model = build(rung)
        logits = model(torch.zeros(3, 7, dtype=torch.long))
    assert logits.device.type == "meta" and logits.shape == (3, 7, 65)


@pytest.mark.usefixtures("float64")
def test_multi_head_attention_equals_torch():
    torch.manual_seed(0)
    ours = multi_head.Attention(multi_head.Config(n_embd=32, n_head=4))
    theirs = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([f.weight for f in (ours.query, ours.key, ours.value)]))
        theirs.in_proj_bias.copy_(torch.cat([f.bias for f in (ours.query, ours.key, ours.value)]))
        theirs.out_proj.load_state_dict(ours.projection.state_dict())
    x = torch.randn(3, 11, 32)
    expected, _ = theirs(x, x, x, attn_mask=torch.ones(11, 11, dtype=torch.bool).triu(1))
    torch.testing.assert_close(ours(x), expected, atol=1e-12, rtol=0)


def test_the_fused_kernel_of_gpt_computes_what_block_writes_out():
    torch.manual_seed(0)
    ours, theirs = (rung.Attention(rung.Config(n_embd=32, n_head=4)).double() for rung in (gpt, block))
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(3, 33, 32, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), atol=1e-12, rtol=0)


def test_a_block_reads_normalised_vectors_and_adds_to_the_stream():
    """x' = x + attention(norm_1(x)), then x' + feed_forward(norm_2(x')): arXiv:2002.04745, figure 1b."""
    torch.manual_seed(0)
    part, x = block.Block(block.Config(n_embd=32, n_head=4)).double(), 50 + 9 * torch.randn(2, 7, 32).double()
    read = []
    for module in (part.attention, part.feed_forward):
        module.register_forward_hook(lambda _, inputs, output: read.append((*inputs, output)))
    out = part(x)
    (first, attended), (second, computed) = read
    torch.testing.assert_close(out, x + attended + computed, atol=1e-12, rtol=0)
    for given, stream in ((first, x), (second, x + attended)):
        expected = (stream - stream.mean(-1, keepdim=True)) / (stream.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        torch.testing.assert_close(given, expected, atol=1e-12, rtol=0)
    grown = torch.autograd.functional.jacobian(lambda x: part(x)[0, 3], x)[:, 0, 3]  # (C, C)
    assert (grown.diagonal() > 0.5).all()  # the stream carries each channel, and its gradient, past both parts


@pytest.mark.usefixtures("float64")
def test_transformer_and_gpt_are_the_same_model():
    """On the same weights, in training with dropout and in evaluation."""
    theirs, ours, ids = far_from_start(build("transformer")), build("gpt"), torch.randint(65, (3, 16))
    ours.load_state_dict(theirs.state_dict())
    for training in (True, False):
        logits = []
        for model in (ours.train(training), theirs.train(training)):
            torch.manual_seed(1)
            logits.append(model(ids))
        torch.testing.assert_close(*logits, atol=1e-11, rtol=0)


@pytest.mark.usefixtures("float64")
def test_gpt_equals_hugging_face_gpt2():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    vocab_size, C = 1000, 768
    ours = gpt.GPT(gpt.Config(n_layer=2, n_head=12, n_embd=C, block_size=1024), vocab_size).eval()
    config = transformers.GPT2Config(vocab_size=vocab_size, n_layer=2, activation_function="gelu")  # not by tanh
    theirs = transformers.GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in ours.parameters():  # biases and gains too, so that no part is left out by being 0 or 1
            parameter.add_(0.02 * torch.randn_like(parameter))
        state = {"wte.weight": ours.token_embedding.weight, "wpe.weight": ours.position_embedding.weight}
        for i, block in enumerate(ours.blocks):
            parts = [block.attention.query, block.attention.key, block.attention.value]
            state |= {
                f"h.{i}.attn.c_attn.weight": torch.cat([part.weight for part in parts]).T,
                f"h.{i}.attn.c_attn.bias": torch.cat([part.bias for part in parts]),
            }
            for name, layer in {
                "ln_1": block.norm_1,
                "ln_2": block.norm_2,
                "attn.c_proj": block.attention.projection,
                "mlp.c_fc": block.feed_forward[0],
                "mlp.c_proj": block.feed_forward[2],
            }.items():
                state[f"h.{i}.{name}.weight"] = layer.weight.T if layer.weight.ndim == 2 else layer.weight
                state[f"h.{i}.{name}.bias"] = layer.bias
        state |= {"ln_f.weight": ours.norm.weight, "ln_f.bias": ours.norm.bias}
        theirs.transformer.load_state_dict(state)
        theirs.tie_weights()
        ids = torch.randint(vocab_size, (2, 64))
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-9, rtol=0)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("training", [True, False])
def test_generate_keeps_the_prompt_and_the_mode(rung, training):
    model = build(rung).train(training)
    ids = torch.randint(65, (2, 5))
    longer = importlib.import_module(rung).generate(model, ids, 40, temperature=0)
    assert longer.shape == (2, 45) and torch.equal(longer[:, :5], ids)
    assert model.training == training


@pytest.mark.parametrize("rung", [rung for rung in RUNGS if rung not in CACHED])
def test_greedy_generation_takes_the_likeliest_token_of_the_last_window(rung):
    model, ids = trained(rung), torch.randint(65, (2, 3))
    longer = importlib.import_module(rung).generate(model, ids, 30, temperature=0)
    model.eval()
    for t in range(3, 33):
        window = longer[:, max(0, t - tiny_flags(rung)["block_size"]) : t]
        assert torch.equal(model(window)[:, -1].argmax(-1), longer[:, t])


@pytest.mark.parametrize("rung", CACHED)
@pytest.mark.parametrize("block_size", [1, 2, 7, 16])
@pytest.mark.parametrize("prompt", [1, 16, 40])
def test_cached_generation_is_uncached_generation_in_windows_of_half_to_whole(rung, block_size, prompt):
    model, ids = trained(rung, block_size=block_size), torch.randint(65, (2, prompt))
    longer = importlib.import_module(rung).generate(model, ids, 30, temperature=0)
    model.eval()
    start = max(0, prompt - block_size)
    for t in range(prompt, prompt + 30):
        if t - start > block_size:
            start = t - math.ceil(block_size / 2)
        assert torch.equal(model(longer[:, start:t])[:, -1].argmax(-1), longer[:, t])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rung", CACHED)
@pytest.mark.parametrize("prompt", [1, 5, 16])
def test_cached_logits_equal_uncached_ones_at_every_position(rung, prompt):
    model, ids = trained(rung).eval(), torch.randint(65, (3, 16))
    cache = tree_map(lambda room: room.fill_(torch.nan), model.new_cache(3))  # what was not yet read is not touched
    logits = [model(ids[:, :prompt], cache)]
    logits += [model(ids[:, t : t + 1], cache, past=t) for t in range(prompt, 16)]
    torch.testing.assert_close(torch.cat(logits, dim=1), model(ids), atol=1e-11, rtol=0)


@pytest.mark.parametrize("rung", CACHED)
def test_several_tokens_after_others_are_refused(rung):
    """They would read each other and all before without a mask."""
    model, ids = trained(rung), torch.randint(65, (1, 8))
    cache = model.new_cache(1)
    model(ids[:, :4], cache)
    with pytest.raises(ValueError, match="one token at a time"):
        model(ids[:, 4:], cache, past=4)


def test_of_tokens_that_are_alike_no_more_than_k_are_drawn():
    assert len(sample_token(torch.zeros(1000, 5), top_k=2).unique()) == 2


@pytest.mark.parametrize("choice", [{"temperature": 0.5}, {"top_k": 5}, {"top_p": 0.6}, {"top_k": 20, "top_p": 0.8}])
def test_sampling_follows_hugging_face_probabilities(choice):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 65)
    warped = logits / choice.get("temperature", 1)
    if "top_k" in choice:
        warped = transformers.TopKLogitsWarper(choice["top_k"])(None, warped)
    if "top_p" in choice:
        warped = transformers.TopPLogitsWarper(choice["top_p"])(None, warped)
    expected = warped.softmax(-1)[0]
    n = 40_000
    drawn = sample_token(logits.expand(n, -1), **choice).flatten().bincount(minlength=65) / n
    assert drawn[expected == 0].sum() == 0
    torch.testing.assert_close(drawn, expected, atol=0.015, rtol=0)


def test_without_top_p_no_token_is_dropped_by_rounding():
    """1,000 tokens of a probability of 1e-5 each, beside one with the rest."""
    torch.manual_seed(0)
    logits = torch.cat((torch.zeros(1, 1), torch.full((1, 1000), math.log(1e-5 / 0.99))), dim=1)
    drawn = sample_token(logits.expand(30_000, -1), top_p=1.0)
    assert (drawn > 0).double().mean().item() == pytest.approx(0.01, abs=0.004)
    assert drawn.max() > 900


def test_sampling_at_temperature_0_and_top_p_0_is_greedy():
    logits = torch.randn(50, 65)
    assert torch.equal(sample_token(logits, temperature=0), logits.argmax(-1, keepdim=True))
    assert torch.equal(sample_token(logits, top_p=0.0), logits.argmax(-1, keepdim=True))


@pytest.mark.parametrize("rung", GPTS)
def test_bfloat16_computes_the_same_loss_to_its_precision(rung):
    torch.manual_seed(0)
    gpt, ids = importlib.import_module(rung), torch.randint(65, (4, 17))
    model = build(rung, dropout=0.0)
    if rung == "modern_gpt":  # whose blocks add nothing at first
        for parameter in model.blocks.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    losses = {}
    for dtype in ("float32", "bfloat16"):
        model.config.dtype = dtype
        model.zero_grad()
        loss = gpt.loss_of(model, ids[:, :-1], ids[:, 1:])
        loss.backward()
        assert loss.dtype == torch.float32 and all(p.grad.dtype == torch.float32 for p in model.parameters())
        losses[dtype] = loss.item()
    assert losses["bfloat16"] != losses["float32"]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], rel=1e-3)


def test_modern_gpt_equals_hugging_face_nanochat():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    H, C = 4, 64
    ours = modern_gpt.GPT(modern_gpt.Config(n_layer=3, n_head=H, n_embd=C, block_size=48), 65).double().eval()
    config = transformers.NanoChatConfig(
        vocab_size=65,
        hidden_size=C,
        intermediate_size=4 * C,
        num_hidden_layers=3,
        num_attention_heads=H,
        rms_norm_eps=torch.finfo(torch.float64).eps,
        final_logit_softcapping=None,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    theirs = transformers.NanoChatForCausalLM(config).double().eval()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.copy_(
                torch.randn_like(parameter) / math.sqrt(C) * (parameter.ndim == 2)
            )  # it has no convolutions
        ours.token_embedding.weight.copy_(modern_gpt.norm(ours.token_embedding.weight))  # theirs does so at each call
        state = {"model.embed_tokens.weight": ours.token_embedding.weight, "lm_head.weight": ours.head.weight}
        for i, block in enumerate(ours.blocks):
            for name, layer in {
                "self_attn.q_proj": block.attention.query,
                "self_attn.k_proj": block.attention.key,
                "self_attn.v_proj": block.attention.value,
                "self_attn.o_proj": block.attention.projection,
                "mlp.fc1": block.feed_forward[0],
                "mlp.fc2": block.feed_forward[2],
            }.items():
                weight = layer.weight
                if name.endswith(("q_proj", "k_proj")):  # theirs turns the other way round
                    weight = weight.view(H, 2, -1, C).flip(1).reshape(C, C)
                state[f"model.layers.{i}.{name}.weight"] = weight
        theirs.load_state_dict(state)
        for layer in theirs.model.layers:
            layer.self_attn.scaling *= 2
        ids = torch.randint(65, (2, 48))
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=0)  # theirs rotates in float32
    assert sum(p.numel() for p in ours.parameters() if p.ndim == 2) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("T", [1, 2, 3, 4, 9])
def test_the_short_convolution_is_torchs(T):
    torch.manual_seed(0)
    ours, theirs = modern_gpt.Convolution(8), torch.nn.Conv1d(8, 8, 4, padding=3, groups=8, bias=False)
    x = torch.randn(2, T, 8)
    assert torch.equal(ours(x), x)  # it starts as the identity
    torch.nn.init.normal_(ours.weight)
    with torch.no_grad():  # torch's reads the oldest token first, and x_t itself last
        theirs.weight.copy_(torch.cat((ours.weight.flip(0), torch.ones(1, 1, 8))).permute(2, 1, 0))
    torch.testing.assert_close(ours(x), theirs(x.mT)[..., :T].mT, atol=1e-12, rtol=0)


@pytest.mark.usefixtures("float64")
def test_rotary_scores_depend_on_how_far_apart_two_tokens_are_and_on_that():
    q, k = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = modern_gpt.rotation_of(torch.arange(100), 32)
    scores = modern_gpt.rotate(q.expand(100, 32), rotation) @ modern_gpt.rotate(k.expand(100, 32), rotation).T
    for distance in range(60):
        along = scores.diagonal(-distance)
        torch.testing.assert_close(along, along[:1].expand_as(along), atol=1e-11, rtol=0)
    assert (scores[60:, 0].diff().abs() > 1e-4).all()


def test_rotary_positions_turn_each_pair_by_the_angle_of_the_paper():
    for D in (2, 6, 48, 250):
        cos, sin = modern_gpt.rotation_of(torch.arange(50), D)
        angles = [[p * 10000 ** (-2 * d / D) for d in range(D // 2)] for p in range(50)]
        torch.testing.assert_close(cos.double(), torch.tensor(angles).double().cos(), atol=1e-4, rtol=0)
        torch.testing.assert_close(sin.double(), torch.tensor(angles).double().sin(), atol=1e-4, rtol=0)


@pytest.mark.usefixtures("float64")
def test_qk_norm_leaves_the_size_of_queries_and_keys_without_effect():
    model, ids = trained("modern_gpt").eval(), torch.randint(65, (2, 16))
    before = model(ids)
    for layer in model.blocks:
        layer.attention.query.weight.mul_(1000)
        layer.attention.key.weight.mul_(0.03)
    torch.testing.assert_close(model(ids), before, atol=1e-8, rtol=0)


def test_every_block_of_modern_gpt_begins_as_the_identity():
    model = build("modern_gpt").eval()
    x = torch.randn(2, 16, 16)
    rotation = modern_gpt.rotation_of(torch.arange(16), 8)
    for layer in model.blocks:
        assert torch.equal(layer(x, rotation), x)
