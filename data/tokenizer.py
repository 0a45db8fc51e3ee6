import numpy as np
import torch

from .errors import UserError


class CharTokenizer:
    """One id for each character of `alphabet`, a string of distinct characters in sorted order."""

    def __init__(self, alphabet):
        self.alphabet = alphabet
        self.codes = codepoints(alphabet)

    @classmethod
    def of(cls, text):
        """The tokenizer whose alphabet is what stands in `text`."""
        return cls("".join(map(chr, np.unique(codepoints(text)))))

    def __len__(self):
        return len(self.alphabet)

    def encode(self, text):
        """The ids of `text`, (T,) int64. Raises UserError that names a character outside the alphabet."""
        unknown = sorted(set(text) - set(self.alphabet))
        if unknown:
            raise UserError(f"the character {unknown[0]!r} is not in the alphabet {self.alphabet!r}")
        return torch.from_numpy(np.searchsorted(self.codes, codepoints(text)))

    def decode(self, ids):
        """The text of `ids`, a sequence or tensor of (T,) integers."""
        return "".join(self.alphabet[i] for i in ids)


def codepoints(text):
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
