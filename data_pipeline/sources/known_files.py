"""Identifies published parquet files by size and sha256, to detect damaged downloads."""

import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

log = logging.getLogger(__name__)


class KnownFile(NamedTuple):
    """A file of a Hugging Face data set."""

    dataset: str
    revision: str
    path: str  # in the data set
    size_bytes: int
    sha256: str
    n_documents: int

    def __str__(self) -> str:
        return f"{self.path} of {self.dataset} at revision {self.revision[:12]}"


FINEWEB = KnownFile(
    dataset="HuggingFaceFW/fineweb",
    revision="9bb295ddab0e05d785b879661af7260fed5140fc",
    path="data/CC-MAIN-2013-20/000_00000.parquet",
    size_bytes=2_147_531_358,
    sha256="c84e6941d787b50959521df6d6894a91397c8b2db13f8a9c8fe0f8782872e930",
    n_documents=1_091_396,
)
KNOWN_FILES = (FINEWEB,)


def identify(path: Path) -> str | None:
    """Returns which known file this is; logs that, or a warning where only size or name fit.

    Only a file of a known size is read: sha256 of the 2.1 GB takes 1.5 to 6 s of one core, once.
    """
    size = path.stat().st_size
    for known in KNOWN_FILES:
        if size == known.size_bytes:
            with path.open("rb") as f:
                digest = hashlib.file_digest(f, "sha256").hexdigest()
            if digest == known.sha256:
                log.info("%s is %s: size and sha256 are the published ones", path, known)
                return str(known)
            log.warning(
                "%s has the size of %s, but its sha256 is %s instead of %s: it is damaged or was "
                "changed. Download it again if it should be that file.",
                *(path, known, digest, known.sha256),
            )
        elif path.name == Path(known.path).name:
            log.warning(
                "%s is not %s: it has %s bytes instead of %s. A truncated download? If it should "
                "be that file, download it again; another file of that name is fine.",
                *(path, known, f"{size:,}", f"{known.size_bytes:,}"),
            )
    return None


def expected_size(path: Path) -> str:
    """Returns a remark on the published size of the known files of that name, or ""."""
    known_files = [known for known in KNOWN_FILES if Path(known.path).name == path.name]
    return "".join(f" {known} has {known.size_bytes:,} bytes." for known in known_files)
