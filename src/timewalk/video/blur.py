"""The blur stage: faces of a whole video, or of extracted frames, covered.

A video is divided at key frames into ranges that processes share (``segments.py``). In each,
decoder, detector and encoder run side by side. Finished pieces survive a kill: a repeat does the
missing ones.

Faces only: no licence plates. Misses happen: look at the contact sheet.
"""

import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image, ImageDraw, JpegImagePlugin, UnidentifiedImageError
from tqdm import tqdm

from timewalk.artefacts import (
    atomic_path,
    sha256_file,
    sha256_json,
    version,
    write_manifest,
)
from timewalk.config import BlurConfig
from timewalk.errors import UserError
from timewalk.video.faces import (
    Boxes,
    FaceDetector,
    cover_rgb,
    cover_yuv420,
    model_sha256,
    no_boxes,
)
from timewalk.video.probe import VideoInfo, probe
from timewalk.video.segments import (
    FULL_RANGE,
    Encoder,
    Piece,
    Worker,
    ahead,
    decoded,
    divide,
    join,
    planes,
    straighten,
)

log = logging.getLogger(__name__)

SHEET = (6, 4)
"""columns and rows of the contact sheet"""
TILE = (320, 180)
"""width and height of its pictures in pixels"""
T = TypeVar("T")


def blur_video(
    source: Path, output: Path, settings: BlurConfig, workers: int = 1
) -> dict[str, Any]:
    """Write a video with its faces covered, its manifest and a contact sheet.

    Args:
        source: any video that ffmpeg reads.
        output: ``….mp4``; ``….faces.jsonl`` (boxes of each frame), ``….png`` (contact sheet) and
            ``….json`` (the manifest, written last) go beside it.
        settings: what to find and how to cover it.
        workers: processors to use: as many processes, or threads of the detector if there are
            fewer pieces. The result does not depend on it.

    Returns:
        The manifest.

    Raises:
        UserError: not a video, damaged on the way, or a count of frames that does not fit.
    """
    info = probe(source)
    digest = sha256_file(source)
    work = _work_folder(output, digest, settings)
    pieces = divide(source, work, settings.segment_s, info)
    backends = _blur_pieces(pieces, settings, workers)
    # From here on the old manifest, if any, would describe a mixture.
    output.with_suffix(".json").unlink(missing_ok=True)
    report = _report(pieces, output, info, settings)
    contact_sheet(_pictures(work), output.with_suffix(".png"))
    with atomic_path(output) as temporary:
        join(pieces, temporary, audio=settings.keep_audio)
        made = probe(temporary)
        if made.frames != info.frames:
            raise UserError(
                f"{source} has {info.frames} frames but its blurred copy {made.frames}: the video "
                "is damaged; fetch it again."
            )
    manifest = write_manifest(
        output.with_suffix(".json"),
        "blurred-video",
        inputs={source.name: digest},
        parameters=settings.model_dump(mode="json"),
        counts={"frames": info.frames, "seconds": info.duration_s, **report["counts"]},
        warnings=report["warnings"],
        faces_per_minute=report["faces_per_minute"],
        detections=report["detections"],
        model_sha256=model_sha256(),
        backend=backends,
        sha256=sha256_file(output),
        video=made.as_json(),
    )
    shutil.rmtree(work)
    return manifest


def _work_folder(output: Path, digest: str, settings: BlurConfig) -> Path:
    """Return the folder of the pieces, made if need be; remove what fits no more."""
    key = sha256_json([digest, settings.model_dump(mode="json"), model_sha256(), version()])[:12]
    work = output.with_name(f".{output.stem}.{key}.pieces")
    work.mkdir(parents=True, exist_ok=True)
    mine = re.compile(rf"\.{re.escape(output.stem)}\.[0-9a-f]+\.(pieces|part\..+)")
    for path in output.parent.iterdir():
        if mine.fullmatch(path.name) and path.is_dir() and path != work:
            shutil.rmtree(path)
        elif mine.fullmatch(path.name) and path.is_file():
            path.unlink()
    return work


def _blur_pieces(pieces: list[Piece], settings: BlurConfig, workers: int) -> str:
    """Make the pieces that are missing; return what ran the detector."""
    total = sum(piece.frames for piece in pieces)
    todo = [piece for piece in pieces if not piece.target.exists()]
    for piece in todo:
        _sidecar(piece).unlink(missing_ok=True)
    log.info("%d frames in %d pieces, %d to do", total, len(pieces), len(todo))
    with tqdm(total=total, unit="frame", disable=not sys.stderr.isatty()) as bar:
        bar.update(total - sum(piece.frames for piece in todo))
        for piece in _each(blur_piece, todo, settings, workers):
            bar.update(piece.frames)
            log.info("%s done", piece.place)
    with open(_sidecar(pieces[0]), encoding="utf-8") as lines:
        return str(json.loads(lines.readline())["backend"])


def _each(
    call: Callable[[T, BlurConfig, int], T], items: list[T], settings: BlurConfig, workers: int
) -> Iterator[T]:
    """Yield items as processes finish them; the first failure ends the rest."""
    processes = min(workers, len(items))
    if processes <= 1:
        yield from (call(item, settings, max(1, workers)) for item in items)
        return
    # A forked copy of ONNX Runtime or OpenVINO may hang: start afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context, initializer=_end_with_parent) as pool:
        futures = [pool.submit(call, item, settings, workers // processes) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "a process of the blur was killed, probably for lack of memory: run it again with "
                "fewer workers; what is finished is kept."
            ) from None
        finally:
            for future in futures:
                future.cancel()


def _end_with_parent() -> None:
    """End this process when the one that started it is killed; it would wait for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# --- one piece ---------------------------------------------------------------------------------

_detectors: dict[tuple[int, int, int, str], FaceDetector] = {}


def _detector(width: int, height: int, settings: BlurConfig, threads: int) -> FaceDetector:
    """Return this process's detector for frames of a size, made once."""
    key = (width, height, threads, settings.model_dump_json())
    if key not in _detectors:
        _detectors[key] = FaceDetector(width, height, settings, threads)
    return _detectors[key]


def _sidecar(piece: Piece) -> Path:
    return piece.target.with_suffix(".jsonl")


def blur_piece(piece: Piece, settings: BlurConfig, threads: int = 1) -> Piece:
    """Blur and encode one range; write the piece, its detections and pictures for the sheet.

    The first line of the detections says what ran the detector, each further one is a frame.
    """
    detector = _detector(*piece.size, settings, threads)
    sheet = Spread[Picture](2 * SHEET[0] * SHEET[1] - 1), Spread[Picture](SHEET[0])
    count = 0
    with atomic_path(piece.target) as encoded, atomic_path(_sidecar(piece)) as lines:
        with open(lines, "w", encoding="utf-8") as record:
            record.write(json.dumps({"backend": detector.backend}) + "\n")
            encoder = Encoder(encoded, piece, settings)
            with Worker(encoder.write) as worker:
                for number, frame, boxes in detected(piece, detector, settings):
                    faces = _rounded(boxes)
                    found = {"frame": number, "time_s": frame.time, "faces": faces}
                    record.write(json.dumps(found) + "\n")
                    if sheet[not faces].wants():
                        sheet[not faces].add(Picture.of(number, frame, len(faces)))
                    # The encoder changes the frame's time: hand it over last.
                    worker.put(frame)
                    count += 1
            encoder.close()
        if count != piece.frames:
            raise UserError(
                f"{piece.place} gave {count} of {piece.frames} frames: the video is damaged; "
                "fetch it again."
            )
        for picture in sheet[0].items + sheet[1].items:
            picture.save(piece.target.parent)
    return piece


def detected(
    piece: Piece, detector: FaceDetector, settings: BlurConfig
) -> Iterator[tuple[int, Any, Boxes]]:
    """Yield number, covered frame and boxes of each frame of a range.

    Frames without a face go on as decoded, without a way through RGB.
    """
    upright = (straighten(frame, piece.size) for frame in decoded(piece))
    boxes = no_boxes()
    numbered = enumerate(ahead(upright, 4), start=piece.first)
    while batch := list(islice(numbered, detector.batch)):
        looked = [n for n, _ in batch if n == piece.first or n % settings.every == 0]
        pixels = [frame.to_ndarray(format="rgba") for n, frame in batch if n in looked]
        found = dict(zip(looked, detector.detect(pixels), strict=True))
        for number, frame in batch:
            boxes = found.get(number, boxes)
            yield number, _covered(frame, boxes, settings), boxes


def _rounded(boxes: Boxes) -> list[list[float]]:
    rounded: list[list[float]] = np.round(boxes.astype(np.float64), 3).tolist()
    return rounded


def _covered(frame: Any, boxes: Boxes, settings: BlurConfig) -> Any:
    if len(boxes):
        # The decoder may still need its picture to predict others: change a copy.
        frame.make_writable()
        black = 0 if frame.color_range == FULL_RANGE else 16
        cover_yuv420(planes(frame), boxes, settings, black)
    return frame


# --- report and contact sheet --------------------------------------------------------------------


def _lines(pieces: list[Piece]) -> Iterator[str]:
    for piece in pieces:
        with open(_sidecar(piece), encoding="utf-8") as lines:
            yield from islice(lines, 1, None)


def _report(
    pieces: list[Piece], output: Path, info: VideoInfo, settings: BlurConfig
) -> dict[str, Any]:
    """Join the detections of all pieces into one file of lines; return their counts."""
    minutes: Counter[int] = Counter()
    faces = frames_with = 0
    origin_s: float | None = None
    target = output.with_suffix(".faces.jsonl")
    with atomic_path(target) as temporary, open(temporary, "w", encoding="utf-8") as lines:
        for line in _lines(pieces):
            found = json.loads(line)
            origin_s = found["time_s"] if origin_s is None else origin_s
            found["time_s"] = round(found["time_s"] - origin_s, 6)
            lines.write(json.dumps(found) + "\n")
            faces += len(found["faces"])
            frames_with += bool(found["faces"])
            minutes[int(found["time_s"] // 60)] += len(found["faces"])
    return {
        "counts": {"faces": faces, "frames_with_faces": frames_with, "pieces": len(pieces)},
        "faces_per_minute": [minutes[n] for n in range(max(minutes, default=-1) + 1)],
        "detections": {target.name: sha256_file(target)},
        "warnings": _warnings(pieces, info, settings),
    }


def _warnings(pieces: list[Piece], info: VideoInfo, settings: BlurConfig) -> list[str]:
    warnings = []
    if info.width % 2 or info.height % 2:
        warnings.append("odd size: the last row or column of pixels was cut off")
    if info.rotation:
        warnings.append(f"turned upright by {info.rotation} degrees")
    if pieces[0].start is None:
        warnings.append("the file has no rising times: frames were laid out at an even rate")
    if settings.every > 1:
        warnings.append(
            f"faces were looked for on one frame in {settings.every}, boxes held between"
        )
    return warnings


class Spread(Generic[T]):
    """At most ``limit`` items of a sequence of unknown length, evenly spread over it."""

    def __init__(self, limit: int) -> None:
        self.items: list[T] = []
        self._limit, self._step, self._seen = limit, 1, 0

    def wants(self) -> bool:
        """Count one more item of the sequence; return whether it is to be added."""
        self._seen += 1
        return (self._seen - 1) % self._step == 0

    def add(self, item: T) -> None:
        """Keep an item; past the limit every second goes, and so do every second to come."""
        self.items.append(item)
        if len(self.items) > self._limit:
            self.items = self.items[::2]
            self._step *= 2


@dataclass(frozen=True)
class Picture:
    """A small picture of a covered frame.

    Attributes:
        number: of the frame.
        time_s: of the frame; None for single images.
        faces: number of faces covered in it.
        pixels: the picture, or a file that holds it.
    """

    number: int
    time_s: float | None
    faces: int
    pixels: Image.Image | Path

    @classmethod
    def of(cls, number: int, frame: Any, faces: int) -> "Picture":
        """Make a small picture of a video's frame."""
        shrink = min(1.0, TILE[0] / frame.width, TILE[1] / frame.height)
        size = [max(2, round(side * shrink)) for side in (frame.width, frame.height)]
        pixels = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
        return cls(number, float(frame.time), faces, Image.fromarray(pixels))

    def save(self, folder: Path) -> None:
        """Write the picture, its description in its name."""
        assert isinstance(self.pixels, Image.Image)
        name = f"{self.number}_{self.time_s:.3f}_{self.faces}.png"
        self.pixels.save(folder / name, compress_level=1)

    @classmethod
    def of_file(cls, path: Path) -> "Picture":
        """Name a saved picture."""
        number, time_s, faces = path.stem.split("_")
        return cls(int(number), float(time_s), int(faces), path)

    @property
    def label(self) -> str:
        """What stands below it."""
        where = f"frame {self.number}"
        if self.time_s is not None:
            minutes, seconds = divmod(self.time_s, 60)
            where = f"{int(minutes)}:{seconds:04.1f}"
        return f"{where}   {self.faces} face{'s' * (self.faces != 1)}"


def _pictures(work: Path) -> list[Picture]:
    return choose_pictures([Picture.of_file(path) for path in work.glob("*_*_*.png")])


def choose_pictures(found: Iterable[Picture]) -> list[Picture]:
    """Choose a sheet full, evenly spread, frames with faces first."""
    ordered = sorted(found, key=lambda picture: picture.number)
    chosen = _spread([picture for picture in ordered if picture.faces], SHEET[0] * SHEET[1])
    rest = [picture for picture in ordered if not picture.faces]
    chosen += _spread(rest, SHEET[0] * SHEET[1] - len(chosen))
    return sorted(chosen, key=lambda picture: picture.number)


def _spread(items: list[T], count: int) -> list[T]:
    if len(items) <= count:
        return items
    return [items[int(n)] for n in np.linspace(0, len(items) - 1, count)] if count > 0 else []


def contact_sheet(pictures: list[Picture], target: Path) -> None:
    """Write a PNG of small pictures with a line of text under each."""
    columns, rows = SHEET
    wide, high = TILE[0], TILE[1] + 16
    sheet = Image.new("RGB", (columns * wide, rows * high), "white")
    draw = ImageDraw.Draw(sheet)
    for place, picture in enumerate(pictures):
        left, top = place % columns * wide, place // columns * high
        small = _small(picture.pixels)
        middle = (wide - small.width) // 2, (TILE[1] - small.height) // 2
        sheet.paste(small, (left + middle[0], top + middle[1]))
        draw.text((left + 4, top + TILE[1] + 2), picture.label, fill="black")
    with atomic_path(target) as temporary:
        sheet.save(temporary, compress_level=3)


def _small(pixels: Image.Image | Path) -> Image.Image:
    if isinstance(pixels, Image.Image):
        return pixels
    with Image.open(pixels) as picture:
        small = picture.convert("RGB")
    small.thumbnail(TILE)
    return small


# --- frames ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Some JPEG files for one process, and what was found in them."""

    files: tuple[Path, ...]
    faces: tuple[list[list[float]], ...] = ()
    backend: str = ""


def blur_frames(folder: Path, settings: BlurConfig, workers: int = 1) -> dict[str, Any]:
    """Cover the faces in a folder's JPEG files, in place.

    Files without a face keep their bytes. A contact sheet goes to ``folder/faces.png``.

    Args:
        folder: its ``*.jpg``, sorted by name, are taken as a sequence.
        settings: what to find and how to cover it.
        workers: processors to use.

    Returns:
        frames, frames_with_faces, faces, detections (frame, boxes with scores), settings,
        model_sha256, backend.

    Raises:
        UserError: a file that is no JPEG, or damaged.
    """
    files = sorted(folder.glob("*.jpg"))
    size = max(1, min(64, -(-len(files) // max(1, workers * 4))))
    size = -(-size // settings.every) * settings.every  # held boxes never cross processes
    batches = [Batch(tuple(files[n : n + size])) for n in range(0, len(files), size)]
    faces: dict[Path, list[list[float]]] = {}
    backend = ""
    with tqdm(total=len(files), unit="frame", disable=not sys.stderr.isatty()) as bar:
        for batch in _each(blur_batch, batches, settings, workers):
            faces |= dict(zip(batch.files, batch.faces, strict=True))
            backend = batch.backend
            bar.update(len(batch.files))
    found = [(number, faces[path]) for number, path in enumerate(files)]
    sheet = choose_pictures(Picture(n, None, len(b), files[n]) for n, b in found)
    contact_sheet(sheet, folder / "faces.png")
    return {
        "frames": len(files),
        "frames_with_faces": sum(bool(boxes) for _, boxes in found),
        "faces": sum(len(boxes) for _, boxes in found),
        "detections": [{"frame": n, "boxes": boxes} for n, boxes in found if boxes],
        "settings": settings.model_dump(mode="json"),
        "model_sha256": model_sha256(),
        "backend": backend,
    }


def blur_batch(batch: Batch, settings: BlurConfig, threads: int = 1) -> Batch:
    """Cover the faces of some JPEG files in place; return them with what was found."""
    found: list[list[list[float]]] = []
    boxes, size, backend = no_boxes(), (0, 0), ""
    for number, path in enumerate(batch.files):
        with _opened(path) as picture:
            if number % settings.every == 0 or picture.size != size:
                size = picture.size
                detector = _detector(*size, settings, threads)
                boxes, backend = detector(np.asarray(picture.convert("RGBA"))), detector.backend
            if len(boxes):
                _cover_file(path, picture, boxes, settings)
        found.append(_rounded(boxes))
    return replace(batch, faces=tuple(found), backend=backend)


def _opened(path: Path) -> JpegImagePlugin.JpegImageFile:
    try:
        picture = Image.open(path, formats=["JPEG"])
        picture.load()
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        reason = "no JPEG" if isinstance(error, UnidentifiedImageError) else str(error)
        raise UserError(f"{path} cannot be read ({reason}): extract the frames again.") from None
    assert isinstance(picture, JpegImagePlugin.JpegImageFile)
    return picture


def _cover_file(
    path: Path, picture: JpegImagePlugin.JpegImageFile, boxes: Boxes, settings: BlurConfig
) -> None:
    """Write a picture anew, its faces covered, its compression no stronger than it was."""
    pixels = np.array(picture.convert("RGB"))
    cover_rgb(pixels, boxes, settings)
    tables = picture.quantization if picture.mode == "RGB" else None
    quality = {"qtables": tables} if tables else {"quality": 95}
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, "JPEG", subsampling=0, **quality)
