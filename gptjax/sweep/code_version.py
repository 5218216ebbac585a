"""Which code made a result: the commit checked out, and a digest of the sources as they are."""

import hashlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
_PACKAGES = ("configs", "data_pipeline", "gptjax")


def code_digest(root: Path = ROOT) -> str:
    """Returns 12 digits of the sha256 of the packages' sources: another where one was changed."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{file.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()[:12]


def commit(root: Path = ROOT) -> str | None:
    """Returns the hash of the commit of a git checkout, read off its files; None if there is none.

    Whether files were changed since then it cannot tell: `code_digest` does.
    """
    folder = root / ".git"
    try:
        if folder.is_file():  # of a further worktree: "gitdir: PATH"
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        name = head.removeprefix("ref: ")
        common = folder / "commondir"
        if common.is_file():
            folder = folder / common.read_text().strip()
        if (folder / name).is_file():
            return (folder / name).read_text().strip()
        for line in (folder / "packed-refs").read_text().splitlines():
            if line.endswith(f" {name}"):
                return line.split()[0]
    except OSError:
        pass
    return None
