"""Pages of cells: where pictures, bars and frames lie, and that files hold what was drawn."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.evaluation.aligned import grey, numbers_on, pages_of, video
from timewalk.errors import UserError
from timewalk.evaluation.alignment import match
from timewalk.evaluation.alignment_pictures import (
    COLOURS,
    DARK,
    EDGE,
    GREY,
    PALE,
    RED,
    Sheet,
    bar,
    check_writer,
    fitted,
    grid_rows,
    pages,
    paled,
    paletted,
    plot_paths,
    stretched,
    write_video,
    written,
)


@given(st.integers(2, 200))
def test_the_smallest_grid_that_holds_all(count):
    rows = grid_rows(count)
    columns = Sheet(count, rows, 32).columns
    assert rows * columns >= count > (rows - 1) * columns
    assert count > rows * (columns - 1)
    assert rows <= columns + 1
    side = round(count**0.5)
    if side * side == count:
        assert rows == columns == side


def test_grids_by_hand():
    shapes = {n: (grid_rows(n), Sheet(n, grid_rows(n), 32).columns) for n in (2, 3, 4, 5, 7, 10)}
    assert shapes == {2: (1, 2), 3: (2, 2), 4: (2, 2), 5: (2, 3), 7: (3, 3), 10: (3, 4)}


@given(st.integers(2, 30), st.integers(32, 400))
def test_cells_lie_column_by_column_and_never_touch(count, cell):
    sheet = Sheet(count, grid_rows(count), cell)
    page = np.zeros(sheet.page().shape[:2], int)
    for number in range(count):
        top, left = sheet.corner(number)
        assert (left - sheet.gap) // sheet.pitch[1] == number // sheet.rows
        assert (top - sheet.gap) // sheet.pitch[0] == number % sheet.rows
        high = cell + sheet.gap // 2 + sheet.bar
        whole = page[top - EDGE : top + high + EDGE, left - EDGE : left + cell + EDGE]
        assert whole.shape == (high + 2 * EDGE, cell + 2 * EDGE)
        whole += 1
    assert page.max() == 1


def test_pages_show_the_frames_asked_for_where_they_belong():
    videos = [video(range(6), name) for name in "abc"]
    sheet = Sheet(3, 2, 64)
    shown = [[(videos[0], n), (videos[1], 5 - n), (videos[2], 2)] for n in range(6)]
    found = list(pages(shown, sheet, videos[1], scale="none"))
    assert all(page.shape == found[0].shape for page in found)
    assert [numbers_on(page, sheet, 3) for page in found] == [[n, 5 - n, 2] for n in range(6)]
    for page in found:
        (top, left), side = sheet.corner(1), sheet.cell
        assert (page[top - EDGE : top, left - EDGE : left + side + EDGE] == RED).all()
        assert (page[top : top + side, left + side : left + side + EDGE] == RED).all()
        top, left = sheet.corner(2)
        assert (page[top - EDGE : top, left : left + side] == 255).all()
        # The fourth cell stays empty.
        top, left = sheet.corner(3)
        assert (page[top:, left:] == 255).all()


def test_the_frame_around_the_reference_goes_with_it():
    videos = [video(range(3), name) for name in "ab"]
    sheet = Sheet(1, 1, 32)
    first, second = pages([[(videos[0], 0)], [(videos[1], 0)]], sheet, videos[0])
    top, left = sheet.corner(0)
    assert (first[top - 1, left] == RED).all()
    assert (second[top - 1, left] == 255).all()


def test_frames_are_stretched_as_published():
    pixels = np.array([[[50, 60, 70], [80, 90, 100]]], np.uint8)
    assert stretched(pixels).tolist() == [[[0, 51, 102], [153, 204, 255]]]
    assert np.array_equal(stretched(grey(4)), grey(4))
    half = np.zeros((4, 4, 3), np.uint8)
    half[:, 2:] = 100
    source = video(range(2))
    dim = type(source)("x", source.embeddings, None, 0, lambda _: half)
    for scale, brightest in (("published", 255), ("none", 100)):
        (page,) = pages([[(dim, 0)]], Sheet(1, 1, 32), source, scale=scale)
        assert page[20, 36].tolist() == [brightest] * 3


@pytest.mark.parametrize(("shape", "band"), [((20, 40), "rows"), ((40, 20), "columns")])
def test_frames_keep_their_shape(shape, band):
    picture = fitted(np.zeros((*shape, 3), np.uint8), 80)
    assert picture.shape == (80, 80, 3)
    across = picture if band == "rows" else picture.transpose(1, 0, 2)
    assert (across[:20] == PALE).all()
    assert (across[60:] == PALE).all()
    assert not across[20:60].any()


def test_the_bar_shows_phases_and_the_place():
    labelled = video(range(10), labels=[0] * 5 + [1] * 5)
    line = bar(labelled, 6, 100, 4)
    assert line.shape == (4, 100, 3)
    assert (line == line[:1]).all()
    assert (line[0, :50] == COLOURS[0]).all()
    assert (line[0, 50:60] == COLOURS[1]).all()
    # The mark is at the middle of frame 6, which covers columns 60 to 69.
    assert np.flatnonzero((line[0] == DARK).all(axis=1)).tolist() == [64, 65]
    assert (line[0, 66:70] == COLOURS[1]).all()
    assert (line[0, 70:] == np.round(COLOURS[1] + 0.65 * (255.0 - COLOURS[1]))).all()
    assert line.dtype == np.uint8
    assert (bar(video(range(10)), 9, 100, 4)[0, :90] == GREY).all()


@given(st.integers(1, 500), st.integers(32, 400), st.data())
def test_the_mark_is_always_whole(frames, width, data):
    frame = data.draw(st.integers(0, frames - 1))
    line = bar(video(range(frames)), frame, width, max(4, width // 32))
    columns = np.flatnonzero((line[0] == DARK).all(axis=1))
    assert len(columns) == 2 * max(1, max(4, width // 32) // 5)
    assert abs(columns.mean() - (frame + 0.5) * width / frames) <= max(4, width // 32)


def test_numbers_are_written_into_the_corner():
    picture = np.full((100, 100, 3), 90, np.uint8)
    changed = np.argwhere((written(picture, "12 / 40") != picture).any(axis=2))
    assert changed[:, 0].min() > 80
    assert changed[:, 1].max() < 60
    source = video(range(4))
    plain, numbered = (
        next(pages([[(source, 1)]], Sheet(1, 1, 64), source, numbers=x)) for x in (False, True)
    )
    assert not np.array_equal(plain, numbered)


@pytest.mark.parametrize("suffix", [".mp4", ".gif"])
def test_files_hold_each_page(tmp_path, suffix):
    videos = [video(range(12), name) for name in "ab"]
    sheet = Sheet(2, 1, 48)
    order = [3, 0, 0, 11, 7, 5]
    shown = [[(videos[0], t), (videos[1], n)] for t, n in enumerate(order)]
    target = write_video(
        tmp_path / f"x{suffix}", pages(shown, sheet, videos[0], scale="none"), interval_ms=80
    )
    found, seconds = pages_of(target)
    assert [numbers_on(page, sheet, 2) for page in found] == [[t, n] for t, n in enumerate(order)]
    assert seconds == pytest.approx(0.08)
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_a_gif_keeps_the_colours_of_phases_and_comes_near_all_others():
    rng = np.random.default_rng(0)
    page = rng.integers(0, 256, (60, 60, 3)).astype(np.uint8)
    page[:4, :30], page[:4, 30:], page[4:8] = COLOURS[2], paled(COLOURS[2]), RED
    found = np.asarray(paletted(page).convert("RGB")).astype(int)
    assert np.abs(found - page)[:8].max() <= 3
    assert np.abs(found - page).mean() < 16


def test_a_gif_goes_on_for_ever(tmp_path):
    source = video(range(3))
    shown = [[(source, n)] for n in range(3)]
    path = write_video(tmp_path / "x.gif", pages(shown, Sheet(1, 1, 32), source), 50)
    with Image.open(path) as file:
        assert file.info["loop"] == 0
        assert file.n_frames == 3


def test_an_mp4_needs_ffmpeg(monkeypatch):
    check_writer(".mp4")
    monkeypatch.setenv("TIMEWALK_FFMPEG", "/no/such/program")
    check_writer(".gif")
    with pytest.raises(UserError, match="TIMEWALK_FFMPEG: /no/such/program is no executable"):
        check_writer(".mp4")


def test_an_mp4_needs_pyav(monkeypatch):
    monkeypatch.delitem(sys.modules, "timewalk.video.probe", raising=False)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"pip install 'timewalk\[video\]', or write a gif"):
        check_writer(".mp4")


def test_changes_of_phase_show_on_light_cells_and_on_dark_ones(tmp_path):
    """All cells but one column are as far away as can be, so as light as can be."""
    reference, other = (video(range(9), name) for name in ("reference", "other"))
    labelled = video(range(9), "other", labels=[0] * 5 + [1] * 4)
    found = match(reference, other, use_dtw=False, normalise=False)
    found.distances[:] = 100
    found.distances[:, 0] = 0
    found.distances[0] = 0
    pictures = []
    for name, shown in (("without.png", other), ("with.png", labelled)):
        plot_paths(tmp_path / name, reference, [(shown, found)])
        with Image.open(tmp_path / name) as picture:
            pictures.append(np.asarray(picture.convert("L")).astype(int))
    without, drawn = pictures
    line = without != drawn
    on_light, on_dark = line & (without > 250), line & (without < 5)
    assert (drawn[on_light] < 100).sum() > 100
    assert (drawn[on_dark] > 200).sum() > 5


def test_paths_are_drawn_for_one_and_for_many(tmp_path):
    reference = video([0, 1, 2, 3], "reference", labels=[0, 0, 1, 1])
    others = [video([0, 1, 1, 2, 3][: 3 + n % 3], f"v{n}", labels=None) for n in range(5)]
    pairs = [(x, match(reference, x, use_dtw=True, normalise=False)) for x in others]
    one, many, again = (tmp_path / name for name in ("one.png", "many.png", "again.png"))
    plot_paths(one, reference, pairs[:1])
    plot_paths(many, reference, pairs)
    plot_paths(again, reference, pairs)
    assert many.read_bytes() == again.read_bytes()
    with Image.open(one) as small, Image.open(many) as large:
        assert large.width > 2 * small.width
        assert large.height > small.height
        # The orange of the path is on it.
        colours = np.asarray(small.convert("RGB")).reshape(-1, 3)
    assert (np.abs(colours - np.array([255, 127, 14])).max(axis=1) < 3).sum() > 50
