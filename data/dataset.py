import hashlib

import torch

from .corpus import load_text
from .errors import UserError
from .processes import rank, world_size
from .tokenizer import CharTokenizer


class Dataset:
    """A text in batches of character ids: its first 90% of characters train, its last 10% validate.

    Takes from `config`: data, block_size, batch_size, device, seed. Raises UserError for a text that is too short, or a
    batch that several processes cannot share.
    x and y are (B, T) int64 on the device; y is x one character on.
    """

    def __init__(self, config):
        text = load_text(config.data)
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self.tokenizer = CharTokenizer.of(text)
        self.block_size, self.batch_size = config.block_size, config.batch_size
        self.device = torch.device(config.device)
        self.generator = torch.Generator().manual_seed(config.seed)  # of the batches alone: part of a checkpoint

        ids = self.tokenizer.encode(text).to(torch.uint8 if self.vocab_size <= 256 else torch.int32)
        cut = int(0.9 * len(ids))
        self.splits = {"train": ids[:cut].to(self.device), "val": ids[cut:].to(self.device)}
        if len(text) - cut <= self.block_size:
            enough = 10 * (self.block_size + 1)
            few = f"{len(text):,} characters of text are too few for --block_size {self.block_size}"
            raise UserError(f"{few}; {enough:,} are enough")
        if self.batch_size % world_size():
            raise UserError(f"--batch_size {self.batch_size} must be a multiple of the {world_size()} processes")

    @property
    def vocab_size(self):
        return len(self.tokenizer)

    def batch(self, split):
        """`batch_size` random windows of the split: x, y; of several processes each has its share of them."""
        ids = self.splits[split]
        start = torch.randint(len(ids) - self.block_size, (self.batch_size, 1), generator=self.generator)
        start = start[rank() :: world_size()]
        chunk = ids[start.to(self.device) + torch.arange(self.block_size + 1, device=self.device)].long()  # (B, T+1)
        return chunk[:, :-1], chunk[:, 1:]

    def windows(self, split):
        """The whole split once, in order, in non-overlapping windows: batches of x, y; the last window is shorter."""
        ids = self.splits[split]
        whole = (len(ids) - 1) // self.block_size * self.block_size
        inputs, targets = (ids[i : whole + i].view(-1, self.block_size).split(self.batch_size) for i in (0, 1))
        for x, y in zip(inputs, targets):
            yield x.long(), y.long()
        if whole < len(ids) - 1:
            yield ids[None, whole:-1].long(), ids[None, whole + 1 :].long()
