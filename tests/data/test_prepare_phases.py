"""Sets of videos with phases, checked and indexed in place: layouts, labels, and every mistake."""

import logging
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from tests.data.test_archive import server  # noqa: F401 (a fixture)
from tests.miniature import phase_sets
from tests.miniature.phase_sets import jpeg, label_file, records, video
from timewalk.artefacts import read_json, sha256_file
from timewalk.config import Labelled
from timewalk.data.phases import PhaseVideos
from timewalk.data.prepare import penn_action, pouring, prepare
from timewalk.data.tfrecord import VideoRecord, read_videos, write_records
from timewalk.errors import UserError

GOLDEN = Path(__file__).parents[1] / "golden" / "data" / "tfrecords"
TRAIN, VAL = "toy_train-0-of-1.tfrecord", "toy_val-0-of-1.tfrecord"


def checked(**settings):
    return TypeAdapter(Labelled).validate_python(settings)


@pytest.fixture
def run(tmp_path):
    """Return a function that prepares a set and returns its manifest."""

    def call(kind="phase_records", frames=None, name="set", **settings):
        if kind not in ("phase_frames", "moving_phases"):
            settings = {"root": str(tmp_path / "raw")} | settings
        target = tmp_path / name / "manifest.json"
        return prepare(name, checked(kind=kind, **settings), target, frames)

    return call


@pytest.fixture
def opened(tmp_path):
    return lambda split, name="set": PhaseVideos(tmp_path / name / "manifest.json", split)


@pytest.fixture
def raw(tmp_path):
    """Return a function that writes TFRecords into the set's root."""
    return lambda **files: records(
        tmp_path / "raw", {f"toy_{name}-0-of-1.tfrecord": each for name, each in files.items()}
    )


class TestRecords:
    def test_what_tensorflow_wrote(self, run, opened):
        about = run(root=str(GOLDEN), train="toy_train*", test="toynolabel_train*")
        contents = read_json(GOLDEN / "contents.json")
        assert about["classes"] == ["reach", "lift", "pour", "place"]
        assert about["counts"]["unlabelled"] == 1
        for split, name in (("train", TRAIN), ("test", "toynolabel_train-0-of-1.tfrecord")):
            written = list(read_videos(GOLDEN / name))
            videos = opened(split)
            assert [one.name for one in videos] == [record.name for record in written]
            assert about["inputs"][name] == contents["files"][name]["sha256"]
            for one, record in zip(videos, written, strict=True):
                assert [one.store.jpeg(k) for k in range(len(one))] == record.frames
                assert one.action == record.label
                assert (one.labels is None) == (record.frame_labels is None)
                assert one.labels is None or one.labels.tolist() == record.frame_labels
                assert one.frames([0]).shape[1:] == (3, 24, 32)

    def test_counts_and_order(self, run, opened, tmp_path):
        shards = {f"toy_train-{k:02d}-of-11.tfrecord": [video(f"v{k}")] for k in range(11)}
        records(tmp_path / "raw", shards | {VAL: [video("z"), video("y", (0,))]})
        about = run()
        assert [one.name for one in opened("train")] == [f"v{k}" for k in range(11)]
        assert [one.name for one in opened("test")] == ["z", "y"]
        assert about["counts"] == {
            "classes": 0,
            "train": 11,
            "test": 2,
            "train_frames": 33,
            "test_frames": 4,
            "unlabelled": 0,
        }
        assert about["source"]["root"] == "../raw"
        assert about["warnings"] == []

    def test_nothing_is_copied_and_a_second_run_is_the_same(self, run, raw, tmp_path):
        raw(train=[video("a")], val=[video("b")])
        before = {path: path.read_bytes() for path in (tmp_path / "raw").iterdir()}
        about = run()
        assert {path: path.read_bytes() for path in (tmp_path / "raw").iterdir()} == before
        made = {path.name for path in (tmp_path / "set").iterdir()}
        assert made == {
            "manifest.json",
            *(f"{split}.{end}" for split in ("train", "test") for end in ("jsonl", "index.npz")),
        }
        assert run() == about

    def test_the_digest_hangs_on_labels_and_frames(self, run, raw):
        digests = set()
        for made in (video("a", (0, 1)), video("a", (0, 0)), video("a", (0, 1), first=3)):
            raw(train=[made], val=[video("b")])
            digests.add(run()["digest"])
        assert len(digests) == 3

    def test_classes_of_the_configuration_come_first(self, run, raw):
        said = {"class_names": ["x", "y"]}
        raw(train=[video("a", (0, 2), **said)], val=[video("b")])
        assert run(classes=["one", "two", "three"])["classes"] == ["one", "two", "three"]

    @pytest.mark.parametrize(
        ("made", "settings", "message"),
        [
            (video("a", (0, 2)), {"classes": ["x", "y"]}, "frame 1 of 'a' .*label 2, .* 0 to 1;"),
            (video("a", (0, 2), class_names=["x", "y"]), {}, "frame 1 of 'a' .*label 2, .* 0 to 1"),
            (video("a", (0, -1)), {}, "frame 1 of 'a' .*label -1, but labels are 0 or more; corr"),
            (video("a", (), count=0), {}, "the video 'a' has no frames; leave it out"),
            (
                VideoRecord("a", [jpeg(0), jpeg(0, (12, 9))]),
                {},
                r"frame 1 of 'a' \(.*toy_train-0-.*\) is 12x9 pixels but the first is 12x8",
            ),
            (
                VideoRecord("a", [b"no picture"]),
                {},
                r"frame 0 of 'a' .*cannot be decoded \(no image",
            ),
            (VideoRecord("a", [jpeg(0)[:-40]]), {}, "frame 0 of 'a' .*cannot be decoded"),
        ],
    )
    def test_what_a_video_may_not_be(self, run, raw, made, settings, message):
        raw(train=[made], val=[video("b")])
        with pytest.raises(UserError, match=message):
            run(**settings)

    def test_phases_that_go_backwards_are_warned_of(self, run, raw, caplog):
        raw(train=[video("a", (0, 1, 0))], val=[video("b")])
        about = run()
        assert about["warnings"] == ["phases go backwards in 1 of 2 videos, the first 'a'"]
        assert "labelled.set: phases go backwards in 1 of 2 videos" in caplog.text

    def test_a_name_in_both_splits_is_warned_of(self, run, raw):
        raw(train=[video("a"), video("c")], val=[video("c")])
        assert run()["warnings"] == [
            "1 videos of the training split, the first 'c', have the name of one that is scored"
        ]

    def test_two_videos_of_one_name(self, run, tmp_path):
        shards = {f"toy_train-{k}-of-2.tfrecord": [video("a")] for k in range(2)}
        records(tmp_path / "raw", shards | {VAL: [video("b")]})
        with pytest.raises(
            UserError, match=r"train split are named 'a', in .*-0-of-2.* and in .*-1-"
        ):
            run()

    def test_classes_that_differ(self, run, raw):
        names = (["x", "y", "z"], ["x", "z"])
        raw(train=[video(str(k), class_names=names[k]) for k in range(2)], val=[video("b")])
        with pytest.raises(UserError, match="'0' has the phases x, y, z, but '1' has x, z; name"):
            run()

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"root": "nowhere"}, r"labelled\.set\.root: there is no folder nowhere; correct"),
            ({"train": "x*"}, r"labelled\.set\.train: no file in .*raw fits 'x\*'; correct"),
            ({"test": "*_test-*"}, r"labelled\.set\.test: no file in .* fits '\*_test-\*'"),
            ({"test": "toy*"}, "toy_train-0-of-1.tfrecord fits both 'train' and 'test'; make"),
        ],
    )
    def test_files_that_are_not_there(self, run, raw, settings, message):
        raw(train=[video("a")], val=[video("b")])
        with pytest.raises(UserError, match=message):
            run(**settings)

    def test_two_conversions_of_one_set(self, run, tmp_path):
        files = ("toy_train-0-of-2", "toy_train-1-of-2", "toy_train-0-of-1", "other_train-0-of-1")
        made = {f"{file}.tfrecord": [video(file)] for file in files}
        records(tmp_path / "raw", made | {VAL: [video("b")]})
        message = r"raw holds toy_train-\*-of-[12]\.tfrecord and .*two conversions of one set; rem"
        with pytest.raises(UserError, match=message):
            run()
        assert run(train="*_train-0-of-1.tfrecord")["counts"]["train"] == 2

    @pytest.mark.parametrize(
        ("names", "message"),
        [(["a", "b", "a"], "names 'a' twice"), (["a", " "], "empty name"), ([""], "empty name")],
    )
    @pytest.mark.parametrize("kind", ["phase_records", "phase_frames"])
    def test_classes_have_names_of_their_own(self, kind, names, message):
        frames = {"dataset": "x", "label_file": "x.json", "test": ["a"]}
        own = {"root": "x"} if kind == "phase_records" else frames
        with pytest.raises(ValidationError, match=message):
            checked(kind=kind, classes=names, **own)

    def test_a_missing_shard(self, run, tmp_path):
        shards = {f"toy_train-{k}-of-3.tfrecord": [video(str(k))] for k in (0, 2)}
        records(tmp_path / "raw", shards | {VAL: [video("b")]})
        with pytest.raises(UserError, match=r"toy_train-1-of-3\.tfrecord is missing; restore it"):
            run()
        # One shard may be chosen on purpose.
        records(tmp_path / "raw", {"toy_train-1-of-3.tfrecord": [video("1")]})
        assert run(train="toy_train-2-of-3.tfrecord")["counts"]["train"] == 1

    def test_no_video(self, run, raw):
        raw(train=[], val=[video("b")])
        with pytest.raises(UserError, match=r"labelled\.set: the train split has no video; add"):
            run()

    def test_damage(self, run, raw, tmp_path):
        raw(train=[video("a")], val=[video("b")])
        path = tmp_path / "raw" / TRAIN
        whole = path.read_bytes()
        path.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
        with pytest.raises(
            UserError, match=f"{TRAIN} is damaged: the data of the record at byte 0"
        ):
            run()
        path.write_bytes(whole[:-1])
        with pytest.raises(UserError, match=f"{TRAIN} is cut off in the record .*byte 0"):
            run()
        write_records(path, [b""])
        with pytest.raises(
            UserError, match=f"at byte 0 of .*{TRAIN} is not a video .*no list 'vid"
        ):
            run()

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"len": [4]}, "'len' is 4 but 'video' has 3 frames"),
            ({"label": []}, "'label' should hold one value of type int"),
        ],
    )
    def test_records_that_contradict_themselves(self, run, raw, tmp_path, change, message):
        from timewalk.data.protobuf import decode_sequence, encode_sequence

        raw(train=[video("a")], val=[video("b")])
        parsed = decode_sequence(video("a").encode())
        data = encode_sequence({**parsed.context, **change}, parsed.lists)
        write_records(tmp_path / "raw" / TRAIN, [data])
        with pytest.raises(UserError, match=message):
            run()

    def test_labels_of_another_length(self, run, raw, tmp_path):
        made = video("a")
        made.frame_labels = [0, 1]
        raw(train=[made], val=[video("b")])
        with pytest.raises(UserError, match="'len' is 3 but 'frame_labels' has 2; restore"):
            run()

    def test_the_manifest_is_not_written_into_the_set(self, raw, tmp_path):
        raw(train=[video("a")], val=[video("b")])
        config = checked(kind="phase_records", root=str(tmp_path / "raw"))
        with pytest.raises(UserError, match="would be written into the set itself"):
            prepare("set", config, tmp_path / "raw" / "manifest.json")

    @pytest.mark.parametrize("key", ["train", "test"])
    @pytest.mark.parametrize("pattern", ["", "../x*", "/x*"])
    def test_patterns_stay_below_the_root(self, key, pattern):
        with pytest.raises(ValidationError, match=rf"{key}\n"):
            checked(kind="phase_records", root="x", **{key: pattern})


class TestPouring:
    def test_the_published_files(self, run, opened, tmp_path):
        phase_sets.pouring(tmp_path / "raw")
        about = run("pouring")
        assert [one.name for one in opened("train")] == ["b", "c", "a"]
        assert [one.name for one in opened("test")] == ["d", "e"]
        assert len(about["classes"]) == 5
        assert about["classes"][:2] == ["start", "hand touches bottle"]
        assert about["warnings"] == ["Pouring has 3 and 2 videos here, published are 70 and 14"]

    def test_a_missing_file(self, run, tmp_path):
        phase_sets.pouring(tmp_path / "raw")
        (tmp_path / "raw" / "pouring_train-1-of-2.tfrecord").unlink()
        with pytest.raises(
            UserError, match=r"pouring_train-1-of-2\.tfrecord is missing; .*url: off"
        ):
            run("pouring")

    def test_a_label_that_is_no_phase(self, run, tmp_path):
        phase_sets.pouring(tmp_path / "raw")
        records(tmp_path / "raw", {"pouring_val-0-of-1.tfrecord": [video("x", (0, 5))]})
        with pytest.raises(UserError, match=r"frame 1 of 'x' .* has the label 5, .* 0 to 4"):
            run("pouring")

    @pytest.fixture
    def served(self, server, tmp_path):  # noqa: F811
        phase_sets.pouring(tmp_path / "made")
        server.files.update({p.name: p.read_bytes() for p in (tmp_path / "made").iterdir()})
        return server

    def test_missing_files_are_fetched(self, run, served, tmp_path, caplog):
        caplog.set_level(logging.INFO)
        served.cut = 1
        about = run("pouring", url=served.address + "/")
        root = tmp_path / "raw"
        assert {p.name for p in root.iterdir()} == {*served.files, ".lock", ".fetched.json"}
        assert all((root / name).read_bytes() == data for name, data in served.files.items())
        first = "pouring_train-0-of-2.tfrecord"
        half = len(served.files[first]) // 2
        assert served.asked[:2] == [(first, None), (first, f"bytes={half}-")]
        assert f"labelled.set: fetching {served.address}/{first}" in caplog.text
        warning = f"{first} was fetched, and no digest of it is published; it has sha256 "
        assert warning + sha256_file(root / first) in about["warnings"]
        asked = len(served.asked)
        assert run("pouring", url=served.address)["digest"] == about["digest"]
        assert len(served.asked) == asked, "what is there is not fetched again"

    def test_the_official_address(self, run, served, monkeypatch):
        assert pouring.HOST == "https://storage.googleapis.com/tcc-pouring"
        monkeypatch.setattr(pouring, "HOST", served.address)
        assert run("pouring", url="official")["counts"]["train"] == 3

    def test_what_is_no_record_gets_no_name(self, run, served, tmp_path):
        served.files["pouring_val-0-of-1.tfrecord"] = b"<html>no such thing</html>"
        with pytest.raises(
            UserError, match=r"pouring_val-0-of-1\.tfrecord is no whole TFRecord; cor"
        ):
            run("pouring", url=served.address)
        names = {p.name for p in (tmp_path / "raw").iterdir()}
        assert not any("val" in name for name in names)

    def test_a_file_that_is_not_served(self, run, served):
        del served.files["pouring_val-0-of-1.tfrecord"]
        with pytest.raises(UserError, match=r"answers 404 .*put pouring_val-0-of-1.tfrecord into"):
            run("pouring", url=served.address)

    def test_an_address_of_another_kind(self):
        with pytest.raises(ValidationError, match="official"):
            checked(kind="pouring", root="x", url="ftp://x")


class TestPennAction:
    def test_one_action(self, run, opened, tmp_path, caplog):
        phase_sets.penn_action(tmp_path / "raw")
        segments = {"0001": (0.05, 0.1, 0.12, 0.2), "0002": (0.05, 0.06, 0.07, 0.1)}
        path = label_file(tmp_path / "labels.json", segments)
        about = run("penn_action", action="baseball_pitch", label_file=str(path))
        (first,), (second,) = opened("train"), opened("test")
        assert (first.name, first.labels.tolist()) == ("0001", [0, 1, 2, 3])
        assert first.store.times.tolist() == [0, 1 / 20, 2 / 20, 3 / 20]
        assert (second.name, second.labels.tolist()) == ("0002", [0, 1, 3])
        assert first.frames([1, 3]).float().mean((1, 2, 3)).tolist() == [10, 30]
        assert about["classes"] == [
            "start",
            "knee fully up",
            "arm fully stretched out",
            "ball release",
        ]
        assert about["inputs"]["label_file"] == sha256_file(path)
        assert about["warnings"] == [
            "Penn Action's baseball_pitch has 1 and 1 videos here, published are 103 and 63"
        ]

    def test_without_labels_it_trains(self, run, opened, tmp_path):
        phase_sets.penn_action(tmp_path / "raw" / "Penn_Action")
        about = run("penn_action", action="bowling")
        assert [one.name for one in opened("train")] == ["0003"]
        assert opened("train")[0].labels is None
        assert about["counts"]["unlabelled"] == 2
        assert about["warnings"][0].endswith("published are 134 and 84 or 134 and 85")
        assert about["warnings"][1].startswith(
            "no 'label_file' is named: the videos have no labels"
        )

    def test_all_actions_have_numbers_of_their_own(self, run, opened, tmp_path):
        phase_sets.penn_action(tmp_path / "raw")
        about = run("penn_action", action="all")
        assert [(one.name, one.action) for one in opened("train")] == [("0001", 0), ("0003", 3)]
        assert [(one.name, one.action) for one in opened("test")] == [("0002", 0), ("0004", 3)]
        assert about["classes"] == []
        assert list(about["actions"]) == list(penn_action.ACTIONS)
        absent = [name for name in penn_action.ACTIONS if name not in ("baseball_pitch", "bowling")]
        assert about["warnings"][2] == f"there is no video of {', '.join(absent)}"
        assert about["warnings"][3].endswith("only evaluations that need no labels read them")
        assert len(about["warnings"]) == 4
        assert about["actions"]["bench_press"] == ["start", "bar fully down"]

    def test_the_published_numbers_of_phases(self):
        phases = {action: len(penn_action.phases_of(action)) for action in penn_action.ACTIONS}
        assert phases == {
            "baseball_pitch": 4,
            "baseball_swing": 3,
            "bench_press": 2,
            "bowling": 3,
            "clean_and_jerk": 6,
            "golf_swing": 3,
            "jumping_jacks": 4,
            "pullups": 2,
            "pushups": 2,
            "situp": 2,
            "squats": 4,
            "tennis_forehand": 3,
            "tennis_serve": 4,
        }

    def test_every_action_can_be_configured(self):
        for action in (*penn_action.ACTIONS, "all"):
            assert checked(kind="penn_action", root="x", action=action).action == action
        with pytest.raises(ValidationError, match="action"):
            checked(kind="penn_action", root="x", action="strumming_guitar")

    def test_other_lengths_are_warned_of(self, run, tmp_path):
        phase_sets.penn_action(tmp_path / "raw")
        (tmp_path / "raw" / "frames" / "0001" / "000004.jpg").unlink()
        assert run("penn_action", action="baseball_pitch")["warnings"][1] == (
            "1 of 2 videos have another number of frames than their annotation says, the first "
            "'0001' with 3 instead of 4"
        )

    def test_a_video_without_segments(self, run, tmp_path):
        phase_sets.penn_action(tmp_path / "raw")
        path = label_file(tmp_path / "labels.json", {"0003": (0.1, 0.2, 0.3)})
        with pytest.raises(UserError, match=r"labels\.json has no video '0004'.*add its segments"):
            run("penn_action", action="bowling", label_file=str(path))
        with pytest.raises(UserError, match=r"label_file: there is no file no\.json; correct"):
            run("penn_action", action="bowling", label_file="no.json")
        path = label_file(tmp_path / "labels.json", {"0003": (0.1, 0.2), "0004": (0.1, 0.2)})
        with pytest.raises(UserError, match=r"'0003': .* no start and end of phase 2; add them\.$"):
            run("penn_action", action="bowling", label_file=str(path))

    def test_an_unknown_action(self, run, tmp_path):
        videos = phase_sets.PENN | {"0006": ("bowling alley", 1, 2)}
        phase_sets.penn_action(tmp_path / "raw", videos)
        with pytest.raises(UserError, match=r"0006\.mat is of the unknown action 'bowling alley'"):
            run("penn_action", action="bowling")

    def test_annotations_that_cannot_be_read(self, run, tmp_path):
        phase_sets.penn_action(tmp_path / "raw")
        path = tmp_path / "raw" / "labels" / "0003.mat"
        path.write_bytes(b"nothing")
        with pytest.raises(UserError, match=r"0003\.mat cannot be read as a \.mat file"):
            run("penn_action", action="bowling")
        from scipy.io import savemat

        savemat(path, {"action": "bowl", "train": 1})
        with pytest.raises(UserError, match=r"0003\.mat does not hold one `action`, one `train`"):
            run("penn_action", action="bowling")

    def test_missing_frames(self, run, tmp_path):
        phase_sets.penn_action(tmp_path / "raw")
        for path in (tmp_path / "raw" / "frames" / "0003").iterdir():
            path.unlink()
        with pytest.raises(UserError, match=r"frames/0003 is missing or holds no \.jpg: restore"):
            run("penn_action", action="bowling")

    def test_a_set_that_is_not_there(self, run):
        with pytest.raises(UserError, match="Penn Action"):
            run("penn_action", action="bowling")


class TestFrames:
    @pytest.fixture
    def frames(self, make_frames):
        return {name: make_frames(name, count, fps=10.0) for name, count in (("a", 12), ("b", 8))}

    def settings(self, tmp_path, **changes):
        path = label_file(tmp_path / "labels.json", {"a": (0.3, 1.0), "b": (0.45, 0.6)})
        base = {"dataset": "mine", "label_file": str(path), "classes": ["up", "down"]}
        return base | {"test": ["b"]} | changes

    def test_labels_are_those_of_the_frames_times(self, run, opened, frames, tmp_path):
        about = run("phase_frames", frames, **self.settings(tmp_path))
        (a,), (b,) = opened("train"), opened("test")
        assert a.labels.tolist() == [0, 0, 0] + [1] * 9
        assert b.labels.tolist() == [0] * 5 + [1] * 3
        assert np.allclose(a.store.times, np.arange(12) / 10)
        assert a.frames([11]).shape == (1, 3, 48, 96)
        assert about["classes"] == ["up", "down"]
        assert set(about["inputs"]) == {"a", "b", "label_file"}
        assert about["source"]["root"] == "../frames/set"
        assert about["source"]["bytes"] == {}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (
                {"test": ["c"]},
                r"labelled\.set\.test: 'c' is no video of the data set 'mine'; remove",
            ),
            ({"test": ["a", "b"]}, "the train split has no video"),
            ({"label_file": "no.json"}, r"labelled\.set\.label_file: there is no file no\.json; c"),
            (
                {"classes": ["one", "two", "three"]},
                r"'ann' gives no start and end of phase 2; add them, or correct labelled\.set\.cl",
            ),
            (
                {"classes": ["one"]},
                r"'ann' has a phase '1', but the phases are 0 to 0; remove it, or correct labelled",
            ),
        ],
    )
    def test_mistakes(self, run, frames, tmp_path, changes, message):
        with pytest.raises(UserError, match=message):
            run("phase_frames", frames, **self.settings(tmp_path, **changes))

    def test_a_file_that_is_no_json(self, run, frames, tmp_path):
        settings = self.settings(tmp_path)
        (tmp_path / "labels.json").write_text("{")
        with pytest.raises(UserError, match=r"labelled\.set\.label_file: .* is not valid JSON"):
            run("phase_frames", frames, **settings)

    def test_doubtful_segments_are_warned_of(self, run, frames, tmp_path):
        settings = self.settings(tmp_path)
        label_file(tmp_path / "labels.json", {"a": (0.3e-6, 1e-6), "b": (0.0, 0.6)})
        assert run("phase_frames", frames, **settings)["warnings"] == [
            "all phases end before the second frame (a label file holds microseconds) in 1 video, "
            "the first 'a'",
            "phase 0 has no time left once segments are averaged and gaps are closed in 1 video, "
            "the first 'b'",
        ]

    def test_no_frames(self, run, tmp_path):
        with pytest.raises(UserError, match=r"no frames of the data set 'mine' were given"):
            run("phase_frames", {}, **self.settings(tmp_path))

    def test_a_video_without_segments(self, run, frames, make_frames, tmp_path):
        more = frames | {"c": make_frames("c", 3)}
        with pytest.raises(UserError, match=r"labels\.json has no video 'c'"):
            run("phase_frames", more, **self.settings(tmp_path))


class TestGenerated:
    SMALL = {"train": 2, "test": 1, "shortest": 10, "longest": 12, "height": 32, "width": 40}

    def test_written_as_records(self, run, opened, tmp_path):
        about = run("moving_phases", **self.SMALL)
        assert about["classes"] == ["reach", "lift", "pour", "lower", "leave"]
        assert [one.name for one in opened("train")] == ["pour000", "pour001"]
        assert [one.name for one in opened("test")] == ["pour002"]
        for one in (*opened("train"), *opened("test")):
            assert 10 <= len(one) <= 12
            assert set(one.labels.tolist()) == set(range(5))
            assert one.frames([0]).shape == (1, 3, 32, 40)
        names = {path.name for path in (tmp_path / "set").glob("*.tfrecord")}
        assert names == {f"moving_phases_{split}-0-of-1.tfrecord" for split in ("train", "test")}
        assert about["source"]["root"] == "."

    def test_the_seed_decides(self, run):
        digests = [run("moving_phases", **self.SMALL, seed=seed)["digest"] for seed in (1, 1, 2)]
        assert digests[0] == digests[1] != digests[2]

    def test_longest_below_shortest(self):
        with pytest.raises(ValidationError, match="longest is 12 but shortest is 30; make longest"):
            checked(kind="moving_phases", longest=12)
