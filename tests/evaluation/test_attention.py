"""Attention pictures: what they show is the network's attention."""

import csv
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from timewalk.data.labelled import LabelledImages
from timewalk.encoders import load_encoder
from timewalk.errors import UserError
from timewalk.evaluation.attention import (
    ALPHA,
    Config,
    Seen,
    entropy,
    evaluate,
    look,
    outline,
    overlay,
    sheet,
)
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.pictures import GAP, enlarge, heat

CPU = torch.device("cpu")


def run(run_of, set_of, tmp_path, name="vit", **keys):
    inputs = Inputs(run_of(name), set_of(3), CPU)
    return evaluate(inputs, Config(dataset="colours", **keys), tmp_path / "attention")


def test_files_numbers_and_repeat(run_of, set_of, tmp_path):
    result = run(run_of, set_of, tmp_path, images=4, size=35, separate=True)
    # 35 pixels hold four whole patches of 8.
    assert result.protocol == "attention-s32-t0.6"
    assert result.samples == 4
    names = [path.name for path in result.artefacts]
    assert names[0] == "overview.png"
    assert names[-1] == "heads.csv"
    assert len([name for name in names if "head1" in name]) == 4
    rows = list(csv.DictReader(result.artefacts[-1].open()))
    assert len(rows) == 4 * 3
    mean = np.mean([float(row["entropy"]) for row in rows])
    assert result.metrics["entropy_bits"] == pytest.approx(mean, rel=1e-4)
    assert 0 < result.metrics["entropy_bits"] <= math.log2(16)
    kept = [float(row["kept_share"]) for row in rows]
    assert result.metrics["kept_percent"] == pytest.approx(100 * np.mean(kept), rel=1e-4)
    again = run(run_of, set_of, tmp_path / "again", images=4, size=35, separate=True)
    for one, two in zip(result.artefacts, again.artefacts, strict=True):
        assert one.read_bytes() == two.read_bytes()


def test_the_picture_is_the_networks_attention(run_of, set_of):
    encoder = load_encoder(run_of("vit"))
    images = LabelledImages(set_of(3), "test")
    (item,) = look(encoder, images, [2], Config(dataset="x", size=32), 32, CPU)
    expected = np.asarray(images.open(2).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR))
    assert np.array_equal(item.pixels, expected)
    pixels = torch.from_numpy(expected / 255).permute(2, 0, 1).float()
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in (encoder.mean, encoder.std))
    heads = encoder.cls_attention(((pixels - mean) / std).unsqueeze(0))[0].detach()
    np.testing.assert_allclose(item.attention, heads, atol=1e-6)
    mass = (item.attention * item.kept).sum((1, 2)) / item.attention.sum((1, 2))
    assert (mass >= 0.6).all()
    # Without its smallest patch a head would keep less than the share.
    smallest = np.where(item.kept, item.attention, np.inf).min((1, 2))
    assert (mass - smallest / item.attention.sum((1, 2)) < 0.6).all()


def test_a_sheet_holds_image_maps_and_masks():
    attention = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    kept = attention > 2
    pixels = np.full((16, 16, 3), 100, np.uint8)
    picture = sheet(Seen(0, pixels, attention, kept), stride=8)
    assert picture.shape == (2 * 16 + GAP, 3 * 16 + 2 * GAP, 3)
    assert np.array_equal(picture[:16, :16], pixels)
    first = picture[:16, 16 + GAP : 32 + GAP]
    assert np.array_equal(first, enlarge(heat(attention[0]), 8))
    assert not np.array_equal(first[:8, :8], first[8:, 8:])
    below = picture[16 + GAP :, 16 + GAP : 32 + GAP]
    assert np.array_equal(below[:8, :8], pixels[:8, :8])
    assert np.array_equal(below[12, 12], np.round(0.5 * 100 + ALPHA * np.array([230, 60, 60])))


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_an_outline_lies_inside_and_closes(seed, share):
    mask = np.random.default_rng(seed).random((12, 9)) < share
    line = outline(mask)
    assert not (line & ~mask).any()
    if mask.any():
        assert line.any()
    # What is left within touches nothing outside.
    inside = np.pad(mask & ~line, 1)
    around = np.pad(~mask, 1, constant_values=True)
    for axis in (0, 1):
        for shift in (-1, 1):
            assert not (np.roll(inside, shift, axis) & around).any()


def test_overlay_leaves_the_rest():
    pixels = np.random.default_rng(0).integers(0, 256, (10, 10, 3)).astype(np.uint8)
    mask = np.zeros((10, 10), bool)
    mask[2:9, 2:9] = True
    found = overlay(pixels, mask, (255, 0, 0))
    assert np.array_equal(found[~mask], pixels[~mask])
    assert (found[2, 2:9] == (255, 0, 0)).all()


def test_entropy():
    assert entropy(np.ones((4, 4), np.float32)) == pytest.approx(4)
    assert entropy(np.eye(1, 16, dtype=np.float32)) == 0


def test_a_network_without_heads_says_so(run_of, set_of, tmp_path):
    result = run(run_of, set_of, tmp_path, name="resnet")
    assert (result.protocol, result.samples, result.metrics) == ("attention-none", 0, {"heads": 0})
    assert "no attention heads" in result.artefacts[0].read_text()
    assert not list((tmp_path / "attention").glob("*.png"))


def test_fewer_images_than_asked_for(run_of, set_of, tmp_path):
    assert run(run_of, set_of, tmp_path, images=500, size=16).samples == 9


def test_a_size_below_a_patch_is_one_sentence(set_of, tmp_path):
    from timewalk.config import EncoderConfig
    from timewalk.encoders import build_encoder, save_encoder

    keys = {"patch_size": 32, "image_size": 64, "depth": 1, "width": 24, "heads": 3}
    save_encoder(build_encoder(EncoderConfig(name="vit_tiny", **keys), 0), tmp_path / "run", {})
    inputs = Inputs(tmp_path / "run", set_of(3), CPU)
    with pytest.raises(UserError, match="size is 16 but a patch of the encoder is 32"):
        evaluate(inputs, Config(dataset="x", size=16), tmp_path / "out")
