"""Text as ids and back: one id for each character, or byte pairs (Sennrich et al., arXiv:1508.07909) as in GPT-2."""

import functools
import heapq
import itertools
import re
import sys
import time
import unicodedata
from array import array
from collections import Counter, defaultdict

import numpy as np
import torch

from .errors import UserError

# GPT-2's first 256 ids are the bytes: first those that are printable characters by themselves, then the others.
BYTES = [*range(33, 127), *range(161, 173), *range(174, 256)]
BYTES += sorted(set(range(256)) - set(BYTES))
IDS = bytes(map(BYTES.index, range(256)))  # the id of each byte
LONGEST = 2**24  # bytes that all tokens have together, at most: each merge may double a length
END, GONE = -1, -2  # in the place of an id: a word ends here; the id was merged into the one before it


class CharTokenizer:
    """One id for each character of `alphabet`, a string of distinct characters in sorted order."""

    end = ""  # no id separates documents

    def __init__(self, alphabet):
        self.alphabet = alphabet
        codes = codepoints(alphabet)
        self.table = np.full(codes.max(initial=0) + 2, -1, dtype=np.int32)  # the id of each codepoint, or -1
        self.table[codes] = np.arange(len(codes))

    @classmethod
    def of(cls, text):
        """The tokenizer whose alphabet is the characters of `text`."""
        return cls("".join(sorted(set(text))))

    def __len__(self):
        return len(self.alphabet)

    @property
    def state(self):
        """What a checkpoint keeps: `tokenizer_of` makes the tokenizer from it."""
        return self.alphabet

    @property
    def start(self):
        """What a text without a prompt starts after: a line end, or the first character if there is none."""
        return self.encode("\n" if "\n" in self.alphabet else self.alphabet[0])

    def encode(self, text):
        """The ids of `text`, (T,): uint8, or int32 if a byte is not enough.

        Raises UserError that names a character outside the alphabet.
        """
        ids = np.empty(len(text), dtype=np.uint8 if len(self) <= 256 else np.int32)
        for start in range(0, len(text), 2**20):  # in pieces, so that a long text takes little memory
            piece = text[start : start + 2**20]
            found = self.table[np.minimum(codepoints(piece), len(self.table) - 1)]
            if found.min() < 0:
                alphabet = self.alphabet if len(self) <= 100 else self.alphabet[:100] + "..."
                raise UserError(f"the character {piece[found.argmin()]!r} is not in the alphabet {alphabet!r}")
            ids[start : start + len(piece)] = found
        return torch.from_numpy(ids)

    def decode(self, ids):
        """The text of `ids`, a sequence or tensor of (T,) integers."""
        return "".join(self.alphabet[i] for i in ids)


def codepoints(text):
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)


class BPETokenizer:
    """Frequent strings as single ids: 256 for the bytes, then one for each merge, a pair of earlier ids.

    A text is cut into words, and a word's bytes are merged pair by pair, the earliest merge first. No merge crosses the
    border of two words. end: the text of one more id, the last, which separates documents (GPT-2's <|endoftext|>).
    Raises ValueError for merges that cannot be.
    """

    def __init__(self, merges, end=""):
        self.merges, self.end = [tuple(pair) for pair in merges], end
        self.tokens = [bytes([byte]) for byte in BYTES]  # by id
        total = 0
        for left, right in self.merges:
            if not 0 <= min(left, right) <= max(left, right) < len(self.tokens):
                raise ValueError(f"merge {len(self.tokens) - 256} is of tokens that are not there yet")
            total += len(self.tokens[left]) + len(self.tokens[right])
            if total > LONGEST:
                raise ValueError(f"the tokens are longer than {LONGEST:,} bytes together")
            self.tokens.append(self.tokens[left] + self.tokens[right])
        if len(set(self.merges)) < len(self.merges):
            raise ValueError("a merge is there twice")
        self.tokens += [end.encode()] if end else []
        # A character of UTF-8 begins in each byte that is not 10xxxxxx.
        self.lengths = [sum(byte >> 6 != 0b10 for byte in token) for token in self.tokens]
        self.words = {}  # the ids of each word so far: a text has each of its words many times

    @classmethod
    def of(cls, text, vocab_size):
        """The tokenizer with `vocab_size` tokens, or as many as `text` has pairs that occur twice.

        Each merge is of the most frequent pair; of several, the one with the smallest ids. Words are counted once.
        Raises UserError for a vocab_size below 256.
        """
        if vocab_size < 256:
            raise UserError(f"--vocab_size {vocab_size}: must be at least 256, one for each byte, or 0 for characters")
        due = time.perf_counter() + 2
        counted = Counter(words_of(text))
        words = [byte_ids(word) for word in counted]
        symbols = Symbols(words)
        counts = np.repeat([*counted.values()], [len(word) + 1 for word in words]).tolist()  # of each place
        pairs = Counter({pair: sum(counts[i] for i in places) for pair, places in symbols.places.items()})
        heap = [(-count, pair) for pair, count in pairs.items()]
        heapq.heapify(heap)
        merges, lengths, total = [], [1] * 256, 0
        while heap and 256 + len(merges) < vocab_size:
            if time.perf_counter() > due:
                print("data: learning tokens; the more letters stand without a space, the longer it takes", flush=True)
                due = float("inf")
            count, pair = heapq.heappop(heap)
            if -count != pairs[pair]:  # it has become rarer since it was put here
                heapq.heappush(heap, (-pairs[pair], pair))
                continue
            lengths.append(lengths[pair[0]] + lengths[pair[1]])
            total += lengths[-1]
            if -count < 2 or total > LONGEST:
                break
            new, grown = 256 + len(merges), set()
            for i, before, after in symbols.merge(pair, new):
                if before != END:
                    pairs[before, pair[0]] -= counts[i]
                    pairs[before, new] += counts[i]
                    grown.add((before, new))
                if after != END:
                    pairs[pair[1], after] -= counts[i]
                    pairs[new, after] += counts[i]
                    grown.add((new, after))
            for more in grown:
                heapq.heappush(heap, (-pairs[more], more))
            merges.append(pair)
        return cls(merges)

    def __len__(self):
        return len(self.tokens)

    @property
    def state(self):
        """What a checkpoint keeps: `tokenizer_of` makes the tokenizer from it."""
        return {"merges": self.merges, "end": self.end}

    @property
    def start(self):
        """What a text without a prompt starts after: the end of another document, or of a line."""
        return torch.tensor([len(self) - 1], dtype=torch.int32) if self.end else self.encode("\n")

    def encode(self, text):
        """The ids of `text`, (T,) int32. A byte that is not UTF-8 is a character U+DC80 to U+DCFF, as in sys.argv."""
        ids = []
        for i, document in enumerate(text.split(self.end) if self.end else [text]):
            ids += [[len(self) - 1]] * (i > 0)
            self.split({*words_of(document)} - self.words.keys())
            ids += map(self.words.get, words_of(document))
        return torch.from_numpy(np.fromiter(itertools.chain.from_iterable(ids), dtype=np.int32))

    def split(self, words):
        """Finds the ids of words: all are merged together, the earliest merge first."""
        symbols = Symbols(map(byte_ids, words))
        for new, pair in enumerate(self.merges, start=256):
            if pair in symbols.places:
                for _ in symbols.merge(pair, new):
                    pass
        ids = iter(symbols.ids)
        for word in words:
            self.words[word] = [i for i in itertools.takewhile(lambda i: i != END, ids) if i != GONE]

    def decode(self, ids):
        """The text of `ids`, a sequence or tensor of (T,) integers."""
        return b"".join(self.tokens[i] for i in ids).decode(errors="surrogateescape")


class Symbols:
    """Words as one row of ids in which pairs are merged where they stand.

    A merge visits the places of its pair alone, so the time for all merges grows with the length of the text and not
    with its product with the number of merges, however long the words are.
    """

    def __init__(self, words):
        """words: lists of ids."""
        self.ids = array("i", itertools.chain.from_iterable((*word, END) for word in words))
        n = len(self.ids)
        self.left, self.right = array("i", range(-1, n - 1)), array("i", range(1, n + 1))  # neighbours of each place
        self.places = defaultdict(lambda: array("i"))  # where each pair begins, from left to right
        for i, pair in enumerate(itertools.pairwise(self.ids)):
            if END not in pair:
                self.places[pair].append(i)

    def merge(self, pair, new):
        """Puts the id `new` in place of each `pair`, from left to right; yields the place and the two ids around it."""
        ids, left, right = self.ids, self.left, self.right
        for i in self.places.pop(pair):
            j = right[i]
            if (ids[i], ids[j]) != pair:  # an earlier merge has taken one of the two
                continue
            ids[i], ids[j] = new, GONE
            right[i] = right[j]
            left[right[i]] = i
            before, after = ids[left[i]], ids[right[i]]
            if before != END:
                self.places[before, new].append(left[i])
            if after != END:
                self.places[new, after].append(i)
            yield i, before, after


def tokenizer_of(state):
    """The tokenizer whose `state` this is. The state may be from an untrusted file: raises TypeError or ValueError."""
    if isinstance(state, str):
        return CharTokenizer(state)
    merges, end = state["merges"], state["end"]
    if type(end) is not str or any([*map(type, pair)] != [int, int] for pair in merges):
        raise TypeError("not the merges of byte pairs")
    return BPETokenizer(merges, end)


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
        raise UserError(f"{word[:50]!r} is no text: it has half a character") from None
