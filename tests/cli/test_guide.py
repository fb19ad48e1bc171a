"""What the command line teaches: help in groups, examples that are right, nearest names."""

import argparse
import re
import shlex

import pytest

from timewalk import cli
from timewalk.cli.guide import EXAMPLES, FIRST, GROUPS


def verbs(parser=None):
    parser = parser or cli.parser()
    action = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return action.choices


def test_every_verb_stands_in_one_group():
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == set(verbs())


def test_the_help_lists_every_verb_and_fits_80_columns(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    for name in verbs():
        assert re.search(rf"^  {name} ", text, re.MULTILINE)
    assert [text.index(title) for title in GROUPS] == sorted(text.index(t) for t in GROUPS)
    assert "--log FILE" in text


@pytest.mark.parametrize("verb", sorted(verbs()))
def test_the_help_of_a_verb_ends_with_an_example(verb, capsys):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    text = capsys.readouterr().out
    assert text.rstrip().endswith(EXAMPLES[verb])
    assert EXAMPLES[verb].startswith(f"timewalk {verb}")


@pytest.mark.parametrize("verb", sorted(set(EXAMPLES) - {"davis"}))
def test_the_examples_are_commands(verb, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("run.yaml", "head.yaml"):
        (tmp_path / name).write_text("method: dora\n")
    words = shlex.split(EXAMPLES[verb])[1:]
    assert cli.parser().parse_args(words).verb == verb


def test_where_to_begin_names_verbs():
    for command, _ in FIRST:
        program, word, *_ = command.split()
        assert program == "snakemake" or word in verbs()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["trian"], "timewalk: unknown verb 'trian'; did you mean 'train'? See timewalk --help"),
        (["show", "x", "--resluts=y"], "unknown option '--resluts'; did you mean '--results'?"),
        (["videos", "dora"], "timewalk videos: 'dora' is one argument too many. See"),
        (["metrics", "davs"], "unknown metric 'davs'; did you mean 'davis'?"),
        (
            ["metrics", "davis", "--results", "a", "--davis", "b", "--worker-s", "3"],
            "timewalk metrics davis: unknown option '--worker-s'; did you mean '--workers'?",
        ),
        (["completion", "fish"], "unknown shell 'fish'"),
        (["compare"], "timewalk compare: missing: run. See timewalk compare --help"),
        ([], "timewalk: missing: VERB. See timewalk --help"),
    ],
)
def test_a_typo_is_answered_in_one_line(words, sentence, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert sentence in said
    assert said.count("\n") == 1
