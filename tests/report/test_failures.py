from pathlib import Path

import pytest

from timewalk.report.failures import ended_by, failure, failures_before, logs_of

FRAME = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    f()\n'
RECORD = "2026-01-01 00:00:00,000 INFO x: step 3 of 9\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            f"{FRAME}RuntimeError: CUDA error: device-side assert triggered\nCUDA kernel errors "
            "might be reported later.\nFor debugging consider passing CUDA_LAUNCH_BLOCKING=1\n",
            "RuntimeError: CUDA error: device-side assert triggered",
        ),
        (
            f"{FRAME}RuntimeError: Error(s) in loading state_dict for Net:\n"
            + "\tsize mismatch for a: copying a parameter of other shape.\n" * 1000,
            "RuntimeError: Error(s) in loading state_dict for Net:",
        ),
        (
            f"{FRAME}KeyError: 'x'\n/usr/lib/resource_tracker.py:224: UserWarning: leaked\n"
            "  warnings.warn(\n",
            "KeyError: 'x'",
        ),
        (
            f"{FRAME}KeyError: 'x'\n\nDuring handling of the above exception, another exception "
            f"occurred:\n\n{FRAME}timewalk.errors.Broken: two\n",
            "timewalk.errors.Broken: two",
        ),
        (f"{FRAME}KeyboardInterrupt\n", "KeyboardInterrupt"),
        (
            "[rank0]: Traceback (most recent call last):\n[rank0]:   File 'x'\n"
            "[rank0]: ValueError: of one process\n",
            "ValueError: of one process",
        ),
        (f"{FRAME}ValueError: mended\n{RECORD}", None),
        (f"{RECORD}{FRAME}ValueError: not mended\n", "ValueError: not mended"),
        ("timewalk train: too large;\nuse less.\n", "too large; use less."),
        (
            "timewalk train: too large.\n/usr/lib/x.py:224: UserWarning: leaked\n  warn(\n",
            "too large.",
        ),
        (f"timewalk train: an old sentence.\n{RECORD}", None),
        (RECORD, None),
        ("", None),
    ],
)
def test_how_a_log_ends(tmp_path, text, expected):
    log = tmp_path / "x.log"
    log.write_text(text)
    assert ended_by(log) == expected


def test_an_embedding_is_read_only_where_it_is_named(tmp_path):
    (tmp_path / "embed-dora-pouring-test.log").write_text("timewalk embed: damaged.\n")
    (tmp_path / "embed-dora-x-digits-test.log").write_text("timewalk embed: of dora-x.\n")
    assert failure(tmp_path, "dora", "davis") is None
    assert failure(tmp_path, "dora", "tau", ["embed-dora-pouring-test"]) == "damaged."
    assert failures_before(tmp_path, "dora", ["dora-x"]) == ["damaged."]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The working directory of a suite."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def test_logs_of_results_elsewhere(work, tmp_path):
    results = tmp_path / "space" / "exp"
    results.mkdir(parents=True)
    # As common.smk joins them.
    log = Path(f"logs/{results.as_posix()}/train-a.log")
    log.parent.mkdir(parents=True)
    log.touch()
    for name in (results, Path("../space/exp")):
        found = logs_of(name)
        assert found is not None
        assert found.resolve() == log.parent.resolve()


def test_logs_of_results_beside_the_working_directory(work, tmp_path):
    results = tmp_path / "out"
    results.mkdir()
    (work / "logs").mkdir()
    log = Path("logs/../out/train-a.log")
    (work / "out").mkdir()
    log.touch()
    for name in (Path("../out"), results):
        found = logs_of(name)
        assert found is not None
        assert found.resolve() == (work / "out").resolve()


def test_logs_of_another_suite(work, tmp_path):
    (tmp_path / "other" / "logs" / "out" / "demo").mkdir(parents=True)
    assert logs_of(tmp_path / "other" / "out" / "demo") == tmp_path / "other/logs/out/demo"
    assert logs_of(tmp_path / "nowhere") is None
