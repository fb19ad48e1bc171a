"""Where a result comes from: versions, commit, device, seed and digests."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from timewalk.artefacts import version

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")


def git_commit() -> str | None:
    """Return the commit of the checkout that this code runs from, `+changes` if edited, or None."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=here, capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        if not git("ls-files", __file__):
            return None
        changes = git("status", "--porcelain", "--untracked-files=no", "--", str(here))
        return git("rev-parse", "HEAD") + ("+changes" if changes else "")
    except FileNotFoundError:
        return None


def provenance(device: torch.device, **extra: Any) -> dict[str, Any]:
    """Return what every result carries beside its numbers."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "timewalk": version(),
        "git_commit": git_commit(),
        "python": platform.python_version(),
        "packages": {package: metadata.version(package) for package in PACKAGES},
        "device": f"{device.type} ({name})",
        **extra,
    }
