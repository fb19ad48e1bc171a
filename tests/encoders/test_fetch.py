"""Weights from an address, served by this machine."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from tests.encoders.test_weights import VIT, encoder, tensors
from timewalk.encoders.fetch import cache_folder, fetch
from timewalk.errors import UserError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TIMEWALK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


@pytest.fixture
def served(tmp_path):
    """Return the address of a server; `files` may change what it gives, `asked` counts."""
    torch.save(tensors(), tmp_path / "vit.pth")
    whole = (tmp_path / "vit.pth").read_bytes()

    class Handler(BaseHTTPRequestHandler):
        asked = 0

        def do_GET(self):
            Handler.asked += 1
            if "absent" in self.path:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole[: len(whole) // 2] if "half" in self.path else whole)

        def log_message(self, *words):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    Handler.address = f"http://127.0.0.1:{server.server_port}"
    Handler.digest = hashlib.sha256(whole).hexdigest()
    yield Handler
    server.shutdown()
    server.server_close()
    thread.join()


def test_fetched_once_and_loaded(cache, served):
    address = f"{served.address}/vit.pth"
    for _ in range(2):
        found = encoder(VIT, seed=5, weights=address, sha256=served.digest)
    assert torch.equal(found.cls_token, encoder().cls_token)
    assert served.asked == 1
    assert cache == cache_folder()
    assert [path.name[-8:] for path in cache.iterdir()] == ["-vit.pth"]


def test_another_digest_is_refused(cache, served):
    with pytest.raises(UserError, match=r"vit\.pth has SHA-256 .* but encoder\.sha256 is 0000"):
        encoder(weights=f"{served.address}/vit.pth", sha256="0" * 64)


def test_half_a_file_never_stays(cache, served):
    for _ in range(2):
        with pytest.raises(UserError, match=r"broke off after \d+ of \d+ bytes"):
            fetch(f"{served.address}/half.pth")
    assert served.asked == 2
    assert list(cache.iterdir()) == []


def test_what_is_not_there_is_one_sentence(cache, served):
    with pytest.raises(UserError, match=r"absent\.pth cannot be fetched .*404"):
        fetch(f"{served.address}/absent.pth")
    with pytest.raises(UserError, match="cannot be fetched"):
        fetch("http://127.0.0.1:1/nobody.pth")
