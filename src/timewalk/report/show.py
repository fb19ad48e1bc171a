"""What a finished suite has to show, for a terminal."""

from pathlib import Path

from timewalk.artefacts import read_json
from timewalk.errors import UserError


def show(results: Path) -> str:
    """Return the table of results, the paths of the pictures and the way to the dashboard."""
    table = results / "summary.md"
    if not table.exists():
        raise UserError(f"{table} is missing: run the suite whose results_dir is {results} first.")
    parts = [table.read_text(encoding="utf-8").rstrip(), "", "Pictures:"]
    parts += [f"  {path}" for path in pictures(results)] or ["  none"]
    parts += ["", f"Tables: {results}/summary.csv, .md, .tex"]
    parts += [f"MLflow store: {results}/mlflow.db"]
    return "\n".join(parts)


def pictures(results: Path) -> list[Path]:
    """Return the pictures of all runs, each evaluation's first, and the contact sheets of the blur
    that fed them."""
    sheets: set[Path] = set()
    for about in results.glob("*/encoder.json"):
        for manifest in read_json(about)["provenance"].get("inputs", {}):
            shards = Path(manifest)
            data = shards.parents[2]
            sheets.update(data.glob(f"blurred/{shards.stem}.png"))
            sheets.update(data.glob(f"frames/{shards.parent.name}/{shards.stem}/*.png"))
    drawn = set(results.glob("*/figures/*.png"))
    for result in results.glob("*/*.json"):
        content = read_json(result)
        artefacts = content.get("artefacts", []) if isinstance(content, dict) else []
        pngs = [result.parent / name for name in artefacts if name.endswith(".png")]
        drawn.update(pngs[:1])
    return [*sorted(sheets), *sorted(drawn)]
