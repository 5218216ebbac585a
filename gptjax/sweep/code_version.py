"""Which code made a result: the commit checked out, and a digest of the sources as they are."""

import subprocess
from hashlib import sha256
from pathlib import Path

from data_pipeline.files import hash_json

ROOT = Path(__file__).parents[2]
_PACKAGES = ("configs", "data_pipeline", "gptjax")


def code_digest(root: Path = ROOT) -> str:
    """Returns 12 hexadecimal digits of the sha256 of all sources of the packages."""
    files = [file for package in _PACKAGES for file in (root / package).rglob("*.py")]
    content = {f.relative_to(root).as_posix(): sha256(f.read_bytes()).hexdigest() for f in files}
    return hash_json(content)[:12]


def commit(root: Path = ROOT) -> str | None:
    """Returns the hash of the commit checked out in `root`; None without git or a checkout."""
    command = ["git", f"--git-dir={root / '.git'}", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
