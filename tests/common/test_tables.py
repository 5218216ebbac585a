"""Tables as plain text."""

from gptjax.common.tables import plain_table


def test_columns_are_aligned_and_cells_are_printed_as_they_are():
    rows = [("", "items", "漢字"), ("[b]x[/b] acc", "1,000", "2 ± 1"), ("y", "10", "")]
    assert plain_table(rows).splitlines() == [
        "              items   漢字",
        "[b]x[/b] acc  1,000  2 ± 1",
        "y                10",
    ]
    assert "x" * 500 in plain_table([("x" * 500, "1")])
