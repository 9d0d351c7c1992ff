"""Public direct downloads: mirrors in turn, checksum, progress bar, and going on where it broke."""

import os
import sys
import zipfile
from pathlib import Path
from typing import Any

import pooch
import requests
from filelock import FileLock
from pooch import HTTPDownloader

from sigma.errors import UserError
from sigma.files import replace


class Source:
    """One file of the original publishers: the name to save it under, mirrors, and a
    checksum such as ``md5:0e33…``.

    Without a checksum, the reader's checks of the structure are all there is.
    """

    def __init__(self, file: str, *urls: str, checksum: str | None = None) -> None:
        self.file, self.urls, self.checksum = file, urls, checksum


def download(name: str, sources: tuple[Source, ...], folder: Path, timeout: float = 30.0) -> Path:
    """Fetch the first source that can be had into ``folder``; returns its path.

    A broken download stays as ``.part`` and is continued by the next attempt; one whose checksum
    is wrong is thrown away. After ``timeout`` seconds without a byte a mirror counts as gone.

    Raises:
        UserError: no source could be had; says which file to put where.
    """
    reasons: list[str] = []
    for source, url in [(one, url) for one in sources for url in one.urls]:
        host = url.split("/")[2]
        fetch = _continued(folder / f"{source.file}.part", timeout)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Of several processes one downloads; the others wait and get the file.
            with FileLock(folder / f".{source.file}.lock"):
                saved = pooch.retrieve(url, source.checksum, source.file, folder, downloader=fetch)
        except requests.RequestException as error:
            status = getattr(error.response, "status_code", None)
            reasons.append(f"{host}: {status or type(error).__name__}")
        except ValueError as error:  # pooch's word for a wrong checksum, too
            wrong = f"the checksum of {source.file} is wrong" if source.checksum else error
            reasons.append(f"{host}: {wrong}")
        except OSError as error:
            raise UserError(
                f"{source.file} could not be written into {folder} ({error.strerror}); make "
                "room there or set dataset.root to another folder."
            ) from error
        else:
            return Path(saved)
    files = " or ".join(dict.fromkeys(source.file for source in sources))
    raise UserError(
        f"The data set {name} could not be downloaded ({'; '.join(reasons)}); put {files} into "
        f"{folder.absolute()} by hand, or name a local copy with dataset.path=."
    )


def _continued(part: Path, timeout: float) -> Any:
    """A downloader for pooch that goes on with ``part`` by a Range request."""

    suffix = Path(part.stem).suffix

    def fetch(url: str, output_file: Any, pooch: Any) -> None:
        size = 0
        with part.open("ab") as stream:

            def begin(response: requests.Response, **_: Any) -> None:
                nonlocal size
                if response.status_code in (200, 416):  # the file comes from its beginning, or not
                    stream.truncate(0)
                here = stream.seek(0, os.SEEK_END)
                size = here + int(response.headers.get("Content-Length", 0))

            # The ranges are those of the file itself, not of what a server might pack it into.
            headers = {"Accept-Encoding": "identity", "Range": f"bytes={stream.tell()}-"}
            HTTPDownloader(
                sys.stderr.isatty(), timeout=timeout, headers=headers, hooks={"response": begin}
            )(url, stream, pooch)
        if part.stat().st_size < size:
            raise requests.ConnectionError(f"{part} is not all of {size} bytes")
        if not _is_of(suffix, part):
            part.unlink()
            raise ValueError(f"what came is no {suffix} file")
        replace(part, Path(output_file))

    return fetch


def _is_of(suffix: str, path: Path) -> bool:
    """False for the page of a proxy or of a moved site in an archive's place."""
    if suffix == ".zip":
        return zipfile.is_zipfile(path)
    with path.open("rb") as file:
        return suffix != ".gz" or file.read(2) in (b"", b"\x1f\x8b")
