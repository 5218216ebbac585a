"""The audit of the locks: what is found fails, what could not be asked is said."""

import json
import re
import subprocess

import pytest

from tests import audit

KNOWN = {
    "source": "a database, 2024-10-10",
    "accepted": {},
    "later": {"gamma": {"CVE-3": ["<2.0"]}},
    "advisories": {"alpha": {"PYSEC-1": [">=1.0,<1.5", ">=2.0,<2.1"], "PYSEC-2": ["==1.7"]}},
}


def test_the_locks_are_read_whole():
    pins = audit.locked(audit.KNOWN.parent)
    names = {name for name, _ in pins}
    assert {"jax", "fastapi", "uvicorn", "starlette", "gguf", "tokenizers", "safetensors"} <= names
    text = (audit.KNOWN.parent / "cpu.txt").read_text()
    assert len(pins) >= len(re.findall(r"^[a-z].*==", text, re.MULTILINE)) > 100


def test_no_locked_package_has_a_known_advisory():
    known = json.loads(audit.KNOWN.read_text())
    affected = audit.compare(audit.locked(audit.KNOWN.parent), known)
    assert affected.keys() <= known["accepted"].keys()
    old = {("jinja2", "3.1.5"), ("starlette", "0.48.0"), ("certifi", "2022.12.6"), ("idna", "3.7")}
    assert audit.compare(old, known).keys() == {
        *("jinja2==3.1.5", "starlette==0.48.0", "certifi==2022.12.6")
    }


@pytest.mark.parametrize(
    ("version", "ids"),
    [("1.0", "PYSEC-1"), ("1.5", ""), ("1.7", "PYSEC-2"), ("2.0.3", "PYSEC-1"), ("2.1", "")],
)
def test_versions_are_compared_by_ranges(version, ids):
    found = audit.compare({("alpha", version), ("beta", "1.0")}, KNOWN)
    assert found == ({f"alpha=={version}": ids} if ids else {})


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Audits alpha 1.5, beta 1.0 and gamma 1.0 with such an answer; returns status and text."""
    (tmp_path / "cpu.txt").write_text(
        "alpha==1.5 \\\n    --hash=sha256:0\n    # via beta\n"
        "Beta==1.0 ; python_version > '3'\ngamma==1.0\n"
    )
    monkeypatch.setattr(audit, "KNOWN", tmp_path / "advisories.json")
    monkeypatch.setattr("sys.argv", ["audit"])

    def run(answer, **changes):
        audit.KNOWN.write_text(json.dumps(KNOWN | changes))
        monkeypatch.setattr(audit.subprocess, "run", answer)
        status = audit.main()
        return status, capsys.readouterr().out

    return run


def report(*entries):
    dependencies = [{"name": n, "version": v, **rest} for n, v, rest in entries]
    text = json.dumps({"dependencies": dependencies, "fixes": []})
    return lambda command, **_: subprocess.CompletedProcess(command, 1, text, "")


GOOD = {"vulns": []}
SKIPPED = {"skip_reason": "Dependency not found on PyPI: it"}


def test_what_pypi_reports_fails(run):
    good = (("alpha", "1.5", GOOD), ("gamma", "1.0", GOOD))
    status, text = run(report(*good, ("beta", "1.0", GOOD)))
    assert status == 0 and "NOT" not in text and "none is known to be vulnerable" in text
    answer = report(*good, ("beta", "1.0", {"vulns": [{"id": "PYSEC-9"}]}))
    status, text = run(answer)
    assert status == 1 and "beta==1.0 is AFFECTED by PYSEC-9: upgrade it" in text
    status, text = run(answer, accepted={"beta==1.0": "not on our path"})
    assert status == 0 and "beta==1.0 is AFFECTED by PYSEC-9: not on our path" in text


def test_what_pypi_does_not_know_is_said_and_compared_with_the_list(run):
    entries = (("alpha", "1.5", GOOD), ("beta", "1.0", GOOD), ("gamma", "1.0", SKIPPED))
    status, text = run(report(*entries))
    assert "1 of 3 locked packages could NOT BE AUDITED (Dependency not found on PyPI)" in text
    assert status == 1 and "gamma==1.0 is AFFECTED by CVE-3" in text


def offline(command, **_):
    return subprocess.CompletedProcess(command, 1, "", "Traceback\n...\nConnectionError: no route")


def late(command, timeout, **_):
    raise subprocess.TimeoutExpired(command, timeout)


@pytest.mark.parametrize(
    ("answer", "reason"), [(offline, "ConnectionError: no route"), (late, "no answer within 90 s")]
)
def test_without_a_network_the_list_is_used_and_that_is_said(run, answer, reason):
    status, text = run(answer, later={})
    assert status == 0 and f"3 of 3 locked packages could NOT BE AUDITED ({reason})" in text
    assert "the 2 advisories of requirements/advisories.json instead (a database, 2024" in text
    assert run(answer)[0] == 1  # gamma


def test_two_versions_of_a_package_are_both_asked_about(monkeypatch):
    asked = []

    def answer(command, **_):
        (file,) = [a.partition("=")[2] for a in command if a.startswith("--requirement=")]
        lines = open(file).read().split()
        asked.extend(lines)
        entries = [(*line.split("=="), GOOD) for line in lines]
        return report(*entries)(command)

    monkeypatch.setattr(audit.subprocess, "run", answer)
    audited, reason = audit.ask({("a", "1"), ("a", "2"), ("b", "1")})
    assert sorted(asked) == ["a==1", "a==2", "b==1"] and len(audited) == 3 and not reason
