"""Downloads from a server on this machine: resume, mirrors, checksums, no network."""

import hashlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from sigma.datamodules.download import Source, download
from sigma.datamodules.locate import unpacked
from sigma.datamodules.sets.ml_latest_small import MLLatestSmall
from sigma.errors import UserError
from tests.datamodules import raw_files as raw
from tests.datamodules.test_cache import broken

CONTENT = bytes(range(256)) * 4000
SHA = f"sha256:{hashlib.sha256(CONTENT).hexdigest()}"


class Server:
    """A web server whose faults are set by a test."""

    def __init__(self) -> None:
        self.content = CONTENT
        self.ranges: list[str | None] = []  # of each request
        self.break_after: int | None = None  # bytes, of the next request only
        self.status: int | None = None
        self.knows_ranges = True
        handler = type("Handler", (BaseHTTPRequestHandler,), {"do_GET": lambda r: self.answer(r)})
        handler.log_message = lambda *_: None
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_port}/file.bin"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        span = request.headers.get("Range")
        self.ranges.append(span)
        known = span is not None and self.knows_ranges
        start = int(span.removeprefix("bytes=").removesuffix("-")) if known else 0
        if self.status is not None or start >= len(self.content):
            request.send_error(self.status or 416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(self.content) - start))
        request.end_headers()
        end = len(self.content) if self.break_after is None else start + self.break_after
        self.break_after = None
        request.wfile.write(self.content[start:end])


def running() -> Iterator[Server]:
    server = Server()
    yield server
    server.http.shutdown()
    server.http.server_close()


# A second mirror, to which a test gives a fault, beside the first.
server, bad = pytest.fixture(running, name="server"), pytest.fixture(running, name="bad")


def fetch(folder: Path, *urls: str, checksum: str | None = SHA) -> Path:
    return download("toy", (Source("file.bin", *urls, checksum=checksum),), folder, timeout=5)


def visible(folder: Path) -> list[str]:
    """Names in a folder, without the locks."""
    return [p.name for p in folder.iterdir() if not p.name.startswith(".")]


def test_processes_that_download_at_once(server: Server, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: fetch(tmp_path / "toy", server.url), range(4)))
    assert set(paths) == {tmp_path / "toy" / "file.bin"}
    assert paths[0].read_bytes() == CONTENT
    assert visible(paths[0].parent) == ["file.bin"]
    fetch(tmp_path / "toy", server.url)
    assert server.ranges == ["bytes=0-"]  # what is there is not fetched again


def test_broken_download_goes_on_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.break_after = 300_000
    with pytest.raises(UserError, match="could not be downloaded"):
        fetch(tmp_path, server.url)
    size = (tmp_path / "file.bin.part").stat().st_size
    assert 0 < size <= 300_000
    assert fetch(tmp_path, server.url).read_bytes() == CONTENT
    assert server.ranges == ["bytes=0-", f"bytes={size}-"]
    assert visible(tmp_path) == ["file.bin"]


def test_mirror_goes_on_and_a_server_without_ranges_starts_again(
    server: Server, tmp_path: Path
) -> None:
    server.break_after = 500_000
    assert fetch(tmp_path / "a", server.url, server.url + "?mirror").read_bytes() == CONTENT
    assert server.ranges[1] != "bytes=0-"
    server.knows_ranges = False
    raw.write(tmp_path / "b" / "file.bin.part", CONTENT[:1000])
    assert fetch(tmp_path / "b", server.url).read_bytes() == CONTENT


@pytest.mark.parametrize("part", [CONTENT, CONTENT + b"more", b"x" * 1000])
def test_part_that_cannot_go_on_is_thrown_away(server: Server, tmp_path: Path, part: bytes) -> None:
    """It is whole, longer than the file or of another file: the next attempt begins anew."""
    (tmp_path / "file.bin.part").write_bytes(part)
    assert fetch(tmp_path, server.url, server.url).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [404, 503])
def test_dead_mirror_is_passed_over(
    server: Server, bad: Server, tmp_path: Path, status: int
) -> None:
    bad.status = status
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:1000])
    assert fetch(tmp_path, bad.url, server.url).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]  # what had come is not lost by asking in vain


def test_wrong_checksum_is_refused(server: Server, bad: Server, tmp_path: Path) -> None:
    bad.content = b"<html>moved</html>"
    with pytest.raises(UserError, match=r"checksum of file\.bin is wrong.*put file\.bin into"):
        fetch(tmp_path, bad.url)
    assert visible(tmp_path) == []
    assert fetch(tmp_path, bad.url, server.url).read_bytes() == CONTENT


def test_no_network_takes_another_source_or_says_which_file_to_put_where(
    server: Server, tmp_path: Path
) -> None:
    first = Source("first.bin", "http://127.0.0.1:9/first.bin", checksum=SHA)
    second = Source("second.bin", server.url, checksum=SHA)
    assert download("toy", (first, second), tmp_path).name == "second.bin"
    with pytest.raises(UserError) as error:
        fetch(tmp_path / "toy", "http://127.0.0.1:9/a", "http://nowhere.invalid/a")
    for part in ("127.0.0.1:9: ", "nowhere.invalid: ", f"put file.bin into {tmp_path / 'toy'}"):
        assert part in str(error.value)
    with pytest.raises(UserError, match=r"could not be written.*dataset\.root"):
        fetch(raw.write(tmp_path / "full", "a file"), server.url)


def test_what_is_not_on_the_disk_takes_no_name(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zipped = raw.zipped(raw.ml_csv(tmp_path / "ml-latest-small", raw.interactions()))
    monkeypatch.setattr("sigma.files.os.fsync", broken)
    with pytest.raises(UserError, match="could not be written"):
        fetch(tmp_path / "toy", server.url)
    assert visible(tmp_path / "toy") == ["file.bin.part"]
    with pytest.raises(UserError, match="could not be unpacked"):
        unpacked(zipped, tmp_path / "unpacked")
    assert list((tmp_path / "unpacked").iterdir()) == []


class Films(MLLatestSmall):
    """The data set at the test's own server."""


def test_data_set_downloads_unpacks_and_reads(server: Server, tmp_path: Path) -> None:
    Films.sources = (Source("ml-latest-small.zip", server.url),)
    server.content = b"<html>moved</html>"
    with pytest.raises(UserError, match=r"what came is no \.zip file"):
        Films(name="films", root=str(tmp_path / "root")).setup()
    assert visible(tmp_path / "root" / "films") == []
    zipped = raw.zipped(raw.ml_csv(tmp_path / "ml-latest-small", raw.interactions()))
    server.content = zipped.read_bytes()
    server.ranges.clear()
    for _ in range(2):
        data = Films(name="films", root=str(tmp_path / "root"))
        data.prepare_data()
        data.setup()
        assert data.sequences.item_info["title"][0].startswith("Café")
    assert len(server.ranges) == 1
    assert (tmp_path / "root" / "films" / "ml-latest-small.zip").exists()
