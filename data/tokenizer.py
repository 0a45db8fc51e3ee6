"""Text as ids and back: a character each, or byte pairs (Sennrich et al., arXiv:1508.07909) as GPT-2 has them."""

import functools
import heapq
import itertools
import re
import sys
import unicodedata
from collections import Counter, defaultdict

import numpy as np
import torch

from .errors import UserError

BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]  # those with a sign of their own, GPT-2's first ids
BYTES += sorted(set(range(256)) - set(BYTES))
IDS = bytes(map(BYTES.index, range(256)))  # the id of each byte
LONGEST = 2**24  # bytes that all tokens have together, at most


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

    @property
    def state(self):
        """What a checkpoint keeps: `tokenizer_of` makes the tokenizer of it."""
        return self.alphabet

    @property
    def start(self):
        """What a text without a prompt starts after: a line end, or the first character if there is none."""
        return self.encode("\n" if "\n" in self.alphabet else self.alphabet[0])

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


class BPETokenizer:
    """Frequent strings as single ids: 256 for the bytes, then one for each merge, a pair of the ids before it.

    A text is cut into words, and a word's bytes are merged pair by pair, the earliest merge first. No merge crosses the
    border of two words. Raises ValueError for merges that cannot be. end: the text of a last id, which ends documents.
    """

    def __init__(self, merges, end=""):
        self.merges, self.end = [(int(left), int(right)) for left, right in merges], end
        self.tokens = [bytes([byte]) for byte in BYTES]  # by id
        total = 0
        for left, right in self.merges:
            if not 0 <= min(left, right) <= max(left, right) < len(self.tokens):
                raise ValueError(f"merge {len(self.tokens) - 256} is of tokens that are not there yet")
            total += len(self.tokens[left]) + len(self.tokens[right])
            if total > LONGEST:  # each merge may double a length
                raise ValueError(f"the tokens are longer than {LONGEST:,} bytes together")
            self.tokens.append(self.tokens[left] + self.tokens[right])
        self.ranks = {pair: i for i, pair in enumerate(self.merges, start=256)}
        if len(self.ranks) < len(self.merges):
            raise ValueError("a merge stands twice")
        self.tokens += [end.encode()] if end else []
        self.split = functools.cache(self.split)  # a text has each of its words many times

    @classmethod
    def of(cls, text, vocab_size):
        """The tokenizer with `vocab_size` tokens, or as many as `text` has pairs that occur twice.

        Each merge is of the most frequent pair; of several, the one with the smallest ids. Words are counted once.
        After a merge only the words that have the pair are counted anew.
        """
        counted = Counter(words_of(text))
        words, counts = [byte_ids(word) for word in counted], list(counted.values())
        pairs, places = Counter(), defaultdict(set)  # how often a pair occurs, and in which words
        for place, (word, count) in enumerate(zip(words, counts)):
            for pair in itertools.pairwise(word):
                pairs[pair] += count
                places[pair].add(place)
        heap = [(-count, pair) for pair, count in pairs.items()]
        heapq.heapify(heap)
        merges = []
        while heap and 256 + len(merges) < vocab_size:
            count, pair = heapq.heappop(heap)
            if -count != pairs[pair]:  # it has become rarer since it was put here
                heapq.heappush(heap, (-pairs[pair], pair))
                continue
            if -count < 2:
                break
            grown = set()
            for place in places.pop(pair):
                old, words[place] = words[place], merge(words[place], pair, 256 + len(merges))
                for gone in itertools.pairwise(old):
                    pairs[gone] -= counts[place]
                for new in itertools.pairwise(words[place]):
                    pairs[new] += counts[place]
                    places[new].add(place)
                    if 256 + len(merges) in new:
                        grown.add(new)
            for new in grown:
                heapq.heappush(heap, (-pairs[new], new))
            merges.append(pair)
        return cls(merges)

    def __len__(self):
        return len(self.tokens)

    @property
    def state(self):
        """What a checkpoint keeps: `tokenizer_of` makes the tokenizer of it."""
        return {"merges": self.merges, "end": self.end}

    @property
    def start(self):
        """What a text without a prompt starts after: the end of another, or of a line."""
        return torch.tensor([len(self) - 1], dtype=torch.int32) if self.end else self.encode("\n")

    def encode(self, text):
        """The ids of `text`, (T,) int32. A byte that is no UTF-8 is a character U+DC80 to U+DCFF, as in sys.argv."""
        ids = itertools.chain.from_iterable(map(self.split, words_of(text)))
        return torch.from_numpy(np.fromiter(ids, dtype=np.int32))

    def split(self, word):
        """The ids of a word."""
        ids = byte_ids(word)
        while True:
            pair = min(itertools.pairwise(ids), key=lambda pair: self.ranks.get(pair, len(self)), default=None)
            if pair not in self.ranks:
                return ids
            ids = merge(ids, pair, self.ranks[pair])

    def decode(self, ids):
        """The text of `ids`, a sequence or tensor of (T,) integers."""
        return b"".join(self.tokens[i] for i in ids).decode(errors="surrogateescape")


def tokenizer_of(state):
    """The tokenizer whose `state` this is. A stranger may have made it: raises TypeError or ValueError."""
    return CharTokenizer(state) if isinstance(state, str) else BPETokenizer(**state)


@functools.cache
def pattern():
    """Where GPT-2 cuts a text: before 's and the like, and between letters, digits, other signs and space."""
    codes = np.array([c for c in range(sys.maxunicode + 1) if unicodedata.category(chr(c)) in ("Nl", "No")])
    runs = np.split(codes, np.flatnonzero(np.diff(codes) > 1) + 1)
    digits = "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)  # like Ⅷ and ½: to re they are letters
    letter, digit = rf"[^\W\d_{digits}]", rf"[\d{digits}]"
    space, sign = r"[^\S\x1c-\x1f]", r"[^\s\w]|[_\x1c-\x1f]"  # these four are space to re, not to Unicode
    return re.compile(rf"'(?:[stmd]|re|ve|ll)| ?{letter}+| ?{digit}+| ?(?:{sign})+|{space}+(?![\S\x1c-\x1f])|{space}+")


def words_of(text):
    """The words of a text, one after the other; joined they are the text."""
    return map(re.Match.group, pattern().finditer(text))


def byte_ids(word):
    """The ids of a word's bytes, a list. Raises UserError for half a surrogate pair, which has none."""
    try:
        return list(word.encode(errors="surrogateescape").translate(IDS))
    except UnicodeEncodeError:
        raise UserError(f"{word!r} is no text: it has half a character") from None


def merge(ids, pair, new):
    """`ids`, a list, with `new` in place of each `pair`, from left to right."""
    merged, i = [], 0
    while i < len(ids):
        found = ids[i] == pair[0] and ids[i + 1 : i + 2] == [pair[1]]
        merged.append(new if found else ids[i])
        i += 2 if found else 1
    return merged
