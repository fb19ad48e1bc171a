"""Phases from annotators' segments."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.golden.conftest import load
from timewalk.data.phase_labels import (
    doubts,
    label_warnings,
    labels_at,
    merge_segments,
    read_label_file,
    segments_of_video,
)
from timewalk.errors import UserError

MICROSECONDS = st.integers(0, 20_000_000)
SEGMENT = st.tuples(MICROSECONDS, MICROSECONDS).map(sorted)


@st.composite
def annotations(draw):
    """Segments of some annotators: gaps, overlaps, phases within others, empty ones."""
    phases = draw(st.integers(1, 6))
    one = st.lists(SEGMENT, min_size=phases, max_size=phases)
    people = draw(st.lists(one, min_size=1, max_size=3))
    return phases, {
        f"annotator {n}": {str(phase): segment for phase, segment in enumerate(segments)}
        for n, segments in enumerate(people)
    }


def test_the_published_labels():
    timing = load("tfrecords", "label_timing.json")
    segments = merge_segments(timing["annotations_us"], timing["expected_segments"], "golden")
    merged = timing["merged_seconds"]
    assert sorted(merged, key=int) == [str(i) for i in range(len(segments))]
    for phase, seconds in merged.items():
        assert segments[int(phase)] == pytest.approx(seconds, abs=1e-9)
    labels = labels_at(segments, timing["timestamps"])
    assert labels.dtype == np.int64
    assert labels.tolist() == timing["labels"]


@given(annotations(), st.lists(st.floats(-5, 30), min_size=1, max_size=20))
def test_every_time_has_a_phase(given_annotations, times):
    phases, people = given_annotations
    segments = merge_segments(people, phases, "x")
    ends = [end for _, end in segments]
    labels = labels_at(segments, [*times, *ends])
    assert len(labels) == len(times) + len(ends)
    assert ((labels >= 0) & (labels < phases)).all()


@given(st.lists(st.integers(1, 10_000_000), min_size=1, max_size=6), st.data())
def test_phases_in_order_give_labels_in_order(lengths, data):
    limits = np.cumsum([0, *lengths]).tolist()
    person = {str(i): [limits[i], limits[i + 1]] for i in range(len(lengths))}
    segments = merge_segments({"p": person}, len(lengths), "x")
    times = sorted(data.draw(st.lists(st.floats(-1, 60), min_size=2, max_size=20)))
    labels = labels_at(segments, times)
    assert (np.diff(labels) >= 0).all()
    middles = [(start + end) / 2 for start, end in segments]
    assert labels_at(segments, middles).tolist() == list(range(len(lengths)))


@given(annotations(), st.lists(st.floats(-5, 30), min_size=1, max_size=20))
def test_the_walk_of_the_sheet_frame_by_frame(given_annotations, times):
    phases, people = given_annotations
    segments = merge_segments(people, phases, "x")
    first = min(range(phases), key=lambda i: segments[i][0])
    last = max(range(phases), key=lambda i: segments[i][1])
    for time, label in zip(times, labels_at(segments, times), strict=True):
        inside = [i for i, (start, end) in enumerate(segments) if start <= time < end]
        assert label == (inside[0] if inside else last if time >= segments[last][1] else first)


def test_a_phase_out_of_order():
    raw = {"p": {"0": [5e6, 9e6], "1": [1e6, 4e6]}}
    segments = merge_segments(raw, 2, "x")
    assert segments == [(4.5, 9.0), (1.0, 4.5)]
    assert labels_at(segments, [0.0, 2.0, 4.5, 8.0, 20.0]).tolist() == [1, 1, 0, 0, 0]
    assert labels_at(segments, []).tolist() == []


@pytest.mark.parametrize(
    ("annotators", "words"),
    [
        ({}, "labels.json, walk has no annotator"),
        ({"p": {"0": [1, 2]}}, "annotator 'p' gives no start and end of phase 1"),
        ({"p": {"0": [1, 2], "1": [3]}}, "annotator 'p' gives no start and end of phase 1"),
        ({"p": {"0": [1, 2], "1": [4, 3]}}, "phase 1 of annotator 'p' ends before it starts"),
    ],
)
def test_segments_that_are_missing(annotators, words):
    with pytest.raises(UserError, match=words):
        merge_segments(annotators, 2, "labels.json, walk")


@pytest.mark.parametrize("time", [2.5, float("nan")])
def test_a_time_without_a_phase(time):
    with pytest.raises(UserError, match=r"x: .* s belongs to no phase; correct the segments"):
        labels_at([(0.0, 2.0), (3.0, 4.0)], [0.0, time], "x")


def test_a_label_file(tmp_path):
    path = tmp_path / "labels.json"
    path.write_text('{"walk": {"p": {"0": [0, 1e6], "1": [1e6, 2000000]}}}')
    videos = read_label_file(path)
    assert segments_of_video(videos, "walk", 2, path) == [(0.0, 1.0), (1.0, 2.0)]
    with pytest.raises(UserError, match=r"labels\.json has no video 'wolk'; did you mean 'walk'"):
        segments_of_video(videos, "wolk", 2, path)
    message = r"labels\.json, 'walk': annotator 'p' gives no start .*, or correct some\.key\.$"
    with pytest.raises(UserError, match=message):
        segments_of_video(videos, "walk", 3, path, "some.key")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "should hold an object of videos"),
        ({"walk": []}, "'walk' should hold annotators"),
        ({"walk": {"p": [[0, 1]]}}, "'walk' should hold annotators"),
        ({"walk": {"p": {"0": ["0:00", "0:01"]}}}, "'walk' should hold annotators"),
        ({"walk": {"p": {"0": [0, float("inf")]}}}, "'walk' should hold annotators"),
        ({"walk": {"p": {"0": [False, True]}}}, "'walk' should hold annotators"),
        ({"walk": {"p": {"0": [0, 2**63]}}}, "'walk' should hold annotators"),
        ({"walk": {"p": {"0": [0, float("nan")]}}}, "'walk' should hold annotators"),
        ({"walk": {"p": {"0": [-(10**400), 0]}}}, "'walk' should hold annotators"),
    ],
)
def test_a_file_of_another_form(tmp_path, content, words):
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=words):
        read_label_file(path)


def test_no_file(tmp_path):
    with pytest.raises(
        UserError, match=r"^labelled\.x\.label_file: there is no file .*labels\.json; corr"
    ):
        read_label_file(tmp_path / "labels.json", "labelled.x.label_file")


@pytest.mark.parametrize("content", [b"{", b'{"walk": "\xff"}', b"[" + b"9" * 5000 + b"]"])
def test_a_file_that_is_no_json(tmp_path, content):
    path = tmp_path / "labels.json"
    path.write_bytes(content)
    message = r"^--label-file: .*labels\.json is not valid JSON \(.*\); correct the file\.$"
    with pytest.raises(UserError, match=message):
        read_label_file(path)


@pytest.mark.parametrize("key", [None, "--expected-segments", "labelled.x.classes"])
def test_the_number_of_phases_is_corrected_where_it_is_given(key):
    people = {"p": {"0": [0, 1], "1": [1, 2]}}
    end = f", or correct {key}" if key else ""
    with pytest.raises(UserError, match=rf"gives no start and end of phase 2; add them{end}\.$"):
        merge_segments(people, 3, "x", key)
    message = rf"'p' has a phase '1', but the phases are 0 to 0; remove it{end}\.$"
    with pytest.raises(UserError, match=message):
        merge_segments(people, 1, "x", key)


def test_doubts():
    times = [0, 0.1, 0.2]
    assert doubts([(0.0, 0.1), (0.1, 0.2)], times) == []
    gone = "phase {} has no time left once segments are averaged and gaps are closed"
    assert doubts([(0.0, 1.0), (1.5, 1.0), (1.0, 1.0)], times) == [gone.format(1), gone.format(2)]
    early = "all phases end before the second frame (a label file holds microseconds)"
    assert doubts([(0.0, 1e-6), (1e-6, 2e-6)], times) == [early]
    assert doubts([(0.0, 1e-6)], [0.0]) == []


def test_a_phase_within_another_vanishes():
    segments = merge_segments({"p": {"0": [0, 10e6], "1": [2e6, 3e6], "2": [8e6, 12e6]}}, 3, "x")
    assert segments == [(0.0, 6.0), (6.0, 5.5), (5.5, 12.0)]
    assert 1 not in labels_at(segments, np.linspace(-1, 13, 100)).tolist()
    assert doubts(segments, [0, 1])[0].startswith("phase 1 has no time left")


def test_one_sentence_for_all_videos_of_the_same_doubt():
    found = [("a", ["x"]), ("b", []), ("c", ["y", "x"])]
    assert label_warnings(found) == [
        "x in 2 videos, the first 'a'",
        "y in 1 video, the first 'c'",
    ]
