"""Features of a labelled set, computed once per encoder and shared by evaluations.

One safetensors file a split: `features` float32 (N, D), not normalised, `labels` int64 (N,), and
under `about` in its metadata, as JSON, which encoder and which set they come from.
"""

import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from timewalk.artefacts import atomic_path, sha256_file, version
from timewalk.data.labelled import LabelledImages
from timewalk.data.workers import plain_errors
from timewalk.encoders import Encoder, load_encoder
from timewalk.encoders.base import Triple
from timewalk.errors import UserError

log = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Embeddings:
    """Features of one split.

    Attributes:
        features: float32 (N, D).
        labels: int64 (N,).
        classes: name of each class.
        about: digests of encoder and data set, split, precision.
    """

    features: Tensor
    labels: Tensor
    classes: list[str]
    about: dict[str, str]


def embed(
    encoder_dir: Path,
    manifest: Path,
    split: Literal["train", "test"],
    output: Path,
    *,
    batch_size: int = 64,
    workers: int = 0,
    device: str | torch.device = "auto",
    precision: Precision = "fp32",
) -> dict[str, Any]:
    """Compute the summary features of one split and write them.

    Args:
        encoder_dir: a run's folder.
        manifest: the labelled set's ``manifest.json``.
        split: `train` or `test`.
        output: the safetensors file.
        batch_size: images at a time; changes speed and memory, results only by rounding.
        workers: processes that read images.
        device: `auto` is the first GPU, or the CPU where there is none.
        precision: arithmetic of the network.

    Returns:
        counts: images, width, and the device.

    Raises:
        UserError: an unreadable image or encoder, or features that are not finite.
    """
    where = _device(device)
    images = LabelledImages(manifest, split)
    encoder = load_encoder(encoder_dir).eval().to(where)
    extractor = Extractor(encoder, where, precision)
    features = compute_features(extractor, images, batch_size, workers)
    if not bool(features.isfinite().all()):
        raise UserError(
            f"{encoder_dir} gives features that are not finite for {manifest}; train it again."
        )
    about = {
        "encoder_sha256": sha256_file(encoder_dir / "encoder.safetensors"),
        "dataset": images.name,
        "dataset_sha256": sha256_file(manifest),
        "split": split,
        "precision": precision,
        "timewalk": version(),
        "classes": images.classes,
    }
    # One key: safetensors writes several in an order that changes from process to process.
    metadata = {"about": json.dumps(about, ensure_ascii=False, sort_keys=True)}
    with atomic_path(output) as temporary:
        save_file({"features": features, "labels": images.labels}, temporary, metadata=metadata)
    return {"images": len(images), "width": features.shape[1], "device": where.type}


class Extractor:
    """Bytes of images to float32 vectors, on the device, without gradients.

    Args:
        encoder: in eval mode, on the device.
        device: where to compute.
        precision: arithmetic of the network.
        features: normalised images (B, 3, H, W) to (B, D); None: the encoder's summary.
        std: standard deviation of the colours, where a protocol has its own; None: the encoder's.
        mean: of the colours, likewise.
    """

    def __init__(
        self,
        encoder: Encoder,
        device: torch.device,
        precision: Precision = "fp32",
        features: Callable[[Tensor], Tensor] | None = None,
        std: Triple | None = None,
        mean: Triple | None = None,
    ) -> None:
        self.device, self.precision = device, precision
        self._features = features or encoder.summary
        self._mean, self._std = (
            torch.tensor(values, device=device).reshape(1, 3, 1, 1)
            for values in (mean or encoder.mean, std or encoder.std)
        )

    @torch.no_grad()
    def __call__(self, batch: Tensor) -> Tensor:
        """Return the features (B, D) of images (B, 3, H, W), 0 to 255, that lie anywhere."""
        exact = torch.backends.cudnn.flags(
            enabled=True, benchmark=False, deterministic=True, allow_tf32=False
        )
        pixels = (batch.to(self.device, non_blocking=True).float() / 255 - self._mean) / self._std
        with exact, torch.autocast(self.device.type, torch.bfloat16, self.precision == "bf16"):
            return self._features(pixels).float()


def compute_features(
    extractor: Extractor, images: LabelledImages, batch_size: int, workers: int
) -> Tensor:
    """Return the features of each image, float32 (N, D) on the CPU, in the images' order."""
    # Forked workers share the list of images; nothing of CUDA lives in them.
    loader = DataLoader(
        images,
        batch_size,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        pin_memory=extractor.device.type == "cuda",
    )
    features, start = torch.empty(0), 0
    with _progress(len(images)) as bar, plain_errors():
        for batch, _ in loader:
            found = extractor(batch)
            if start == 0:
                features = torch.empty(len(images), found.shape[1])
            features[start : start + len(batch)] = found.cpu()
            start += len(batch)
            bar.update(len(batch))
    return features


def load_embeddings(path: Path) -> Embeddings:
    """Read what :func:`embed` wrote.

    Raises:
        UserError: the file is missing, damaged or of another kind.
    """
    try:
        with safe_open(path, "pt") as file:
            about = json.loads((file.metadata() or {})["about"])
            features, labels = file.get_tensor("features"), file.get_tensor("labels")
        classes = list(about.pop("classes"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing: run the embed stage.") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"{path} holds no embeddings ({error}); delete it and run the embed stage again."
        ) from None
    return Embeddings(features, labels, classes, about)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        log.info("running on %s", device)
    return torch.device(device)


def _progress(total: int) -> Any:
    return tqdm(total=total, unit="image", disable=not sys.stderr.isatty())
