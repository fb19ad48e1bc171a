import codecs
import io
import json
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
