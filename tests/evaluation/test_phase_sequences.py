import codecs
import io
import json
import logging
import os
import pickle
import subprocess

import numpy as np
import pytest
import torch
from numpy.lib import format as npy
from safetensors.torch import save_file

from timewalk.errors import UserError
from timewalk.evaluation.phase_sequences import (
    PhaseEmbeddings,
    PhaseSequence,
    load_phase_embeddings,
    save_phase_embeddings,
    save_published,
)


def test_there_and_back(tmp_path):
    rng = np.random.default_rng(0)
    videos = [
        PhaseSequence("a", rng.normal(size=(3, 2)), np.array([0, 0, 1]), np.array([0, 2, 4]), 5),
        PhaseSequence("b", rng.normal(size=(2, 2)), None, np.arange(2)),
    ]
    path = tmp_path / "x.safetensors"
    save_phase_embeddings(path, PhaseEmbeddings(videos, ["up", "down"], {"split": "test"}))
    found = load_phase_embeddings(path)
    assert (found.classes, found.about) == (["up", "down"], {"split": "test"})
    first, second = found.videos
    assert first.embeddings.dtype == np.float32
    np.testing.assert_allclose(first.embeddings, videos[0].embeddings, rtol=1e-6)
    assert (first.name, first.action, first.labels.tolist()) == ("a", 5, [0, 0, 1])
    assert first.steps.tolist() == [0, 2, 4]
    assert (second.name, second.action, second.labels) == ("b", -1, None)
    assert second.steps.tolist() == [0, 1]


def numbered(length, width=2, name="v"):
    """A video whose frame i has label 10 i, step 2 i and pixels i."""
    rows = np.arange(length)
    frames = np.broadcast_to(rows[:, None, None, None] / 10, (length, 2, 2, 3))
    embeddings = np.ones((length, width), np.float32)
    return PhaseSequence(name, embeddings, 10 * rows, 2 * rows, 1, frames.astype(np.float32))


WRITERS = {"x.safetensors": save_phase_embeddings, "x.npy": save_published}


@pytest.mark.parametrize("name", WRITERS)
def test_frames_that_are_not_finite_are_left_out(tmp_path, caplog, name):
    spoilt = numbered(5, name="spoilt")
    spoilt.embeddings[1, 0], spoilt.embeddings[3] = np.nan, np.inf
    WRITERS[name](tmp_path / name, PhaseEmbeddings([numbered(3), spoilt]))
    with caplog.at_level(logging.WARNING):
        whole, found = load_phase_embeddings(tmp_path / name).videos
    assert f"{name}: video spoilt: 2 frames without finite embedding left out" in caplog.text
    assert "video v:" not in caplog.text
    assert len(whole.embeddings) == 3
    assert found.embeddings.tolist() == [[1, 1]] * 3
    assert (found.labels.tolist(), found.steps.tolist()) == ([0, 20, 40], [0, 4, 8])
    if name == "x.npy":
        assert found.frames[:, 0, 0, 0].tolist() == pytest.approx([0, 0.2, 0.4])


@pytest.mark.parametrize("name", WRITERS)
def test_a_video_without_any_finite_embedding(tmp_path, name):
    spoilt = numbered(5, name="spoilt")
    spoilt.embeddings[:, 1] = np.nan
    WRITERS[name](tmp_path / name, PhaseEmbeddings([numbered(3), spoilt]))
    expected = rf"{name} holds no finite embedding of video 'spoilt': train the run again"
    with pytest.raises(UserError, match=expected):
        load_phase_embeddings(tmp_path / name)


def test_videos_of_different_widths_in_one_file(tmp_path):
    videos = [numbered(3), numbered(3, 4, "wide")]
    save_published(tmp_path / "x.npy", PhaseEmbeddings(videos))
    expected = (
        r"x\.npy holds embeddings of 4 numbers for video 'wide' but .*x\.npy of 2 for video 'v'"
    )
    with pytest.raises(UserError, match=expected):
        load_phase_embeddings(tmp_path / "x.npy")


def test_files_that_are_no_embeddings(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(UserError, match=r"x\.safetensors is missing"):
        load_phase_embeddings(path)
    path.write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"x\.safetensors holds no embeddings of videos"):
        load_phase_embeddings(path)
    save_file({"features": torch.zeros(2, 2)}, path, metadata={"about": json.dumps({})})
    with pytest.raises(UserError, match=r"x\.safetensors holds no embeddings of videos"):
        load_phase_embeddings(path)


def write_pickle(path, data):
    with open(path, "wb") as file:
        npy.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        file.write(data)


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_pickles_of_all_protocols_are_read(tmp_path, protocol):
    box = np.empty((), object)
    box[()] = {
        "embs": [np.arange(6, dtype=np.float32).reshape(3, 2)],
        "names": [np.array([b"one"] * 3)],
        "labels": [np.array([0, 0, 1])],
        "seq_labels": [[np.int64(4)] * 3],
    }
    write_pickle(tmp_path / "x.npy", pickle.dumps(box, protocol))
    (video,) = load_phase_embeddings(tmp_path / "x.npy").videos
    assert (video.name, video.action, video.labels.tolist()) == ("one", 4, [0, 0, 1])
    assert video.embeddings.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert video.steps.tolist() == [0, 1, 2]


class Malicious:
    def __init__(self, call, *arguments):
        self.what = call, arguments

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize(
    "call",
    [
        (os.system, "touch {mark}"),
        (subprocess.check_output, ["touch", "{mark}"]),
        (eval, "open('{mark}', 'w')"),
        (getattr, "", "upper"),
        (pickle.loads, b"N."),
        (np.fromfile, "{mark}"),
        (__import__, "os"),
    ],
)
def test_a_pickle_never_runs_code(tmp_path, call):
    mark = tmp_path / "mark"
    words = [
        x.format(mark=mark)
        if isinstance(x, str)
        else [y.format(mark=mark) for y in x]
        if isinstance(x, list)
        else x
        for x in call[1:]
    ]
    content = {"embs": [np.zeros((2, 2))], "names": Malicious(call[0], *words)}
    for data in (content, np.array([content], object)):
        write_pickle(tmp_path / "x.npy", pickle.dumps(data))
        with pytest.raises(UserError, match=r"x\.npy holds no embeddings of the TCC tools \(it as"):
            load_phase_embeddings(tmp_path / "x.npy")
    assert not mark.exists()


def test_other_encodings_of_bytes_are_refused(tmp_path):
    write_pickle(tmp_path / "x.npy", pickle.dumps(Malicious(codecs.encode, "x", "rot13")))
    with pytest.raises(UserError, match="asks for the encoding rot13"):
        load_phase_embeddings(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "content",
    [
        [1, 2],
        {},
        {"embs": []},
        {"embs": [np.zeros(3)]},
        {"embs": [np.zeros((0, 2))]},
        {"embs": [np.zeros((2, 2))], "labels": [np.zeros(3)]},
        {"embs": [np.zeros((2, 2))], "names": [[]]},
    ],
)
def test_dictionaries_of_another_kind(tmp_path, content):
    box = np.empty((), object)
    box[()] = content
    np.save(tmp_path / "x.npy", box, allow_pickle=True)
    with pytest.raises(UserError, match=r"x\.npy holds no embeddings of the TCC tools"):
        load_phase_embeddings(tmp_path / "x.npy")


def test_files_that_numpy_did_not_write(tmp_path):
    path = tmp_path / "x.npy"
    whole = io.BytesIO()
    found = PhaseEmbeddings([PhaseSequence("a", np.ones((2, 2)), None, np.arange(2))])
    save_published(tmp_path / "good.npy", found)
    np.save(whole, np.zeros(3))
    cut = (tmp_path / "good.npy").read_bytes()[:-30]
    for data in (b"", b"text", whole.getvalue(), cut):
        path.write_bytes(data)
        with pytest.raises(UserError, match=r"x\.npy holds no embeddings of the TCC tools"):
            load_phase_embeddings(path)
    assert "labels" not in np.load(tmp_path / "good.npy", allow_pickle=True).item()
