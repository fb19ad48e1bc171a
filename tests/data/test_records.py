"""Folders of images to TFRecords, and sets of shards that are whole or absent."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from timewalk.artefacts import read_json
from timewalk.data import record_sets, record_writer
from timewalk.data.record_sets import Encoded, in_order
from timewalk.data.record_summary import beside, in_words, summarise
from timewalk.data.record_writer import RecordSettings, fit, jpeg_of
from timewalk.data.records import convert_folders
from timewalk.data.tfrecord import read_videos
from timewalk.errors import UserError

ASIS = RecordSettings(resize=False)


def picture(number, size=(32, 24)):
    width, height = size
    rows, columns = np.mgrid[:height, :width]
    planes = [rows * 5 + number * 20, columns * 4, rows + columns + number * 7]
    return np.stack(planes, -1).astype(np.uint8)


@pytest.fixture
def root(tmp_path):
    """Folders b, a and c of 3, 2 and 4 images."""
    folder = tmp_path / "images"
    for name, count in (("b", 3), ("a", 2), ("c", 4)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            path = folder / name / f"{number:03d}.png"
            Image.fromarray(picture(number + 10 * ord(name[0]))).save(path)
    return folder


def convert(root, output, settings=ASIS, name="toy_train", **options):
    return convert_folders(root, output, name, settings, extension="png", **options)


def shards(output):
    return sorted(path.name for path in output.glob("*.tfrecord"))


def names(output):
    return [video.name for file in shards(output) for video in read_videos(output / file)]


def everything(output):
    """All files, hidden ones too, with their bytes."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file()
    }


def decoded(jpeg):
    return np.asarray(Image.open(io.BytesIO(jpeg)))


# --- contents ------------------------------------------------------------------------------------


def test_a_folder_becomes_a_record(root, tmp_path):
    settings = RecordSettings(resize=False, action_label=4, class_names=("reach", "pour"))
    about = convert(root, tmp_path / "out", settings, fps=10)
    assert shards(tmp_path / "out") == [f"toy_train-{n}-of-3.tfrecord" for n in range(3)]
    (video,) = read_videos(tmp_path / "out" / "toy_train-1-of-3.tfrecord")
    assert (video.name, video.label, video.class_names) == ("b", 4, ["reach", "pour"])
    assert video.frame_labels is None
    assert video.label_string is None
    assert video.context == {"fps": [10.0]}
    assert video.lists == {"time_us": [[0], [100_000], [200_000]]}
    assert video.frames == [jpeg_of(picture(number + 10 * ord("b"))) for number in range(3)]
    counts = {"shards": 3, "videos": 3, "frames": 9}
    assert {key: about["counts"][key] for key in counts} == counts
    assert about == read_json(tmp_path / "out" / "manifests" / "toy_train.json")
    assert [video["name"] for video in about["videos"]] == ["a", "b", "c"]
    assert set(about["inputs"]) == {"a", "b", "c"}


def test_the_jpeg_is_of_the_published_kind():
    jpeg = jpeg_of(picture(3))
    image = Image.open(io.BytesIO(jpeg))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 24))
    assert [component[1:3] for component in image.layer] == [(2, 2), (1, 1), (1, 1)]  # 4:2:0
    assert image.quantization[0][:4] == [2, 1, 1, 2]  # quality 95
    assert "exif" not in image.info


@pytest.mark.parametrize(("rotate", "size"), [(False, (40, 20)), (True, (20, 40))])
def test_resized_then_turned(root, tmp_path, rotate, size):
    settings = RecordSettings(width=40, height=20, rotate=rotate)
    convert(root, tmp_path / "out", settings)
    video = next(read_videos(tmp_path / "out" / "toy_train-0-of-3.tfrecord"))
    assert {Image.open(io.BytesIO(jpeg)).size for jpeg in video.frames} == {size}


def test_turned_clockwise():
    pixels = picture(0)
    turned = fit(pixels, RecordSettings(resize=False, rotate=True))
    assert turned.shape == (32, 24, 3)
    # Transposed, then mirrored: the upper left corner goes to the upper right.
    assert np.array_equal(turned, pixels.transpose(1, 0, 2)[:, ::-1])
    assert np.array_equal(turned[0, -1], pixels[0, 0])


@pytest.mark.parametrize("size", [(64, 48), (16, 12), (13, 29)])
def test_resizing_is_opencvs(size):
    cv2 = pytest.importorskip("cv2")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    ours = fit(pixels, RecordSettings(width=size[0], height=size[1]))
    theirs = cv2.resize(pixels, size)
    assert np.abs(ours.astype(int) - theirs).max() <= 1  # its weights have 11 bits


def test_grey_images_become_rgb(root, tmp_path):
    Image.fromarray(picture(0)[..., 0]).save(root / "a" / "000.png")
    convert(root, tmp_path / "out")
    video = next(read_videos(tmp_path / "out" / "toy_train-0-of-3.tfrecord"))
    assert decoded(video.frames[0]).shape == (24, 32, 3)


def test_labels_at_the_frames_times(root, tmp_path):
    labels = {name: {"p": {"0": [0, 1e6], "1": [1e6, 4e6]}} for name in "abc"}
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    settings = RecordSettings(
        resize=False, label_file=tmp_path / "labels.json", expected_segments=2, per_shard=3
    )
    about = convert(root, tmp_path / "out", settings, fps=2)
    (file,) = shards(tmp_path / "out")
    found = {video.name: video.frame_labels for video in read_videos(tmp_path / "out" / file)}
    assert found == {"a": [0, 0], "b": [0, 0, 1], "c": [0, 0, 1, 1]}
    assert "label_file" in about["inputs"]
    del labels["b"]
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    with pytest.raises(UserError, match=r"labels\.json has no video 'b'"):
        convert(root, tmp_path / "out", settings, fps=2)


# --- order and shards ----------------------------------------------------------------------------


def test_a_list_gives_the_order_and_blank_lines_count_nothing(root, tmp_path):
    (tmp_path / "list.txt").write_text("c\n\n  \na/\n")
    about = convert(root, tmp_path / "out", listing=tmp_path / "list.txt")
    assert names(tmp_path / "out") == ["c", "a"]
    assert "list" in about["inputs"]


def test_shards_hold_consecutive_videos(root, tmp_path):
    settings = RecordSettings(resize=False, per_shard=2)
    convert(root, tmp_path / "out", settings)
    out = tmp_path / "out"
    assert shards(out) == ["toy_train-0-of-2.tfrecord", "toy_train-1-of-2.tfrecord"]
    assert [[v.name for v in read_videos(out / file)] for file in shards(out)] == [
        ["a", "b"],
        ["c"],
    ]


def test_shuffled_by_a_seed(root, tmp_path):
    orders = set()
    for seed in range(8):
        settings = RecordSettings(resize=False, shuffle_seed=seed, per_shard=3)
        for attempt in "xy":
            convert(root, tmp_path / f"{seed}{attempt}", settings)
        first, second = (names(tmp_path / f"{seed}{attempt}") for attempt in "xy")
        assert first == second
        assert sorted(first) == ["a", "b", "c"]
        orders.add(tuple(first))
    assert len(orders) > 1


def test_the_number_of_workers_does_not_matter(root, tmp_path):
    for workers in (1, 2, 5):
        settings = RecordSettings(width=20, height=20, per_shard=2)
        convert(root, tmp_path / str(workers), settings, workers=workers)
    one, two, five = (everything(tmp_path / name) for name in "125")
    assert one == two == five


def test_results_come_in_order_and_few_are_held():
    started, held = [], []

    def call(number):
        started.append(number)
        return Encoded(b"", {"number": number})

    for number, result in enumerate(in_order([lambda n=n: call(n) for n in range(30)], 2)):
        assert result.about == {"number": number}
        held.append(len(started) - number)
    assert max(held) <= 5


def test_the_first_fault_ends_the_rest():
    started = []

    def call(number):
        started.append(number)
        raise UserError(f"video {number}")

    with pytest.raises(UserError, match="video 0"):
        list(in_order([lambda n=n: call(n) for n in range(30)], 2))
    assert len(started) <= 4


# --- interruptions -------------------------------------------------------------------------------


class Interrupted(BaseException):
    """As a kill: nothing handles it."""


@pytest.fixture
def interrupt(monkeypatch):
    """Return a function: at the n-th call from now of something, the conversion dies."""

    def at(module, name, call):
        original, count = getattr(module, name), [0]

        def dying(*words, **options):
            count[0] += 1
            if count[0] == call:
                raise Interrupted
            return original(*words, **options)

        monkeypatch.setattr(module, name, dying)
        return count

    return at


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_interrupted_conversion_goes_on(root, tmp_path, monkeypatch, interrupt, call):
    convert(root, tmp_path / "whole")
    out = tmp_path / "out"
    interrupt(record_sets, "write_records", call)
    with pytest.raises(Interrupted):
        convert(root, out)
    assert not [path for path in out.iterdir() if path.name[0] != "."]
    monkeypatch.undo()
    made = interrupt(record_sets, "write_records", 99)
    convert(root, out)
    assert made == [4 - call]  # the finished shards are not made again
    assert everything(out) == everything(tmp_path / "whole")


@pytest.fixture
def interrupt_moves(monkeypatch):
    """Return a function: the conversion dies at the n-th of the final moves."""

    def at(call):
        original, count = record_sets.os.replace, [0]

        def dying(source, target):
            final = Path(source).parent.suffix == ".part" != Path(target).parent.suffix
            count[0] += final
            if final and count[0] == call:
                raise Interrupted
            original(source, target)

        monkeypatch.setattr(record_sets.os, "replace", dying)

    return at


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("again", [1, 3])
def test_interrupted_while_its_files_are_moved(
    root, tmp_path, monkeypatch, interrupt_moves, call, again
):
    """Over an older set; then the same settings again, or others."""
    older, newer = (RecordSettings(resize=False, per_shard=n) for n in (2, 1))
    wanted = RecordSettings(resize=False, per_shard=again)
    convert(root, tmp_path / "whole", wanted)
    out = tmp_path / "out"
    convert(root, out, older)
    interrupt_moves(call)
    with pytest.raises(Interrupted):
        convert(root, out, newer)
    assert not (out / "manifests" / "toy_train.json").exists()
    monkeypatch.undo()
    convert(root, out, wanted)
    assert everything(out) == everything(tmp_path / "whole")


def test_interrupted_at_the_last_clean_up(root, tmp_path, monkeypatch, interrupt):
    convert(root, tmp_path / "whole")
    out = tmp_path / "out"
    interrupt(record_sets.shutil, "rmtree", 1)
    with pytest.raises(Interrupted):
        convert(root, out)
    monkeypatch.undo()
    assert (out / "manifests" / "toy_train.json").exists()
    convert(root, out)
    assert everything(out) == everything(tmp_path / "whole")


def test_a_changed_source_is_not_taken_up(root, tmp_path, interrupt, monkeypatch):
    out = tmp_path / "out"
    interrupt(record_sets, "write_records", 3)
    with pytest.raises(Interrupted):
        convert(root, out)
    monkeypatch.undo()
    Image.fromarray(picture(99)).save(root / "a" / "000.png")
    convert(root, out)
    video = next(read_videos(out / "toy_train-0-of-3.tfrecord"))
    assert video.frames[0] == jpeg_of(picture(99))
    assert not [path for path in out.iterdir() if path.name[0] == "."]


def test_a_set_replaces_its_older_self_and_nothing_else(root, tmp_path):
    out = tmp_path / "out"
    convert(root, out)
    convert(root, out, name="toy_val")
    convert(root, out, RecordSettings(resize=False, per_shard=3))
    assert shards(out) == ["toy_train-0-of-1.tfrecord"] + [
        f"toy_val-{n}-of-3.tfrecord" for n in range(3)
    ]
    assert sorted(path.name for path in out.iterdir()) == sorted([*shards(out), "manifests"])


def test_files_of_others_are_not_replaced(root, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "toy_train-0-of-9.tfrecord").write_bytes(b"theirs")
    with pytest.raises(UserError, match=r"toy_train-0-of-9\.tfrecord is there already, made by"):
        convert(root, out)
    assert everything(out) == {"toy_train-0-of-9.tfrecord": b"theirs"}


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"per_shard": 0}, "--per-shard: 0 is less than 1"),
        ({"width": 0}, "--width: 0 is less than 1"),
        ({"expected_segments": 2}, "--expected-segments goes with --label-file"),
        ({"width": 65501}, "--width: 65501 is more than a JPEG's 65500; lower it"),
        ({"height": 100000}, "--height: 100000 is more than a JPEG's 65500; lower it"),
        ({"action_label": 2**63}, "--action-label: 9223372036854775808 needs more than 64 bits"),
        ({"action_label": -(2**63) - 1}, "--action-label: -9223372036854775809 needs more than 64"),
        ({"shuffle_seed": -1}, "--shuffle-seed: -1 is below 0; correct it"),
        ({"label_file": "x.json"}, "--label-file needs --expected-segments"),
        ({"class_names": ("a", "")}, "--frame-labels has an empty name"),
        (
            {"label_file": "x.json", "expected_segments": 3, "class_names": ("a", "b")},
            "gives 2 names but --expected-segments says 3",
        ),
    ],
)
def test_settings_that_do_not_fit(settings, words):
    with pytest.raises(UserError, match=words):
        RecordSettings(**settings)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("a\nd\n", r"list\.txt, line 2: .*d is no folder"),
        ("\n \n", r"list\.txt names no folder"),
        ("a\n.\n", r"line 2: '\.' has no name of its own"),
        ("a\nempty\n", r"line 2: .*empty holds no \.png file"),
        ("a\nnested/a\n", r"images/a and .*nested/a would both be 'a'"),
        ("a\na\n", "would both be 'a'; rename one of them"),
    ],
)
def test_lists_with_mistakes(root, tmp_path, lines, words):
    (root / "empty").mkdir()
    shutil.copytree(root / "a", root / "nested" / "a")
    (tmp_path / "list.txt").write_text(lines)
    with pytest.raises(UserError, match=words):
        convert(root, tmp_path / "out", listing=tmp_path / "list.txt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["", "a/b", ".hidden", ".."])
def test_names_that_begin_no_file(root, tmp_path, name):
    with pytest.raises(UserError, match="cannot begin a file's name"):
        convert(root, tmp_path / "out", name=name)


@pytest.mark.parametrize("below", ["file/out", "file/deeper/out"])
def test_an_output_that_cannot_be_made(root, tmp_path, below):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"out cannot be made \(.*\); name another OUTPUT"):
        convert(root, tmp_path / below)


def test_an_output_that_cannot_be_written_to(root, tmp_path, monkeypatch):
    make = Path.mkdir

    def refuse(path, *words, **options):
        if path.name.endswith(".part"):
            raise PermissionError(13, "Permission denied")
        make(path, *words, **options)

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(UserError, match=r"cannot be made \(Permission denied\); name another"):
        convert(root, tmp_path / "out")


def test_sides_that_no_jpeg_has(root, tmp_path, monkeypatch):
    assert len(jpeg_of(np.zeros((record_writer.LONGEST, 1, 3), np.uint8))) > 100
    monkeypatch.setattr(record_writer, "LONGEST", 30)
    with pytest.raises(
        UserError, match=r"images/[abc] has frames of 32x24 pixels, but a JPEG's side"
    ):
        convert(root, tmp_path / "out")


def test_suffixes_in_other_letters(root, tmp_path):
    for folder, suffix in (("a", ".JPG"), ("b", ".jpg"), ("c", ".Jpeg")):
        for path in sorted((root / folder).iterdir()):
            Image.open(path).save(path.with_suffix(suffix), "JPEG")
            path.unlink()
    about = convert_folders(root, tmp_path / "out", "toy", ASIS)
    assert [(one["name"], one["frames"]) for one in about["videos"]] == [
        ("a", 2),
        ("b", 3),
        ("c", 4),
    ]
    about = convert_folders(root, tmp_path / "out", "toy", ASIS, extension=".JPEG")
    assert [one["name"] for one in about["videos"]] == ["c"]


def test_doubtful_segments_are_warned_of(root, tmp_path):
    labels = {name: {"p": {"0": [0, 10e6], "1": [2e6, 3e6], "2": [8e6, 9e6]}} for name in "ac"}
    labels["b"] = {"p": {"0": [0, 1], "1": [1, 2], "2": [2, 3]}}  # as if in seconds
    (tmp_path / "labels.json").write_text(json.dumps(labels))
    settings = RecordSettings(
        resize=False, label_file=tmp_path / "labels.json", expected_segments=3, per_shard=2
    )
    about = convert(root, tmp_path / "out", settings, fps=2)
    assert about["warnings"] == [
        "phase 1 has no time left once segments are averaged and gaps are closed in 2 videos, the "
        "first 'a'",
        "all phases end before the second frame (a label file holds microseconds) in 1 video, the "
        "first 'b'",
    ]
    assert set(about["videos"][0]) == {"name", "frames", "fps", "width", "height"}


def test_other_mistakes(root, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"list\.txt is missing"):
        convert(root, out, listing=tmp_path / "list.txt")
    for fps in (0, -1, 1e-300, float("nan"), float("inf")):
        with pytest.raises(UserError, match=f"--fps: {fps:g} is not between 1e-06 and 1e"):
            convert(root, out, fps=fps)
    (tmp_path / "list.txt").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match=r"--list: .*list\.txt is no UTF-8 text; save it"):
        convert(root, out, listing=tmp_path / "list.txt")
    with pytest.raises(UserError, match="nothing is no folder"):
        convert(tmp_path / "nothing", out)
    with pytest.raises(UserError, match=r"holds no folder with \.gif images"):
        convert_folders(root, out, "toy", ASIS, extension="gif")
    Image.fromarray(picture(0, (30, 20))).save(root / "a" / "001.png")
    with pytest.raises(UserError, match=r"frames of several sizes.*leave --no-resize out"):
        convert(root, out)
    (root / "a" / "001.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"001\.png cannot be read as an image \(cannot identify"):
        convert(root, out)
    assert not [path for path in out.iterdir() if path.name[0] != "."]


def test_a_record_that_readers_cannot_take(root, tmp_path, monkeypatch):
    monkeypatch.setattr(record_writer, "LARGEST", 1000)
    with pytest.raises(UserError, match="bytes, but readers take 1000; thin it with --fps"):
        convert(root, tmp_path / "out")


def test_unpadded_numbers_are_reported(root, tmp_path):
    for number in range(11):
        Image.fromarray(picture(number)).save(root / "a" / f"{number}.png")
        (root / "a" / f"{number:03d}.png").unlink(missing_ok=True)
    (warning,) = convert(root, tmp_path / "out")["warnings"]
    assert "'10.png' before '2.png'" in warning


# --- inspect -------------------------------------------------------------------------------------


def test_a_summary_of_ours(root, tmp_path):
    convert(root, tmp_path / "out", RecordSettings(resize=False, per_shard=3), fps=10)
    path = tmp_path / "out" / "toy_train-0-of-1.tfrecord"
    first, *_, last = summarise(path)
    size = first["bytes"] + 16
    assert (first["kind"], first["name"], first["frames"]) == ("video", "a", 2)
    assert (first["offset"], first["sizes"], first["seconds"]) == (0, {"32x24": 2}, [0.0, 0.1])
    assert first["extra_context"] == {"fps": "float (1): 10"}
    assert first["extra_lists"] == {"time_us": 2}
    assert last["name"] == "c"
    assert "video 'a': 2 frames, 32x24 pixels" in in_words(first)
    (about,) = beside(path)
    assert about["fault"] is None
    raw = path.read_bytes()
    path.write_bytes(raw[:size])
    assert beside(path)[0]["fault"].endswith("manifests/toy_train.json describes.")
