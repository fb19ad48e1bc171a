"""DAVIS by label propagation: masks, scores, films, going on, and every bad input's sentence."""

import shutil
from dataclasses import replace

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.davis_set import (
    CPU,
    FRAMES,
    SIZE,
    a_set,
    command,
    ids_of,
    image,
    mask,
    prepared,
    run,
)
from tests.evaluation.stubs import Blind, Seeing
from tests.miniature import video_sets
from timewalk.artefacts import read_json
from timewalk.data.generated import davis_palette, save_ids
from timewalk.data.sequences import LabelledVideos, Sequence
from timewalk.errors import UserError
from timewalk.evaluation.davis_folders import score_folders
from timewalk.evaluation.label_propagation import FrameFeatures, hard_labels, one_hot, to_ids
from timewalk.evaluation.protocols import PropagationConfig, Protocol, make_protocol
from timewalk.evaluation.video_segmentation import (
    first_ids,
    order_of_channels,
    save_masks,
    segmentation,
)
from timewalk.ops.propagation import Propagation


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """The folder of a set that no test changes."""
    folder = tmp_path_factory.mktemp("shared")
    a_set(folder)
    return folder


@pytest.fixture
def own(tmp_path):
    """The folder of a set that a test spoils."""
    a_set(tmp_path)
    return tmp_path


@pytest.fixture
def vit(run_of):
    """A run with a tiny random encoder."""
    return run_of("vit")


# What is written


@pytest.mark.parametrize(
    ("protocol", "title"),
    [("crw", "crw-s8-r2"), ("dino", "dino-s8-r2"), ("smtc", "smtc-s8-r2")],
)
def test_a_result(shared, vit, tmp_path, protocol, title):
    found = run(shared, vit, tmp_path, protocol=protocol, radius=2, overlays=True)
    assert found.protocol == f"davis2017-val-{title}"
    assert found.samples == 4  # objects
    # Masks as the official evaluation reads them.
    for name in video_sets.NAMES:
        folder = tmp_path / "masks" / name
        assert sorted(path.name for path in folder.iterdir()) == [
            f"{frame:05d}.png" for frame in range(FRAMES)
        ]
        for path in folder.iterdir():
            with Image.open(path) as picture:
                assert (picture.mode, picture.size) == ("P", SIZE[::-1])
                assert picture.getpalette() == davis_palette()
                assert set(np.unique(picture)) <= {0, 1, 2}
        with av.open(str(tmp_path / "overlays" / f"{name}.mp4")) as film:
            pictures = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
        assert [picture.shape for picture in pictures] == [(*SIZE, 3)] * FRAMES
    if protocol == "dino":
        first = ids_of(tmp_path / "masks" / "camel" / "00000.png")
        assert np.array_equal(first, ids_of(mask(shared, "camel", 0)))
    # Scores are those of the masks.
    scored = score_folders(tmp_path / "masks", shared / "DAVIS", "semi-supervised")
    means = {name.replace("&", ""): 100 * value for name, value in scored.means().items()}
    assert found.metrics == {
        "JF_mean": means["JF-Mean"],
        **{
            f"{m}_{s.lower()}": means[f"{m}-{s}"] for m in "JF" for s in ("Mean", "Recall", "Decay")
        },
    }
    assert all(path.is_file() for path in found.artefacts)
    assert {path.name for path in found.artefacts} == {
        "global_results-val.csv",
        "per-sequence_results-val.csv",
        "davis_semi-supervised-val.json",
        "blackswan.mp4",
        "camel.mp4",
    }


def test_from_the_command_line(shared, vit, tmp_path):
    output = tmp_path / "davis.json"
    assert command(shared, vit, output, protocol="smtc", context=2) == 0
    record = read_json(output)
    assert record["protocol"] == "davis2017-val-smtc-s8-n2"
    assert (record["samples"], record["dataset"]) == (4, "davis")
    assert 0 <= record["metrics"]["JF_mean"] <= 100
    assert all((tmp_path / path).is_file() for path in record["artefacts"])


def test_frames_are_enlarged_for_dino_alone(shared, vit, tmp_path, seen_by):
    sizes = {}
    for protocol in ("crw", "smtc", "dino"):
        encoder = seen_by(Seeing(stride=32, multiple=32))
        run(shared, vit, tmp_path / protocol, protocol=protocol)
        sizes[protocol] = encoder.sizes
    # 480 x 600, floored to multiples of 64.
    assert sizes == {"crw": {(64, 64)}, "smtc": {(64, 64)}, "dino": {(480, 576)}}


@pytest.mark.parametrize(
    ("protocol", "size", "grid"),
    [
        ("smtc", (480, 854), (60, 106)),
        # Cells of the stored frame: the network sees 896 of 910 columns, 56 maps' cells.
        ("smtc", (480, 910), (60, 113)),
        ("crw", (480, 910), (60, 112)),
    ],
)
def test_the_enlarged_map(tmp_path, protocol, size, grid):
    Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / "0.png")
    encoder = Seeing(stride=16, multiple=16)
    keys = PropagationConfig(kind="davis", dataset="d", upsample=2)
    chosen = make_protocol(protocol, keys, encoder)
    (features,) = FrameFeatures(encoder, CPU, chosen, [tmp_path / "0.png"], size)
    assert features.shape[1:] == grid


@pytest.mark.parametrize(("protocol", "whole"), [("crw", False), ("smtc", False), ("dino", True)])
def test_dino_alone_resizes_bytes(protocol, whole):
    encoder = Seeing(stride=16, multiple=16)
    chosen = make_protocol(protocol, PropagationConfig(kind="davis", dataset="d"), encoder)
    pixels = torch.rand(1, 3, 50, 70, generator=torch.Generator().manual_seed(0)).mul(255).round()
    small = FrameFeatures(encoder, CPU, chosen, [], (50, 70)).resized(pixels)
    assert torch.equal(small, small.round()) == whole
    assert small.shape != pixels.shape


@pytest.mark.parametrize(
    ("protocol", "stride", "keys"),
    [
        ("crw", 2, {"radius": 6}),
        ("smtc", 2, {"radius": 6}),
        ("smtc", 4, {"radius": 6, "upsample": 2}),
        ("dino", 12, {}),
    ],
)
def test_colours_are_enough_for_moving_shapes(
    shared, vit, tmp_path, seen_by, protocol, stride, keys
):
    """Known motion: what sees colours follows it, what sees places alone stays where it was."""
    scores = {}
    for kind in (Seeing, Blind):
        seen_by(kind(stride))
        found = run(shared, vit, tmp_path / kind.__name__, protocol=protocol, **keys)
        scores[kind] = found.metrics["JF_mean"]
    assert scores[Seeing] > 80
    assert scores[Blind] < 60


def test_an_object_may_leave_and_the_first_mask_alone_counts(own, vit, tmp_path, seen_by):
    """Later annotations are for the score: emptied, they change no mask."""
    seen_by(Seeing())
    run(own, vit, tmp_path / "before")
    for frame in range(1, FRAMES):
        save_ids(mask(own, "camel", frame), np.zeros(SIZE, np.uint8))
    prepared(own)
    found = run(own, vit, tmp_path / "after")
    for frame in range(FRAMES):
        one, other = (
            ids_of(tmp_path / when / "masks" / "camel" / f"{frame:05d}.png")
            for when in ("before", "after")
        )
        assert np.array_equal(one, other)
    assert found.samples == 4


def test_void_is_background(own, vit, tmp_path, seen_by):
    seen_by(Seeing())
    ids = ids_of(mask(own, "camel", 0)).copy()
    ids[:6] = 255
    save_ids(mask(own, "camel", 0), ids)
    prepared(own)
    for protocol in ("crw", "dino"):
        seen_by(Seeing(16 if protocol == "dino" else 4))
        run(own, vit, tmp_path / protocol, protocol=protocol)
        written = [ids_of(path) for path in (tmp_path / protocol / "masks").rglob("*.png")]
        assert max(ids.max() for ids in written) <= 2


def test_ids_with_gaps(own, vit, tmp_path, seen_by):
    """Objects 1 and 2 become 3 and 7: channels are fewer than ids."""
    table = np.zeros(256, np.uint8)
    table[[1, 2]] = 3, 7
    for frame in range(FRAMES):
        save_ids(mask(own, "camel", frame), table[ids_of(mask(own, "camel", frame))])
    prepared(own)
    for protocol, stride in (("crw", 2), ("dino", 16)):
        seen_by(Seeing(stride))
        run(own, vit, tmp_path / protocol, protocol=protocol, radius=6)
        found = [ids_of(path) for path in (tmp_path / protocol / "masks" / "camel").iterdir()]
        assert set(np.unique(found)) == {0, 3, 7}


# Steps


def test_order_of_channels():
    """By blue, green, red of the palette: (0,0,0) (128,0,0) (0,128,0) (0,0,128) and so on."""
    ids = np.array([[0, 1, 2, 3, 4, 5, 6, 8]], np.uint8)
    assert order_of_channels(ids) == [0, 8, 1, 2, 3, 4, 5, 6]
    assert order_of_channels(np.array([[30, 0, 22]], np.uint8)) == [0, 22, 30]
    # Gray 128 stands for 7 and 128 in the palette; both stay.
    assert order_of_channels(np.array([[128, 7, 0]], np.uint8)) == [0, 7, 128]


def test_one_hot():
    found = one_hot(np.array([[0, 3], [7, 1]], np.uint8), [0, 3, 7])
    assert found.tolist() == [[[1, 0], [0, 0]], [[0, 1], [0, 0]], [[0, 0], [1, 0]]]


def test_hard_labels_lose_the_highest_id_that_vanishes():
    ids = np.zeros((16, 16), np.uint8)
    ids[4:, 4:] = 1
    assert hard_labels(ids, (4, 4)).shape == (2, 4, 4)
    ids[0, 0] = 2  # pixels at 2, 6, 10 and 14 are looked at
    assert hard_labels(ids, (4, 4)).shape == (2, 4, 4)
    ids[2, 2] = 3
    found = hard_labels(ids, (4, 4))
    assert found.shape == (4, 4, 4)
    assert found.sum((1, 2)).tolist() == [6, 9, 0, 1]


def test_to_ids_takes_the_first_of_equal_channels():
    protocol = Protocol("crw", Propagation(1, 1, 1, 1), "native")
    maps = torch.tensor([[[0.2, 0.5]], [[0.5, 0.5]], [[0.5, 0.0]]])
    assert to_ids(maps, protocol, (1, 2), (1, 2)).tolist() == [[1, 0]]
    found = to_ids(maps, protocol, (1, 2), (2, 4))
    assert found.dtype == np.uint8
    assert found.tolist() == [[1, 1, 0, 0]] * 2


def test_to_ids_stretches_weak_channels():
    """DINO: each channel is brought to 0..1 over the image; an empty one stays 0."""
    protocol = Protocol("dino", Propagation(1, 1, 1, 1), "dino", minmax=True)
    weak = torch.tensor([[[1.0, 0.96, 0.8]], [[0.0, 0.04, 0.2]], [[0.0, 0.0, 0.0]]])
    plain = replace(protocol, minmax=False)
    assert to_ids(weak, plain, (1, 3), (1, 3)).tolist() == [[0, 0, 0]]
    assert to_ids(weak, protocol, (1, 3), (1, 3)).tolist() == [[0, 0, 1]]
    everywhere = torch.tensor([0.0, 1.0, 0.0])[:, None, None].expand(3, 2, 2)
    assert to_ids(everywhere, protocol, (4, 4), (2, 2)).tolist() == [[1, 1], [1, 1]]
    constant = torch.ones(1, 2, 2)
    assert to_ids(constant, protocol, (4, 4), (2, 2)).tolist() == [[0, 0], [0, 0]]


def test_a_video_of_one_frame(shared):
    video = LabelledVideos(shared / "set" / "manifest.json")["camel"]
    short = Sequence("camel", video.frames[:1], video.masks[:1], video.size)
    for name in ("crw", "dino", "smtc"):
        encoder = Seeing(2)
        protocol = make_protocol(name, PropagationConfig(kind="davis", dataset="d"), encoder)
        features = FrameFeatures(encoder, CPU, protocol, short.frames, short.size)
        (found,) = segmentation(short, features)
        assert (found == ids_of(video.masks[0])).mean() > (0.95 if name != "dino" else 0.9999)


def test_a_sequence_without_a_first_annotation(shared):
    video = LabelledVideos(shared / "set" / "manifest.json")["camel"]
    without = replace(video, masks=(None, *video.masks[1:]))
    with pytest.raises(UserError, match=r"^sequence 'camel' has no annotation of its first frame"):
        first_ids(without)


def test_masks_of_an_earlier_run_are_removed(tmp_path):
    empty = np.zeros((4, 4), np.uint8)
    save_masks(tmp_path, ["00000.png", "00001.png"], [empty] * 2)
    (tmp_path / "note.txt").write_text("kept")
    save_masks(tmp_path, ["00001.png"], [empty + 1])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00001.png", "note.txt"]
    assert (ids_of(tmp_path / "00001.png") == 1).all()


# Going on


def test_what_is_done_is_not_done_again(own, vit, tmp_path, seen_by):
    encoder = seen_by(Seeing())
    output = tmp_path / "out"
    once = run(own, vit, output)
    assert encoder.images == 2 * FRAMES
    again = run(own, vit, output)
    assert encoder.images == 2 * FRAMES
    assert again.metrics == once.metrics
    (output / "work" / "camel.json").unlink()
    assert run(own, vit, output).metrics == once.metrics
    assert encoder.images == 3 * FRAMES


def test_changed_settings_do_all_again(own, vit, tmp_path, seen_by):
    encoder, output = seen_by(Seeing()), tmp_path / "out"
    run(own, vit, output)
    for count, keys in enumerate(({"top_k": 3}, {"protocol": "smtc"}, {"overlays": True}), start=2):
        run(own, vit, output, **keys)
        assert encoder.images == 2 * FRAMES * count
    with pytest.raises(UserError, match="tool_path"):
        run(own, vit, output, overlays=True, tool="official", tool_path=str(tmp_path))
    assert encoder.images == 2 * FRAMES * 4


def test_another_encoder_or_set_does_all_again(own, vit, tmp_path, seen_by):
    encoder, output = seen_by(Seeing()), tmp_path / "out"
    run(own, vit, output)
    other = tmp_path / "other"
    shutil.copytree(vit, other)
    with (other / "encoder.safetensors").open("ab") as file:
        file.write(b" ")
    run(own, other, output)
    assert encoder.images == 4 * FRAMES
    save_ids(mask(own, "camel", 3), np.zeros(SIZE, np.uint8))
    prepared(own)
    run(own, other, output)
    assert encoder.images == 6 * FRAMES


def test_masks_that_were_lost_are_made_again(own, vit, tmp_path, seen_by):
    seen_by(Seeing())
    output = tmp_path / "out"
    once = run(own, vit, output)
    shutil.rmtree(output / "masks" / "camel")
    assert run(own, vit, output).metrics == once.metrics


def test_mended_and_started_again(own, vit, tmp_path, seen_by):
    encoder, output = seen_by(Seeing()), tmp_path / "out"
    spare = image(own, "camel", 3).read_bytes()
    image(own, "camel", 3).unlink()
    with pytest.raises(UserError, match=r"1 of 2 videos failed \(camel: "):
        run(own, vit, output)
    image(own, "camel", 3).write_bytes(spare)
    before = encoder.images
    mended = run(own, vit, output)
    assert encoder.images == before + FRAMES  # blackswan was kept
    assert mended.metrics == run(own, vit, tmp_path / "fresh").metrics
