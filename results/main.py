"""How a script ends: what its user can fix is one line. A script whose terminal is gone still computes to its end."""

import builtins
import errno
import os
import re
import signal
import sys

from data import UserError
from data.processes import leave, several

from .flags import program


class Output:
    """stdout. If it cannot be written to, as on a full disk or in a closed pipe, the script goes on without it."""

    def __init__(self, file):
        self.file, self.error = file or open(os.devnull, "w", encoding="utf-8"), None  # None: it was closed

    def __getattr__(self, name):
        return getattr(self.file, name)

    def write(self, text):
        return self.attempt(self.file.write, text)

    def flush(self):
        return self.attempt(self.file.flush)

    def attempt(self, action, *arguments):
        try:
            return action(*arguments)
        except OSError as error:
            self.file, self.error = open(os.devnull, "w", encoding="utf-8"), error


def in_notebook():
    """Whether IPython runs this, as in Jupyter and Colab."""
    return hasattr(builtins, "get_ipython")


def run_main(main):
    """Runs a script's main(). Ends with one line on stderr and exit code 2 if the user can fix what is wrong.

    What goes wrong on the way (a full disk, a loss that is not finite, another process that ends) is one line and exit
    code 1. Ctrl-C is exit code 130, SIGTERM 143. A notebook has no exit code: there the line is the cell's error.
    """
    if in_notebook():
        try:
            return main()
        except Exception as error:
            line, _ = line_of(error)
            if not line:
                raise
            raise UserError(line) from None
    stdout, sys.stdout = sys.stdout, Output(sys.stdout)
    encoding = None if sys.stdout.isatty() else "utf-8"  # a file takes every character, a terminal may lack some
    if hasattr(sys.stdout.file, "reconfigure"):  # that of IDLE, say, has no encoding
        sys.stdout.reconfigure(encoding=encoding, errors="replace")
    line, code = "", 0
    try:
        main()
        sys.stdout.flush()
    except Exception as error:
        line, code = line_of(error)
        if not line:
            raise
    except KeyboardInterrupt as stop:
        code = 128 + (stop.args or [signal.SIGINT])[0]
    finally:
        leave()
        if not getattr(sys.stdout, "error", None):
            sys.stdout = stdout
        elif code == 0:
            line, code = f"what it prints could not be written ({sys.stdout.error.strerror})", 1
    if line:
        print(f"{program()}: {line}", file=sys.stderr)
    if code:
        sys.exit(code)


def line_of(error):
    """What there is to say of an error, and the exit code. Nothing if the error is a fault of the code."""
    said = " ".join(str(error).splitlines())
    if isinstance(error, MemoryError) or re.search(
        "tried to allocate|calculation overflowed|out of memory|ALLOC_FAILED", said, re.I
    ):
        return "not enough memory; a smaller batch, context or model takes less", 2
    if isinstance(error, UserError):
        return said, 2
    if isinstance(error, RuntimeError) and several() and re.search("gloo|nccl", said, re.I):
        return f"another process has ended ({said})", 1
    if isinstance(error, OSError) and error.filename:  # a file of the user's
        return f"{error.filename}: {error.strerror}", 1
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return error.strerror, 1
    return said if isinstance(error, FloatingPointError) else "", 1
