import hashlib

import torch

from .corpus import read_text
from .errors import UserError
from .processes import rank, world_size
from .tokenizer import BPETokenizer, CharTokenizer

PART = 2**20  # an evaluation is over at most so many tokens, except after the last step


class Dataset:
    """A text in batches of token ids: its first 90% of characters train, its last 10% validate.

    Takes from `config`: data, vocab_size, block_size, batch_size, device, seed. Tokens are characters, or if vocab_size
    is not 0, byte pairs learned on the training split; or those of `tokenizer`. Raises UserError for a text that is too
    short, or a batch that several processes cannot share.
    x and y are (B, T) int64 on the device; y is x one token on.
    """

    def __init__(self, config, tokenizer=None):
        self.block_size, self.batch_size = config.block_size, config.batch_size
        self.device = torch.device(config.device)
        self.generator = torch.Generator().manual_seed(config.seed)  # of the batches alone: part of a checkpoint
        texts, sha256 = [], hashlib.sha256()
        for text in read_text(config.data):
            texts.append(text)
            sha256.update(text.encode())
        self.sha256 = sha256.hexdigest()
        cut = int(0.9 * sum(map(len, texts)))
        if tokenizer or config.vocab_size:
            train, val = self.in_pairs("".join(texts), cut, config.vocab_size, tokenizer)
        else:
            train, val = self.in_characters(texts, cut)
        self.token_length = cut / max(1, len(train))  # characters that a token stands for, in the mean
        self.splits = {"train": train.to(self.device), "val": val.to(self.device)}
        what = "characters" if self.lengths is None else "tokens"
        if len(val) <= self.block_size:
            enough = 10 * (self.block_size + 1)
            few = f"{len(train) + len(val):,} {what} of text are too few for --block_size {self.block_size}"
            raise UserError(f"{few}; {enough:,} are enough")
        if len(val) > PART:
            print(f"evaluations are over {PART:,} of {len(val):,} {what}, evenly spread; the last over all")
        if self.batch_size % world_size():
            raise UserError(f"--batch_size {self.batch_size} must be a multiple of the {world_size()} processes")

    def in_characters(self, texts, cut):
        """The ids of the two splits, a character each. Empties `texts`, a list."""
        self.tokenizer, self.lengths = CharTokenizer.of(texts), None
        ids = torch.empty(sum(map(len, texts)), dtype=torch.uint8 if self.vocab_size <= 256 else torch.int32)
        end = len(ids)
        while texts:  # from the last to the first, each of which is then no longer needed
            text = texts.pop()
            ids[end - len(text) : end] = self.tokenizer.encode(text)
            end -= len(text)
        return ids[:cut], ids[cut:]

    def in_pairs(self, text, cut, vocab_size, tokenizer):
        """The ids of the two splits, in tokens of one character or more."""
        if not tokenizer and vocab_size < 256:
            raise UserError(f"--vocab_size {vocab_size}: must be at least 256, one for each byte, or 0 for characters")
        self.tokenizer = tokenizer or BPETokenizer.of(text[:cut], vocab_size)
        if not tokenizer and self.vocab_size < vocab_size:
            print(f"--vocab_size {vocab_size}: the text has pairs for {self.vocab_size:,} tokens alone", flush=True)
        # A character of UTF-8 begins in each byte that is not 10xxxxxx.
        begins = [sum(byte >> 6 != 0b10 for byte in token) for token in self.tokenizer.tokens]
        self.lengths = torch.tensor(begins, device=self.device)
        return self.tokenizer.encode(text[:cut]), self.tokenizer.encode(text[cut:])

    def characters(self, ids):
        """How many characters `ids` stand for: those that begin in them."""
        return ids.numel() if self.lengths is None else self.lengths[ids.long()].sum().item()

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

        Unless `whole`, a split of more than PART tokens gives about as many, in windows that are evenly spread. Of
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
