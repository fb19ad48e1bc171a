"""Generated tracks, and the reader of a prepared set."""

import numpy as np
import pytest

from timewalk.artefacts import read_json, write_json
from timewalk.config.dense import GOT10kShapes
from timewalk.data.generated_tracks import cover_label, moving_object
from timewalk.data.prepare.tracks import prepare_tracks
from timewalk.data.tracks import LabelledTracks
from timewalk.errors import UserError


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    path = tmp_path_factory.mktemp("tracks") / "manifest.json"
    config = GOT10kShapes(kind="got10k_shapes", height=48, width=64, frames=12, sequences=2)
    prepare_tracks("got", config, path)
    return path


@pytest.mark.parametrize("seed", range(8))
def test_objects_move_are_cut_and_vanish(seed):
    video = moving_object(16, (48, 64), seed, np.random.default_rng(seed))
    boxes, shares = video.boxes, video.shares
    assert shares[0] == 1
    assert (boxes[0, :2] >= 0).all()
    assert (boxes[0, :2] + boxes[0, 2:] <= (64, 48)).all()
    cut = (boxes[:, 0] < 0) | (boxes[:, 0] + boxes[:, 2] > 64)
    assert cut.any()
    assert ((shares[cut] > 0) & (shares[cut] < 1)).all()
    assert (shares[8:10] == 0).all()
    assert (boxes[8:10] == 0).all()
    assert (shares[[7, 10]] > 0).all()


def test_boxes_are_tight():
    """Two videos that differ by the object's colour alone differ inside its box only."""
    one, other = (moving_object(9, (48, 64), n, np.random.default_rng(3)) for n in (0, 1))
    for t, (x, y, w, h) in enumerate(one.boxes.astype(int)):
        rows, columns = np.nonzero((one.frames[t] != other.frames[t]).any(axis=2))
        if w == 0:
            assert len(rows) == 0
            continue
        low, high = np.maximum((x, y), 0), np.minimum((x + w, y + h), (64, 48))
        assert (columns.min(), rows.min()) == tuple(low)
        assert (columns.max() + 1, rows.max() + 1) == tuple(high)


def test_cover_labels():
    shares = [0, 0.01, 0.15, 0.16, 0.3, 0.75, 0.9, 0.95, 1]
    assert [cover_label(share) for share in shares] == [0, 1, 1, 2, 2, 5, 6, 7, 8]


def test_reader(manifest):
    tracks = LabelledTracks(manifest)
    assert (tracks.name, tracks.kind, tracks.subset, len(tracks)) == ("got", "got10k", "val", 2)
    assert tracks.scored
    track = tracks["GOT-10k_Val_000002"]
    assert track is tracks.sequences[1]
    assert [*tracks] == [*tracks.sequences]
    assert track.size == track.bound == (48, 64)
    assert len(track.frames) == len(track.boxes) == len(track.cover) == 12
    assert track.frames[0].name == "00000001.jpg"
    assert track.frames[-1].is_file()
    assert track.object_class == "green ellipse"
    assert (track.cover == 0).sum() == 1
    lines = (track.frames[0].parent / "groundtruth.txt").read_text().splitlines()
    assert track.boxes.tolist() == [[float(word) for word in line.split(",")] for line in lines]


def test_an_unknown_sequence(manifest):
    with pytest.raises(UserError, match=r"got has no sequence .*did you mean 'GOT-10k_Val_000001'"):
        LabelledTracks(manifest)["GOT-10k_Val_00001"]


def test_another_list_is_refused(manifest, tmp_path):
    write_json(tmp_path / "manifest.json", read_json(manifest))
    (tmp_path / "sequences.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="is missing or not the one of"):
        LabelledTracks(tmp_path / "manifest.json")
