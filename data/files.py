import os
import time
from pathlib import Path

from .errors import UserError


def write_atomically(path, content):
    """Writes bytes beside `path`, down to the disk, then renames them, so that `path` is always whole.

    content: the bytes, or a function that writes them to an open file. Raises OSError if that fails, as on a full disk;
    what was in `path` is then still there.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            content(file) if callable(content) else file.write(content)
            file.flush()
            os.fsync(file.fileno())
        replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        # Where the disk is full, torch.save raises a RuntimeError while it handles the OSError that says so.
        failure = error.__context__ if isinstance(error, RuntimeError) else error
        if not isinstance(failure, OSError):
            raise
        former = "; the former file is kept" if path.exists() else ""
        raise OSError(failure.errno, f"could not be written ({failure.strerror}){former}", str(path)) from None


def replace(part, path):
    """os.replace(), tried for two seconds.

    On Windows a file that a virus scanner, a sync client or a spreadsheet has open at the moment cannot be replaced.
    """
    end = time.monotonic() + 2
    while True:
        try:
            return os.replace(part, path)
        except PermissionError:
            if os.name != "nt" or time.monotonic() > end:
                raise
            time.sleep(0.05)


def write_output(path, content, mark):
    """Writes bytes to the file that a command's --out names.

    mark: bytes that are in all that the project's commands write. A file that lacks them is somebody else's, and is
    left alone: UserError. So is a folder or a device.
    """
    try:
        path = Path(os.path.realpath(path))  # a link stays a link, to what is written
        if path.exists() and not path.is_file():
            raise UserError(f"--out {path}: this is not a file; name another one")
        if path.exists() and mark not in path.read_bytes():
            raise UserError(f"--out {path}: this file was not written by this command; name another one")
        write_atomically(path, content)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UserError(f"--out {path}: {getattr(error, 'strerror', error)}") from None


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
