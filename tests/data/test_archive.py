"""Archives of video sets, served by this machine: resume, digests, and what is not unpacked."""

import hashlib
import io
import stat
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.miniature import video_sets
from timewalk.config import Davis2017, YouTubeVOS
from timewalk.data.prepare import archive, davis, prepare, published
from timewalk.data.prepare.archive import unpack
from timewalk.data.prepare.videos import Archive, Source
from timewalk.errors import UserError


@pytest.fixture
def server():
    """Serve ``files`` by name with resume; the first ``cut`` answers break off half-way."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.0"
        files, cut, asked = {}, 0, []

        def do_GET(self):
            name = self.path.lstrip("/")
            Handler.asked.append((name, self.headers.get("Range")))
            if name not in Handler.files:
                self.send_error(404)
                return
            data = Handler.files[name]
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.send_header("Content-Length", str(len(data) - start))
            self.send_header("ETag", '"1"')
            self.end_headers()
            stop = len(data)
            if Handler.cut:
                Handler.cut, stop = Handler.cut - 1, (start + len(data)) // 2
            self.wfile.write(data[start:stop])

        def log_message(self, *words):
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    Handler.address = f"http://127.0.0.1:{http.server_port}"
    yield Handler
    http.shutdown()
    http.server_close()
    thread.join()


def zipped(root):
    """Return a zip of a folder, under the folder's own name."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as packed:
        packed.writestr("__MACOSX/._x", "")
        for path in sorted(root.rglob("*")):
            packed.write(path, path.relative_to(root.parent))
    return data.getvalue()


@pytest.fixture
def davis_zip(tmp_path, server):
    video_sets.davis2017(tmp_path / "made" / "DAVIS")
    server.files["DAVIS.zip"] = zipped(tmp_path / "made" / "DAVIS")
    return server.files["DAVIS.zip"]


def run(tmp_path, **changes):
    config = Davis2017(kind="davis2017", root=str(tmp_path / "raw"), **changes)
    return prepare("set", config, tmp_path / "set" / "manifest.json")


def test_fetched_with_resume_checked_unpacked_once(tmp_path, server, davis_zip):
    server.cut = 2
    digest = hashlib.sha256(davis_zip).hexdigest()
    about = run(tmp_path, url=f"{server.address}/DAVIS.zip", sha256=digest)
    assert about["counts"]["frames"] == 10
    assert about["inputs"]["DAVIS.zip"] == digest
    assert about["warnings"] == []
    half = len(davis_zip) // 2
    ranges = [asked for _, asked in server.asked]
    assert ranges[:2] == [None, f"bytes={half}-"]
    assert len(ranges) == 3
    visible = [path.name for path in (tmp_path / "raw").iterdir() if path.name[0] != "."]
    assert visible == ["DAVIS"]
    assert run(tmp_path, url=f"{server.address}/DAVIS.zip", sha256=digest) == about
    assert len(server.asked) == 3


def test_without_a_digest_the_found_one_is_recorded(tmp_path, server, davis_zip):
    digest = hashlib.sha256(davis_zip).hexdigest()
    for _ in range(2):
        about = run(tmp_path, url=f"{server.address}/DAVIS.zip")
        assert about["warnings"] == [
            f"DAVIS.zip was fetched without a known digest; it has sha256 {digest}"
        ]
    assert len(server.asked) == 1


def test_another_file_than_expected(tmp_path, server, davis_zip):
    with pytest.raises(
        UserError, match=r"labelled\.set: the file from http.*DAVIS\.zip has sha256 .*, not 000"
    ):
        run(tmp_path, url=f"{server.address}/DAVIS.zip", sha256="0" * 64)
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [".lock"]


def test_an_address_that_does_not_answer(tmp_path, server):
    with pytest.raises(UserError, match=r"answers 404 .*, or unpack the archive into .*raw yours"):
        run(tmp_path, url=f"{server.address}/other.zip")


def test_a_file_that_is_no_archive(tmp_path, server):
    server.files["page.zip"] = b"<html>"
    with pytest.raises(UserError, match=r"page\.zip cannot be unpacked \(it is neither a zip nor"):
        run(tmp_path, url=f"{server.address}/page.zip")


def test_an_archive_of_something_else(tmp_path, server):
    (tmp_path / "other").mkdir()
    server.files["other.zip"] = zipped(tmp_path / "other")
    with pytest.raises(UserError, match=r"raw holds no JPEGImages/480p; get DAVIS 2017 from"):
        run(tmp_path, url=f"{server.address}/other.zip")


def test_a_damaged_archive(tmp_path, server, davis_zip):
    broken = bytearray(davis_zip)
    middle = broken.index(b"JPEGImages/480p/camel/00000.jpg") + 200
    broken[middle : middle + 50] = bytes(50)
    server.files["DAVIS.zip"] = bytes(broken)
    with pytest.raises(UserError, match=r"DAVIS\.zip cannot be unpacked \(.+\); correct"):
        run(tmp_path, url=f"{server.address}/DAVIS.zip")
    assert not (tmp_path / "raw" / "DAVIS").exists()


def encrypted(content):
    """Set the flag of encryption in the local and the central headers of a zip."""
    content = bytearray(content)
    for magic, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = content.find(magic)
        while start >= 0:
            content[start + flags] |= 1
            start = content.find(magic, start + 4)
    return bytes(content)


def test_an_encrypted_archive(tmp_path, server, davis_zip):
    server.files["DAVIS.zip"] = encrypted(davis_zip)
    with pytest.raises(UserError, match=r"DAVIS\.zip cannot be unpacked \(it is encrypted\); cor"):
        run(tmp_path, url=f"{server.address}/DAVIS.zip")
    assert [path.name for path in (tmp_path / "raw").iterdir()] == [".lock"]


def test_several_official_archives_are_fetched_one_by_one(tmp_path, server, monkeypatch):
    video_sets.davis2017(tmp_path / "made")
    parts = ("JPEGImages", "Annotations", "ImageSets")
    for part in parts:
        server.files[f"{part}.zip"] = zipped(tmp_path / "made" / part)
    source = Source(
        "DAVIS",
        "a page",
        "a tree",
        ("JPEGImages/480p", "ImageSets"),
        archives=tuple(Archive(f"{server.address}/{part}.zip", part) for part in parts),
    )
    kind = published.KINDS["davis2017"]._replace(source=lambda config: source)
    monkeypatch.setitem(published.KINDS, "davis2017", kind)
    with pytest.raises(UserError, match=r"set\.sha256: DAVIS comes in 3 archives; leave the key"):
        run(tmp_path, url="official", sha256="0" * 64)
    ready = server.files.pop("ImageSets.zip")
    with pytest.raises(UserError, match="answers 404"):
        run(tmp_path, url="official")
    server.files["ImageSets.zip"] = ready
    assert run(tmp_path, url="official")["counts"]["sequences"] == 2
    assert [name for name, _ in server.asked].count("JPEGImages.zip") == 1


def test_a_set_without_a_public_address(tmp_path):
    config = YouTubeVOS(kind="youtube_vos", root=str(tmp_path / "raw"), url="official")
    with pytest.raises(
        UserError,
        match=r"set\.url: YouTube-VOS has no stable public address; get it from https://youtube",
    ):
        prepare("set", config, tmp_path / "set" / "manifest.json")


def test_the_official_archives_of_davis():
    config = Davis2017(kind="davis2017", root="x")
    known = davis.source_davis2017(config).archives[0]
    assert known.url.endswith("/DAVIS-2017-trainval-480p.zip")
    assert known.sha256.startswith("e3d0b5b7")
    test = config.model_copy(update={"subset": "test-dev", "task": "unsupervised"})
    other = davis.source_davis2017(test).archives[0]
    assert other.url.endswith("/DAVIS-2019-Unsupervised-test-dev-480p.zip")
    assert other.sha256 is None


def packed_tar(*items):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as packed:
        for item in items:
            packed.addfile(item)
    return data.getvalue()


def link(name, target):
    item = tarfile.TarInfo(name)
    item.type, item.linkname = tarfile.SYMTYPE, target
    return item


def packed_zip(name, mode=0):
    data = io.BytesIO()
    item = zipfile.ZipInfo(name)
    item.external_attr = mode << 16
    with zipfile.ZipFile(data, "w") as packed:
        packed.writestr(item, "x")
    return data.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        packed_tar(tarfile.TarInfo("../evil")),
        packed_tar(tarfile.TarInfo("/evil")),
        packed_tar(tarfile.TarInfo("a/good"), link("evil", "a/good")),
        packed_zip("../evil"),
        packed_zip("/evil"),
        packed_zip("a\\..\\..\\evil"),
        packed_zip("evil", stat.S_IFLNK | 0o777),
    ],
    # Packed bytes hold the time: as names they would differ between the processes of a test run.
    ids=[
        "tar-above",
        "tar-absolute",
        "tar-link",
        "zip-above",
        "zip-absolute",
        "zip-windows",
        "zip-link",
    ],
)
def test_names_outside_and_links_are_refused(tmp_path, content):
    path = tmp_path / "root" / "set.archive"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"which is no plain file inside its folder; it is not un"):
        unpack(path, path.parent)
    assert [item.name for item in tmp_path.rglob("*")] == ["root", "set.archive"]


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "set.tar.gz"
    path.write_bytes(packed_tar(tarfile.TarInfo("first"), tarfile.TarInfo("second")))
    (tmp_path / "second").write_text("mine")
    with pytest.raises(UserError, match=r"second is in the way of what set\.tar\.gz holds"):
        unpack(path, tmp_path)
    assert (tmp_path / "second").read_text() == "mine"
    assert not (tmp_path / "first").exists()


def test_left_overs_of_a_killed_job_are_removed(tmp_path):
    path = tmp_path / "set.tar.gz"
    path.write_bytes(packed_tar(tarfile.TarInfo("first")))
    (tmp_path / "set.tar.gz.unpacked").mkdir()
    (tmp_path / "set.tar.gz.unpacked" / "old").write_text("")
    unpack(path, tmp_path)
    assert sorted(item.name for item in tmp_path.iterdir()) == ["first", "set.tar.gz"]
    assert archive.NOTE not in {item.name for item in tmp_path.iterdir()}
