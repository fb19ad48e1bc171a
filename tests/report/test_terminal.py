import unicodedata

import pytest

from timewalk.report.tables import Table, Text
from timewalk.report.terminal import clipped, columns, plain_table, terminal_width, text_width


@pytest.mark.parametrize("text", ["Größe", unicodedata.normalize("NFD", "Größe"), "日本", ""])
def test_letters_take_their_columns(text):
    expected = {"日本": 4, "": 0}.get(text, 5)
    assert text_width(text) == expected
    assert text_width(clipped(text * 9, 10)) <= 10


def test_a_clipped_text_keeps_both_ends():
    assert clipped("dora_300ep_seed1", 9) == "dora…eed1"
    assert clipped("dora", 9) == "dora"


def test_columns_that_do_not_fit_come_in_a_further_block():
    texts = [["run", "first", "second"], ["dora", "1.00", "2.00"]]
    assert columns(texts, 1, 40) == ["run   first  second", "dora   1.00    2.00"]
    assert columns(texts, 1, 13) == [
        "run   first",
        "dora   1.00",
        "",
        "run   second",
        "dora    2.00",
    ]


def test_marks_do_not_move_the_numbers():
    rows = [[Text("a"), Text("10.00", 1)], [Text("b"), Text("9.00")], [Text("c"), Text("9.50", 2)]]
    text = plain_table(Table("", ["run", "x"], rows, names=1), 80)
    assert [line.split("  ")[-1].strip() for line in text.splitlines()[1:]] == [
        "10.00*",
        "9.00",
        "9.50'",
    ]
    assert len({line.index(".") for line in text.splitlines()[1:]}) == 1


def test_a_pipe_has_80_columns(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr("sys.__stdout__", None)
    assert terminal_width() == 80
    monkeypatch.setenv("COLUMNS", "20")
    assert terminal_width() == 40
