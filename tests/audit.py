"""Is a locked package known to be vulnerable? Asks PyPI's advisories by pip-audit, in seconds.

    python -m tests.audit                       # exit status 1 if one is
    python -m tests.audit --update=FOLDER       # from a clone of github.com/pypa/advisory-database

Packages that could not be audited, for want of a network or because the index has no advisories,
are counted and compared with the advisories of requirements/advisories.json instead: those of the
database, and under "later" what was added by hand since. "accepted" has packages (name==version)
that are locked all the same, and why.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
KNOWN = ROOT / "requirements" / "advisories.json"
_PIN = re.compile(r"([\w.-]+)==([^\s;\\]+)")
_TIMEOUT = 90.0  # seconds for all of pip-audit


def locked(folder: Path) -> set[tuple[str, str]]:
    """Returns the (name, version) of each package in the locks."""
    lines = (line for lock in folder.glob("*.txt") for line in lock.read_text().splitlines())
    pins = (match.groups() for line in lines if (match := _PIN.match(line)))
    return {(canonicalize_name(name), version) for name, version in pins}


def ask(pins: Iterable[tuple[str, str]], *options: str) -> tuple[dict[tuple[str, str], str], str]:
    """Returns the advisories of each package that was audited ("": none), and why not all were."""
    pins = sorted(pins)
    command = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--format=json"]
    command += ["--progress-spinner=off", "--timeout=5", *options]
    audited: dict[tuple[str, str], str] = {}
    reason = ""
    while pins:  # pip-audit takes one version of a package at a time
        batch = dict(pins)
        pins = [pin for pin in pins if pin not in batch.items()]
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
            file.write("".join(f"{name}=={version}\n" for name, version in batch.items()))
            file.flush()
            try:
                done = subprocess.run(
                    [*command, f"--requirement={file.name}"],
                    capture_output=True,
                    text=True,
                    timeout=_TIMEOUT,
                )
                report = json.loads(done.stdout)["dependencies"]
            except subprocess.TimeoutExpired:
                return audited, f"no answer within {_TIMEOUT:g} s"
            except (ValueError, KeyError):
                lines = done.stderr.strip().splitlines() or ["pip-audit reported nothing"]
                return audited, lines[-1][:200]
        for package in report:
            if "skip_reason" in package:
                reason = package["skip_reason"].partition(":")[0]
            else:
                found = ", ".join(sorted(entry["id"] for entry in package["vulns"]))
                audited[canonicalize_name(package["name"]), package["version"]] = found
    return audited, reason


def compare(pins: Iterable[tuple[str, str]], known: Mapping[str, Any]) -> dict[str, str]:
    """Returns the known advisories of each package that has one, by `name==version`."""
    affected = {}
    for name, version in pins:
        entries = {**known["advisories"].get(name, {}), **known["later"].get(name, {})}
        ids = [
            identity
            for identity, ranges in entries.items()
            if any(SpecifierSet(r).contains(Version(version), prereleases=True) for r in ranges)
        ]
        if ids:
            affected[f"{name}=={version}"] = ", ".join(ids)
    return affected


def update(database: Path) -> None:
    """Writes the advisories of the locked packages, from a clone of PyPA's database."""
    import yaml

    commit = subprocess.run(
        ["git", "-C", str(database), "log", "-1", "--format=%cs %h"], capture_output=True, text=True
    ).stdout.strip()
    advisories: dict[str, dict[str, list[str]]] = {}
    for name in sorted({name for name, _ in locked(KNOWN.parent)}):
        for file in sorted((database / "vulns" / name).glob("*.yaml")):
            entry = yaml.safe_load(file.read_text())
            if ranges := [] if "withdrawn" in entry else _ranges(entry, name):
                advisories.setdefault(name, {})[entry["id"]] = ranges
    known = json.loads(KNOWN.read_text())
    known |= {"source": f"github.com/pypa/advisory-database, {commit}", "advisories": advisories}
    KNOWN.write_text(json.dumps(known, indent=1) + "\n")


def _ranges(advisory: Mapping[str, Any], name: str) -> list[str]:
    """Returns the affected versions as specifiers; without ranges, those that are listed."""
    specifiers = []
    for affected in advisory["affected"]:
        if canonicalize_name(affected["package"]["name"]) != name:
            continue
        ranges = [r for r in affected.get("ranges", ()) if r["type"] == "ECOSYSTEM"]
        for event in (event for entry in ranges for event in entry["events"]):
            if "introduced" in event:
                specifiers.append(f">={event['introduced']}")
            elif "fixed" in event:
                specifiers[-1] += f",<{event['fixed']}"
            elif "last_affected" in event:
                specifiers[-1] += f",<={event['last_affected']}"
        if not ranges:
            specifiers += [f"=={version}" for version in affected.get("versions", ())]
    return specifiers


def main() -> int:
    """Prints the outcome; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    if arguments.update:
        update(arguments.update)
        return 0
    pins, known = locked(KNOWN.parent), json.loads(KNOWN.read_text())
    audited, reason = ask(pins)
    left = pins - audited.keys()
    affected = {f"{name}=={version}": ids for (name, version), ids in audited.items() if ids}
    affected |= compare(left, known)
    if audited:
        print(f"audit: PyPI has {len(audited)} of {len(pins)} locked packages.")
    if left:
        n = sum(
            len(entries) for part in ("advisories", "later") for entries in known[part].values()
        )
        print(
            f"audit: {len(left)} of {len(pins)} locked packages could NOT BE AUDITED ({reason}). "
            f"They were compared with the {n} advisories of requirements/advisories.json instead "
            f"({known['source']})."
        )
    for package, ids in sorted(affected.items()):
        why = known["accepted"].get(package, "upgrade it: make lock UPGRADE=--upgrade")
        print(f"audit: {package} is AFFECTED by {ids}: {why}")
    if not affected:
        print("audit: none is known to be vulnerable.")
    return int(any(package not in known["accepted"] for package in affected))


if __name__ == "__main__":
    sys.exit(main())
