"""Sheets and GIFs of segmentations: what stands where, and in which colour."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from timewalk.data.generated import davis_palette
from timewalk.evaluation.mask_pictures import (
    LEGEND_LINE,
    id_colours,
    legend,
    paint,
    sheet,
    write_gif,
)
from timewalk.evaluation.pictures import GAP

WHITE = (255, 255, 255)


def row(seed=0, size=(12, 20), predicted=(12, 20), dtype=np.uint16):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
    return pixels, rng.integers(0, 3, size, dtype=np.uint8), rng.integers(0, 3, predicted, dtype)


def test_the_first_colours_are_davis_palette_and_the_next_vocs():
    palette = np.array(davis_palette()).reshape(-1, 3)
    assert np.array_equal(id_colours(256)[:22], palette[:22])
    # From here on DAVIS's palette is gray; VOC goes on by its rule.
    assert id_colours(24)[22].tolist() == [0, 192, 128]
    assert id_colours(24)[23].tolist() == [128, 192, 128]
    assert id_colours(256)[255].tolist() == [224, 224, 192]


@given(st.integers(1, 2000))
def test_an_id_has_one_colour_and_no_other_has_it(count):
    colours = id_colours(count)
    assert colours.shape == (count, 3)
    assert len(np.unique(colours, axis=0)) == count
    assert np.array_equal(colours, id_colours(count + 300)[:count])


def test_a_sheet_has_input_truth_and_prediction_side_by_side():
    pixels, truth, predicted = row()
    truth[0] = 255
    picture = sheet([(pixels, truth, predicted), row(1)])
    assert picture.shape == (2 * 12 + GAP, 3 * 20 + 2 * GAP, 3)
    assert picture.dtype == np.uint8
    assert np.array_equal(picture[:12, :20], pixels)
    assert (picture[0, 24:44] == WHITE).all()
    assert np.array_equal(picture[1:12, 24:44], id_colours(3)[truth[1:]])
    assert np.array_equal(picture[:12, 48:], id_colours(3)[predicted])
    assert (picture[:12, 20:24] == WHITE).all()
    assert np.array_equal(picture[16:, :20], row(1)[0])


def test_void_is_of_the_truth_alone():
    """A cluster may have the number 255."""
    ids = np.full((2, 2), 255)
    assert (paint(ids, 255) == WHITE).all()
    assert (paint(ids) == (224, 224, 192)).all()


def test_coarse_maps_are_enlarged():
    pixels, _, _ = row(size=(6, 8))
    truth, coarse = np.zeros((6, 8), np.uint8), np.array([[0, 1], [2, 1]], np.uint16)
    picture = sheet([(pixels, truth, coarse)])[:, 2 * (8 + GAP) :]
    assert np.array_equal(picture, id_colours(3)[coarse].repeat(3, 0).repeat(4, 1))


def test_more_maps_than_one_prediction():
    pixels, truth, predicted = row()
    assert sheet([(pixels, truth, predicted, truth)]).shape == (12, 4 * 20 + 3 * GAP, 3)


def test_a_legend_names_what_is_in_sight():
    names = ["background", "aeroplane", "bicycle", "bird"]
    pixels, truth, predicted = row(size=(12, 90), predicted=(12, 90))
    truth[0] = 255
    picture = sheet([(pixels, truth, predicted)], names)
    strip = picture[12 + GAP :]
    assert len(strip) % LEGEND_LINE == 0
    for number in range(3):
        assert (strip == id_colours(4)[number]).all(-1).sum() > 30
    assert not (strip == id_colours(4)[3]).all(-1).any()
    assert np.array_equal(strip, legend([0, 1, 2], names, 3 * 90 + 2 * GAP))


def test_a_narrow_legend_has_more_lines():
    names = ["background", "aeroplane", "bicycle"]
    assert legend([0, 1, 2], names, 600).shape == (LEGEND_LINE, 600, 3)
    assert legend([0, 1, 2], names, 40).shape == (3 * LEGEND_LINE, 40, 3)


def test_a_gif_plays_the_rows(tmp_path):
    rows = [row(seed, size=(20, 32), predicted=(10, 16)) for seed in range(4)]
    rows[0][1][:3] = 255
    path = write_gif(tmp_path / "video.gif", rows)
    with Image.open(path) as gif:
        assert gif.n_frames == 4
        for number, one in enumerate(rows):
            gif.seek(number)
            assert gif.info["duration"] == 80
            assert gif.info["loop"] == 0
            frame = np.asarray(gif.convert("RGB")).astype(int)
            exact = sheet([one]).astype(int)
            assert np.array_equal(frame[:, 32:], exact[:, 32:])
            # Noise of all colours, reduced to fewer than 256.
            assert np.abs(frame[:, :32] - exact[:, :32]).mean() < 20
    assert write_gif(tmp_path / "again.gif", rows).read_bytes() == path.read_bytes()


def test_too_many_ids_for_a_gif(tmp_path):
    pixels, truth, _ = row(size=(20, 20))
    ids = np.arange(400, dtype=np.uint16).reshape(20, 20)
    with pytest.raises(ValueError, match=r"colours of ids; a GIF has 256 in all"):
        write_gif(tmp_path / "video.gif", [(pixels, truth, ids)])
    assert not list(tmp_path.iterdir())
