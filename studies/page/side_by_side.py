"""Two files side by side: their colours, and what they share and what not."""

import difflib
import io
import itertools
import keyword
import re
import tokenize
from collections import Counter, defaultdict


def coloured(code):
    """The lines of a Python file, each [text, start, end, kind, start, end, kind, ...].

    The kinds: k a keyword, d a name that is defined, s a string, c a comment, n a number.
    """
    lines = [[line] for line in code.splitlines()]
    before = ""
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        name = tokenize.tok_name[token.type]
        kind = {"COMMENT": "c", "NUMBER": "n"}.get(name, "s" if "STRING" in name else "")
        if name == "NAME":
            kind = "k" if keyword.iskeyword(token.string) else "d" if before in ("def", "class") else ""
        (first, start), (last, end) = token.start, token.end
        for row in range(first, last + 1) if kind else ():  # a docstring has many rows
            text = lines[row - 1][0]
            lines[row - 1] += [start if row == first else 0, end if row == last else len(text), kind]
        before = token.string
    return lines


def stretches(old, new):
    """What two files share and what not, from top to bottom. [i, j, n] are n equal lines, from i and from j on.

    What differs is a list of [i, j] or [i, j, marks, marks]: the lines that stand side by side, -1 where there is none.
    Marks are [start, end, start, end, ...]: the characters of the line that have changed.
    """
    found, i, j = [], 0, 0
    for a, b, n in difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks():
        if n and not any(re.search(r"\w", line) for line in old[a : a + n]):
            continue  # blank lines and brackets are alike everywhere
        pairs = [[x + i * (x >= 0), y + j * (y >= 0), *marked] for x, y, *marked in beside(old[i:a], new[j:b])]
        found += [pairs] * bool(pairs) + [[a, b, n]] * bool(n)
        i, j = a + n, b + n
    return found


def beside(old, new):
    """The pairs of lines that make two lists most alike, in order: [i, j, marks, marks], or one of the two is -1."""
    words = [[Counter(re.findall(r"\w+", line)) for line in lines] for lines in (old, new)]
    best, steps = defaultdict(float), {}  # how alike lines i, ... and j, ... can be, and the first step to it
    for i, j in itertools.product(range(len(old), -1, -1), range(len(new), -1, -1)):
        choices = [(best[i + 1, j], 1, 0)] * (i < len(old)) + [(best[i, j + 1], 0, 1)] * (j < len(new))
        if len(choices) == 2:
            a, b = words[0][i], words[1][j]
            alike = 2 * (a & b).total() / max(1, a.total() + b.total()) + 0.6 * (old[i] == new[j])
            choices += [(best[i + 1, j + 1] + alike, 1, 1)] * (alike > 0.5)
        if choices:
            best[i, j], *steps[i, j] = max(choices, key=lambda choice: choice[0])
    i = j = 0
    while (i, j) in steps:
        down, right = steps[i, j]
        yield [i, j, *marks(old[i], new[j])] if down and right else [i, -1] if down else [-1, j]
        i, j = i + down, j + right


def marks(old, new):
    """Where the words of two lines differ: [start, end, start, end, ...] of the characters of each."""
    lines, found = [re.findall(r"\w+|\s+|.", line) for line in (old, new)], ([], [])
    for tag, *ends in difflib.SequenceMatcher(None, *lines, autojunk=False).get_opcodes():
        for side, line, start, end in zip(found, lines, ends[::2], ends[1::2]):
            if tag != "equal" and start < end:
                side += [len("".join(line[:start])), len("".join(line[:end]))]
    return found
