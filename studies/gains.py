"""Which ideas are worth their lines? Each is put into modern_gpt.py or taken out of it, and trained with equal seeds.

python -m studies.gains                # trains what results/reproduced/ does not have yet, for hours; prints the table
python -m studies.gains --size full    # the same at full size
python -m studies.gains --idea "head gates" --seed 2
python -m studies.gains --pace         # trains nothing, but measures how long a step of each idea takes

An idea is a function that changes one thing of a `Trial`, which is a training of modern_gpt.py. What is compared is
the loss on the last tenth of the training split. The models train on the nine tenths before it. So nothing is chosen by
the validation split. Its loss is measured once, after the last step, and is in the table for the record.

All losses are over windows as long as modern_gpt.py's own. The difference between an idea and modern_gpt.py is taken
seed by seed: with the same seed both start from the same weights and see the same batches, unless the idea is about
just that. The interval of the mean difference is Student's, at 95%. With so many ideas, about one of these intervals
misses its true value by chance.
"""

import gc
import math
import statistics
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import modern_gpt
from data import Dataset, choose_device, choose_dtype
from results import option, parse, recorded, run_main, shared_learning_rate
from results.run import machine
from studies.ablation import PUBLISHED, REPRODUCED, append, no_convolutions, read, soft_windows
from studies.measure import by_turns, full_sizes

BASE, SEEDS = "modern_gpt.py", (1, 2, 3, 4, 5)
LOSSES, PACES = "gains.csv", "gains_seconds.csv"
HEAD = ("size", "device", "idea", "seed", "parameters", "held_out_loss", "val_loss")
PACE_HEAD = ("device", "idea", "round", "seconds")
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # the 97.5th percentile of Student's t for so many differences


class Trial:
    """A training of modern_gpt.py in parts that an idea may change before the first step.

    What an idea adds to the model is outside of its blocks, where AdamW trains it, and works through hooks, so that the
    model's own code stays as it is. Soft windows and near attention are exceptions: they replace a block's attention.
    """

    def __init__(self, idea, seed, device="cpu", **sizes):
        self.config = config = modern_gpt.Config(**sizes, seed=seed, device=device)
        config.dtype, _ = choose_dtype(config.dtype, device)
        torch.manual_seed(seed)
        self.data = Dataset(config)
        split, self.validation = self.data.splits.values()
        cut = int(0.9 * len(split))
        self.data.splits = {"train": split[:cut], "val": split[cut:]}
        self.model = modern_gpt.GPT(config, self.data.vocab_size).to(device)
        self.loss_of, self.context_at, self.window = modern_gpt.loss_of, modern_gpt.context_at, config.block_size
        self.before = self.after = lambda number: None  # what else is done before and after the step of this number
        self.finish = lambda: None
        IDEAS[idea][0](self)

    @cached_property
    def optimizers(self):
        """AdamW and Muon. They are made when they are first asked for, after an idea has added its parameters."""
        return modern_gpt.make_optimizers(self.config, self.model)

    def replace_muon(self, cls):
        matrices = [p for group in self.optimizers[1].param_groups for p in group["params"]]
        self.optimizers[1] = cls(matrices, self.config.weight_decay, self.optimizers[1].dtype)

    def update(self, batches):
        """A step of modern_gpt.py's update(), with this trial's loss."""
        ((x, y),) = batches
        self.model.zero_grad()
        loss = self.loss_of(self.model, x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.detach()

    @cached_property
    def step(self):
        """A function that takes the step of a number, from 1 to max_iters."""
        learning_rate = shared_learning_rate(self.optimizers, self.config.device)
        step_on = recorded(self.config, self.update)

        def step(number):
            learning_rate.fill_(modern_gpt.learning_rate_at(number, self.config))
            self.before(number)
            step_on([self.data.batch("train", self.context_at(number, self.config))])
            self.after(number)

        return step

    def losses(self):
        """Trains. Returns the losses on the last tenth of the training split and on the validation split."""
        for number in range(1, self.config.max_iters + 1):
            self.step(number)
        self.finish()
        self.data.block_size = self.window
        held_out = modern_gpt.evaluate(self.model, self.data)
        self.data.splits["val"] = self.validation
        return held_out, modern_gpt.evaluate(self.model, self.data)


def zeros(*modules):
    """The modules, all of their weights 0."""
    for module in modules:
        nn.init.zeros_(module.weight)
    return modules


# ---------------------------------------------------------------- Ideas of the model


def value_embeddings(trial):
    """Each block adds to the values v a row of a table of its own, which the token itself picks."""
    model, config, now = trial.model, trial.config, {}
    tables = [nn.Embedding(trial.data.vocab_size, config.n_embd, device=config.device) for _ in model.blocks]
    model.tables = nn.ModuleList(zeros(*tables))
    model.register_forward_pre_hook(lambda model, args: now.update(ids=args[0]))
    for block, table in zip(model.blocks, tables):
        block.attention.value.register_forward_hook(lambda layer, args, v, table=table: v + table(now["ids"]))


def pair_embedding(trial):
    """A row for each pair of characters, and one for each that comes first, is added to the token embedding."""
    model, V = trial.model, trial.data.vocab_size
    (model.pairs,) = zeros(nn.Embedding((V + 1) * V, trial.config.n_embd, device=trial.config.device))

    def add(layer, args, x):
        before = F.pad(args[0], (1, 0), value=V)[:, :-1]  # V: nothing comes before the first
        return x + model.pairs(before * V + args[0])

    model.token_embedding.register_forward_hook(add)


def head_gates(trial):
    """What each head has read is multiplied by 2 sigmoid(w . x), where x is what attention took."""
    config, now = trial.config, {}
    gates = [nn.Linear(config.n_embd, config.n_head, bias=False, device=config.device) for _ in trial.model.blocks]
    trial.model.gates = nn.ModuleList(zeros(*gates))

    def scale(layer, args, gate):
        heads = args[0].unflatten(-1, (config.n_head, -1))  # (B, T, H, D)
        return (heads * 2 * gate(now.pop("x")).sigmoid()[..., None]).flatten(2)

    for block, gate in zip(trial.model.blocks, gates):
        block.attention.register_forward_pre_hook(lambda layer, args: now.update(x=args[0]))
        block.attention.projection.register_forward_pre_hook(partial(scale, gate=gate))


def skips(trial):
    """The last block also reads what the first block wrote, the last but one what the second wrote, and so on."""
    blocks, kept = trial.model.blocks, {}
    trial.model.skip = scales = nn.Parameter(torch.zeros(len(blocks) // 2, device=trial.config.device))
    for i in range(len(blocks) // 2):

        def add(block, args, i=i):
            return args[0] + scales[i] * kept.pop(i), *args[1:]

        blocks[i].register_forward_hook(lambda block, args, x, i=i: kept.update({i: x}))
        blocks[-1 - i].register_forward_pre_hook(add)


def embedding_skips(trial):
    """Each block but the first also reads the token embedding."""
    blocks, now = trial.model.blocks, {}
    trial.model.skip = scales = nn.Parameter(torch.zeros(len(blocks) - 1, device=trial.config.device))
    blocks[0].register_forward_pre_hook(lambda block, args: now.update(x=args[0]))
    for i, block in enumerate(blocks[1:]):
        block.register_forward_pre_hook(lambda block, args, i=i: (args[0] + scales[i] * now["x"], *args[1:]))
    blocks[-1].register_forward_hook(lambda block, args, x: now.clear())


class NearAttention(modern_gpt.Attention):
    """Attention over the last 16 tokens alone. It has no KV cache."""

    def forward(self, x, rotation, cache=None, past=0):
        linears = (self.query, self.key, self.value)
        q, k, v = (linear(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2) for linear in linears)  # (B, H, T, D)
        q, k = (modern_gpt.rotate(modern_gpt.norm(part), rotation) for part in (q, k))
        place = torch.arange(x.shape[1], device=x.device)
        distance = place[:, None] - place  # (T, T)
        near = (distance >= 0) & (distance < 16)
        read = F.scaled_dot_product_attention(q, k, v, near, scale=2 / math.sqrt(q.shape[-1]))  # (B, H, T, D)
        return self.projection(read.transpose(1, 2).flatten(2))


def near_attention(trial):
    """All blocks but the last attend to the last 16 tokens alone."""
    for block in trial.model.blocks[:-1]:
        weights, block.attention = block.attention.state_dict(), NearAttention(trial.config).to(trial.config.device)
        block.attention.load_state_dict(weights)


# ---------------------------------------------------------------- Ideas of modern_gpt.py, taken out


def layer_norm(trial):
    """LayerNorm, with a gain and a shift, instead of RMSNorm."""
    model, C = trial.model, trial.config.n_embd
    readers = [reader for block in model.blocks for reader in (block.conv_1, block.conv_2)] + [model.head]
    model.norms = nn.ModuleList(nn.LayerNorm(C, device=trial.config.device) for _ in readers)
    for reader, norm in zip(readers, model.norms):  # RMSNorm has scaled what they read, which LayerNorm undoes
        reader.register_forward_pre_hook(lambda reader, args, norm=norm: (norm(args[0]), *args[1:]))


def biases(trial):
    """A bias in every linear layer of the blocks."""
    for layer in trial.model.blocks.modules():
        if isinstance(layer, nn.Linear):
            layer.bias = nn.Parameter(torch.zeros(layer.out_features, device=trial.config.device))


def normal_start(trial):
    """The layers that write to the residual stream start as in gpt.py, and not at 0."""
    for block in trial.model.blocks:
        for layer in (block.attention.projection, block.feed_forward[2]):
            nn.init.normal_(layer.weight, std=0.02 / math.sqrt(2 * trial.config.n_layer))


def tied_head(trial):
    """The output layer shares its weights with the token embedding."""
    trial.model.head.weight = trial.model.token_embedding.weight


def gelu(trial):
    """GELU instead of ReLU squared."""
    for block in trial.model.blocks:
        block.feed_forward[1] = nn.GELU()


def linear_decay(trial):
    """The learning rate falls from the end of its warm-up on."""
    trial.config.warmdown_ratio = 1.0


def whole_windows(trial):
    """All windows are whole from the start."""
    trial.context_at = lambda number, config: config.block_size


# ---------------------------------------------------------------- Ideas of the loss and of the batches


def masked_tokens(trial, ratio=0.1):
    """In training a tenth of the token embeddings are 0."""

    def mask(layer, args, x):
        return x * (torch.rand_like(x[..., :1]) >= ratio) if layer.training else x

    trial.model.token_embedding.register_forward_hook(mask)


def second_token(trial, weight=0.3):
    """A second output layer predicts the token after the next one. Its loss is added to the other."""
    model, config, now = trial.model, trial.config, {}
    model.second_head = nn.Linear(config.n_embd, trial.data.vocab_size, bias=False, device=config.device)
    nn.init.normal_(model.second_head.weight, std=0.02)
    model.head.register_forward_pre_hook(lambda head, args: now.update(x=args[0]))

    def loss_of(model, x, y):
        loss = modern_gpt.loss_of(model, x, y)
        logits = model.second_head(now.pop("x")[:, :-1])  # (B, T - 1, V)
        return loss + weight * F.cross_entropy(logits.flatten(0, 1), y[:, 1:].flatten())

    trial.loss_of = loss_of


def growing_batches(trial):
    """Two thirds of the steps have half as many windows, the others twice as many: the same number in all."""
    B = trial.config.batch_size

    def before(number):
        trial.data.batch_size = B // 2 if 3 * number <= 2 * trial.config.max_iters else 2 * B

    trial.before = before


def longer_windows(trial):
    """Windows of twice the length, half as many."""
    trial.config.block_size = trial.data.block_size = 2 * trial.config.block_size
    trial.data.batch_size //= 2


# ---------------------------------------------------------------- Ideas of the optimizer


def averaged(trial, share=0.25):
    """The learning rate stays high to the end. The model is the mean of the weights after the last steps."""
    trial.config.warmdown_ratio = 0.0
    average = AveragedModel(trial.model)

    def after(number):
        if number > (1 - share) * trial.config.max_iters:
            average.update_parameters(trial.model)

    trial.after, trial.finish = after, lambda: trial.model.load_state_dict(average.module.state_dict())


def ema(trial, decay=0.99):
    """The learning rate falls as before. The model is an exponential moving average of the weights."""
    average = AveragedModel(trial.model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    trial.after = lambda number: average.update_parameters(trial.model)
    trial.finish = lambda: trial.model.load_state_dict(average.module.state_dict())


def falling_decay(trial):
    """The weight decay falls as the learning rate does."""
    config, muon = trial.config, trial.optimizers[1]
    decay = torch.tensor(config.weight_decay, device=config.device)
    for group in muon.param_groups:
        group["weight_decay"] = decay

    def before(number):
        decay.fill_(config.weight_decay * modern_gpt.learning_rate_at(number, config) / config.learning_rate)

    trial.before = before


class Muon(modern_gpt.Muon):
    """modern_gpt.py's, with two methods that the ideas below replace."""

    def direction(self, momentum, state):
        """The matrices (N, rows, columns) along which to step."""
        return modern_gpt.orthogonalize(momentum, self.dtype).float()

    def decaying(self, p, update):
        """The weights that decay."""
        return p

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params, lr, beta = group["params"], group["lr"], group["momentum"]
            grads = torch.stack([p.grad for p in params])
            state = self.state[params[0]]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(grads)
            mean = state["momentum_buffer"].lerp_(grads, 1 - beta)
            updates = self.direction(grads.lerp(mean, beta), state)
            scale = 0.2 * math.sqrt(max(grads.shape[1:]))
            for p, update in zip(params, updates.unbind()):
                p.sub_(lr * (group["weight_decay"] * self.decaying(p, update) + scale * update))


class CautiousMuon(Muon):
    """A weight decays only where the step also takes it towards 0."""

    def decaying(self, p, update):
        return p * (p * update > 0)


class NorMuon(Muon):
    """Each row is divided by the root of a running mean of its squares. The step keeps its length."""

    def direction(self, momentum, state):
        U = super().direction(momentum, state)  # (N, rows, columns)
        squares = U.square().mean(dim=2, keepdim=True)  # (N, rows, 1)
        if "squares" not in state:
            state["squares"] = torch.zeros_like(squares)
        normalized = U / state["squares"].lerp_(squares, 0.05).sqrt().clamp(min=1e-7)
        length, new_length = (X.norm(dim=(1, 2), keepdim=True) for X in (U, normalized))
        return normalized * (length / new_length.clamp(min=1e-7))


class PolarExpress(Muon):
    """Each of the five steps of the iteration has coefficients of its own, the best for where it stands."""

    COEFFICIENTS = (
        (8.28721201814563, -23.595886519098837, 17.300387312530933),
        (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
        (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
        (3.3184196573706015, -2.488488024314874, 0.51004894012372),
        (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    )

    def direction(self, momentum, state):
        X = momentum.to(self.dtype)
        X = X.mT if X.shape[1] > X.shape[2] else X
        X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        for a, b, c in self.COEFFICIENTS:
            X = X / 1.01  # rounding may have taken a singular value above what the coefficients are made for
            A = torch.bmm(X, X.mT)
            X = torch.baddbmm(X, torch.baddbmm(A, A, A, beta=b, alpha=c), X, beta=a)  # a X + (b A + c A A) X
        return (X.mT if momentum.shape[1] > momentum.shape[2] else X).float()


# ---------------------------------------------------------------- The table

NANOGPT = "[modded-nanogpt](https://github.com/KellerJordan/modded-nanogpt)"
IDEAS = {  # what it does to a Trial, and where it is from
    BASE: (lambda trial: None, ""),
    "value embeddings": (value_embeddings, NANOGPT),
    "embedding of pairs": (pair_embedding, NANOGPT),
    "head gates": (head_gates, "arXiv:2505.06708"),
    "skips between blocks": (skips, NANOGPT),
    "skips from the embedding": (embedding_skips, NANOGPT),
    "soft windows": (lambda trial: soft_windows(trial.model), "[windowed_gpt.py](../windowed_gpt.py)"),
    "near attention but in the last block": (near_attention, "arXiv:2408.00118"),
    "windows of twice the length": (longer_windows, ""),
    "masked tokens": (masked_tokens, "arXiv:1511.06349"),
    "a second token": (second_token, "arXiv:2404.19737"),
    "growing batches": (growing_batches, "arXiv:1711.00489"),
    "averaging instead of decay": (averaged, "arXiv:2405.18392"),
    "averaging on top of decay": (ema, "arXiv:2405.18392"),
    "falling weight decay": (falling_decay, "arXiv:2506.02285"),
    "cautious weight decay": (lambda trial: trial.replace_muon(CautiousMuon), "arXiv:2510.12402"),
    "NorMuon": (lambda trial: trial.replace_muon(NorMuon), "arXiv:2510.05491"),
    "Polar Express": (lambda trial: trial.replace_muon(PolarExpress), "arXiv:2505.16932"),
    "LayerNorm for RMSNorm": (layer_norm, ""),
    "with biases": (biases, ""),
    "no zero start": (normal_start, ""),
    "weight tying": (tied_head, ""),
    "GELU for ReLU²": (gelu, ""),
    "no trapezoid: linear decay": (linear_decay, ""),
    "no short windows at first": (whole_windows, ""),
    "with biases, no short windows at first": (lambda trial: (biases(trial), whole_windows(trial)), ""),
    "no short convolutions": (lambda trial: no_convolutions(trial.model), ""),
}


def paired(idea, base):
    """The mean difference of paired losses, with its 95% interval if there is more than one pair."""
    differences = [theirs - ours for theirs, ours in zip(idea, base)]
    mean = f"{statistics.mean(differences):+.3f}"
    if len(differences) == 1:
        return mean
    return f"{mean} ± {STUDENT[len(differences)] * statistics.stdev(differences) / math.sqrt(len(differences)):.3f}"


def table(folder=PUBLISHED, size="small", device=None):
    """Lines of Markdown: every idea beside modern_gpt.py, seed by seed, of the runs on one device.

    If no device is named, it is the first in the file of the losses. Times are of the first device in their own file.
    """
    runs, paces = read(folder / LOSSES, *HEAD[:3]), read(folder / PACES, *PACE_HEAD[:2])
    device = device or next((device for its_size, device, _ in runs if its_size == size), "")
    clock = next((device for device, _ in paces if size == "small"), "")  # no time was measured at full size
    base = {seed: loss for seed, _, loss, _ in runs.get((size, device, BASE), [])}
    heads = ["idea", "seeds", "difference, 95%", "held out", "validation", "parameters"]
    heads += ["ms a step", "source"] if clock else ["source"]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for idea, (_, source) in IDEAS.items():
        of_seed = {row[0]: row for row in runs.get((size, device, idea), []) if row[0] in base and row[0] in SEEDS}
        if of_seed:
            seeds, parameters, losses, val_losses = zip(*of_seed.values())
            difference = "" if idea == BASE else paired(losses, [base[seed] for seed in seeds])
            means = [f"{statistics.mean(values):.3f}" for values in (losses, val_losses)]
            cells = [idea, str(len(seeds)), difference, *means, f"{parameters[0]:,.0f}"]
            if clock:
                cells.append(milliseconds([seconds for _, seconds in paces.get((clock, idea), [])]))
            yield f"| {' | '.join([*cells, source])} |"


def milliseconds(times):
    """The median of some seconds, in ms: "641", or "2.35" if it is short. Of none it is empty."""
    median = 1000 * statistics.median(times) if times else 0
    return f"{median:,.{0 if median > 10 else 2}f}" if times else ""


@dataclass
class Flags:
    idea: str = option("", "one idea instead of all", choices=("", *IDEAS))
    seed: int = option(0, "one seed; 0: all", within="[0, 5]")
    size: str = option("small", "modern_gpt.py's --size", choices=("small", "full"))
    pace: bool = option(False, "trains nothing, but measures how long a step of each idea takes, at the small size")
    device: str = option("auto", "where to compute: cpu, mps, cuda or cuda:1; auto takes cuda, else mps, else cpu")

    def __post_init__(self):
        if self.pace and (self.idea or self.seed or self.size == "full"):
            raise ValueError("--pace measures all ideas at the small size; it takes no --idea, --seed or --size")


def pace(name, device):
    """Measures and prints how long a step of each idea takes on the device, whose name is in the file beside it."""
    middle = modern_gpt.Config.max_iters // 2  # where all windows are whole; batches that grow have no one time
    timed = [idea for idea in IDEAS if idea != "growing batches"]
    seconds = by_turns({idea: partial(Trial(idea, 1, device).step, middle) for idea in timed}, 8, device)
    for idea, times in seconds.items():
        append(REPRODUCED / PACES, PACE_HEAD, [(name, idea, n, f"{t:.5f}") for n, t in enumerate(times, 1)])
        print(f"{idea}: {milliseconds(times)} ms")


def main(argv=None):
    flags = parse(Flags, argv)
    device, _ = choose_device(flags.device)
    name, sizes = machine(torch.device(device)), full_sizes("modern_gpt") if flags.size == "full" else {}
    REPRODUCED.mkdir(exist_ok=True)
    if flags.pace:
        pace(name, device)
        return
    append(REPRODUCED / LOSSES, HEAD, [])  # so that a folder in which nothing can be written is known before a training
    for seed in [flags.seed] if flags.seed else SEEDS:
        for idea in dict.fromkeys((BASE, flags.idea)) if flags.idea else IDEAS:
            gc.collect()  # frees the memory that the trial before this one took of a GPU
            if (flags.size, name, idea, str(seed)) not in read(REPRODUCED / LOSSES, *HEAD[:4]):
                print(f"{idea}, seed {seed}:", end=" ", flush=True)
                trial = Trial(idea, seed, device, **sizes)
                losses = [f"{loss:.6f}" for loss in trial.losses()]
                parameters = sum(p.numel() for p in trial.model.parameters())
                print(*losses, flush=True)
                append(REPRODUCED / LOSSES, HEAD, [(flags.size, name, idea, seed, parameters, *losses)])
    print("\n".join(table(REPRODUCED, flags.size, name)))


if __name__ == "__main__":
    run_main(main)
