"""What NVIDIA's driver says of the cards, by its program nvidia-smi; without JAX."""

import subprocess

_SECONDS = 30  # a driver that does not answer


def query(*fields: str) -> list[list[str]]:
    """Returns the `fields` of each card, as nvidia-smi --query-gpu names and writes them.

    None of them where the program is missing or fails.
    """
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_SECONDS
        )
    except (OSError, subprocess.SubprocessError, ValueError):
        return []
    rows = [[value.strip() for value in line.split(",")] for line in result.stdout.splitlines()]
    return [row for row in rows if len(row) == len(fields)]
