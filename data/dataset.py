import hashlib

import torch

from .corpus import read_text
from .errors import UserError
from .processes import rank, world_size
from .tokenizer import BPETokenizer, CharTokenizer

PART = 2**20  # an evaluation is over at most so many tokens


class Dataset:
    """A text in batches of token ids: its first 90% of characters train, its last 10% validate.

    Takes from `config`: data, vocab_size, block_size, batch_size, device, seed. Tokens are characters, or if vocab_size
    is not 0, byte pairs learned on the training split; or those of `tokenizer`. Raises UserError for a text that is too
    short, or a batch that several processes cannot share.
    """

    def __init__(self, config, tokenizer=None):
        self.block_size, self.batch_size = config.block_size, config.batch_size
        self.device = torch.device(config.device)
        self.generator = torch.Generator().manual_seed(config.seed)  # of the batches alone: part of a checkpoint
        self.drawn = 0  # tokens in all batches so far, those of all processes together
        text = read_text(config.data)
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        train, val = text[: int(0.9 * len(text))], text[int(0.9 * len(text)) :]
        if tokenizer:
            self.tokenizer = tokenizer
        else:
            self.tokenizer = BPETokenizer.of(train, config.vocab_size) if config.vocab_size else CharTokenizer.of(text)
            if self.vocab_size < config.vocab_size:
                print(f"--vocab_size {config.vocab_size}: the text has pairs for {self.vocab_size:,} tokens only")
        self.lengths = None  # how many characters each token stands for, if not one
        if isinstance(self.tokenizer, BPETokenizer):
            self.lengths = torch.tensor(self.tokenizer.lengths, device=self.device)
        splits = {"train": train, "val": val}
        self.splits = {name: self.tokenizer.encode(part).to(self.device) for name, part in splits.items()}
        self.token_length = len(train) / max(1, len(self.splits["train"]))  # characters of a token, in the mean
        sizes = [len(ids) for ids in self.splits.values()]
        if min(sizes) <= self.block_size:
            has = "the text has {:,} tokens to train on and {:,} to validate on".format(*sizes)
            raise UserError(f"--block_size {self.block_size}: {has}; both must be more than that")
        if not self.characters(self.splits["val"][1:5]):  # one of four bytes begins a character
            raise UserError("the text is too short: there is no whole character to validate on")
        if len(self.splits["val"]) > PART:
            print(f"evaluations are over {PART:,} of {len(self.splits['val']):,} tokens, evenly spread")
        if self.batch_size % world_size():
            raise UserError(f"--batch_size {self.batch_size} must be a multiple of the {world_size()} processes")

    def characters(self, ids):
        """How many characters `ids` stand for: those that begin in them."""
        return ids.numel() if self.lengths is None else self.lengths[ids.long()].sum().item()

    @property
    def vocab_size(self):
        return len(self.tokenizer)

    def batch(self, split, block_size=None):
        """Random windows of the split: x and y (B, T) int64 on the device, where y is x one token further on.

        B is batch_size and T is block_size. With another block_size, B is such that x has about as many tokens. Of
        several processes each gets its share of the windows.
        """
        T = block_size or self.block_size
        B = self.batch_size * (self.block_size // T)
        self.drawn += B * T
        start = torch.randint(len(self.splits[split]) - T, (B, 1), generator=self.generator)
        return self.at(split, start[rank() :: world_size()], T)

    def windows(self, split):
        """The split once, in order, in non-overlapping windows: batches of x, y; the last window is shorter.

        Of a split of more than PART tokens it takes about PART, in windows that are evenly spread and the same every
        time. Of several processes each gets its share of the batches.
        """
        ids = self.splits[split]
        count, rest = divmod(len(ids) - 1, self.block_size)
        some = count if len(ids) <= PART else max(1, PART // self.block_size)
        for i in range(rank() * self.batch_size, some, world_size() * self.batch_size):
            number = torch.arange(i, min(i + self.batch_size, some))
            yield self.at(split, number[:, None] * count // some * self.block_size, self.block_size)
        if rest and some == count and rank() == world_size() - 1:
            yield ids[None, -rest - 1 : -1].long(), ids[None, -rest:].long()

    def at(self, split, start, T):
        """The windows of T tokens of a split that begin at `start` (B, 1): x, y."""
        if self.device.type == "cuda":
            start = start.pin_memory()  # so that the host does not wait while it is copied
        start = start.to(self.device, non_blocking=True)
        chunk = self.splits[split][start + torch.arange(T + 1, device=self.device)].long()  # (B, T + 1)
        return chunk[:, :-1], chunk[:, 1:]
