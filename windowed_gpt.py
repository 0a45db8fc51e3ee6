"""Rung 9: a GPT whose adjacency is learned: each query of each head chooses how far back it looks.

New against rung 6: in the adjacency an edge need not be on or off. It can be a number between 0 and 1 by which the
attention weight is multiplied, and this number can depend on the text. Here each query predicts how far it looks, w
tokens, which is called its window. Attention to the token d back is multiplied by exp(-d / w). It fades with the
distance, and so the window is called soft. `--attention plain` is gpt.py.

Papers: the windows follow Hartke, github.com/tomhartke/transformer-modifications (2023). A soft window is ALiBi (Press
et al., arXiv:2108.12409), which subtracts a multiple of the distance from each score. In ALiBi the multiple is fixed
for each head; here the query chooses it.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import DTYPES, Dataset, total
from results import SIZES, Flags, Run, option, parse_config, recorded, run_main, sample_token, shared_learning_rate

# ---------------------------------------------------------------- Config


@dataclass
class Config(Flags):
    batch_size: int = option(32, "B: windows of text in a batch")
    block_size: int = option(128, "T: characters in a window, the context")
    n_layer: int = option(3, "transformer blocks", within="[1, 1000)")
    n_head: int = option(4, "H: attention heads")
    n_embd: int = option(192, "C: width of the residual stream; each head has D = C / H channels")
    dropout: float = option(0.0, "fraction of activations set to 0 during training", within="[0, 1)")
    learning_rate: float = option(1.5e-2, "highest learning rate, after warm-up; for adamw try a third")
    weight_decay: float = option(0.1, "weight decay of the blocks' matrices")
    warmup_iters: int = option(50, "steps in which the learning rate rises linearly from 0", within="[0, 1e9)")
    max_iters: int = option(600, "training steps")
    eval_interval: int = option(100, "steps between evaluations")
    optimizer: str = option("muon", "optimizer of the blocks' matrices; all else uses AdamW", choices=("muon", "adamw"))
    grad_accum: int = option(1, "batches in a step; their gradients are averaged")
    dtype: str = option("auto", "precision of the matrix products; auto: bfloat16 where it is fast", choices=DTYPES)
    compile: bool = option(False, "fuse kernels with torch.compile; compiling takes a while at the start")
    cuda_graph: bool = option(True, "on CUDA, launch all kernels of a step at once")
    size: str = option("auto", "small: the defaults; full: a GPU's; auto: full on cuda, else small", choices=SIZES)
    attention: str = option("soft_window", "how far queries look", choices=("plain", "soft_window"))

    full = dict(
        batch_size=16,
        block_size=256,
        n_layer=6,
        n_head=6,
        n_embd=384,
        dropout=0.1,
        learning_rate=8e-3,
        weight_decay=0.5,
        max_iters=2000,
        eval_interval=250,
    )

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of --n_head {self.n_head}")


# ---------------------------------------------------------------- Model


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V over a graph's edges. Takes x (B, T, C), returns what each token read, (B, T, C).

    With a KV cache (2, B, H, block_size, D), x is either the whole prompt (past = 0), or one new token that follows
    `past` others, whose keys and values are in the cache.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd)  # what a token looks for
        self.key = nn.Linear(config.n_embd, config.n_embd)  # what it can be found by
        self.value = nn.Linear(config.n_embd, config.n_embd)  # what it hands to those who read it
        self.projection = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: Tensor | None = None, past: int = 0) -> Tensor:
        B, T, C = x.shape
        # The C channels are split into H heads of D. H goes before T, so that @ works on each head by itself.
        q = self.query(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        k = self.key(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        v = self.value(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        if cache is not None:
            cache[:, :, :, past : past + T] = torch.stack((k, v))
            k, v = cache[:, :, :, : past + T]  # (B, H, past + T, D) each
        read = self.attend(x, q, k, v, past)  # (B, H, T, D)
        return self.projection(read.transpose(1, 2).reshape(B, T, C))  # the heads, concatenated and mixed

    def attend(self, x, q, k, v, past):
        # The adjacency is causal as before. One new token reads all others, so that it needs no mask.
        return F.scaled_dot_product_attention(q, k, v, is_causal=past == 0)


class SoftWindow(Attention):
    """Multiplies the weight of the token d back by exp(-d / w_i), then divides the weights by their sum.

    Plainly: scores = q @ k.mT / sqrt(D) - d / w_i, where d = i - j. Query i chooses its window by a linear map u of x:
    w_i = 1 + exp(u_i) block_size / 2, so that at first all windows are about half of the context. A soft window has no
    end: at a distance of w a third is left.
    """

    def __init__(self, config):
        super().__init__(config)
        self.window = nn.Linear(config.n_embd, config.n_head)
        self.log_half = math.log(config.block_size / 2)

    def one_over_w(self, x):
        """1 / w for each query and head, (B, H, T, 1). It is a sigmoid, so that it is finite for every u."""
        u = self.window(x).to(self.window.weight.dtype)  # in bfloat16 windows would be wrong by up to 4%
        return torch.sigmoid(-u - self.log_half).mT.unsqueeze(-1)

    def attend(self, x, q, k, v, past):
        # A softmax does not change if the same number is added to all scores of a row, so j / w_i will do for -d / w_i.
        # That is a product, (1 / w_i) times j. With 1 / w_i as one more channel of the queries and j as one more of the
        # keys, q . k adds it by itself, and the fused kernel needs no T x T matrix.
        j = torch.arange(k.shape[2], device=x.device)
        low, middle = j % 2**7, j % 2**15 - j % 2**7  # three parts that add up to j, each exact in bfloat16
        j = torch.stack((low, middle, j - low - middle), dim=-1).to(k.dtype)  # (S, 3), S = past + T
        scale = q.shape[-1] ** -0.5
        slopes = (self.one_over_w(x) / scale).to(q.dtype).expand(-1, -1, -1, 3)  # the kernel multiplies by scale again
        q = torch.cat((q, slopes), dim=-1)  # (B, H, T, D + 3)
        k = torch.cat((k, j.expand(*k.shape[:2], -1, -1)), dim=-1)  # (B, H, S, D + 3)
        # The kernel wants q, k and v of one width, and is fastest if that is a multiple of 8.
        q, k, v = (F.pad(part, (0, v.shape[-1] + 8 - part.shape[-1])) for part in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, is_causal=past == 0, scale=scale)[..., :-8]


ATTENTIONS = {"plain": Attention, "soft_window": SoftWindow}


class Block(nn.Module):
    """Communication, then computation. Each reads the residual stream x (B, T, C) and adds to it."""

    def __init__(self, config):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd)
        self.attention = ATTENTIONS[config.attention](config)
        self.norm_2 = nn.LayerNorm(config.n_embd)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.GELU(),  # a smooth ReLU (arXiv:1606.08415)
            nn.Linear(4 * config.n_embd, config.n_embd),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: Tensor | None = None, past: int = 0) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x), cache, past))
        x = x + self.dropout(self.feed_forward(self.norm_2(x)))
        return x


class GPT(nn.Module):
    """Takes ids of tokens (B, T), returns the logits of the token that follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.initialize()

    def initialize(self):
        """As in GPT-2: biases are 0, and weights are normal with standard deviation 0.02.

        Two layers of each block write to the residual stream: the projection and the last of the feed-forward network.
        Their standard deviation is 0.02 / sqrt(2 n_layer), so that the sum of all that they write is as large in a deep
        model as in a shallow one.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                writes = name.endswith(("projection.weight", "feed_forward.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if writes else 0.02)

    def forward(self, ids: Tensor, cache: Tensor | None = None, past: int = 0) -> Tensor:
        if past and ids.shape[1] > 1:
            raise ValueError("a KV cache takes the whole prompt at first, and then one token at a time")
        positions = torch.arange(past, past + ids.shape[1], device=ids.device)  # (T,)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[i], past)  # (B, T, C)
        # Weight tying (arXiv:1608.05859): the output layer shares its weights with the token embedding.
        return F.linear(self.norm(x), self.token_embedding.weight)  # (B, T, V)

    def new_cache(self, B: int) -> Tensor:
        """An empty KV cache, of every block and for B texts: (n_layer, 2, B, H, block_size, D)."""
        H, D = self.config.n_head, self.config.n_embd // self.config.n_head
        weight = self.token_embedding.weight  # the cache has its device and its precision
        return weight.new_empty(self.config.n_layer, 2, B, H, self.config.block_size, D)


@torch.inference_mode()
def generate(model: nn.Module, ids: Tensor, max_new_tokens: int, **sampling) -> Tensor:
    """Appends max_new_tokens tokens to ids (B, T), one at a time. sampling: temperature, top_k, top_p, generator.

    The KV cache keeps the keys and values of the tokens before, so that only the new token goes through the model. When
    the window is full, a new one starts with the last half of it, which goes through the model once more. Sliding the
    window by one token would not do: cached keys and values still depend on the token that has left.
    """
    training = model.training
    model.eval()
    block_size, cache = model.config.block_size, model.new_cache(len(ids))
    # ids: | left behind | the window: in the cache | not yet read |
    #      0           start                  start + past      length
    start, past = max(0, ids.shape[1] - block_size), 0
    for _ in range(max_new_tokens):
        if ids.shape[1] - start > block_size:
            start, past = ids.shape[1] - (block_size + 1) // 2, 0
        logits = model(ids[:, start + past :], cache, past)[:, -1]  # (B, V), after the last token
        past = ids.shape[1] - start
        ids = torch.cat((ids, sample_token(logits, **sampling)), dim=1)
    model.train(training)
    return ids


# ---------------------------------------------------------------- Training


def loss_of(model: nn.Module, x: Tensor, y: Tensor, reduction="mean") -> Tensor:
    """The cross-entropy of predicting the next tokens y (B, T) from x (B, T): the mean of -ln p(y), in nats."""
    # If the dtype is bfloat16, which auto picks where it is fast, autocast computes the matrix products in it and all
    # else in float32. Its cache of cast weights is off, since a recorded step (see train) would go on with weights that
    # were cast before they changed.
    fast = model.config.dtype == "bfloat16"
    with torch.autocast(x.device.type, torch.bfloat16, enabled=fast, cache_enabled=False):
        logits = model(x)  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction=reduction)


@torch.inference_mode()
def evaluate(model: nn.Module, data: Dataset) -> float:
    """The mean loss of a character over the validation split, in nats. Each process evaluates its share of it."""
    model.eval()
    losses, characters = [], 0
    for x, y in data.windows("val"):
        losses.append(loss_of(model, x, y, "sum"))  # still on the device: .item() would wait for it
        characters += data.characters(y)
    model.train()
    return total(sum(loss.item() for loss in losses)) / total(characters)  # over all processes


def orthogonalize(M: Tensor, dtype: torch.dtype) -> Tensor:
    """For each matrix of M (N, rows, columns), with singular value decomposition U S V^T, nearly U V^T.

    That takes five steps of an iteration named after Newton and Schulz, in `dtype`, of matrix products alone. Each
    turns every singular value s into 3.4445 s - 4.7750 s^3 + 2.0315 s^5 and leaves U and V as they are. The
    coefficients make small singular values grow fast, and do not lead exactly to 1: five steps take each in [0.002, 1]
    to [0.68, 1.21].
    """
    X = M.to(dtype)
    X = X.mT if M.shape[1] > M.shape[2] else X  # wide, so that X X^T is small
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # now no singular value is above 1
    for _ in range(5):
        A = torch.bmm(X, X.mT)
        B = torch.baddbmm(A, A, A, beta=-4.7750, alpha=2.0315)  # -4.7750 A + 2.0315 A A
        X = torch.baddbmm(X, B, X, beta=3.4445)  # 3.4445 X + B X
    return X.mT if M.shape[1] > M.shape[2] else X


class Muon(torch.optim.Optimizer):
    """Steps along U V^T, where U S V^T is the singular value decomposition of a weight matrix's averaged gradient.

    The gradient of a matrix is usually dominated by a few directions, those with large singular values S. Without S all
    directions get a step of the same size. By Jordan et al. (2024), with the weight decay and the scale of Liu et al.
    (arXiv:2502.16982): the root mean square of an update is about 0.2, as AdamW's is.
    """

    def __init__(self, matrices, weight_decay, dtype):
        shapes = {}  # matrices of the same shape are stacked, so that one batched product does them all
        for p in matrices:
            shapes.setdefault(p.shape, []).append(p)
        groups = [{"params": params} for params in shapes.values()]
        lr = torch.tensor(1e-3, device=matrices[0].device)  # a tensor, so that a recorded step reads what it is set to
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params, lr, momentum = group["params"], group["lr"], group["momentum"]
            grads = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
            state = self.state[params[0]]  # of all matrices of this shape: (N, rows, columns)
            if not state:
                state["momentum_buffer"] = torch.zeros_like(grads)
            mean = state["momentum_buffer"].lerp_(grads, 1 - momentum)  # 0.95 mean + 0.05 grads
            nesterov = grads.lerp(mean, momentum)  # Nesterov's momentum: the newest gradient counts once more
            updates = orthogonalize(nesterov, self.dtype)
            scale = 0.2 * math.sqrt(max(grads.shape[1:]))  # U V^T has a root mean square of 1 / sqrt(longer side)
            decay, rate = 1 - lr * group["weight_decay"], -lr * scale
            for p, update in zip(params, updates.unbind()):
                p.mul_(decay).addcmul_(update, rate)


def make_optimizers(config, model):
    """Muon for the matrices in the blocks; AdamW for all other parameters."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "blocks" not in name]
    adamw = [{"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        adamw.append({"params": matrices, "weight_decay": config.weight_decay})
    recording = config.cuda_graph and config.device.startswith("cuda")
    optimizers = [torch.optim.AdamW(adamw, betas=(0.9, 0.95), fused=True, capturable=recording)]  # betas of GPT-3
    if config.optimizer == "muon":
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        optimizers.append(Muon(matrices, config.weight_decay, dtype))
    return optimizers


def learning_rate_at(step, config):
    """Rises linearly to `learning_rate` in the first `warmup_iters` steps (warm-up), then falls linearly to 0.

    A run that is shorter than its warm-up only rises.
    """
    rise = step / max(1, config.warmup_iters)
    fall = (config.max_iters + 1 - step) / max(1, config.max_iters + 1 - config.warmup_iters)
    return config.learning_rate * min(rise, fall)


def update(model: nn.Module, optimizers: list, batches: list) -> Tensor:
    """One step of training on batches of x and y, (B, T) each; y is x one token further on. Returns the mean loss."""
    model.zero_grad()
    loss = 0
    for i, (x, y) in enumerate(batches, 1):  # several: gradient accumulation, which needs the memory of one
        model.require_backward_grad_sync = i == len(batches)  # for DistributedDataParallel: it averages once a step
        micro_loss = loss_of(model, x, y) / len(batches)
        micro_loss.backward()
        loss += micro_loss.detach()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # all gradients together get a length of at most 1
    for optimizer in optimizers:
        optimizer.step()
    return loss


def train(config: Config, data: Dataset, model: nn.Module):
    optimizers = make_optimizers(config, model)
    run = Run(config, data, model, *optimizers)  # keeps the folder: losses, checkpoints, resumption, Ctrl-C
    compiled = torch.compile(model, dynamic=False) if config.compile else model
    replica = run.replicate(compiled)  # under torchrun, averages gradients over the processes; else the model itself
    learning_rate = shared_learning_rate(optimizers, config.device)  # a tensor, which a recorded step can read anew
    step_on = recorded(config, lambda batches: update(replica, optimizers, batches))  # on CUDA in one launch
    for step in run.steps():
        learning_rate.fill_(learning_rate_at(step, config))
        batches = [data.batch("train") for _ in range(config.grad_accum)]
        loss = step_on(batches)
        due = step % config.eval_interval == 0 or step == config.max_iters
        run.log(step, loss, evaluate(model, data) if due else None)
    run.finish(generate)


# ---------------------------------------------------------------- main()


def main(argv=None):
    config = parse_config(Config, argv)  # flags, over a TOML file, over the defaults; the device is chosen
    torch.manual_seed(config.seed)
    data = Dataset(config)
    model = GPT(config, data.vocab_size).to(config.device)
    train(config, data, model)


if __name__ == "__main__":
    run_main(main)
