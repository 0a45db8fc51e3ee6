"""The ideas of studies.gains: each starts as modern_gpt.py, sees no future, and does to the training what it says."""

import pytest
import torch

import modern_gpt
from data import Dataset
from studies import gains

TINY = dict(n_layer=4, n_embd=16, n_head=2, block_size=16, batch_size=4, max_iters=12, warmup_iters=2)
OF_THE_MODEL = ["value embeddings", "embedding of pairs", "head gates", "skips between blocks"]
OF_THE_MODEL += ["skips from the embedding", "near attention but in the last block", "masked tokens", "a second token"]


@pytest.fixture
def trial(text_file):
    return lambda idea: gains.Trial(idea, 1, **TINY, data=str(text_file))


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_without_an_idea_it_trains_as_modern_gpt_does(trial):
    ours, theirs = trial(gains.BASE), trial(gains.BASE)
    optimizers = modern_gpt.make_optimizers(theirs.config, theirs.model)
    for number in range(1, 13):
        ours.step(number)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = torch.tensor(modern_gpt.learning_rate_at(number, theirs.config), dtype=torch.float64)
        batch = theirs.data.batch("train", modern_gpt.context_at(number, theirs.config))
        modern_gpt.update(theirs.model, optimizers, [batch])
    assert torch.equal(weights(ours.model), weights(theirs.model))


@pytest.mark.parametrize("idea", gains.IDEAS)
def test_every_idea_trains_and_has_both_losses(trial, idea):
    ours = trial(idea)
    before = modern_gpt.evaluate(ours.model, ours.data)
    held_out, validation = ours.losses()
    assert held_out < before and validation < before


def test_the_held_out_text_is_the_last_tenth_of_the_training_split(trial, text_file):
    whole = Dataset(modern_gpt.Config(**TINY, data=str(text_file), device="cpu")).splits
    ours = trial(gains.BASE)
    assert torch.equal(torch.cat([*ours.data.splits.values()]), whole["train"])
    assert len(ours.data.splits["val"]) == pytest.approx(len(whole["train"]) / 10, abs=1)
    assert torch.equal(ours.validation, whole["val"])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("idea", OF_THE_MODEL)
def test_an_idea_of_the_model_starts_as_modern_gpt_and_sees_no_future(trial, idea):
    ours, base = trial(idea), trial(gains.BASE)
    ids = torch.randint(base.data.vocab_size, (2, 16))
    with torch.no_grad():
        for parameter in base.model.blocks.parameters():  # so that no block is the identity
            parameter.normal_(std=0.3)
        ours.model.load_state_dict(base.model.state_dict(), strict=False)
        torch.testing.assert_close(ours.model.eval()(ids), base.model.eval()(ids), atol=1e-10, rtol=0)
        for parameter in ours.model.parameters():
            parameter.normal_(std=0.3)
        other = ids.clone()
        other[:, 9] = (ids[:, 9] + 1) % base.data.vocab_size
        before, after = ours.model(ids), ours.model(other)
    torch.testing.assert_close(before[:, :9], after[:, :9], atol=1e-10, rtol=0)
    assert (before[:, 9:] != after[:, 9:]).any(dim=-1).all()


@pytest.mark.usefixtures("float64")
def test_near_attention_reads_the_last_16_tokens():
    config = modern_gpt.Config(n_layer=1, n_embd=16, n_head=2, block_size=40)
    attention, rotation = gains.NearAttention(config), modern_gpt.rotation_of(torch.arange(40), 8)
    x = torch.randn(1, 40, 16)
    other = x.clone()
    other[:, 10] += 1
    changed = (attention(x, rotation) != attention(other, rotation)).any(dim=-1)[0]
    assert changed.nonzero().flatten().tolist() == [*range(10, 26)]


@pytest.mark.usefixtures("float64")
def test_layer_norm_is_that_of_the_residual_stream(trial):
    ours, base, seen = trial("LayerNorm for RMSNorm"), trial(gains.BASE), []
    ours.model.head.register_forward_hook(lambda head, args, logits: seen.append(args[0]))
    stream = 3 + 2 * torch.randn(2, 16, 16)
    ours.model.head(modern_gpt.norm(stream))
    torch.testing.assert_close(seen[0], torch.nn.functional.layer_norm(stream, (16,)), atol=1e-4, rtol=0)
    assert sum(p.numel() for p in ours.model.parameters()) - sum(p.numel() for p in base.model.parameters()) == 9 * 32


def test_a_tenth_of_the_token_embeddings_is_masked_in_training_alone(trial):
    model = trial("masked tokens").model
    ids = torch.zeros(50, 100, dtype=torch.long)
    masked = model.train().token_embedding(ids).eq(0).all(dim=-1)
    assert masked.float().mean() == pytest.approx(0.1, abs=0.02)
    assert not model.eval().token_embedding(ids).eq(0).all(dim=-1).any()


def test_the_second_token_is_the_one_after_the_next(trial):
    ours = trial("a second token")
    ours.config.dtype = "float32"
    torch.nn.init.normal_(ours.model.second_head.weight)  # so that it matters which token it is
    x, y = ours.data.batch("train")
    stream = []
    ours.model.head.register_forward_hook(lambda head, args, logits: stream.append(args[0]))
    loss = ours.loss_of(ours.model, x, y)
    first, second = ours.model.head(stream[0]), ours.model.second_head(stream[0])
    entropies = [torch.nn.functional.cross_entropy(*part) for part in ((first.mT, y), (second.mT[..., :-1], y[:, 1:]))]
    torch.testing.assert_close(loss, entropies[0] + 0.3 * entropies[1])


@pytest.mark.parametrize("idea", ["growing batches", "windows of twice the length"])
def test_the_same_number_of_characters_is_seen(trial, idea):
    ours, base = trial(idea), trial(gains.BASE)
    ours.losses(), base.losses()
    assert ours.data.drawn == base.data.drawn


def test_averaged_weights_are_the_mean_of_the_last_quarter(trial):
    ours, seen = trial("averaging instead of decay"), []
    after = ours.after
    ours.after = lambda number: (after(number), seen.append(weights(ours.model).clone()))
    ours.losses()
    torch.testing.assert_close(weights(ours.model), torch.stack(seen[-3:]).mean(dim=0))


def matrices(*shape):
    return [torch.nn.Parameter(torch.randn(shape)) for _ in range(3)]


def stepped(cls, params, weight_decay=0.1, steps=2):
    """The parameters after some steps with gradients that are the same at each call."""
    params = [torch.nn.Parameter(p.detach().clone()) for p in params]
    muon = cls(params, weight_decay, torch.float32)
    torch.manual_seed(1)
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
        for group in muon.param_groups:
            group["lr"] = torch.tensor(0.1)
        muon.step()
    return torch.stack(params).detach()


def test_muon_with_nothing_replaced_is_that_of_the_rung():
    params = matrices(8, 24)
    torch.testing.assert_close(stepped(gains.Muon, params), stepped(modern_gpt.Muon, params))


def test_normuon_gives_all_rows_the_same_length_and_keeps_that_of_the_matrix():
    G = torch.randn(3, 8, 24) * torch.logspace(0, 2, 8)[:, None]
    plain = gains.Muon(matrices(8, 24), 0.0, torch.float32).direction(G, {})
    rows = gains.NorMuon(matrices(8, 24), 0.0, torch.float32).direction(G, {})
    norms = rows.norm(dim=2)
    torch.testing.assert_close(norms, norms[:, :1].expand(3, 8))
    torch.testing.assert_close(rows.norm(dim=(1, 2)), plain.norm(dim=(1, 2)))


@pytest.mark.usefixtures("float64")
def test_polar_express_is_nearer_to_the_orthogonal_factor():
    U, _, Vh = torch.linalg.svd(torch.randn(1, 32, 64), full_matrices=False)
    G = U @ torch.diag_embed(torch.logspace(-2, 0, 32)) @ Vh
    worst = {}
    for cls in (gains.Muon, gains.PolarExpress):
        values = torch.linalg.svdvals(cls(matrices(32, 64), 0.0, torch.float64).direction(G, {}).double())
        worst[cls] = (values - 1).abs().max()
    assert worst[gains.PolarExpress] < 0.5 * worst[gains.Muon]


def test_cautious_decay_acts_only_where_the_step_goes_towards_0():
    params = matrices(8, 24)
    moved, decayed = (stepped(gains.CautiousMuon, params, decay, steps=1) for decay in (0.0, 0.1))
    before = torch.stack(params).detach()
    towards_0 = before * (before - moved) > 0
    torch.testing.assert_close(moved - decayed, 0.1 * 0.1 * before * towards_0, atol=1e-6, rtol=0)


def test_the_table_compares_seed_by_seed(tmp_path):
    rows = [("small", "cpu", gains.BASE, 1, 100, 1.5, 1.6), ("small", "cpu", gains.BASE, 2, 100, 1.7, 1.8)]
    rows += [("small", "cpu", "NorMuon", 1, 100, 1.4, 1.5), ("small", "cpu", "NorMuon", 2, 100, 1.5, 1.7)]
    rows += [("small", "cuda", "NorMuon", 1, 100, 0.0, 0.0), ("small", "cpu", "NorMuon", 3, 100, 0.0, 0.0)]
    gains.append(tmp_path / gains.LOSSES, gains.HEAD, rows)
    *_, base, normuon = gains.table(tmp_path)
    assert base.startswith(f"| {gains.BASE} | 2 |  | 1.600 | 1.700 |")
    # The differences are -0.1 and -0.2: their standard error is 0.05, and Student's factor for two is 12.706.
    assert normuon.startswith("| NorMuon | 2 | -0.150 ± 0.635 | 1.450 | 1.600 |")
