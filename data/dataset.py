import hashlib

import torch

from .corpus import read_text
from .errors import UserError
from .processes import rank, world_size
from .tokenizer import CharTokenizer

PART = 2**20  # an evaluation is over at most so many characters, except after the last step


class Dataset:
    """A text in batches of character ids: its first 90% of characters train, its last 10% validate.

    Takes from `config`: data, block_size, batch_size, device, seed. Raises UserError for a text that is too short, or a
    batch that several processes cannot share.
    x and y are (B, T) int64 on the device; y is x one character on.
    """

    def __init__(self, config):
        texts, sha256 = [], hashlib.sha256()
        for text in read_text(config.data):
            texts.append(text)
            sha256.update(text.encode())
        self.sha256 = sha256.hexdigest()
        self.tokenizer = CharTokenizer.of(texts)
        self.block_size, self.batch_size = config.block_size, config.batch_size
        self.device = torch.device(config.device)
        self.generator = torch.Generator().manual_seed(config.seed)  # of the batches alone: part of a checkpoint

        ids = torch.empty(sum(map(len, texts)), dtype=torch.uint8 if self.vocab_size <= 256 else torch.int32)
        end = len(ids)
        while texts:  # from the last to the first, each of which is then no longer needed
            text = texts.pop()
            ids[end - len(text) : end] = self.tokenizer.encode(text)
            end -= len(text)
        cut = int(0.9 * len(ids))
        self.splits = {"train": ids[:cut].to(self.device), "val": ids[cut:].to(self.device)}
        if len(ids) - cut <= self.block_size:
            enough = 10 * (self.block_size + 1)
            few = f"{len(ids):,} characters of text are too few for --block_size {self.block_size}"
            raise UserError(f"{few}; {enough:,} are enough")
        if len(ids) - cut > PART:
            print(f"evaluations are over {PART:,} of {len(ids) - cut:,} characters, evenly spread; the last over all")
        if self.batch_size % world_size():
            raise UserError(f"--batch_size {self.batch_size} must be a multiple of the {world_size()} processes")

    @property
    def vocab_size(self):
        return len(self.tokenizer)

    def at(self, split, start):
        """The windows of a split that begin at `start` (B, 1): x, y."""
        ids = self.splits[split]
        if self.device.type == "cuda":
            start = start.pin_memory()  # so that the host does not wait while it is copied
        start = start.to(self.device, non_blocking=True)
        chunk = ids[start + torch.arange(self.block_size + 1, device=self.device)].long()  # (B, T+1)
        return chunk[:, :-1], chunk[:, 1:]

    def batch(self, split):
        """`batch_size` random windows of the split: x, y; of several processes each has its share of them."""
        last = len(self.splits[split]) - self.block_size
        start = torch.randint(last, (self.batch_size, 1), generator=self.generator)
        return self.at(split, start[rank() :: world_size()])

    def windows(self, split, whole=True):
        """The split once, in order, in non-overlapping windows: batches of x, y; the last window is shorter.

        Unless `whole`, a split of more than PART characters gives about as many, in windows that are evenly spread. Of
        several processes each has its share of the batches.
        """
        ids = self.splits[split]
        count, rest = divmod(len(ids) - 1, self.block_size)
        some = count if whole or len(ids) <= PART else max(1, PART // self.block_size)
        for i in range(rank() * self.batch_size, some, world_size() * self.batch_size):
            number = torch.arange(i, min(i + self.batch_size, some))
            yield self.at(split, number[:, None] * count // some * self.block_size)
        if rest and some == count and rank() == world_size() - 1:
            yield ids[None, -rest - 1 : -1].long(), ids[None, -rest:].long()
