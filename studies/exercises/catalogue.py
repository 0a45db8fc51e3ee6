"""The exercises, in the order of the ladder. Each is a few lines of a rung, and how one can be wrong about them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import torch


@dataclass
class Exercise:
    """Lines of a file to write anew.

    title: what it is, in a few words. file: the rung, without .py. definition: the function or method, like
    Attention.forward. first, last: how the first and the last line begin that are taken out. task: what to write.
    probe: takes the module and returns what the lines compute, a tensor or a list of them. properties: name ->
    function of the module that is True if the property holds. mistakes: what to say -> lines that make this
    mistake. others: further right solutions, for the tests.
    """

    title: str
    file: str
    definition: str
    first: str
    last: str
    task: str
    hints: list
    probe: Callable
    mistakes: dict
    properties: dict = field(default_factory=dict)
    others: list = field(default_factory=list)
    tolerance: float = 1e-4
    trains: bool = True  # whether the file trains with these lines


# ---------------------------------------------------------------- What the checks look at


def seeded(seed=0):
    torch.manual_seed(seed)


def config_of(module, **sizes):
    known = {name for name in module.Config.__dataclass_fields__}
    sizes = dict(n_embd=16, n_head=4, n_layer=2, block_size=8, device="cpu", dtype="float32") | sizes
    return module.Config(**{name: value for name, value in sizes.items() if name in known})


def randomized(part):
    """The module with weights that are far from those it starts with, in evaluation mode."""
    seeded()
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.6)
    return part.eval()


def attention_of(module, **sizes):
    return randomized(module.Attention(config_of(module, **sizes)))


def tokens(T=6, C=16, B=2):
    seeded(1)
    return torch.randn(B, T, C)


def rows_sum_to_one(module):
    """With values that are all 1, what is read is the sum of a row of weights."""
    part = attention_of(module)
    with torch.no_grad():
        part.value.weight.zero_()
        part.value.bias.fill_(1.0)
    out = part(tokens())
    return torch.allclose(out, torch.ones_like(out), atol=1e-4)


def reads_nothing_later(part):
    """Whether what a token gets stays the same when later tokens change."""
    x = tokens()
    other = x.clone()
    other[:, 3:] = torch.randn_like(other[:, 3:])
    return torch.allclose(part(x)[:, :3], part(other)[:, :3], atol=1e-5)


def gradient_reaches_the_query(module):
    part = attention_of(module)
    part(tokens()).square().sum().backward()
    return part.query.weight.grad is not None and part.query.weight.grad.abs().max() > 0


def counted(module):
    seeded()
    train, val = torch.randint(5, (200,)), torch.randint(5, (60,))
    train[train == 4], val[0], val[-1] = 3, 0, 4  # a character that is only in the validation split
    splits = {"train": train, "val": val}
    data = SimpleNamespace(vocab_size=5, device="cpu", splits=splits, characters=lambda ids: ids.numel())
    return torch.tensor(module.counted_loss(data))


def average(name):
    def probe(module):
        seeded()
        return getattr(module, name)(torch.randn(5, 3))

    return probe


def block_output(module):
    return randomized(module.Block(config_of(module)))(tokens())


def passes_on(module):
    part = module.Block(config_of(module))
    with torch.no_grad():
        for parameter in part.parameters():
            parameter.zero_()
    return torch.equal(part(tokens()), tokens())


def deviations(module):
    """The logarithm of the standard deviation of each parameter of a model of two blocks."""
    seeded()
    model = module.GPT(config_of(module, n_embd=128), 65)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.fill_(1.0)
    seeded()
    model.initialize()
    return torch.stack([part.square().mean().sqrt().clamp(min=1e-6).log() for part in model.parameters()])


def rates(module):
    config = config_of(module, learning_rate=1.0, warmup_iters=4, max_iters=20)
    return torch.tensor([float(module.learning_rate_at(step, config)) for step in range(1, 21)])


def with_cache(module):
    """Attention over a prompt of four tokens, and over two more that come one at a time."""
    part, x = attention_of(module), tokens(T=6)
    cache = torch.zeros(2, 2, 4, 8, 4)
    return [part(x[:, :4], cache, 0), part(x[:, 4:5], cache, 4), part(x[:, 5:6], cache, 5)]


def orthogonalized(module):
    """Of matrices of three shapes, and of one so small that no wrong coefficient makes it infinite."""
    seeded()
    some = [torch.randn(2, *shape) for shape in ((6, 6), (4, 9), (9, 4))]
    return [module.orthogonalize(M, torch.float32) for M in (*some, 1e-10 * some[1])]


def rotated(module):
    seeded()
    x = torch.randn(2, 6, 8)
    angles = torch.arange(6.0)[:, None] * torch.tensor([1.0, 0.3, 0.1, 0.03])
    return module.rotate(x, (angles.cos(), angles.sin()))


def same_length(module):
    seeded()
    x = torch.randn(2, 6, 8)
    angles = torch.rand(6, 4)
    return torch.allclose(module.rotate(x, (angles.cos(), angles.sin())).norm(dim=-1), x.norm(dim=-1), atol=1e-4)


def causal(T=6):
    return torch.ones(T, T, dtype=torch.bool).tril()


def gat_layer(module, T=6):
    layer = randomized(module.GAT(16, 4, heads=4))
    return layer(tokens(T), causal(T))


def gatv2_scores(module):
    seeded()
    src, dst, att = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 3, 4), torch.randn(3, 4)
    return module.gatv2_scores(src, dst, att, 0.2)


def each_query_has_its_own_order(module):
    """Keys along two axes: one query must prefer the one, another the other."""
    src = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])[None, :, None]  # (1, 2, 1, 2)
    dst = torch.tensor([[1.0, -3.0], [-3.0, 1.0]])[None, :, None]
    scores = module.gatv2_scores(src, dst, torch.ones(1, 2), 0.2)[0, 0]
    return bool(scores[0, 0] > scores[0, 1]) and bool(scores[1, 1] > scores[1, 0])


def soft_window(module):
    part = randomized(module.SoftWindow(config_of(module)))
    x = tokens(T=6)
    cache = torch.zeros(2, 2, 4, 8, 4)
    return [part(x), part(x[:, :5], cache, 0), part(x[:, 5:], cache, 5)]


def merge_ids(module):
    texts = [[1, 2, 1, 2, 3], [1, 1, 1, 1, 1], [2, 1], [3, 1, 2], [], [1, 2, 2, 1, 2]]
    found = [
        module.merged(list(ids), pair, 9) for ids, pair in zip(texts, [(1, 2), (1, 1), (1, 2), (1, 2), (1, 2), (1, 2)])
    ]
    return [torch.tensor(ids, dtype=torch.float) for ids in found]


def prefix_sums(module):
    """Of usual numbers, and of keys so large that exp of them would be infinite."""
    found = []
    for large in (0.0, 2000.0):
        seeded()
        query, shift, key, log_weight = (torch.randn(2, n) for n in (3, 3, 5, 5))
        rows, sums = torch.randn(2, 5, 4), torch.ones(2, 3, 4)
        count = torch.tensor([[0, 2, 5], [1, 3, 4]])
        key = key.sort(dim=-1).values + large
        module.add_side(sums, 0.5, query, shift + large / 2, key, log_weight, rows, count)
        found.append(sums)
    return found


def multi_head_output(module):
    return attention_of(module)(tokens())


def single_head_output(module):
    return attention_of(module)(tokens())


# ---------------------------------------------------------------- The exercises

CAUSAL = {"later tokens have no influence": lambda module: reads_nothing_later(attention_of(module))}

EXERCISES = {
    "counts": Exercise(
        title="the loss of a table of counted pairs",
        file="bigram",
        definition="counted_loss",
        first="table = (train + 1)",
        last="return -(val",
        task="""`train` and `val` (V * V,) count how often each pair of characters comes: pair (i, j) is number V i +
        j. Make the table of probabilities P(j | i) from `train`, with 1 added to each count, and return the
        mean of -ln P over the pairs of `val`, in nats a character. data.characters(ids) is how many
        characters ids stand for.""",
        hints=[
            "view(V, V) makes rows of the counts: row i has the characters that follow i.",
            "Divide each row by its sum, with keepdim=True, and take the logarithm.",
            "The loss is minus the sum of val times that logarithm, over the number of predicted characters.",
        ],
        probe=counted,
        properties={"the loss is positive": lambda module: bool(counted(module) > 0)},
        mistakes={
            "Your columns add up to 1, your rows should: row i has the characters that follow i.": """
                table = (train + 1).view(V, V)
                table = (table / table.sum(dim=0, keepdim=True)).log()
                return -(val * table.flatten()).sum().item() / data.characters(data.splits["val"][1:])""",
            "Each pair counts alike. It counts as often as it comes in the validation split: val * table.": """
                table = (train + 1).view(V, V)
                return -(table / table.sum(dim=1, keepdim=True)).log().mean().item()""",
            "A pair that the training split lacks has probability 0, and -ln 0 is infinite: add 1 to each count.": """
                table = train.view(V, V)
                table = (table / table.sum(dim=1, keepdim=True)).log()
                return -(val * table.flatten()).sum().item() / data.characters(data.splits["val"][1:])""",
            "The sign: -ln p is positive, since p is below 1.": """
                table = (train + 1).view(V, V)
                table = (table / table.sum(dim=1, keepdim=True)).log()
                return (val * table.flatten()).sum().item() / data.characters(data.splits["val"][1:])""",
            "You average over the pairs of the training split. The loss is that of the validation split.": """
                table = (train + 1).view(V, V)
                table = (table / table.sum(dim=1, keepdim=True)).log()
                return -(train * table.flatten()).sum().item() / data.characters(data.splits["train"][1:])""",
            "A character is predicted from the one before it, so one less is predicted than the split has.": """
                table = (train + 1).view(V, V)
                table = (table / table.sum(dim=1, keepdim=True)).log()
                return -(val * table.flatten()).sum().item() / data.characters(data.splits["val"])""",
        },
        others=[
            """
            p = (train.double() + 1).view(V, V)
            p = p / p.sum(1)[:, None]
            total = 0.0
            for i in range(V):
                for j in range(V):
                    total -= val[V * i + j].item() * p[i, j].log().item()
            return total / int(val.sum())"""
        ],
    ),
    "loop": Exercise(
        title="the mean of all rows so far, by a loop",
        file="studies/exercises/average_loop",
        trains=False,
        definition="by_loop",
        first="means = []",
        last="return torch.stack",
        task="Return (T, C): row i is the mean of the rows 0 to i of x (T, C). Use a loop.",
        hints=[
            "x[: i + 1] are the rows 0 to i.",
            "mean(dim=0) is the mean over rows; torch.stack makes a tensor of a list.",
        ],
        probe=average("by_loop"),
        mistakes={
            "Row i is missing in its own mean: x[:i] ends before i, so take x[: i + 1].": """
                return torch.stack([x[:i].mean(dim=0) for i in range(len(x))])""",
            "Each row is the mean of all rows, later ones too.": """
                return torch.stack([x.mean(dim=0) for i in range(len(x))])""",
            "That is the sum. Divide by the number of rows, i + 1.": """
                return torch.stack([x[: i + 1].sum(dim=0) for i in range(len(x))])""",
            "Row i is the mean of the rows from i on. It should read what comes before.": """
                return torch.stack([x[i:].mean(dim=0) for i in range(len(x))])""",
        },
        others=["return x.cumsum(dim=0) / torch.arange(1, len(x) + 1)[:, None]"],
    ),
    "matrix": Exercise(
        title="the same, by a triangular matrix",
        file="studies/exercises/average_matrix",
        trains=False,
        definition="by_matrix",
        first="adjacency = ",
        last="return weights",
        task="""Make a matrix of weights (T, T) of which weights @ x is the mean of the rows 0 to i in each row i.
        Begin with the adjacency: True where row i reads from row j.""",
        hints=[
            "torch.ones(T, T).tril() has ones where j <= i.",
            "Divide each row by its sum: sum(dim=1, keepdim=True).",
        ],
        probe=average("by_matrix"),
        mistakes={
            "The triangle is the wrong one: row i reads from the rows after it. tril keeps j <= i.": """
                adjacency = torch.ones(T, T).triu()
                return adjacency / adjacency.sum(dim=1, keepdim=True) @ x""",
            "These are sums. Divide each row of weights by its sum.": """
                return torch.ones(T, T).tril() @ x""",
            "Your columns add up to 1, your rows should: the sum is over dim=1.": """
                adjacency = torch.ones(T, T).tril()
                return adjacency / adjacency.sum(dim=0, keepdim=True) @ x""",
            "Each weight is 1 / T. Row i has i + 1 neighbours, not T.": """
                return torch.ones(T, T).tril() / T @ x""",
        },
        others=["return torch.tril(torch.ones(T, T)).div(torch.arange(1.0, T + 1)[:, None]).matmul(x)"],
    ),
    "softmax": Exercise(
        title="the same, by a softmax of masked zeros",
        file="studies/exercises/average_softmax",
        trains=False,
        definition="by_softmax",
        first="adjacency = ",
        last="return scores",
        task="""The same once more with a softmax: of scores (T, T) that are 0 where i may read from j, and minus
        infinity elsewhere. This is attention in which all scores are alike.""",
        hints=["exp(0) is 1 and exp(-inf) is 0.", "masked_fill(~adjacency, -torch.inf), and a softmax over each row."],
        probe=average("by_softmax"),
        mistakes={
            "Your columns add up to 1, your rows should: the softmax is over dim=1.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                weights = torch.zeros(T, T).masked_fill(~adjacency, -torch.inf).softmax(dim=0)
                return weights @ x""",
            "The mask is after the softmax, so that rows no longer add up to 1.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                return torch.zeros(T, T).softmax(dim=1).masked_fill(~adjacency, 0) @ x""",
            "A masked score of 0 is not masked: exp(0) is 1. It has to be minus infinity.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                return torch.zeros(T, T).masked_fill(~adjacency, 0).softmax(dim=1) @ x""",
            "The mask is the wrong way round: row i reads from the rows after it.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).triu()
                return torch.zeros(T, T).masked_fill(~adjacency, -torch.inf).softmax(dim=1) @ x""",
        },
        others=[
            """
            scores = torch.full((T, T), -torch.inf).triu(1)
            return torch.exp(scores) / torch.exp(scores).sum(1, keepdim=True) @ x"""
        ],
    ),
    "scores": Exercise(
        title="dot products, divided by sqrt(D)",
        file="single_head",
        definition="Attention.forward",
        first="scores = q @",
        last="scores = q @",
        task="""Make the scores (B, T, T) from q and k, (B, T, D) each: the dot product of query i and key j, divided
        by the square root of D.""",
        hints=["q @ k.transpose(-2, -1) has the dot products.", "D is q.shape[-1]."],
        probe=single_head_output,
        properties={"the gradient reaches the query": gradient_reaches_the_query},
        mistakes={
            "The division by sqrt(D) is missing.": "scores = q @ k.transpose(-2, -1)",
            "You divide by D, not by its square root.": "scores = q @ k.transpose(-2, -1) / q.shape[-1]",
            "Query and key have changed places: scores[i, j] is query i with key j.": """
                scores = k @ q.transpose(-2, -1) / math.sqrt(q.shape[-1])""",
            "You divide by the square root of T. It is the number of channels D that makes the scores large.": """
                scores = q @ k.transpose(-2, -1) / math.sqrt(T)""",
        },
        others=[
            'scores = torch.einsum("bid,bjd->bij", q, k) * q.shape[-1] ** -0.5',
            "scores = (q[:, :, None] * k[:, None]).sum(-1) / q.size(-1) ** 0.5",
        ],
    ),
    "mask": Exercise(
        title="attention weights: scores, causal mask, softmax",
        file="single_head",
        definition="Attention.forward",
        first="adjacency = ",
        last="weights = ",
        task="""Set `weights` (B, T, T) to the attention weights, from q and k, (B, T, D) each: the scores q . k /
        sqrt(D), masked so that no token reads from a later one, and a softmax over each row. There is one
        head, so that D is C. B, T, C and `math` are there. (On a GPU the mask has to be there too:
        device=x.device.)""",
        hints=[
            "The scores: q @ k.transpose(-2, -1) is (B, T, T).",
            "The adjacency is torch.ones(T, T, dtype=torch.bool, device=x.device).tril().",
            "Before the softmax, scores without an edge become -math.inf: masked_fill(~adjacency, -math.inf).",
            "weights = scores.softmax(dim=-1)",
        ],
        probe=single_head_output,
        properties={"the weights of a row add up to 1": rows_sum_to_one, **CAUSAL},
        mistakes={
            "Your columns add up to 1, your rows should: the softmax is over the last dimension.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~adjacency, -math.inf)
                weights = scores.softmax(dim=1)""",
            "The mask is after the softmax, so that rows no longer add up to 1.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)
                weights = weights.masked_fill(~adjacency, 0)""",
            "The mask is the wrong way round: a token reads from later ones.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).triu()
                scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~adjacency, -math.inf)
                weights = scores.softmax(dim=-1)""",
            "masked_fill fills where its mask is True: it has to be ~adjacency.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(adjacency, -math.inf)
                weights = scores.softmax(dim=-1)""",
            "A token should also read from itself: tril() keeps the diagonal, tril(-1) does not.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril(-1)
                scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~adjacency, -math.inf)
                weights = scores.softmax(dim=-1)""",
            "The keys have to be transposed: q @ k.transpose(-2, -1).": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                weights = (q @ k / math.sqrt(q.shape[-1])).masked_fill(~adjacency, -math.inf).softmax(dim=-1)""",
            "Query and key have changed places: scores[i, j] is query i with key j.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                scores = (k @ q.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~adjacency, -math.inf)
                weights = scores.softmax(dim=-1)""",
            "You divide by D, not by its square root.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                scores = (q @ k.transpose(-2, -1) / q.shape[-1]).masked_fill(~adjacency, -math.inf)
                weights = scores.softmax(dim=-1)""",
            "The softmax is over the wrong dimension (your columns add up to 1), and sqrt(D) is missing.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                weights = (q @ k.transpose(-2, -1)).masked_fill(~adjacency, -math.inf).softmax(dim=1)""",
            "There is no mask yet: each token reads from all.": """
                weights = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(dim=-1)""",
            "The division by sqrt(D) is missing.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                weights = (q @ k.transpose(-2, -1)).masked_fill(~adjacency, -math.inf).softmax(dim=-1)""",
            "A masked score of 0 is not masked: exp(0) is 1. It has to be minus infinity.": """
                adjacency = torch.ones(T, T, dtype=torch.bool).tril()
                scores = (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).masked_fill(~adjacency, 0)
                weights = scores.softmax(dim=-1)""",
        },
        others=[
            """
            scores = torch.einsum("bid,bjd->bij", q, k) / math.sqrt(q.shape[-1])
            scores = scores + torch.full((T, T), -math.inf).triu(1)
            weights = F.softmax(scores, -1)""",
            """
            weights = torch.zeros(B, T, T)
            for i in range(T):
                weights[:, i, : i + 1] = (q[:, i : i + 1] @ k[:, : i + 1].mT / q.shape[-1] ** 0.5).softmax(-1)[:, 0]""",
        ],
    ),
    "heads": Exercise(
        title="queries, keys and values split into heads",
        file="multi_head",
        definition="Attention.forward",
        first="q = self.query",
        last="v = self.value",
        task="""Make q, k and v, each (B, H, T, D): the C channels that self.query(x), self.key(x) and self.value(x)
        give are split into H = self.n_head heads of D = C / H channels.""",
        hints=["view(B, T, self.n_head, -1) splits the channels: (B, T, H, D).", "transpose(1, 2) brings H before T."],
        probe=multi_head_output,
        properties=CAUSAL,
        mistakes={
            "view(B, H, T, D) cuts the tokens into pieces, not the channels: split first, then transpose(1, 2).": """
                q, k, v = (f(x).view(B, self.n_head, T, -1) for f in (self.query, self.key, self.value))""",
            "A head has each H-th channel. Its channels are neighbours: view(B, T, H, D), not (B, T, D, H).": """
                layers = self.query, self.key, self.value
                q, k, v = (f(x).view(B, T, -1, self.n_head).permute(0, 3, 1, 2) for f in layers)""",
            "H has to come before T: view gives (B, T, H, D), and transpose(1, 2) makes that (B, H, T, D).": """
                q, k, v = (f(x).view(B, T, self.n_head, -1) for f in (self.query, self.key, self.value))""",
            "Query and key have changed places.": """
                layers = self.key, self.query, self.value
                q, k, v = (f(x).view(B, T, self.n_head, -1).transpose(1, 2) for f in layers)""",
            "The key is made by the layer of the query.": """
                layers = self.query, self.query, self.value
                q, k, v = (f(x).view(B, T, self.n_head, -1).transpose(1, 2) for f in layers)""",
            "The value is made by the layer of the key.": """
                layers = self.query, self.key, self.key
                q, k, v = (f(x).view(B, T, self.n_head, -1).transpose(1, 2) for f in layers)""",
        },
        others=[
            """
            D = C // self.n_head
            q, k, v = (torch.stack(f(x).split(D, dim=-1), dim=1) for f in (self.query, self.key, self.value))"""
        ],
    ),
    "concatenate": Exercise(
        title="what the heads have read, concatenated and projected",
        file="multi_head",
        definition="Attention.forward",
        first="return self.projection",
        last="return self.projection",
        task="""`read` (B, H, T, D) is what each head has read. Concatenate the heads of each token, (B, T, C), and
        return what self.projection makes of that.""",
        hints=[
            "transpose(1, 2) brings each token's heads together: (B, T, H, D).",
            "reshape(B, T, C) concatenates them.",
        ],
        probe=multi_head_output,
        properties=CAUSAL,
        mistakes={
            "reshape without transpose mixes the tokens: bring H behind T first.": """
                return self.projection(read.reshape(B, T, C))""",
            "The projection is missing.": "return read.transpose(1, 2).reshape(B, T, C)",
            "That is the mean of the heads in each place. They are concatenated.": """
                read = read.mean(dim=1, keepdim=True).expand_as(read)
                return self.projection(read.transpose(1, 2).reshape(B, T, C))""",
            "The channels of the heads are interleaved. A head's channels stay together.": """
                return self.projection(read.permute(0, 2, 3, 1).reshape(B, T, C))""",
        },
        others=["return self.projection(torch.cat(read.unbind(dim=1), dim=-1))"],
    ),
    "block": Exercise(
        title="residual connections and pre-norm",
        file="block",
        definition="Block.forward",
        first="x = x + self.attention",
        last="return x",
        task="""Return x (B, T, C) after attention and the feed-forward network. Each reads x through its LayerNorm
        (self.norm_1, self.norm_2) and adds to it: residual connections, pre-norm.""",
        hints=[
            "x = x + self.attention(self.norm_1(x))",
            "The feed-forward network reads the x to which attention has added.",
        ],
        probe=block_output,
        properties={
            "with weights of 0 it passes x on": passes_on,
        },
        mistakes={
            "The residual connections are missing: each part adds to x.": """
                x = self.attention(self.norm_1(x))
                return self.feed_forward(self.norm_2(x))""",
            "That is post-norm: LayerNorm comes before each part, not after it.": """
                x = self.norm_1(x + self.attention(x))
                return self.norm_2(x + self.feed_forward(x))""",
            "What is added to is x itself, not the normalized x.": """
                x = self.norm_1(x)
                x = x + self.attention(x)
                x = self.norm_2(x)
                return x + self.feed_forward(x)""",
            "The feed-forward network should read the x to which attention has added.": """
                return x + self.attention(self.norm_1(x)) + self.feed_forward(self.norm_2(x))""",
            "There is no LayerNorm: each part reads norm(x).": """
                x = x + self.attention(x)
                return x + self.feed_forward(x)""",
            "LayerNorm comes before each part, self.attention(self.norm_1(x)), not after it.": """
                x = x + self.norm_1(self.attention(x))
                return x + self.norm_2(self.feed_forward(x))""",
            "The two LayerNorms have changed places.": """
                x = x + self.attention(self.norm_2(x))
                return x + self.feed_forward(self.norm_1(x))""",
            "The second addition is to the first x: what attention has added is lost.": """
                h = x + self.attention(self.norm_1(x))
                return x + self.feed_forward(self.norm_2(h))""",
            "The feed-forward network's residual connection is missing.": """
                x = x + self.attention(self.norm_1(x))
                return self.feed_forward(self.norm_2(x))""",
        },
        others=[
            """
            y = self.attention(self.norm_1(x)) + x
            return y.add(self.feed_forward(self.norm_2(y)))"""
        ],
    ),
    "initialize": Exercise(
        title="why deep networks start small",
        file="transformer",
        definition="GPT.initialize",
        first="for name, parameter",
        last="nn.init.normal_",
        task="""Give each parameter its first values: biases 0; matrices (two dimensions) normal with standard
        deviation 0.02, but 0.02 / sqrt(2 n_layer) if they write to the residual stream: those whose name ends
        in projection.weight or feed_forward.2.weight. The gains of LayerNorm (one dimension, no bias) stay as
        they are.""",
        hints=[
            "for name, parameter in self.named_parameters()",
            "nn.init.zeros_ and nn.init.normal_(parameter, std=...); name.endswith takes a tuple of endings.",
            "The number of blocks is self.config.n_layer.",
        ],
        probe=deviations,
        tolerance=0.04,
        mistakes={
            "The layers that write to the residual stream should start smaller: 0.02 / sqrt(2 n_layer).": """
                for name, parameter in self.named_parameters():
                    if name.endswith("bias"):
                        nn.init.zeros_(parameter)
                    elif parameter.ndim == 2:
                        nn.init.normal_(parameter, std=0.02)""",
            "The gains of LayerNorm have become 0: they have one dimension, but are no biases.": """
                for name, parameter in self.named_parameters():
                    if parameter.ndim == 1:
                        nn.init.zeros_(parameter)
                    else:
                        writes = name.endswith(("projection.weight", "feed_forward.2.weight"))
                        small = 0.02 / math.sqrt(2 * self.config.n_layer)
                        nn.init.normal_(parameter, std=small if writes else 0.02)""",
            "The second argument of normal_ is the mean: write std=0.02.": """
                for name, parameter in self.named_parameters():
                    if name.endswith("bias"):
                        nn.init.zeros_(parameter)
                    elif parameter.ndim == 2:
                        writes = name.endswith(("projection.weight", "feed_forward.2.weight"))
                        nn.init.normal_(parameter, 0.02 / math.sqrt(2 * self.config.n_layer) if writes else 0.02)""",
            "Divided by 2 n_layer: its square root is missing.": """
                for name, parameter in self.named_parameters():
                    if name.endswith("bias"):
                        nn.init.zeros_(parameter)
                    elif parameter.ndim == 2:
                        writes = name.endswith(("projection.weight", "feed_forward.2.weight"))
                        nn.init.normal_(parameter, std=0.02 / (2 * self.config.n_layer) if writes else 0.02)""",
            "The biases have kept PyTorch's values. They start at 0.": """
                for name, parameter in self.named_parameters():
                    if parameter.ndim == 2:
                        writes = name.endswith(("projection.weight", "feed_forward.2.weight"))
                        small = 0.02 / math.sqrt(2 * self.config.n_layer)
                        nn.init.normal_(parameter, std=small if writes else 0.02)""",
            "Every block writes twice, so it is sqrt(2 n_layer), not sqrt(n_layer).": """
                for name, parameter in self.named_parameters():
                    if name.endswith("bias"):
                        nn.init.zeros_(parameter)
                    elif parameter.ndim == 2:
                        writes = name.endswith(("projection.weight", "feed_forward.2.weight"))
                        nn.init.normal_(parameter, std=0.02 / math.sqrt(self.config.n_layer) if writes else 0.02)""",
        },
        others=[
            """
            with torch.no_grad():
                for module in self.modules():
                    if isinstance(module, (nn.Linear, nn.Embedding)):
                        module.weight.normal_(0, 0.02)
                    if getattr(module, "bias", None) is not None:
                        module.bias.zero_()
                for block in self.blocks:
                    for layer in (block.attention.projection, block.feed_forward[2]):
                        layer.weight.mul_((2 * self.config.n_layer) ** -0.5)"""
        ],
    ),
    "warmup": Exercise(
        title="a learning rate that rises and falls",
        file="transformer",
        definition="learning_rate_at",
        first="rise = ",
        last="return config.learning_rate",
        task="""Return the learning rate of a step, from 1 to config.max_iters: it rises linearly to
        config.learning_rate in the first config.warmup_iters steps, and then falls linearly. The last step
        still has a little: after it the line would be at 0.""",
        hints=[
            "rise = step / warmup_iters",
            "fall = (max_iters + 1 - step) / (max_iters + 1 - warmup_iters)",
            "min(rise, fall)",
        ],
        probe=rates,
        mistakes={
            "The first step has a learning rate of 0: steps count from 1.": """
                rise = (step - 1) / max(1, config.warmup_iters)
                fall = (config.max_iters + 1 - step) / max(1, config.max_iters + 1 - config.warmup_iters)
                return config.learning_rate * min(rise, fall)""",
            "The larger of the two lines is taken, the smaller is meant.": """
                rise = step / max(1, config.warmup_iters)
                fall = (config.max_iters + 1 - step) / max(1, config.max_iters + 1 - config.warmup_iters)
                return config.learning_rate * max(rise, fall)""",
            "After the warm-up the learning rate does not fall.": """
                return config.learning_rate * min(1, step / max(1, config.warmup_iters))""",
            "The last step has a learning rate of 0: it does nothing.": """
                rise = step / max(1, config.warmup_iters)
                fall = (config.max_iters - step) / max(1, config.max_iters - config.warmup_iters)
                return config.learning_rate * min(rise, fall)""",
        },
        others=[
            """
            if step <= config.warmup_iters:
                return config.learning_rate * step / config.warmup_iters
            left = config.max_iters + 1 - step
            return config.learning_rate * left / (config.max_iters + 1 - config.warmup_iters)"""
        ],
    ),
    "cache": Exercise(
        title="the KV cache",
        file="gpt",
        definition="Attention.forward",
        first="cache[:, :, :, past",
        last="k, v = cache",
        task="""Write the new keys and values, k and v (B, H, T, D), into the KV cache (2, B, H, block_size, D) at the
        places past to past + T, and set k and v to all that the cache has so far, (B, H, past + T, D) each.
        cache[0] has the keys and cache[1] the values; places after past + T are empty.""",
        hints=[
            "The places of the new tokens are cache[:, :, :, past : past + T].",
            "torch.stack((k, v)) is (2, B, H, T, D), as large as these places.",
            "Then k, v = cache[:, :, :, : past + T].",
        ],
        probe=with_cache,
        mistakes={
            "The cache is written one place off: the first new token is at `past`.": """
                cache[:, :, :, past + 1 : past + 1 + T] = torch.stack((k, v))
                k, v = cache[:, :, :, 1 : past + T + 1]
                k, v = (torch.cat((cache[n][:, :, :1], part[:, :, :-1]), dim=2) for n, part in enumerate((k, v)))""",
            "Only the new keys and values are used: the query should read those before it too.": """
                cache[:, :, :, past : past + T] = torch.stack((k, v))""",
            "The new tokens' own keys and values are missing: read up to past + T.": """
                cache[:, :, :, past : past + T] = torch.stack((k, v))
                k, v = cache[:, :, :, :past]""",
            "Nothing is written into the cache, so that later tokens do not find these.": """
                k, v = (torch.cat((cache[n][:, :, :past], part), dim=2) for n, part in enumerate((k, v)))""",
            "Keys and values have changed places.": """
                cache[:, :, :, past : past + T] = torch.stack((k, v))
                v, k = cache[:, :, :, : past + T]""",
            "New tokens overwrite the first places of the cache: they belong at `past`.": """
                cache[:, :, :, :T] = torch.stack((k, v))
                k, v = cache[:, :, :, : past + T]""",
            "The whole cache is read, also places that no token has been written to.": """
                cache[:, :, :, past : past + T] = torch.stack((k, v))
                k, v = cache if past else cache[:, :, :, :T]""",
        },
        others=[
            """
            for n, part in enumerate((k, v)):
                cache[n].narrow(2, past, T).copy_(part)
            k, v = cache[0].narrow(2, 0, past + T), cache[1].narrow(2, 0, past + T)"""
        ],
    ),
    "newton_schulz": Exercise(
        title="a step of the iteration behind Muon",
        file="gpt",
        definition="orthogonalize",
        first="A = torch.bmm",
        last="X = torch.baddbmm(X, B",
        task="""One step of the iteration, for a stack of wide matrices X (N, rows, columns): a X + b (X X^T) X + c (X
        X^T)^2 X with a = 3.4445, b = -4.7750, c = 2.0315. It takes each singular value s to a s + b s^3 + c
        s^5.""",
        hints=["A = X @ X.mT", "B = b A + c A A, and then X = a X + B X."],
        probe=orthogonalized,
        mistakes={
            "The sign of b: it is -4.7750.": """
                A = X @ X.mT
                X = 3.4445 * X + (4.7750 * A + 2.0315 * A @ A) @ X""",
            "a X is missing.": """
                A = X @ X.mT
                X = (-4.7750 * A + 2.0315 * A @ A) @ X""",
            "c multiplies X X^T once. It has to be squared.": """
                A = X @ X.mT
                X = 3.4445 * X + (-4.7750 * A + 2.0315 * A) @ X""",
            "b and c have changed places.": """
                A = X @ X.mT
                X = 3.4445 * X + (2.0315 * A - 4.7750 * A @ A) @ X""",
        },
        others=[
            """
            XXX = X @ X.mT @ X
            X = 3.4445 * X - 4.7750 * XXX + 2.0315 * (X @ X.mT @ XXX)""",
            "X = 3.4445 * X + (-4.7750 * torch.eye(X.shape[1]) + 2.0315 * X @ X.mT) @ (X @ X.mT @ X)",
        ],
        tolerance=1e-3,
    ),
    "rotary": Exercise(
        title="rotary positions",
        file="modern_gpt",
        definition="rotate",
        first="a, b = x.chunk",
        last="return torch.cat",
        task="""x (..., T, D) has pairs: channel d and channel d + D / 2 are the coordinates (a, b) of a point. Rotate
        each by its angle, of which cos and sin (T, D / 2) are there, and return all in the same order.""",
        hints=["a, b = x.chunk(2, dim=-1)", "A rotation takes (a, b) to (a cos - b sin, b cos + a sin)."],
        probe=rotated,
        properties={"a rotation keeps lengths": same_length},
        mistakes={
            "The points are rotated the other way round: the signs of the two sines have changed places.": """
                a, b = x.chunk(2, dim=-1)
                return torch.cat((a * cos + b * sin, b * cos - a * sin), dim=-1)""",
            "Both sines have the same sign. One must be negative, or lengths change.": """
                a, b = x.chunk(2, dim=-1)
                return torch.cat((a * cos + b * sin, b * cos + a * sin), dim=-1)""",
            "Cosine and sine have changed places.": """
                a, b = x.chunk(2, dim=-1)
                return torch.cat((a * sin - b * cos, b * sin + a * cos), dim=-1)""",
            "The pairs are neighbours here, d and d + 1. They should be d and d + D / 2.": """
                a, b = x[..., ::2], x[..., 1::2]
                return torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)""",
            "The second half is computed from the first half as it is after the rotation.": """
                a, b = x.chunk(2, dim=-1)
                a = a * cos - b * sin
                return torch.cat((a, b * cos + a * sin), dim=-1)""",
        },
        others=[
            """
            half = x.shape[-1] // 2
            swapped = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
            return x * torch.cat((cos, cos), dim=-1) + swapped * torch.cat((sin, sin), dim=-1)"""
        ],
    ),
    "gat": Exercise(
        title="the scores of GAT",
        file="pyg_free_gat",
        definition="GAT.forward",
        first="scores = F.leaky_relu",
        last="scores = F.leaky_relu",
        task="""Make the scores (B, H, T, T) of GAT from src and dst, (B, H, T) each: e_ij = LeakyReLU(dst_i + src_j),
        with self.negative_slope.""",
        hints=[
            "dst[..., :, None] is (B, H, T, 1), src[..., None, :] is (B, H, 1, T).",
            "F.leaky_relu(..., self.negative_slope)",
        ],
        probe=gat_layer,
        mistakes={
            "src and dst have changed places: i is the one who reads, the destination.": """
                scores = F.leaky_relu(src[..., :, None] + dst[..., None, :], self.negative_slope)""",
            "The LeakyReLU is missing.": "scores = dst[..., :, None] + src[..., None, :]",
            "The LeakyReLU comes after the sum, not before it.": """
                dst, src = F.leaky_relu(dst, self.negative_slope), F.leaky_relu(src, self.negative_slope)
                scores = dst[..., :, None] + src[..., None, :]""",
            "That is a ReLU: below 0 the slope is self.negative_slope, not 0.": """
                scores = F.relu(dst[..., :, None] + src[..., None, :])""",
            "The two are multiplied. GAT adds them.": """
                scores = F.leaky_relu(dst[..., :, None] * src[..., None, :], self.negative_slope)""",
        },
        others=[
            """
            z = dst.unsqueeze(-1) + src.unsqueeze(-2)
            scores = torch.where(z > 0, z, self.negative_slope * z)"""
        ],
    ),
    "gatv2": Exercise(
        title="the scores of GATv2, which GAT cannot have",
        file="pyg_free_gat",
        definition="gatv2_scores",
        trains=False,  # what trains is the fast way to the same scores
        first="z = dst[:, :, None]",
        last="return (F.leaky_relu",
        task="""Make GATv2's scores (B, H, T, T) from src and dst (B, T, H, D) and att (H, D): e_ij = a .
        LeakyReLU(dst_i + src_j). What GAT cannot do, this can: each query has an order of the keys of its
        own.""",
        hints=[
            "z = dst[:, :, None] + src[:, None] is (B, T, T, H, D): i, then j.",
            "Multiply by att after the LeakyReLU, and sum over the last dimension: (B, T, T, H).",
            "permute(0, 3, 1, 2) brings H to its place.",
        ],
        probe=gatv2_scores,
        properties={"each query can have an order of its own": each_query_has_its_own_order},
        mistakes={
            "That is GAT: with a before the LeakyReLU all queries have the same order.": """
                a_src, a_dst = (src * att).sum(dim=-1), (dst * att).sum(dim=-1)
                return F.leaky_relu(a_dst[:, :, None] + a_src[:, None], slope).permute(0, 3, 1, 2)""",
            "src and dst have changed places: i is the one who reads, the destination.": """
                z = src[:, :, None] + dst[:, None]
                return (F.leaky_relu(z, slope) * att).sum(dim=-1).permute(0, 3, 1, 2)""",
            "The LeakyReLU is missing. Without it all queries have the same order.": """
                z = dst[:, :, None] + src[:, None]
                return (z * att).sum(dim=-1).permute(0, 3, 1, 2)""",
            "PyTorch's own slope is 0.01: F.leaky_relu(z, slope).": """
                z = dst[:, :, None] + src[:, None]
                return (F.leaky_relu(z) * att).sum(dim=-1).permute(0, 3, 1, 2)""",
            "That is a ReLU: below 0 the slope is `slope`, not 0.": """
                z = dst[:, :, None] + src[:, None]
                return (F.relu(z) * att).sum(dim=-1).permute(0, 3, 1, 2)""",
            "The LeakyReLU is of dst and of src, each by itself. It is of their sum.": """
                z = F.leaky_relu(dst, slope)[:, :, None] + F.leaky_relu(src, slope)[:, None]
                return (z * att).sum(dim=-1).permute(0, 3, 1, 2)""",
        },
        others=[
            'return torch.einsum("bijhd,hd->bhij", F.leaky_relu(dst.unsqueeze(2) + src.unsqueeze(1), slope), att)',
            """
            scores = src.new_zeros(src.shape[0], src.shape[2], src.shape[1], src.shape[1])
            for i in range(src.shape[1]):
                scores[:, :, i] = (F.leaky_relu(dst[:, i : i + 1] + src, slope) * att).sum(-1).transpose(1, 2)
            return scores""",
        ],
    ),
    "window": Exercise(
        title="attention that fades with the distance",
        file="windowed_gpt",
        definition="SoftWindow.attend",
        first="j = torch.arange",
        last="return F.scaled_dot_product",
        task="""Return what is read, (B, H, T, D), with soft windows: scores q . k / sqrt(D) - d / w_i, where d = i -
        j, then the causal mask, the softmax, and the values. self.one_over_w(x) is 1 / w_i, (B, H, T, 1). q
        is (B, H, T, D), k and v are (B, H, past + T, D): with a KV cache the queries are the last T tokens of
        past + T. The plain way is good here; the rung's is for a fast kernel.""",
        hints=[
            "i = past + torch.arange(T)[:, None], and j = torch.arange(past + T): d = i - j is (T, past + T).",
            "scores = q @ k.mT / math.sqrt(D) - d * self.one_over_w(x)",
            "masked_fill(j > i, -math.inf).softmax(dim=-1) @ v",
        ],
        probe=soft_window,
        mistakes={
            "The sign: scores must fall with the distance, and these rise.": """
                i, j = past + torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
                scores = q @ k.mT / math.sqrt(q.shape[-1]) + (i - j) * self.one_over_w(x)
                return scores.masked_fill(j > i, -math.inf).softmax(dim=-1) @ v""",
            "d is multiplied by w. It is divided by w: a wide window makes scores fall slowly.": """
                i, j = past + torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
                scores = q @ k.mT / math.sqrt(q.shape[-1]) - (i - j) / self.one_over_w(x)
                return scores.masked_fill(j > i, -math.inf).softmax(dim=-1) @ v""",
            "The weights are multiplied after the softmax, so that they no longer add up to 1.": """
                i, j = past + torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
                weights = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(j > i, -math.inf).softmax(dim=-1)
                return (weights * torch.exp(-(i - j) * self.one_over_w(x)).clamp(max=1)) @ v""",
            "There is no mask: tokens read from later ones.": """
                i, j = past + torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
                return (q @ k.mT / math.sqrt(q.shape[-1]) - (i - j) * self.one_over_w(x)).softmax(dim=-1) @ v""",
            "With a KV cache the queries are the last tokens: i begins at `past`, not at 0.": """
                i, j = torch.arange(q.shape[2])[:, None], torch.arange(k.shape[2])
                scores = q @ k.mT / math.sqrt(q.shape[-1]) - (i - j) * self.one_over_w(x)
                return scores.masked_fill(j > i, -math.inf).softmax(dim=-1) @ v""",
        },
        others=[
            """
            S = k.shape[2]
            i, j = torch.arange(S)[past:, None], torch.arange(S)
            bias = (-(i - j) * self.one_over_w(x)).masked_fill(j > i, -math.inf)
            return F.scaled_dot_product_attention(q, k, v, bias)"""
        ],
    ),
    "merge": Exercise(
        title="one merge of byte pair encoding",
        file="studies/exercises/pairs",
        trains=False,
        definition="merged",
        first="out, i = []",
        last="return out",
        task="""Return the list of ids in which each `pair` of neighbours has become the one token `new`, from left to
        right. A token that was merged is not part of another pair.""",
        hints=[
            "A while loop: i moves by 2 after a pair, by 1 otherwise.",
            "tuple(ids[i : i + 2]) == pair is False at the end.",
        ],
        probe=merge_ids,
        mistakes={
            "Pairs overlap: after a merge go on behind both tokens. 1 1 1 has one pair of 1 1.": """
                out, i = [], 0
                while i < len(ids):
                    if tuple(ids[i : i + 2]) == pair:
                        out.append(new)
                    else:
                        out.append(ids[i])
                    i += 1
                return out""",
            "The last token is lost if it is in no pair.": """
                out, i = [], 0
                while i < len(ids) - 1:
                    if tuple(ids[i : i + 2]) == pair:
                        out.append(new)
                        i += 2
                    else:
                        out.append(ids[i])
                        i += 1
                return out""",
            "Only the first pair is merged.": """
                for i in range(len(ids) - 1):
                    if tuple(ids[i : i + 2]) == pair:
                        return ids[:i] + [new] + ids[i + 2 :]
                return ids""",
            "The pair is merged in either order: (1, 2) is not (2, 1).": """
                out, i = [], 0
                while i < len(ids):
                    if sorted(ids[i : i + 2]) == sorted(pair):
                        out.append(new)
                        i += 2
                    else:
                        out.append(ids[i])
                        i += 1
                return out""",
            "It is merged from right to left.": """
                out, i = [], len(ids)
                while i > 0:
                    if tuple(ids[max(0, i - 2) : i]) == pair:
                        out.append(new)
                        i -= 2
                    else:
                        out.append(ids[i - 1])
                        i -= 1
                return out[::-1]""",
        },
        others=[
            """
            out = []
            for id in ids:
                out.append(id)
                if tuple(out[-2:]) == pair:
                    out[-2:] = [new]
            return out"""
        ],
    ),
    "prefix": Exercise(
        title="GAT's softmax from prefix sums",
        file="long_gat",
        definition="add_side",
        first="exponents = a * key",
        last="sums.addcmul_",
        task="""Add to sums (..., I, K), in place, for each query i the sum over its first count_i keys j, which can
        be none, of exp(a (query_i + key_j) + log_weight_j - shift_i) rows_j. The keys rise, and all queries
        look up one prefix sum (cumsum) over j. Subtract the largest exponent of the keys before exp, so that
        nothing overflows. pick(prefix, index), further down, takes a row of prefix (..., J, K) for each index
        (..., I).""",
        hints=[
            "What depends on j alone: exponents = a * key + log_weight. What depends on i alone: a * query - shift.",
            "prefix = (exponents - top).exp()[..., None] * rows, then cumsum(dim=-2).",
            "A query with count 0 gets nothing; the others take row count - 1, times exp(a * query + top - shift).",
        ],
        probe=prefix_sums,
        mistakes={
            "One key too many: the sum of the first `count` keys is in row count - 1.": """
                exponents = a * key + log_weight
                top = exponents.amax(dim=-1, keepdim=True)
                prefix = ((exponents - top).exp()[..., None] * rows).cumsum(dim=-2)
                factor = (a * query + top - shift).exp() * (count > 0)
                sums.addcmul_(factor[..., None], pick(prefix, count.clamp(max=key.shape[-1] - 1)))""",
            "A query with count 0 reads a key all the same.": """
                exponents = a * key + log_weight
                top = exponents.amax(dim=-1, keepdim=True)
                prefix = ((exponents - top).exp()[..., None] * rows).cumsum(dim=-2)
                factor = (a * query + top - shift).exp()
                sums.addcmul_(factor[..., None], pick(prefix, (count - 1).clamp(min=0)))""",
            "shift is missing.": """
                exponents = a * key + log_weight
                top = exponents.amax(dim=-1, keepdim=True)
                prefix = ((exponents - top).exp()[..., None] * rows).cumsum(dim=-2)
                factor = (a * query + top).exp() * (count > 0)
                sums.addcmul_(factor[..., None], pick(prefix, (count - 1).clamp(min=0)))""",
            "The largest exponent was subtracted and not added again.": """
                exponents = a * key + log_weight
                top = exponents.amax(dim=-1, keepdim=True)
                prefix = ((exponents - top).exp()[..., None] * rows).cumsum(dim=-2)
                factor = (a * query - shift).exp() * (count > 0)
                sums.addcmul_(factor[..., None], pick(prefix, (count - 1).clamp(min=0)))""",
            "Large exponents overflow: subtract the largest before exp, and add it to the query's exponent.": """
                prefix = ((a * key + log_weight).exp()[..., None] * rows).cumsum(dim=-2)
                factor = (a * query - shift).exp() * (count > 0)
                sums.addcmul_(factor[..., None], pick(prefix, (count - 1).clamp(min=0)))""",
            "sums is overwritten. The sum is added to what it has.": """
                exponents = a * key + log_weight
                top = exponents.amax(dim=-1, keepdim=True)
                prefix = ((exponents - top).exp()[..., None] * rows).cumsum(dim=-2)
                factor = (a * query + top - shift).exp() * (count > 0)
                sums.copy_(factor[..., None] * pick(prefix, (count - 1).clamp(min=0)))""",
            "sums itself has to change: sums += ..., in place. A new tensor of that name is lost.": """
                exponents = a * key + log_weight
                top = exponents.amax(dim=-1, keepdim=True)
                prefix = ((exponents - top).exp()[..., None] * rows).cumsum(dim=-2)
                factor = (a * query + top - shift).exp() * (count > 0)
                sums = sums + factor[..., None] * pick(prefix, (count - 1).clamp(min=0))""",
        },
        others=[
            """
            exponents = a * (query[..., :, None] + key[..., None, :]) + log_weight[..., None, :]
            terms = (exponents - shift[..., :, None]).exp()
            first = torch.arange(key.shape[-1]) < count[..., None]
            sums += (terms * first) @ rows"""
        ],
    ),
}
