import sys

import numpy as np
import torch

from .errors import UserError


class CharTokenizer:
    """One id for each character of `alphabet`, a string of distinct characters in sorted order."""

    def __init__(self, alphabet):
        self.alphabet = alphabet
        codes = codepoints(alphabet)
        self.table = np.full(codes.max(initial=0) + 2, -1, dtype=np.int32)  # id of a codepoint; last, of all above
        self.table[codes] = np.arange(len(codes))

    @classmethod
    def of(cls, texts):
        """The tokenizer whose alphabet is what stands in `texts`, strings."""
        seen = np.zeros(sys.maxunicode + 1, dtype=bool)
        for text in texts:
            seen[codepoints(text)] = True
        return cls("".join(map(chr, seen.nonzero()[0])))

    def __len__(self):
        return len(self.alphabet)

    def encode(self, text):
        """The ids of `text`, (T,) int32. Raises UserError that names a character outside the alphabet."""
        ids = self.table[np.minimum(codepoints(text), len(self.table) - 1)]
        if ids.min(initial=0) < 0:
            alphabet = self.alphabet if len(self) <= 100 else self.alphabet[:100] + "..."
            raise UserError(f"the character {text[ids.argmin()]!r} is not in the alphabet {alphabet!r}")
        return torch.from_numpy(ids)

    def decode(self, ids):
        """The text of `ids`, a sequence or tensor of (T,) integers."""
        return "".join(self.alphabet[i] for i in ids)


def codepoints(text):
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
