"""Keys of videos, their download, the blurring of faces and the extraction of frames."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from timewalk.config.base import Positive, Probability, Strict


class VideoConfig(Strict):
    """Where one video comes from and which part of it counts."""

    source: str
    """YouTube or other http(s) address, `package:<import name>/<file inside it>`, or a path"""
    mirror: str | None = None
    """address tried when the source cannot be reached"""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """digest of the file; a difference is an error"""
    duration_s: Annotated[float, Field(gt=0)] | None = None
    """expected duration in seconds; more than `download.duration_tolerance_s` off is an error"""
    licence: str = "unknown"
    """licence of the video, for the record"""
    start_s: Annotated[float, Field(ge=0)] = 0.0
    """first second of the content, for the frames stage"""
    end_s: Annotated[float, Field(gt=0)] | None = None
    """last second of the content, for the frames stage; null: to the end"""
    max_blank_share: Probability | None = None
    """largest allowed share of near-constant frames; null: `download.max_blank_share`"""


class DownloadConfig(Strict):
    """How videos are fetched and checked."""

    max_height: Positive = 2160
    """largest height in pixels that is asked of YouTube"""
    retries: Annotated[int, Field(ge=0)] = 20
    """how often a broken transfer is taken up again"""
    timeout_s: Annotated[float, Field(gt=0)] = 30.0
    """seconds without a byte after which a connection counts as broken"""
    cookies: str | None = None
    """path of a cookie file (Netscape format) for videos behind a sign-in; never logged"""
    duration_tolerance_s: Annotated[float, Field(ge=0)] = 1.0
    """allowed difference in seconds between the expected duration and the file's"""
    max_blank_share: Probability = 0.1
    """largest allowed share of near-constant (blank) frames among those sampled"""


class BlurConfig(Strict):
    """Face blurring. Faces only: no licence plates; misses happen."""

    what: Literal["faces", "off"] = "faces"
    """`faces`, or `off`"""
    where: Literal["video", "frames"] = "frames"
    """`video`: every frame of the video, kept as a blurred video; `frames`: only the frames that
    training reads, while they are extracted"""
    threshold: Probability = 0.2
    """detection score above which a box counts as a face"""
    mask_scale: Annotated[float, Field(ge=1)] = 1.3
    """the box grows by (mask_scale - 1) times its height (width) on each side"""
    shape: Literal["ellipse", "box"] = "ellipse"
    """what is covered: the ellipse inscribed in the enlarged box, or all of it"""
    method: Literal["blur", "solid", "mosaic"] = "blur"
    """a box filter of half the box's size, black, or tiles of `mosaic_size` pixels"""
    mosaic_size: Annotated[int, Field(ge=2)] = 20
    """side of a mosaic tile in pixels"""
    detection_width: Annotated[int, Field(ge=32)] = 640
    """width in pixels at which faces are looked for (rounded up to a multiple of 32)"""
    detection_height: Annotated[int, Field(ge=32)] = 360
    """height in pixels at which faces are looked for (rounded up to a multiple of 32)"""
    every: Positive = 1
    """detect on each n-th frame and hold the boxes between: more than 1 trades privacy for time"""
    crf: Annotated[int, Field(ge=0, le=51)] = 20
    """quality of the blurred video (x264's constant rate factor: smaller is better)"""
    preset: Literal["ultrafast", "veryfast", "fast", "medium", "slow"] = "veryfast"
    """speed of the blurred video's encoder"""
    keep_audio: bool = False
    """carry the audio streams over (off: training needs none, and voices are personal too)"""
    segment_s: Annotated[float, Field(gt=0)] = 60.0
    """length in seconds of the segments that workers share, cut at key frames"""
    backend: Literal["auto", "onnxruntime", "openvino"] = "auto"
    """detector runtime; `auto`: ONNX Runtime, on a GPU where its CUDA provider is there; both find
    the same boxes"""

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        """Read `blur: off` and `blur: faces` (YAML turns a bare `off` into false)."""
        if value is False or value == "off":
            return {"what": "off"}
        if value is True or value == "faces":
            return {"what": "faces"}
        if isinstance(value, dict) and value.get("what") is False:
            return {**value, "what": "off"}
        return value


class FramesConfig(Strict):
    """Frame extraction."""

    fps: Annotated[float, Field(gt=0)] | None = None
    """frames a second; null: every frame of the video"""
    short_side: Annotated[int, Field(ge=16)] | None = 480
    """shorter side in pixels (never enlarged); null: as in the video"""
    quality: Annotated[int, Field(ge=2, le=31)] = 2
    """JPEG quality on ffmpeg's scale: 2 is best, 31 is worst"""
