"""The compiled kernels' file: never trusted by its name, and a reason where there is none.

A script stands for the compiler: it gives a library that was compiled once, and counts.
"""

import ctypes
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from sigma.ops import native
from tests.ops.cases import no_compiler

pytestmark = no_compiler

COMPILER = """#!/bin/sh
if [ "$1" = -shared ] || [ "$2" = -shared ]; then
    echo "$1" >> {builds}
    while [ "$1" != -o ]; do shift; done
    cp {library} "$2"
fi
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One function, and enough beside it to be cut in many places."""
    folder = tmp_path_factory.mktemp("library")
    source, path = folder / "a.c", folder / "a.so"
    source.write_text("char room[30000] = {1}; int answer(void) { return 41 + room[0]; }")
    compiler = shutil.which("cc") or "gcc"
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    return path


@pytest.fixture(autouse=True)
def compiler(tmp_path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    script = tmp_path / "compiler"
    script.write_text(COMPILER.format(builds=tmp_path / "builds", library=library))
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return script


def start() -> tuple[ctypes.CDLL | None, str]:
    """As a new process would."""
    return native.native_library.__wrapped__()


def works(library: ctypes.CDLL | None) -> bool:
    return library is not None and library.answer() == 42


def builds(folder: Path) -> int:
    return len((folder / "builds").read_text().splitlines())


def stored(folder: Path) -> Path:
    (path,) = (folder / "cache" / "sigma-rec").iterdir()
    return path


def flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]


def written(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


def instead(place: Callable[[Path], object]) -> Callable[[Path], object]:
    def change(path: Path) -> None:
        path.unlink()
        place(path)

    return change


DAMAGES = {
    **{f"cut at {n}": written(lambda x, n=n: x[:n]) for n in (0, 1, 64, 1000, 8192, 20000, -1)},
    **{f"bit {n}": written(lambda x, n=n: flipped(x, n)) for n in (5, 49, 4096, 12000, -1)},
    "zeros": written(lambda x: bytes(len(x))),
    "a longer file": written(lambda x: x + b"more"),
    "a foreign library": written(lambda _: Path(ctypes.__file__).read_bytes()),
    "of another key": written(lambda x: x[:-32] + native.digest(x[:-32], b"other")),
    "a folder's link": instead(lambda path: path.symlink_to("/tmp")),
    "a link to nothing": instead(lambda path: path.symlink_to("/nowhere")),
    "a pipe": instead(os.mkfifo),
    "none may read": lambda path: path.chmod(0),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_the_library_is_built_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        assert works(start()[0])
    assert builds(tmp_path) == 1
    path = stored(tmp_path)
    whole = path.read_bytes()
    DAMAGES[damage](path)
    readable = damage == "none may read" and os.access(path, os.R_OK)  # root may
    for _ in range(2):
        assert works(start()[0])
    assert builds(tmp_path) == 2 - readable
    assert stored(tmp_path).read_bytes() == whole
    assert "are built again: " in caplog.text or readable or damage == "a link to nothing"


def test_a_file_cut_while_it_is_used_ends_nothing(tmp_path: Path) -> None:
    library, _ = start()
    os.truncate(stored(tmp_path), 0)
    assert works(library)


@pytest.mark.parametrize("place", ["file", "folder", "read-only"])
def test_without_a_cache_each_start_builds(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if place == "folder":
        start()
        path = stored(tmp_path)
        path.unlink()
        (path / "full").mkdir(parents=True)
    else:
        where = "/proc/self" if place == "read-only" else tmp_path / "builds"
        monkeypatch.setenv("XDG_CACHE_HOME", str(where))
    for _ in range(2):
        assert works(start()[0])
    assert builds(tmp_path) == 2 + (place == "folder")
    assert "could not be kept" in caplog.text
    assert "XDG_CACHE_HOME" in caplog.text


@pytest.mark.parametrize("value", ["", "here", "./here"])
def test_an_empty_or_relative_cache_folder_does_not_count(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    assert works(start()[0])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["builds", "compiler", "home"]


def test_the_compiler_may_have_flags(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", f"{compiler} -m64")
    library, reason = start()
    assert works(library)
    assert reason == "a C compiler is at hand"
    assert (tmp_path / "builds").read_text() == "-m64\n"


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("", "no C compiler is at hand"),
        ("/nowhere/cc", "No such file or directory: '/nowhere/cc'"),
        ("{compiler} '", "No closing quotation"),
        ("sh -c 'echo no such flag >&2; exit 1'", "cannot compile the C kernels: no such flag"),
        ("sh -c 'kill -9 $$'", "cannot compile the C kernels: it ended with -9"),
        ("sh -c :", "kernels.so"),  # says nothing and makes nothing
    ],
)
def test_the_reason_is_the_true_one(
    command: str,
    reason: str,
    compiler: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CC", command.format(compiler=compiler))
    if not command:
        monkeypatch.setenv("PATH", "")
    library, words = start()
    assert library is None
    assert reason in words
    assert words in caplog.text or not command
    assert all(record.levelno == logging.WARNING for record in caplog.records)


def test_a_library_that_cannot_be_loaded_is_said(
    library: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As without OpenMP's runtime."""
    monkeypatch.setattr(native, "load", lambda _: ctypes.CDLL("libgomp-of-nobody.so"))
    loaded, words = start()
    assert loaded is None
    assert "libgomp-of-nobody" in words
