import contextlib
import os
import time

PATIENCE = 2  # seconds


def patiently(action, seconds=None):
    """Calls action() until it raises no PermissionError, for PATIENCE seconds at most.

    On Windows a file that a virus scanner, a sync client or a spreadsheet has open can be neither replaced nor written.
    """
    end = time.monotonic() + (PATIENCE if seconds is None else seconds)
    while True:
        try:
            return action()
        except PermissionError:
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)


def write_atomically(path, content):
    """Writes bytes beside `path`, down to the disk, then renames them, so that `path` is always whole.

    content: the bytes, or a function that writes them to a file. Raises OSError if that fails, as on a full disk; what
    was in `path` is then still there.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        patiently(lambda: os.replace(part, path))
    except OSError as error:
        part.unlink(missing_ok=True)
        former = ", the former one stands" if path.exists() else ""
        raise OSError(error.errno, f"not written{former}: {error.strerror}", str(path)) from None
    if os.name == "posix":  # elsewhere a folder cannot be opened
        with contextlib.suppress(OSError):  # some network drives cannot do it
            folder = os.open(path.parent, os.O_RDONLY)
            os.fsync(folder)  # without it a power cut can undo the renaming
            os.close(folder)


def lock(path):
    """Opens a file and holds it: nobody else can until it is closed, or its process ends. Raises BlockingIOError.

    On a file system without locks nothing is held.
    """
    file = open(path, "ab")
    try:
        if os.name == "posix":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    except (BlockingIOError, PermissionError):
        file.close()
        raise BlockingIOError from None
    except OSError:
        pass
    return file
