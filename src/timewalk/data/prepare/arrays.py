"""Labelled arrays: one ``.npz``, a folder of idx files (MNIST's format), or scikit-learn's digits.

Images are uint8 (N, H, W) or (N, H, W, 3); labels are whole numbers from 0.
"""

import gzip
import hashlib
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np

from timewalk.artefacts import atomic_path, sha256_file
from timewalk.config import ArrayLabels
from timewalk.data.prepare.base import Prepared
from timewalk.data.prepare.folder import relative_to
from timewalk.errors import UserError

Split = tuple[np.ndarray, np.ndarray]
SPLITS = ("train", "test")
IDX_STEMS = {"train": "train", "test": "t10k"}
DIGITS_TRAIN_SHARE = 2 / 3


def prepare_arrays(name: str, config: ArrayLabels, output: Path) -> Prepared:
    """Check the arrays; `digits` is written as ``images.npz`` beside the manifest.

    Raises:
        UserError: a missing or damaged file, or arrays of a wrong shape, type or length.
    """
    if config.path == "digits":
        path = output / "images.npz"
        _write_digits(path)
        place = path.name
    else:
        path = Path(config.path)
        place = relative_to(path, output)
    splits = {split: load_split(path, split) for split in SPLITS}
    count = 1 + max(int(labels.max()) for _, labels in splits.values())
    digest = hashlib.sha256()
    for images, labels in splits.values():
        digest.update(np.ascontiguousarray(images).data)
        digest.update(labels.astype("<i8").tobytes())
    return Prepared(
        classes=[str(i) for i in range(count)],
        labels={split: labels.tolist() for split, (_, labels) in splits.items()},
        source={"kind": "arrays", "path": place},
        digest=digest.hexdigest(),
        inputs={file.name: sha256_file(file) for file in _files(path)},
    )


def load_split(path: Path, split: str) -> Split:
    """Return images, uint8 (N, H, W) or (N, H, W, 3), and labels, int64 (N,), of a split.

    Args:
        path: an ``.npz`` file, or a folder of idx files.
        split: `train` or `test`.
    """
    images, labels = _load_idx(path, split) if path.is_dir() else _load_npz(path, split)
    if images.dtype != np.uint8 or not (images.ndim == 3 or images.shape[3:] == (3,)):
        raise UserError(
            f"{path}: {split} images are {images.dtype} {images.shape}; "
            "make them uint8 (N, H, W) or (N, H, W, 3)."
        )
    if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise UserError(
            f"{path}: {split} labels are {labels.dtype} {labels.shape} for {len(images)} images; "
            "make them whole numbers, one an image."
        )
    if len(labels) == 0 or labels.min() < 0:
        raise UserError(f"{path}: {split} labels are empty or negative; number classes from 0.")
    return images, labels.astype(np.int64)


def _load_npz(path: Path, split: str) -> Split:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return arrays[f"{split}_images"], arrays[f"{split}_labels"]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; correct the path of the labelled set.") from None
    except KeyError:
        raise UserError(
            f"{path} holds no '{split}_images' and '{split}_labels'; save them under these names."
        ) from None
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise UserError(
            f"{path} cannot be read as .npz ({error}); make or fetch it again."
        ) from None


def _load_idx(folder: Path, split: str) -> Split:
    return (
        read_idx(_idx_file(folder, split, "images-idx3-ubyte")),
        read_idx(_idx_file(folder, split, "labels-idx1-ubyte")),
    )


def _idx_file(folder: Path, split: str, kind: str) -> Path:
    name = f"{IDX_STEMS[split]}-{kind}"
    for file in (folder / f"{name}.gz", folder / name):
        if file.is_file():
            return file
    raise UserError(f"{folder / name}.gz is missing; fetch it, or correct the set's path.")


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    kinds = ("images-idx3-ubyte", "labels-idx1-ubyte")
    return [_idx_file(path, split, kind) for split in SPLITS for kind in kinds]


def read_idx(path: Path) -> np.ndarray:
    """Read an idx file of bytes, gzipped or not.

    The header: two zero bytes, 8 (bytes), the rank, and the sizes as big-endian uint32.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be unpacked ({error}); fetch it again.") from None
    rank = raw[3] if raw[:3] == b"\0\0\x08" and len(raw) > 3 else 0
    start = 4 + 4 * rank
    if rank == 0 or len(raw) < start:
        raise UserError(f"{path} is no idx file of bytes; fetch it again.")
    shape = struct.unpack(f">{rank}I", raw[4:start])
    if len(raw) - start != int(np.prod(shape, dtype=np.int64)):
        raise UserError(f"{path} holds {len(raw) - start} bytes for {shape}; fetch it again.")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _write_digits(path: Path) -> None:
    """Write scikit-learn's digits: of each class the first two thirds train, the rest test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError(
            "labelled path 'digits' needs the Python package scikit-learn; pip install it."
        ) from None
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)
    labels = data.target.astype(np.int64)
    trains = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        trains[members[: round(len(members) * DIGITS_TRAIN_SHARE)]] = True
    with atomic_path(path) as temporary:
        np.savez(
            temporary,
            train_images=images[trains],
            train_labels=labels[trains],
            test_images=images[~trains],
            test_labels=labels[~trains],
        )
