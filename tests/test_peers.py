"""docs/peers.md names tests that exist, and links to what was read of others."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "peers.md").read_text()
PEERS = ("nanoGPT", "nanochat", "litgpt", "NanoDO", "MaxText", "levanter", "torchtitan")
ANSWERS = ("yes", "partly", "no")
HEADER = ["#", "feature", "gptjax", *PEERS]


class Row(NamedTuple):
    feature: str
    ours: str
    theirs: dict[str, str]  # by peer


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


TABLE_LINES = [cells_of(line) for line in TEXT.splitlines() if line.startswith("|")]
LINES = [cells for cells in TABLE_LINES if cells[0].isdigit()]
ROWS = {
    int(cells[0]): Row(cells[1], cells[2], dict(zip(PEERS, cells[3:], strict=True)))
    for cells in LINES
}
NOTES = {
    int(number): note
    for number, note in re.findall(r"^(\d+)\. (.*(?:\n {3,}.*)*)", TEXT, re.MULTILINE)
}
LINKS = dict(re.findall(r"^\[([\w-]+)\]: (\S+)$", TEXT, re.MULTILINE))
# (peer, the address of a repository of its, the commit that was read)
READ = re.findall(r"^\| \[(\w+)\]\((\S+)\)[^|]*\| `([0-9a-f]{40})` \|", TEXT, re.MULTILINE)
NAMED = re.findall(r"`(tests/[\w/.]+)::(\w+)`", TEXT)


def answer(cell: str) -> str:
    """The first word of a cell, of a link or not."""
    return re.match(r"\[?(\w*)", cell)[1]


def labels(cell: str) -> list[str]:
    return re.findall(r"\[[^\]]+\]\[([^\]]+)\]", cell)


def test_rows_are_numbered_and_have_a_cell_for_each_trainer():
    headers = [cells for cells in TABLE_LINES if cells[0] == "#"]
    assert len(headers) > 3 and all(cells == HEADER for cells in headers)
    assert [int(cells[0]) for cells in LINES] == list(range(1, len(LINES) + 1))
    assert len(LINES) > 25
    for number, row in ROWS.items():
        for cell in (row.ours, *row.theirs.values()):
            assert answer(cell) in ANSWERS, f"row {number}: {cell!r}"


def test_every_test_that_is_named_exists():
    assert len(NAMED) == TEXT.count("`tests/") > 40
    for path, name in NAMED:
        tree = ast.parse((ROOT / path).read_text())
        assert name in [n.name for n in tree.body if isinstance(n, ast.FunctionDef)], path


@pytest.mark.parametrize("number", ROWS)
def test_what_is_claimed_of_ours_is_shown_by_a_test(number):
    note = NOTES[number]
    shown = bool(re.search(r"`tests/[\w/.]+::\w+`", note))
    assert shown == (answer(ROWS[number].ours) != "no")
    assert re.search(r"Searched:\s+`", note), "the words by which a `no` was found"


def test_the_commits_that_were_read_are_stated():
    assert {peer for peer, *_ in READ} == set(PEERS)
    assert len({commit for *_, commit in READ}) == len(READ)


@pytest.mark.parametrize("peer", PEERS)
def test_what_is_said_of_others_has_a_link_to_the_commit_that_was_read(peer):
    roots = tuple(f"{url}/blob/{commit}/" for name, url, commit in READ if name == peer)
    for number, row in ROWS.items():
        cell = row.theirs[peer]
        assert answer(cell) == "no" or cell.startswith("["), (
            f"row {number}: {cell!r} without a link"
        )
        assert cell.count("[") == 2 * len(labels(cell)), f"row {number}: {cell!r}"
        for label in labels(cell):
            link = LINKS[label]
            assert link.startswith(roots), f"row {number}: {label} is at another commit"
            assert re.fullmatch(r"/[\w./-]+(#L\d+)?", link.partition("/blob/")[2][40:]), link


def test_links_are_used():
    assert LINKS.keys() == {
        label for row in ROWS.values() for c in row.theirs.values() for label in labels(c)
    }


def test_rows_in_which_others_are_ahead_are_there():
    ahead = [
        row
        for row in ROWS.values()
        if answer(row.ours) == "no" and "yes" in map(answer, row.theirs.values())
    ]
    assert len(ahead) >= 8
