"""PCA pictures: the components are principal, the colours mean the same everywhere."""

import csv

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.data.conftest import make_frames  # noqa: F401 - a fixture
from timewalk.errors import UserError
from timewalk.evaluation.base import Inputs
from timewalk.evaluation.pca import Config, colours, evaluate, fit, fitted
from timewalk.evaluation.pictures import GAP

CPU = torch.device("cpu")


def run(run_of, set_of, folder, name="vit", frames=(), **keys):
    inputs = Inputs(run_of(name), set_of(3), CPU, frames=tuple(frames))
    return evaluate(inputs, Config(dataset="colours", size=16, **keys), folder / "pca")


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_figure_and_numbers(run_of, set_of, tmp_path, name):
    result = run(run_of, set_of, tmp_path, name=name, images=4)
    assert result.protocol == "pca-s16"
    shares = [result.metrics[f"explained_percent_{n}"] for n in (1, 2, 3)]
    assert shares == sorted(shares, reverse=True)
    assert 0 < sum(shares) <= 100 + 1e-9
    assert [path.name for path in result.artefacts] == ["figure.png", "explained.csv"]
    with Image.open(result.artefacts[0]) as picture:
        # Three pairs in the first row, the fourth below.
        assert picture.height > 2 * 16
        assert picture.width >= 6 * 16 + 5 * GAP
    again = run(run_of, set_of, tmp_path / "again", name=name, images=4)
    assert result.artefacts[0].read_bytes() == again.artefacts[0].read_bytes()


def test_components_are_principal():
    rng = torch.Generator().manual_seed(0)
    spread = torch.tensor([5.0, 3.0, 2.0, 0.1, 0.1])
    maps = [spread[:, None, None] * torch.randn(5, 6, 7, generator=rng) + 9 for _ in range(3)]
    basis = fit(maps)
    patches = torch.cat([m.flatten(1).T for m in maps]).double()
    centred = patches - patches.mean(0)
    _, values, vectors = torch.linalg.svd(centred, full_matrices=False)
    shares = values.square() / values.square().sum()
    torch.testing.assert_close(torch.tensor(basis.explained, dtype=torch.float64), shares[:3])
    cosine = (vectors[:3].T * basis.components).sum(0).abs()
    torch.testing.assert_close(cosine, torch.ones(3, dtype=torch.float64))
    # The largest entry of each is positive: the sign is the same on every machine.
    largest = basis.components.gather(0, basis.components.abs().argmax(0, keepdim=True))
    assert (largest > 0).all()
    picture = colours(maps[0], basis)
    assert picture.shape == (6, 7, 3)
    everything = np.concatenate([colours(m, basis).reshape(-1, 3) for m in maps])
    assert 0.002 < (everything == 0).mean() < 0.03
    assert 0.002 < (everything == 255).mean() < 0.03


def test_equal_features_have_equal_colours():
    maps = [torch.randn(6, 4, 4), torch.randn(6, 3, 5)]
    maps[1][:, 0, 0] = maps[0][:, 2, 3]
    basis = fit(maps)
    assert np.array_equal(colours(maps[0], basis)[2, 3], colours(maps[1], basis)[0, 0])


def test_a_constant_map_is_one_colour():
    basis = fit([torch.ones(5, 3, 3)])
    assert basis.explained == [0, 0, 0]
    assert len(np.unique(colours(torch.ones(5, 3, 3), basis).reshape(-1, 3), axis=0)) == 1


def test_foreground_is_what_touches_the_borders_less():
    rng = torch.Generator().manual_seed(0)
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[2:6, 3:7] = True
    features = 0.1 * torch.randn(5, 8, 8, generator=rng)
    features[0] += torch.where(inside, 10.0, -10.0)
    features[1:4, inside] += torch.randn(3, int(inside.sum()), generator=rng)
    for sign in (1, -1):
        picture = colours(sign * features, fit([sign * features], foreground=True))
        assert not picture[~inside.numpy()].any()
        assert picture[inside.numpy()].any(axis=1).mean() > 0.9


@pytest.mark.parametrize(
    ("size", "shape"), [((40, 30), (32, 40)), ((30, 41), (40, 32)), ((500, 8), (32, 2000))]
)
def test_images_of_any_shape_are_cut_to_whole_cells(size, shape):
    found = fitted(Image.new("RGB", size, (9, 8, 7)), 32, 8)
    assert found.shape == (*shape, 3)
    assert (found == (9, 8, 7)).all()


def test_an_image_below_a_cell_is_one_sentence():
    with pytest.raises(UserError, match="size is 10 but a cell"):
        fitted(Image.new("RGB", (40, 40)), 10, 16)


def test_a_video_beside_its_colours(run_of, set_of, make_frames, tmp_path):  # noqa: F811
    manifests = [make_frames("walk", 20), make_frames("ride", 5, (48, 64), fps=10.0)]
    frames = [str(path.parent) for path in manifests]
    result = run(run_of, set_of, tmp_path, frames=manifests, images=2, max_frames=7)
    videos = [path for path in result.artefacts if path.suffix == ".mp4"]
    assert [path.name for path in videos] == ["walk.mp4", "ride.mp4"]
    for path, folder, count, size, rate in zip(
        videos, frames, (7, 5), ((64, 16), (32, 16)), (25, 10), strict=True
    ):
        with av.open(str(path)) as file:
            assert file.streams.video[0].average_rate == rate
            pictures = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        assert len(pictures) == count
        assert pictures[0].shape[:2] == size[::-1]
        with Image.open(f"{folder}/000000.jpg") as image:
            expected = fitted(image.convert("RGB"), 16, 8)
        half = pictures[0][:, : size[0] // 2].astype(int)
        assert np.abs(half - expected).mean() < 8
    rows = list(csv.DictReader(result.artefacts[-1].open()))
    assert [row["of"] for row in rows] == ["images", "walk", "ride"]


def test_a_frame_that_cannot_be_read_is_one_sentence(
    run_of,
    set_of,
    make_frames,  # noqa: F811
    tmp_path,
):
    manifest = make_frames("walk", 6)
    (manifest.parent / "000003.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"000003\.jpg cannot be read"):
        run(run_of, set_of, tmp_path, frames=[manifest])
    assert not list((tmp_path / "pca").glob("*.mp4"))
