"""Public direct downloads: mirrors in turn, checksum, progress bar, and going on where it broke."""

import logging
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
import requests
from filelock import FileLock
from tqdm import tqdm

from sigma.errors import UserError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """One file of the original publishers.

    Attributes:
        file: name it is kept under.
        urls: mirrors of the same bytes, tried in order.
        checksum: ``md5:…`` or ``sha256:…``; None where no stable one is published, and then the
            reader's checks of the structure are all there is.
    """

    file: str
    urls: tuple[str, ...]
    checksum: str | None = None


class ResumingDownloader:
    """A downloader for pooch that goes on with ``<file>.part`` through a Range request.

    Args:
        part: where the bytes that have arrived are kept between attempts.
        timeout: seconds without a byte before the mirror counts as gone.
        progress: show a bar.
    """

    def __init__(self, part: Path, timeout: float = 30.0, progress: bool = True) -> None:
        self.part, self.timeout, self.progress = part, timeout, progress

    def __call__(self, url: str, output_file: Any, pooch: Any = None) -> None:
        """Download ``url`` into the file that pooch names, by way of ``part``."""
        have = self.part.stat().st_size if self.part.exists() else 0
        headers = {"Accept-Encoding": "identity"}  # lengths and ranges of the file itself
        if have:
            headers["Range"] = f"bytes={have}-"
        with requests.get(url, headers=headers, stream=True, timeout=self.timeout) as response:
            whole = response.headers.get("Content-Range", "").endswith(f"/{have}")
            if response.status_code == 416 and have and whole:
                self.part.replace(output_file)
                return
            if response.status_code == 416:  # the part is longer than the file: not of this file
                self.part.unlink()
                return self(url, output_file)
            response.raise_for_status()
            if response.status_code != 206:
                have = 0  # the mirror starts from the beginning
            length = response.headers.get("Content-Length")
            total = None if length is None else have + int(length)
            with (
                self.part.open("ab" if have else "wb") as stream,
                tqdm(
                    total=total,
                    initial=have,
                    unit="B",
                    unit_scale=True,
                    desc=self.part.name.removesuffix(".part"),
                    disable=None if self.progress else True,  # None: only on a terminal
                ) as bar,
            ):
                for chunk in response.iter_content(1 << 18):
                    stream.write(chunk)
                    bar.update(len(chunk))
        size = self.part.stat().st_size
        if total is not None and size != total:
            raise requests.ConnectionError(f"{size} of {total} bytes arrived")
        self.part.replace(output_file)


def download(
    name: str, sources: tuple[Source, ...], folder: Path, timeout: float = 30.0, hint: str = ""
) -> Path:
    """Fetch the first source that can be had; returns its path.

    A broken download is kept as ``.part`` and continued by the next attempt; one whose checksum
    is wrong is thrown away.

    Args:
        name: of the data set, for messages.
        sources: alternatives, the best first.
        folder: where the file is put.
        timeout: see ``ResumingDownloader``.
        hint: where a person gets the file, when there is nothing to download.

    Raises:
        UserError: no source could be had; says which file to put where.
    """
    reasons: list[str] = []
    for source in sources:
        for url in source.urls:
            host = url.split("/")[2]
            try:
                folder.mkdir(parents=True, exist_ok=True)
                downloader = ResumingDownloader(folder / f"{source.file}.part", timeout)
                # Of several processes one downloads; the others wait and find the file.
                with FileLock(folder / f".{source.file}.lock"):
                    path = pooch.retrieve(
                        url, source.checksum, source.file, folder, None, downloader
                    )
                if source.checksum is None and not _starts_as_named(Path(path)):
                    Path(path).unlink()
                    reasons.append(f"{host}: what came is no {Path(path).suffix} file")
                    continue
                if source.checksum is None:
                    log.warning(
                        "No checksum is published for %s; its structure is checked instead.",
                        source.file,
                    )
                return Path(path)
            except requests.RequestException as error:
                reasons.append(f"{host}: {_short(error)}")
            except ValueError:  # pooch's word for a wrong checksum
                reasons.append(f"{host}: the checksum of {source.file} is wrong")
            except OSError as error:
                raise UserError(
                    f"{source.file} could not be written into {folder} ({error.strerror}); make "
                    "room there or set dataset.root to another folder."
                ) from error
    files = " or ".join(dict.fromkeys(s.file for s in sources))
    raise UserError(
        f"The data set {name} could not be downloaded ({'; '.join(reasons)}); put {files} into "
        f"{folder.absolute()} by hand, or name a local copy with dataset.path=."
    )


def _starts_as_named(path: Path) -> bool:
    """Whether an archive is one, and not the page of a proxy or of a moved site."""
    if path.suffix == ".zip":
        return zipfile.is_zipfile(path)
    with path.open("rb") as stream:
        return path.suffix != ".gz" or stream.read(2) == b"\x1f\x8b"


def _short(error: Exception) -> str:
    """A network error in a few words."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code}"
    if isinstance(error, requests.Timeout):
        return "no answer in time"
    if "bytes arrived" in str(error):
        return str(error)
    return "no connection" if isinstance(error, requests.ConnectionError) else type(error).__name__
