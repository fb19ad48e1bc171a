"""Going on from video to video: notes of what is done, and the sentence about what failed."""

from pathlib import Path

import pytest
import torch

from tests.evaluation.coloured_masks import a_run
from tests.evaluation.stubs import Seeing
from tests.miniature import video_sets
from timewalk.artefacts import read_json
from timewalk.config import Davis2017
from timewalk.data.prepare import prepare
from timewalk.data.sequences import Sequence
from timewalk.errors import UserError
from timewalk.evaluation import over_videos
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.over_videos import (
    Task,
    VideosConfig,
    compared,
    each_video,
    evaluate_videos,
)

NAMES = ("a", "b/c", "d", "e", "f")
VIDEOS = [Sequence(name, (Path("0.jpg"),), (None,), (4, 4)) for name in NAMES]


class Worker:
    """Notes the order of the videos; fails at some."""

    def __init__(self, *failing):
        self.done, self.failing = [], failing

    def __call__(self, video):
        if video.name in self.failing:
            raise UserError(f"{video.name}.jpg cannot be read; restore it.")
        self.done.append(video.name)
        return {"order": len(self.done)}


def test_each_once(tmp_path):
    first, again = Worker(), Worker()
    found = each_video(VIDEOS, tmp_path, {"a": 1}, first, kept=set())
    assert found == {name: {"order": place} for place, name in enumerate(NAMES, 1)}
    assert tuple(first.done) == NAMES
    assert read_json(tmp_path / "b" / "c.json")["found"] == {"order": 2}
    assert each_video(VIDEOS, tmp_path, {"a": 1}, again, kept=set(NAMES)) == found
    assert again.done == []


def test_what_is_not_kept_or_of_another_key_is_done_again(tmp_path):
    each_video(VIDEOS, tmp_path, {"a": 1}, Worker(), kept=set())
    some, others = Worker(), Worker()
    each_video(VIDEOS, tmp_path, {"a": 1}, some, kept={"a", "d"})
    assert some.done == ["b/c", "e", "f"]
    each_video(VIDEOS, tmp_path, {"a": 2}, others, kept=set(NAMES))
    assert tuple(others.done) == NAMES


def test_an_interrupted_video_has_no_note(tmp_path):
    """Settings changed, killed while files are overwritten, settings reverted: it is done again."""

    def killed(video):
        raise KeyboardInterrupt

    each_video(VIDEOS, tmp_path, {"a": 1}, Worker(), kept=set())
    with pytest.raises(KeyboardInterrupt):
        each_video(VIDEOS, tmp_path, {"a": 2}, killed, kept=set(NAMES))
    again = Worker()
    each_video(VIDEOS, tmp_path, {"a": 1}, again, kept=set(NAMES))
    assert again.done == ["a"]
    with pytest.raises(UserError):
        each_video(VIDEOS, tmp_path, {"a": 2}, Worker(*NAMES), kept=set(NAMES))
    each_video(VIDEOS, tmp_path, {"a": 1}, again, kept=set(NAMES))
    assert tuple(again.done[1:]) == NAMES


class Title:
    title = "somehow"


def test_the_same_tensors_used_in_another_way(tmp_path, monkeypatch):
    """The encoder's architecture is in no tensor: its videos are done again."""
    video_sets.davis2017(tmp_path / "DAVIS")
    manifest = tmp_path / "set" / "manifest.json"
    prepare("davis", Davis2017(kind="davis2017", root=str(tmp_path / "DAVIS")), manifest)
    monkeypatch.setattr(over_videos, "load_encoder", lambda run: Seeing())
    monkeypatch.setattr(over_videos, "FrameFeatures", lambda *arguments: None)
    done = []

    def do(video, features, before, folder):
        done.append(video.name)
        return {}

    task = Task(
        layout="davis2017",
        protocol=lambda encoder: Title(),
        do=do,
        output=lambda video: "",
        score=lambda folder, videos, notes: (1.0, []),
        numbers=lambda found: {"J": found},
        main="J",
        samples=lambda found, videos: len(videos),
    )
    run = a_run(tmp_path / "run")
    inputs = Inputs(run, manifest, torch.device("cpu"))
    config = VideosConfig(kind="some", dataset="davis")
    for _ in range(2):
        result = evaluate_videos(inputs, config, tmp_path / "out", task)
        assert result.protocol == "davis2017-val-somehow"
        assert len(done) == 2
    a_run(run, architecture={"heads": 6})
    evaluate_videos(inputs, config, tmp_path / "out", task)
    assert len(done) == 4


def test_failures_are_told_at_the_end(tmp_path):
    worker = Worker("a", "d", "e", "f")
    with pytest.raises(UserError) as caught:
        each_video(iter(VIDEOS), tmp_path, {}, worker, kept=set())
    text = str(caught.value)
    assert text.startswith("4 of 5 videos failed (a: a.jpg cannot be read; restore it; d: d.jpg")
    assert "f.jpg" not in text  # three are quoted
    assert "e.jpg cannot be read; restore it); mend them" in text
    assert worker.done == ["b/c"]
    mended = Worker()
    each_video(VIDEOS, tmp_path, {}, mended, kept=set(NAMES))
    assert mended.done == ["a", "d", "e", "f"]


def test_compared():
    spent = [{"seconds": 1.5, "updates": 10}, {"seconds": 2, "updates": 20}]
    found = compared({"J": 60.0, "F": None}, {"J": 58.0, "F": 3.0}, "J", spent)
    assert found == {
        "J": 60,
        "F": None,
        "plain_J": 58,
        "plain_F": 3,
        "gain_J": 2,
        "adapt_seconds": 3.5,
        "adapt_updates": 30,
    }
    assert compared({"J": None}, {"J": 1.0}, "J", [])["gain_J"] is None
