"""Loading an encoder in one line: `timewalk.load_encoder`, and torch.hub from a checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import timewalk
from timewalk.config import EncoderConfig
from timewalk.encoders import build_encoder, save_encoder

KEYS = {"width": 24, "depth": 2, "heads": 4, "patch_size": 8, "image_size": 32}
SITE = Path(sysconfig.get_paths()["purelib"])
# Without `site` the folder's .pth files, by which a checkout is installed, do not count.
BARE = [sys.executable, "-S"]


@pytest.fixture
def checkout(tmp_path, root):
    """A copy of what torch.hub needs, with a run."""
    shutil.copy(root / "hubconf.py", tmp_path)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "src" / "timewalk", tmp_path / "src" / "timewalk", ignore=ignored)
    encoder = build_encoder(EncoderConfig(name="vit_tiny", **KEYS), seed=3)
    save_encoder(encoder, tmp_path / "results" / "dora", {"run": "dora"})
    return tmp_path


def hub(checkout, line, *command):
    """Run a line that has `load(name, ...)`, in a process of its own; return what it prints."""
    script = (
        "import functools, json, sys, torch\n"
        f"load = functools.partial(torch.hub.load, {str(checkout)!r}, source='local')\n"
        f"{line}"
    )
    environment = os.environ | {"PYTHONPATH": str(SITE) if command else "", "OMP_NUM_THREADS": "1"}
    words = [*(command or [sys.executable]), "-c", script]
    return subprocess.run(words, cwd=checkout, capture_output=True, text=True, env=environment)


def test_importing_timewalk_is_cheap():
    script = "import sys, timewalk; print(sorted({'torch', 'timm', 'pydantic'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_package_offers_the_loader(checkout):
    encoder = timewalk.load_encoder(checkout / "results" / "dora")
    assert (encoder.width, encoder.training) == (24, False)
    assert "load_encoder" in dir(timewalk)
    with pytest.raises(AttributeError, match="'timewalk' has no attribute 'load_encodr'"):
        timewalk.load_encodr  # noqa: B018


def test_a_run_by_torch_hub_without_an_installed_timewalk(checkout):
    if SITE in Path(timewalk.__file__).parents:
        pytest.skip("timewalk is installed as a copy, which cannot be hidden")
    line = """
network = load("encoder", "results/dora")
torch.set_grad_enabled(False)
import timewalk
print(json.dumps([network(torch.ones(1, 3, 32, 32)).summary.tolist(), timewalk.__file__]))
"""
    done = hub(checkout, line, *BARE)
    assert done.returncode == 0, done.stderr
    summary, place = json.loads(done.stdout)
    assert Path(place) == checkout / "src" / "timewalk" / "__init__.py"
    with torch.no_grad():
        here = timewalk.load_encoder(checkout / "results" / "dora")(torch.ones(1, 3, 32, 32))
    torch.testing.assert_close(torch.tensor(summary), here.summary)


def test_an_installed_timewalk_comes_first(checkout):
    line = 'load("encoder", "results/dora"); import timewalk; print(timewalk.__file__)'
    done = hub(checkout, line)
    assert Path(done.stdout.strip()) == Path(timewalk.__file__), done.stderr


def test_fresh_vits_and_given_weights(checkout):
    torch.save(timewalk.load_encoder(checkout / "results/dora").state_dict(), checkout / "w.pth")
    line = f"""
fresh = [load(name) for name in ("vit_tiny", "vit_small", "vit_base")]
given = load("vit_tiny", weights="w.pth", **{KEYS!r})
run = load("encoder", "results/dora")
again = load("vit_tiny", seed=0)
print(json.dumps({{
    "shapes": [[n.width, len(n.blocks), n.heads, n.stride, n.training] for n in fresh],
    "given": all(torch.equal(a, b) for a, b in zip(given.parameters(), run.parameters())),
    "seeded": torch.equal(fresh[0].pos_embed, again.pos_embed),
    "other": torch.equal(fresh[0].pos_embed, load("vit_tiny", seed=1).pos_embed),
}}))
"""
    done = hub(checkout, line)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "shapes": [
            [192, 12, 3, 16, False],
            [384, 12, 6, 16, False],
            [768, 12, 12, 16, False],
        ],
        "given": True,
        "seeded": True,
        "other": False,
    }


def test_a_mistake_names_the_key(checkout):
    done = hub(checkout, 'load("vit_small", patch_sise=8)')
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.endswith("encoder.patch_sise: unknown key; did you mean 'patch_size'?")


def test_the_entry_points_are_these_and_documented(checkout):
    line = """
sys.path.insert(0, ".")
import hubconf
entries = {name: value.__doc__ for name, value in vars(hubconf).items()
           if callable(value) and not name.startswith("_")}
print(json.dumps(entries))
"""
    done = hub(checkout, line)
    entries = json.loads(done.stdout)
    assert entries.keys() == {"encoder", "vit_tiny", "vit_small", "vit_base"}
    assert all(text.startswith("Return ") for text in entries.values())
