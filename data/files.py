import os


def write_atomically(path, content):
    """Writes bytes beside `path`, down to the disk, then renames them, so that `path` is always whole.

    Raises OSError if that fails, as on a full disk; what was in `path` is then still there.
    """
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        former = ", the former one stands" if path.exists() else ""
        raise OSError(f"{path}: not written{former}: {error.strerror}") from None
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)  # without it a power cut can undo the renaming
        os.close(folder)
