"""What the pages tell people to pack and to send: no weights, no raw videos."""

import subprocess
import tarfile
from itertools import pairwise
from pathlib import Path

from tests.docs.reading import of

KEPT = (
    "results/report.html",
    "results/summary.csv",
    "results/crw/card.md",
    "results/crw/davis.json",
    "results/crw/davis/overlays/dog.mp4",
    "results/crw/jhmdb/poses/dog.npy",
    "results/demo/crw/figures/walks-0.png",
)
LEFT = (
    "results/crw/encoder.safetensors",
    "results/crw/finetuned/coco/network.safetensors",
    "results/crw/checkpoints/step-000000004.pt",
    "results/crw/embeddings/digits-train.npy",
    "results/crw/knn/work/maps.npy",
    "results/mlartifacts/models/m-1/artifacts/data/model.pth",
    "results/mlflow.db",
    "results/mlflow.db-wal",
    "results/demo/mlflow.db",
    "results/demo/mlartifacts/models/m-2/artifacts/data/model.pth",
)
WEIGHTS = {".pt", ".pth", ".safetensors", ".db"}


def test_the_packed_report_has_no_weights(tmp_path):
    for name in (*KEPT, *LEFT):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (command,) = [c for c in of("tar") if c.page == "docs/report.md"]
    subprocess.run(command.words, cwd=tmp_path, check=True)
    with tarfile.open(tmp_path / "report.tar.gz") as archive:
        packed = {member.name for member in archive if member.isfile()}
    assert packed == set(KEPT)
    assert not {Path(name).suffix for name in packed} & WEIGHTS


def test_the_copy_that_is_handed_on_has_no_raw_videos():
    (command,) = [c for c in of("rsync") if c.page == "docs/data_cards.md"]
    excluded = {word for option, word in pairwise(command.words) if option == "--exclude"}
    # With no slash in front it is a folder of that name anywhere, such as data/demo/videos/.
    assert excluded == {"videos/", ".*"}


def test_frames_by_hand_are_of_the_blurred_video():
    """As `frames` alone does not blur."""
    chain = [c.words for c in of("timewalk") if c.page == "docs/commands.md"]
    (blurred,) = [words[3] for words in chain if words[1] == "blur"]
    (frames,) = [words for words in chain if words[1] == "frames"]
    assert frames[2] == blurred or "--blur" in frames
