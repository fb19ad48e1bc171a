"""What benchmarks/growth.py writes, and the arithmetic of benchmarks/tours.py."""

from importlib import import_module
from pathlib import Path

import pytest

from timewalk.suite import load_suite

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def growth():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield import_module("growth")


@pytest.fixture(scope="module")
def tours():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield import_module("tours")


def test_the_largest_suite_is_valid_and_complete(growth):
    suite = load_suite(growth.suite(growth.Size(seeds=5)))
    assert len({run.method for run in suite.runs.values()}) == 10
    assert {run.seed for run in suite.runs.values()} == set(range(5))
    assert {"dora_s0", "classification_s4"} <= set(suite.runs)
    assert sum(len(suite.evaluations_of(run)) for run in suite.runs) == 500
    assert len(suite.videos) == len(suite.dataset("walks").videos) == 10


def test_sizes_change_one_thing_at_a_time(growth):
    small = growth.suite(growth.Size(methods=1, evaluations=3, videos=1000))
    assert list(small["runs"]) == ["dora_s0"]
    assert list(small["evaluations"]) == ["knn", "linear", "attention"]
    assert len(small["datasets"]["walks"]["videos"]) == 1000
    assert growth.Size(methods=1).name == "1 run x 10, 10 videos"
    assert len({size.name for size in growth.SIZES}) == len(growth.SIZES)


def row(growth, jobs, graph_s):
    times = {"read_cold_s": 9, "read_s": 2, "dry_cold_s": 12, "dry_s": 2 + graph_s}
    return growth.Row(growth.Size(), jobs, **times, memory_cold_mb=1000, memory_mb=200)


def test_growth_is_a_power_of_the_jobs(growth):
    small = row(growth, 100, 0.5)
    assert growth.power(row(growth, 400, 2.0), small) == "1.00"
    assert growth.power(row(growth, 400, 8.0), small) == "2.00"
    assert growth.power(small, None) == growth.power(small, row(growth, 400, 8.0)) == ""
    text = growth.table(1.5, [small, row(growth, 400, 8.0)])
    assert text.splitlines()[0] == "Snakemake's own start: 1.5 s."
    assert "| 400 | 4.0x | 9.0 | 2.0 | 12.0 | 10.0 | 8.00 | 16.0x | 2.00 | 20.0 |" in text


def test_jobs_are_read_from_a_dry_run(growth):
    assert growth.jobs("job    count\n-----\nall   1\ntotal   837\n") == 837


@pytest.fixture
def rates(tours):
    loading = {"worker": 8.0, "device": 20.0}
    return tours.Rates(100.0, 0.04, 0.06, 0.1, 200.0, loading, step_clips_s=0.1, clip_tflop=1.0)


@pytest.fixture
def options(tours):
    return tours.arguments().parse_args([])


def test_work_of_a_job_a_video_ends_with_the_longest(tours):
    assert tours.shared(160.0, 30.0, 16, 8) == (10.0, "cores")
    assert tours.shared(160.0, 30.0, 128, 8) == (3.75, "the longest video")
    assert tours.shared(160.0, 30.0, 4, 8) == (40.0, "cores")


def test_training_is_as_fast_as_the_slower_side(tours, rates, options):
    slow = tours.training(rates, options, 1, "worker")  # 15 cores load 120 clips/s
    assert slow.hours == pytest.approx(100 * 16.4 * 60 / 120)
    assert slow.limit == "loading: 120 of 148 clips/s; 1 of 1 GPUs"
    fast = tours.training(rates, options, 1, "device")
    assert fast.hours == pytest.approx(100 * 16.4 * 60 / (989 * 0.15))
    assert fast.limit == "the GPU; 1 of 1 GPUs"
    options.gpu_clips_s = 90.0
    assert tours.training(rates, options, 1, "device").hours == pytest.approx(100 * 16.4 * 60 / 90)


def test_a_batch_of_48_does_not_divide_by_64(tours, rates, options):
    eight = tours.training(rates, options, 8, "device")
    many = tours.training(rates, options, 64, "device")
    assert many.limit.endswith("48 of 64 GPUs")
    assert eight.hours / many.hours == pytest.approx(6 * options.efficiency)


def test_the_path_is_what_cannot_overlap(tours, rates, options):
    stages, path = tours.estimate(rates, options, 1)
    hours = {stage.name: stage.hours for stage in stages}
    assert hours["download"] == pytest.approx(16.4 * 9 * 1000 / 20 / 3600)
    assert hours["check of what came"] == pytest.approx(16.4 * 9 * 1000 / 100 / 3600)
    assert hours["frames: decode, scale, write"] == pytest.approx(16.4 * 60 * 0.04 / 16)
    assert hours["frames: blur"] == pytest.approx(16.4 * 60 * 0.06 / 16)
    training = hours["training, augment: worker"]
    frames = hours["frames: decode, scale, write"] + hours["frames: blur"]
    assert path == pytest.approx(training + frames + hours["shards"])  # slower than the download
    stages, path = tours.estimate(rates, options, 64)
    last = (2 + 55 / 60) * 60 * (0.04 / 4 + 0.06 / 8)  # the longest video's frames
    hours = [stage.hours for stage in stages]
    assert path == pytest.approx(hours[0] + hours[1] + last + hours[4] + hours[5])
    options.augment = "device"
    assert tours.estimate(rates, options, 64)[1] < path


def test_the_tables_say_what_is_assumed(tours, rates, options):
    text = tours.tables(rates, options)
    assert "| a GPU's step (assumed, not measured) | 148 clips/s |" in text
    assert "| hours | on 1 GPU | limit | on 8 GPUs | limit | on 64 GPUs | limit |" in text
    lines = text.splitlines()
    assert lines[-1].startswith("| critical path | **")
    assert {line.count("|") for line in lines[-9:]} == {8}
