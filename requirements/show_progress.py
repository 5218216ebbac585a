"""Shows how far pip is, for `make setup`: pip install ... | python show_progress.py LOCK."""

import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_PACKAGE = re.compile(
    r"(?:Collecting|Requirement already satisfied:) [\w.-]+==|Processing \S+\.whl"  # of a folder
)
_FILE = re.compile(r"\s*(?:Downloading|Using cached) ([\w.]+)-\S+\.whl \((.*[MG]B)\)")


def lines(output: Iterable[str], lock: str) -> Iterator[str]:
    """Yields a line for each package of over a megabyte, with the number of those until then.

    The lock also has packages of other machines, so that not all numbers are reached.
    """
    total, n = len(re.findall(r"^[\w.-]+==", lock, re.MULTILINE)), 0
    for line in output:
        n += bool(_PACKAGE.match(line))
        if match := _FILE.match(line):
            yield f"  {n:>3} of {total}: {match[1]} ({match[2]})"
        elif line.startswith("Installing collected packages"):
            yield f"  installing {n} packages: a minute or more"


if __name__ == "__main__":
    for text in lines(sys.stdin, Path(sys.argv[1]).read_text()):
        print(text, flush=True)
