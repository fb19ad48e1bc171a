"""The blur stage: faces of a whole video, or of extracted frames, covered.

A video is divided at key frames into ranges that processes share. Each decodes its range from the
source, looks for faces, covers them and encodes; detector and encoder run side by side. Every
range is encoded alike and the pieces are joined without encoding again. Ranges are told apart
by presentation time, so open groups of pictures lose no frame. Finished pieces survive a kill.

Faces only: no licence plates. Misses happen: look at the contact sheet.
"""

import json
import logging
import multiprocessing
import queue
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from timewalk.artefacts import atomic_path, sha256_file, sha256_json, write_manifest
from timewalk.config import BlurConfig
from timewalk.errors import UserError
from timewalk.video.faces import (
    Boxes,
    FaceDetector,
    choose_backend,
    cover_rgb,
    cover_yuv420,
    model_sha256,
)
from timewalk.video.probe import VideoInfo, open_video, probe

log = logging.getLogger(__name__)

SHEET = (6, 4)
"""columns and rows of the contact sheet"""
TILE = (320, 180)
"""width and height of its pictures in pixels"""
T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """One range of a video, for one process.

    Attributes:
        source: the video.
        target: the piece to write; detections go beside it as JSON lines.
        start: presentation time of its first frame, in the stream's clock.
        end: of the first frame after it; None for the last piece.
        first: number of its first frame in the video.
        frames: number of its frames.
        frame_s: seconds that a frame lasts on average.
        keep: numbers of frames whose picture the contact sheet wants.
    """

    source: Path
    target: Path
    start: int
    end: int | None
    first: int
    frames: int
    frame_s: float
    keep: tuple[int, ...]


def blur_video(
    source: Path, output: Path, settings: BlurConfig, workers: int = 1
) -> dict[str, Any]:
    """Write a video with its faces covered, its manifest and a contact sheet.

    Args:
        source: any video that ffmpeg reads.
        output: ``….mp4``; ``….json``, ``….faces.jsonl`` and ``….png`` are written beside it.
        settings: what to find and how to cover it.
        workers: processes; each runs its detector on one thread and its encoder beside it.

    Raises:
        UserError: not a video, damaged on the way, or a count of frames that does not fit.
    """
    info = probe(source)
    digest = sha256_file(source)
    work = output.with_name(f".{output.stem}.{_key(digest, settings)}.pieces")
    for stale in output.parent.glob(f".{output.stem}.*.pieces"):
        if stale != work:
            shutil.rmtree(stale)
    work.mkdir(parents=True, exist_ok=True)
    pieces = divide(source, work, settings.segment_s, info)
    todo = [piece for piece in pieces if not piece.target.exists()]
    log.info("%s: %d frames in %d pieces, %d to do", source, info.frames, len(pieces), len(todo))
    with tqdm(total=info.frames, unit="frame", disable=not sys.stderr.isatty()) as bar:
        bar.update(info.frames - sum(piece.frames for piece in todo))
        for piece in _each(blur_piece, todo, settings, workers):
            bar.update(piece.frames)
            log.info("%s: frames %d to %d done", source, piece.first, piece.first + piece.frames)
    with atomic_path(output) as temporary:
        join(pieces, temporary, source if settings.keep_audio else None)
        found = probe(temporary).frames
        if found != info.frames:
            raise UserError(
                f"{source} has {info.frames} frames but its blurred copy {found}: the video is "
                "damaged; fetch it again."
            )
    report = _report(pieces, output, info, settings)
    _sheet(pieces, output.with_suffix(".png"), info)
    manifest = write_manifest(
        output.with_suffix(".json"),
        "blurred-video",
        inputs={source.name: digest},
        parameters=settings.model_dump(mode="json"),
        counts={"frames": info.frames, "seconds": info.duration_s, **report["counts"]},
        warnings=report["warnings"],
        faces_per_minute=report["faces_per_minute"],
        model_sha256=model_sha256(),
        backend=choose_backend(settings.backend),
        sha256=sha256_file(output),
        video=probe(output).as_json(),
    )
    shutil.rmtree(work)
    return manifest


def _key(digest: str, settings: BlurConfig) -> str:
    return sha256_json([digest, settings.model_dump(mode="json"), model_sha256()])[:12]


def _each(
    call: Callable[[T, BlurConfig], T], items: list[T], settings: BlurConfig, workers: int
) -> Iterator[T]:
    """Yield items as processes finish them; the first failure ends the rest."""
    if workers <= 1 or len(items) <= 1:
        yield from (call(item, settings) for item in items)
        return
    # A forked copy of ONNX Runtime or OpenVINO may hang: start afresh.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(items)), mp_context=context) as pool:
        futures = [pool.submit(call, item, settings) for item in items]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            for future in futures:
                future.cancel()


def divide(source: Path, work: Path, segment_s: float, info: VideoInfo) -> list[Piece]:
    """Divide a video into ranges of at least ``segment_s`` seconds.

    Cuts fall on key frames; where none comes for another ``segment_s``, in between: the process
    of such a range decodes from the key frame before and drops what is not its own.
    """
    with open_video(source) as container:
        stream = container.streams.video[0]
        base = stream.time_base
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size]
    if any(stamp is None for stamp, _ in packets):
        raise UserError(f"{source} has frames without a time; remux it with ffmpeg -c copy first.")
    times = sorted(stamp for stamp, _ in packets)
    keys = {stamp for stamp, is_key in packets if is_key}
    starts = [times[0]]
    for stamp in times:
        length_s = (stamp - starts[-1]) * base
        if length_s >= 2 * segment_s or (length_s >= segment_s and stamp in keys):
            starts.append(stamp)
    firsts = np.searchsorted(times, starts).tolist()
    counts = np.diff([*firsts, len(times)]).tolist()
    wanted = np.unique(np.linspace(0, len(times) - 1, SHEET[0] * SHEET[1] * 8).astype(int))
    return [
        Piece(
            source=source,
            target=work / f"{number:05d}.mp4",
            start=start,
            end=end,
            first=first,
            frames=count,
            frame_s=1 / info.fps,
            keep=tuple(n for n in wanted.tolist() if first <= n < first + count),
        )
        for number, (start, end, first, count) in enumerate(
            zip(starts, [*starts[1:], None], firsts, counts, strict=True)
        )
    ]


def blur_piece(piece: Piece, settings: BlurConfig) -> Piece:
    """Blur and encode one range; write the piece, its detections and pictures for the sheet."""
    with (
        atomic_path(piece.target.with_suffix(".jsonl")) as lines,
        atomic_path(piece.target) as encoded,
        open(lines, "w", encoding="utf-8") as record,
    ):
        encoder = Encoder(encoded, settings)
        count = 0
        with Worker(encoder.write) as worker:
            for number, frame, boxes in detected(piece, settings):
                worker.put(frame)
                found = {
                    "frame": number,
                    "time_s": frame.time,
                    "faces": np.round(boxes, 3).tolist(),
                }
                record.write(json.dumps(found) + "\n")
                if number in piece.keep:
                    _picture(piece, number, len(boxes), frame)
                count += 1
        encoder.close()
    if count != piece.frames:
        piece.target.unlink()
        raise UserError(
            f"{piece.source}: {count} of {piece.frames} frames could be decoded between frame "
            f"{piece.first} and {piece.first + piece.frames}: it is damaged; fetch it again."
        )
    return piece


def detected(piece: Piece, settings: BlurConfig) -> Iterator[tuple[int, Any, Boxes]]:
    """Yield number, covered frame and boxes of each frame of a range.

    Frames without a face go on as decoded, without a way through RGB.
    """
    detector: FaceDetector | None = None
    boxes = np.empty((0, 5), np.float32)
    for number, frame in enumerate(ahead(decoded(piece), 4), start=piece.first):
        upright = straighten(frame)
        if number % settings.every == 0 or detector is None:
            rgb = upright.to_ndarray(format="rgb24")
            if detector is None:
                detector = FaceDetector(upright.width, upright.height, settings)
            boxes = detector(rgb)
        yield number, _covered(upright, boxes, settings), boxes


def decoded(piece: Piece) -> Iterator[Any]:
    """Yield the frames of a range in presentation order."""
    with open_video(piece.source) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = 2
        container.seek(piece.start, stream=stream, backward=True)
        try:
            for frame in container.decode(stream):
                if piece.end is not None and frame.pts >= piece.end:
                    return
                if frame.pts >= piece.start:
                    yield frame
        except av.FFmpegError as error:
            raise UserError(
                f"{piece.source} cannot be decoded between frame {piece.first} and "
                f"{piece.first + piece.frames} ({error.strerror}): it is damaged; fetch it again."
            ) from None


def straighten(frame: Any) -> Any:
    """Return a frame upright, of even size, in 8-bit 4:2:0, with its time and colours.

    The encoder stores no rotation and takes only even sizes: a rotated picture is turned, an odd
    last row or column is cut off.
    """
    turned = int(getattr(frame, "rotation", 0) or 0) % 360
    even = (frame.width % 2, frame.height % 2) == (0, 0)
    if not turned and even:
        return (
            frame
            if frame.format.name == "yuv420p"
            else _keep(frame, frame.reformat(format="yuv420p"))
        )
    pixels = np.rot90(frame.to_ndarray(format="rgb24"), turned // 90)
    height, width = (n // 2 * 2 for n in pixels.shape[:2])
    new = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels[:height, :width]), format="rgb24")
    return _keep(frame, new.reformat(format="yuv420p"))


def _keep(old: Any, new: Any) -> Any:
    new.pts, new.time_base = old.pts, old.time_base
    new.colorspace, new.color_range = old.colorspace, old.color_range
    return new


def _covered(frame: Any, boxes: Boxes, settings: BlurConfig) -> Any:
    if len(boxes) == 0:
        return frame
    height, width = frame.height, frame.width
    data = frame.to_ndarray(format="yuv420p")
    chroma = data[height:].reshape(2, height // 2, width // 2)
    cover_yuv420((data[:height], chroma[0], chroma[1]), boxes, settings)
    return _keep(frame, av.VideoFrame.from_ndarray(data, format="yuv420p"))


class Encoder:
    """x264 with the same settings for every piece, so that pieces can be joined."""

    def __init__(self, path: Path, settings: BlurConfig) -> None:
        self._file = av.open(str(path), "w", format="mp4")
        self._settings = settings
        self._stream: Any = None
        self._start = 0

    def write(self, frame: Any) -> None:
        """Encode one frame; the first one sets size, clock and colours."""
        if self._stream is None:
            self._open(frame)
        frame.pts -= self._start
        frame.pict_type = av.video.frame.PictureType.NONE
        self._file.mux(self._stream.encode(frame))

    def _open(self, frame: Any) -> None:
        # x264's rate control wants some frame rate; times come from the frames themselves.
        stream = self._file.add_stream("libx264", rate=30)
        stream.width, stream.height, stream.pix_fmt = frame.width, frame.height, "yuv420p"
        context = stream.codec_context
        context.time_base = stream.time_base = frame.time_base
        context.colorspace, context.color_range = frame.colorspace, frame.color_range
        context.thread_count = 1
        stream.options = {
            "crf": str(self._settings.crf),
            "preset": self._settings.preset,
            "x264-params": "open-gop=0:keyint=250:force-cfr=0",
        }
        self._stream, self._start = stream, frame.pts

    def close(self) -> None:
        """Write what the encoder holds back and close the file."""
        if self._stream is not None:
            self._file.mux(self._stream.encode())
        self._file.close()


class Worker:
    """Runs a call on each item in another thread, a few items behind: encoder beside detector."""

    def __init__(self, call: Callable[[Any], None], depth: int = 4) -> None:
        self._call = call
        self._queue: queue.Queue[Any] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, daemon=True)

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            if self._error is None:
                try:
                    self._call(item)
                except BaseException as error:
                    self._error = error

    def put(self, item: Any) -> None:
        """Hand over an item; raise what an earlier one raised."""
        if self._error is not None:
            raise self._error
        self._queue.put(item)

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error


def ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield items that another thread makes, at most ``depth`` ahead."""
    made: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stop = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stop.is_set():
            try:
                made.put((kind, value), timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put("item", item)
                if stop.is_set():
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = made.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        stop.set()
        thread.join()


def join(pieces: list[Piece], target: Path, audio_from: Path | None) -> None:
    """Join encoded pieces without encoding, and add a source's audio if asked."""
    with av.open(str(target), "w", format="mp4", options={"movflags": "+faststart"}) as out:
        with av.open(str(pieces[0].target)) as first:
            video = out.add_stream_from_template(first.streams.video[0])
        sounds = _add_audio(out, audio_from)
        origin, last = pieces[0].start, None
        with open_video(pieces[0].source) as source:
            base = source.streams.video[0].time_base
        for piece in pieces:
            last = _append(out, video, piece, (piece.start - origin) * base, last)
        _copy_audio(out, audio_from, sounds)


def _append(out: Any, video: Any, piece: Piece, shift_s: Fraction, last: int | None) -> int | None:
    """Append a piece, shifted to its place in the video; return its last decoding time."""
    file: Any
    with av.open(str(piece.target)) as file:
        stream = file.streams.video[0]
        shift = round(shift_s / stream.time_base)
        for packet in file.demux(stream):
            if packet.size == 0:
                continue
            packet.pts += shift
            packet.dts += shift
            # Decoding times of a piece may reach into the one before: only their order counts.
            if last is not None and packet.dts <= last:
                packet.dts = last + 1
            last = packet.dts
            packet.duration = round(piece.frame_s / stream.time_base)
            packet.stream = video
            out.mux(packet)
    return last


def _add_audio(out: Any, source: Path | None) -> dict[int, Any]:
    if source is None:
        return {}
    with open_video(source) as file:
        return {s.index: out.add_stream_from_template(s) for s in file.streams.audio}


def _copy_audio(out: Any, source: Path | None, sounds: dict[int, Any]) -> None:
    if source is None or not sounds:
        return
    with open_video(source) as file:
        for packet in file.demux(*file.streams.audio):
            if packet.size and packet.dts is not None:
                packet.stream = sounds[packet.stream.index]
                out.mux(packet)


def _lines(pieces: list[Piece]) -> Iterator[str]:
    for piece in pieces:
        with open(piece.target.with_suffix(".jsonl"), encoding="utf-8") as lines:
            yield from lines


def _report(
    pieces: list[Piece], output: Path, info: VideoInfo, settings: BlurConfig
) -> dict[str, Any]:
    """Join the detections of all pieces into one file of lines; return their counts."""
    minutes: Counter[int] = Counter()
    faces = frames_with = 0
    with (
        atomic_path(output.with_suffix(".faces.jsonl")) as temporary,
        open(temporary, "w", encoding="utf-8") as target,
    ):
        for line in _lines(pieces):
            found = json.loads(line)
            target.write(line)
            faces += len(found["faces"])
            frames_with += bool(found["faces"])
            minutes[int((found["time_s"] or 0) // 60)] += len(found["faces"])
    warnings = []
    if info.width % 2 or info.height % 2:
        warnings.append("odd size: the last row or column of pixels was cut off")
    if info.rotation:
        warnings.append(f"turned upright by {info.rotation} degrees")
    if settings.every > 1:
        warnings.append(f"faces were looked for on each {settings.every}th frame only")
    return {
        "counts": {"faces": faces, "frames_with_faces": frames_with, "pieces": len(pieces)},
        "faces_per_minute": [minutes[n] for n in range(max(minutes, default=-1) + 1)],
        "warnings": warnings,
    }


def _picture(piece: Piece, number: int, faces: int, frame: Any) -> None:
    """Keep a small picture of a covered frame for the contact sheet."""
    small = Image.fromarray(frame.to_ndarray(format="rgb24"))
    small.thumbnail(TILE)
    with atomic_path(piece.target.with_name(f"{number:09d}-{faces:03d}.png")) as temporary:
        small.save(temporary)


def _sheet(pieces: list[Piece], target: Path, info: VideoInfo) -> None:
    pictures = sorted(pieces[0].target.parent.glob("*-*.png"))
    labelled = []
    for path in pictures:
        number, faces = (int(part) for part in path.stem.split("-"))
        labelled.append((number, faces, path))
    contact_sheet(
        [
            (f"{number / info.fps:.1f} s, {faces} face{'s' * (faces != 1)}", path)
            for number, faces, path in choose_pictures(labelled, SHEET[0] * SHEET[1])
        ],
        target,
    )


def choose_pictures(found: list[tuple[int, int, Path]], count: int) -> list[tuple[int, int, Path]]:
    """Choose ``count`` of (frame, faces, picture), spread evenly, frames with faces first."""
    with_faces = [item for item in found if item[1]]
    chosen = _spread(with_faces, count)
    rest = [item for item in found if not item[1]]
    return sorted(chosen + _spread(rest, count - len(chosen)))


def _spread(items: list[T], count: int) -> list[T]:
    if len(items) <= count:
        return items
    return [items[int(n)] for n in np.linspace(0, len(items) - 1, count)] if count > 0 else []


def contact_sheet(pictures: list[tuple[str, Path]], target: Path) -> None:
    """Write a PNG of small pictures with a line of text under each."""
    columns, rows = SHEET
    wide, high = TILE[0], TILE[1] + 16
    sheet = Image.new("RGB", (columns * wide, rows * high), "white")
    draw = ImageDraw.Draw(sheet)
    for place, (text, path) in enumerate(pictures):
        left, top = place % columns * wide, place // columns * high
        with Image.open(path) as picture:
            small = picture.convert("RGB")
            small.thumbnail(TILE)
            middle = (wide - small.width) // 2, (TILE[1] - small.height) // 2
            sheet.paste(small, (left + middle[0], top + middle[1]))
        draw.text((left + 4, top + TILE[1] + 2), text, fill="black")
    with atomic_path(target) as temporary:
        sheet.save(temporary)


# --- frames ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Batch:
    """Some JPEG files for one process, and what was found in them."""

    files: tuple[Path, ...]
    faces: tuple[list[list[float]], ...] = ()


def blur_frames(folder: Path, settings: BlurConfig, workers: int = 1) -> dict[str, Any]:
    """Cover the faces in a folder's JPEG files, in place.

    Files without a face keep their bytes. A contact sheet goes to ``folder/faces.png``.

    Returns:
        frames, frames_with_faces, faces, detections (frame, boxes with scores), settings,
        model_sha256, backend.
    """
    files = sorted(folder.glob("*.jpg"))
    size = max(1, min(64, -(-len(files) // max(1, workers * 4))))
    size = -(-size // settings.every) * settings.every  # held boxes never cross processes
    batches = [Batch(tuple(files[n : n + size])) for n in range(0, len(files), size)]
    faces: dict[Path, list[list[float]]] = {}
    with tqdm(total=len(files), unit="frame", disable=not sys.stderr.isatty()) as bar:
        for batch in _each(blur_batch, batches, settings, workers):
            faces |= dict(zip(batch.files, batch.faces, strict=True))
            bar.update(len(batch.files))
    found = [(number, faces[path]) for number, path in enumerate(files)]
    sheet = choose_pictures([(n, len(b), files[n]) for n, b in found], SHEET[0] * SHEET[1])
    contact_sheet(
        [(f"frame {n}, {k} face{'s' * (k != 1)}", p) for n, k, p in sheet], folder / "faces.png"
    )
    return {
        "frames": len(files),
        "frames_with_faces": sum(bool(boxes) for _, boxes in found),
        "faces": sum(len(boxes) for _, boxes in found),
        "detections": [{"frame": n, "boxes": boxes} for n, boxes in found if boxes],
        "settings": settings.model_dump(mode="json"),
        "model_sha256": model_sha256(),
        "backend": choose_backend(settings.backend),
    }


_detectors: dict[tuple[int, int, str], FaceDetector] = {}


def _detector(width: int, height: int, settings: BlurConfig) -> FaceDetector:
    """Return this process's detector for frames of a size, made once."""
    key = (width, height, settings.model_dump_json())
    if key not in _detectors:
        _detectors[key] = FaceDetector(width, height, settings)
    return _detectors[key]


def blur_batch(batch: Batch, settings: BlurConfig) -> Batch:
    """Cover the faces of some JPEG files in place; return them with what was found."""
    found: list[list[list[float]]] = []
    boxes = np.empty((0, 5), np.float32)
    for number, path in enumerate(batch.files):
        with Image.open(path) as picture:
            pixels = np.array(picture.convert("RGB"))
            if number % settings.every == 0:
                boxes = _detector(pixels.shape[1], pixels.shape[0], settings)(pixels)
            if len(boxes):
                cover_rgb(pixels, boxes, settings)
                tables = getattr(picture, "quantization", None)
                with atomic_path(path) as temporary:
                    Image.fromarray(pixels).save(temporary, "JPEG", qtables=tables, subsampling=0)
        found.append(np.round(boxes, 3).tolist())
    return Batch(batch.files, tuple(found))
