"""From what ``dataset.path`` names (a file, a folder, an archive) to the raw file to read."""

import dataclasses
import hashlib
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from fnmatch import fnmatch
from pathlib import Path

from sigma.datamodules.formats import KNOWN, TOGETHER, RawData, Settings, continuation, recognise
from sigma.datamodules.readers.lines import readable
from sigma.errors import UserError, excerpt, listed
from sigma.files import replace, sweep_stale

SIDE_FILES = (
    *("movies.csv", "links.csv", "tags.csv", "genome-scores.csv", "genome-tags.csv"),
    *("readme.txt", "checksums.txt", "license.txt"),
)
DAMAGE = (shutil.ReadError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError)
ARCHIVES = {".zip": "zip", ".tar.gz": "gztar"}


def locate(
    path: Path, unpack: Path, prefer: tuple[str, ...] = (), columns: Settings = None
) -> RawData:
    """Find the raw data.

    Args:
        path: a raw file, a folder that holds one (or an archive of one), or an archive as
            downloaded; of a folder or an archive, files that continue the first are read, too.
        unpack: folder that archives are unpacked into.
        prefer: names of this data set's files, the best first; then come all known names.

    Raises:
        UserError: nothing there, nothing known there, or several files that could be meant.
    """
    path = path.expanduser()
    if not path.exists():
        raise UserError(f"dataset.path={path} does not exist; check the path.")
    one_file = path.is_file() and archive(path) is None
    if path.is_dir():
        file = search(path, prefer)
        if file is None:
            names = listed(sorted(p.name for p in path.iterdir()), 80)
            raise UserError(
                f"The folder {path} holds no known raw file (such as "
                f"{', '.join(prefer[:3] or KNOWN[:3])}); it holds: {names or 'nothing'}."
            )
        path = file
    if archive(path):
        file = search(unpacked(path, unpack), prefer)
        if file is None:
            raise UserError(f"{path} holds no known raw file; unpack it and name the file itself.")
        path = file
    raw = recognise(path, columns)
    return raw if one_file else dataclasses.replace(raw, more=continuation(path))


def archive(path: Path) -> str | None:
    """The kind of archive a file is by its name, as ``shutil`` calls it, or None."""
    kinds = (kind for ending, kind in ARCHIVES.items() if path.name.lower().endswith(ending))
    return next(kinds, None)


def search(folder: Path, prefer: tuple[str, ...] = ()) -> Path | None:
    """The raw file in a folder (or up to two levels below), else an archive in it, else None."""
    try:
        levels = [list(folder.iterdir())]
        for _ in range(2):
            below = [d for d in levels[-1] if d.is_dir() and d.name != "__MACOSX"]
            levels.append([p for d in below for p in d.iterdir()])
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be listed ({error.strerror}).") from error
    for level in levels:
        files = sorted(p for p in level if p.is_file() and not _is_side_file(p))
        for pattern in (*prefer, *KNOWN, *(f"*{ending}" for ending in ARCHIVES)):
            fits = [p for p in files if fnmatch(p.name, pattern)]
            if len(fits) > 1 and pattern not in (*prefer, *TOGETHER):
                raise UserError(
                    f"The folder {folder} holds several files that could be meant: "
                    f"{listed((p.name for p in fits), 80)}; name one with dataset.path=."
                )
            if fits:
                return fits[0]
    return None


def _is_side_file(path: Path) -> bool:
    """Files of a release that hold no interactions; a ``.part`` is a download under way."""
    name = path.name.lower()
    return name in SIDE_FILES or name.startswith((".", "meta_")) or path.suffix == ".part"


def unpacked(path: Path, into: Path) -> Path:
    """Unpack an archive once per content, all or nothing, and nothing outside; the folder."""
    with readable(path), path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "blake2b").hexdigest()[:12]
    stem = path.stem[:40]  # a name with a digest must be one that a file system takes, too
    folder = into / f"{stem}-{digest}"
    if folder.is_dir():
        return folder
    try:
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{stem}-", dir=into) as partial:
            content = Path(partial, "content")
            content.mkdir()
            kind = archive(path)
            shutil.unpack_archive(path, content, kind, filter=None if kind == "zip" else "data")
            replace(content, folder)
            sweep_stale(into, ".*")
    except (*DAMAGE, NotImplementedError) as error:
        raise UserError(
            f"{path} is not a whole {path.suffix[1:]} archive ({excerpt(error)}); fetch it again."
        ) from error
    except RuntimeError as error:  # zipfile's word for a password
        raise UserError(
            f"{path} is locked by a password; unpack it and name the folder with dataset.path=."
        ) from error
    except OSError as error:
        if not folder.is_dir():  # else another process was first
            raise UserError(
                f"{path} could not be unpacked into {into} ({excerpt(error)})."
            ) from error
    return folder
