"""From what ``dataset.path`` names (files, folders, archives, a pattern) to the files to read."""

import glob
import hashlib
import re
import shutil
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from sigma.datamodules.formats import ENDINGS, UNNAMED, RawData, is_table, titles_beside
from sigma.datamodules.readers.read import Reading
from sigma.datamodules.readers.text import PARQUET, bare_name, is_parquet, matches, readable
from sigma.errors import UserError, excerpt, listed
from sigma.files import replace, sweep_stale

TOGETHER = (
    *("log_standard_*.csv", "combined_data_*.txt", "mv_*.txt", "part-*", "*_part_*"),
    *("train-[0-9]*-of-*", "full-[0-9]*-of-*", "????-???.csv", "????-???.csv.gz"),
)
"""Names of files of one table that a folder holds several of."""

KNOWN = (
    *("*.inter", "ratings.dat", "u.data", "ratings.csv", "ratings_*.csv"),
    *("reviews_*.json", "yelp_academic_dataset_review.json", *TOGETHER, *UNNAMED),
    *("user_log_format*.csv", "*_5.json", "behaviors.tsv", "big_matrix.csv"),
    *("train-item-views.csv", "events.csv", "steam_reviews.json"),
)
"""Names of raw files, the most telling first; each also with the ending of a compression."""

SIDE_FILES = (
    *("movies.csv", "links.csv", "tags.csv", "genome-scores.csv", "genome-tags.csv"),
    *("readme.txt", "checksums.txt", "license.txt", "news.tsv"),
)
ARCHIVES = {".zip": "zip", ".tar.gz": "gztar", ".tgz": "gztar", ".tar": "tar", ".tar.bz2": "bztar"}
ARCHIVES |= {".tar.xz": "xztar", ".txz": "xztar", ".tbz2": "bztar", ".tbz": "bztar"}
_DAMAGE = (shutil.ReadError, zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError)


def locate(
    path: str | Path | Sequence[str | Path],
    unpack: Path,
    prefer: tuple[str, ...] = (),
    settings: Reading | None = None,
) -> RawData:
    """Find the raw data.

    Args:
        path: a raw file, a folder that holds one (or an archive of one), an archive as downloaded,
            a pattern such as ``parts/*.csv``, or a list of these; all are one table.
        unpack: folder that archives are unpacked into.
        prefer: names of this data set's files, the best first; then come all known names.

    Raises:
        UserError: nothing there, nothing known there, or several files that could be meant.
    """
    settings = settings or Reading()
    files: list[Path] = []
    for one in [path] if isinstance(path, str | Path) else path:
        place = Path(one).expanduser()
        if not place.exists() and (matches := _sorted(glob.glob(str(place), recursive=True))):
            files += matches
            continue
        if not place.exists():
            raise UserError(f"dataset.path={place} does not exist; check the path.")
        files += _files_of(place, unpack, prefer, settings)
    if not files:
        raise UserError("dataset.path is an empty list; name a file.")
    return RawData(tuple(dict.fromkeys(files)), titles_beside(files[0]))


def _files_of(path: Path, unpack: Path, prefer: tuple[str, ...], settings: Reading) -> list[Path]:
    """The files of one table below a path."""
    place = path
    for _ in range(3):  # a tar within a zip is nothing unusual
        if place.is_dir():
            files = search(place, prefer, settings, unpack)
            if not files and place == path:
                names = listed(sorted(p.name for p in path.iterdir()), 80)
                raise UserError(
                    f"The folder {path} holds no known raw file (such as "
                    f"{', '.join(prefer[:3] or KNOWN[:3])}); it holds: {names or 'nothing'}."
                )
            if not files:
                break
            if archive(files[0]) is None:
                return files
            place = files[0]
        elif archive(place) is None:
            return [place]
        place = unpacked(place, unpack)
    raise UserError(f"{path} holds no known raw file; unpack it and name the file itself.")


def archive(path: Path) -> str | None:
    """The kind of archive a file is by its name, as ``shutil`` calls it, or None."""
    kinds = (kind for ending, kind in ARCHIVES.items() if path.name.lower().endswith(ending))
    return next(kinds, None)


def search(
    folder: Path,
    prefer: tuple[str, ...] = (),
    settings: Reading | None = None,
    unpack: Path | None = None,
) -> list[Path]:
    """The raw files of one table in a folder (or up to three levels below), else an archive.

    Raises:
        UserError: several that could be meant.
    """
    try:
        levels = [list(folder.iterdir())]
        for _ in range(3):
            below = [d for d in levels[-1] if d.is_dir() and d.name[:1] not in "._"]
            levels.append([p for d in below if d.name != "__MACOSX" for p in d.iterdir()])
    except OSError as error:
        raise UserError(f"The folder {folder} cannot be listed ({error.strerror}).") from error
    tables: list[Path] = []
    for level in levels:
        files = _sorted(p for p in level if p.is_file() and not _is_side_file(p))
        for pattern in (*prefer, *KNOWN):
            fits = [p for p in files if matches(p.name, pattern) or matches(bare_name(p), pattern)]
            if len(fits) > 1 and pattern not in (*prefer, *TOGETHER):
                raise UserError(_several(folder, fits))
            if fits and pattern in TOGETHER:
                return fits
            if fits:
                return fits[:1]
        endings = (*ENDINGS, *PARQUET)
        tables += [p for p in files if Path(bare_name(p)).suffix.lower() in endings]
    if tables and all(map(is_parquet, tables)):
        parts = {re.sub(r"[\d\W_]+", "", p.stem) for p in tables}
        if len(parts) == 1:
            return _sorted(tables)
    if tables and all("=" in p.parent.name for p in tables):  # Hive's
        return _sorted(tables)
    if len(tables) > 1:
        with tempfile.TemporaryDirectory(dir=unpack and _made(unpack)) as copies:
            fits = [p for p in tables if is_table(p, Path(copies), settings or Reading())]
        if len(fits) != 1:
            raise UserError(_several(folder, fits or tables))
        return fits
    archives = sorted(p for level in levels for p in level if p.is_file() and archive(p))
    if not tables and len(archives) > 1:
        raise UserError(_several(folder, archives))
    return tables or archives


def _sorted(paths: Iterable[str | Path]) -> list[Path]:
    """By name, ``part-2`` before ``part-10``."""
    return sorted(
        map(Path, paths),
        key=lambda path: [
            (int(part), "") if part.isdecimal() else (-1, part)
            for part in re.split(r"(\d+)", str(path))
        ],
    )


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _several(folder: Path, files: Sequence[Path]) -> str:
    return (
        f"The folder {folder} holds several files that could be meant: "
        f"{listed((p.name for p in files), 80)}; name one with dataset.path=, or those of one "
        "table with 'dataset.path=[a.csv,b.csv]'."
    )


def _is_side_file(path: Path) -> bool:
    """Files of a release that hold no interactions; a ``.part`` is a download under way."""
    name = path.name.lower()
    return name in SIDE_FILES or name.startswith((".", "_", "meta_")) or path.suffix == ".part"


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
    except (*_DAMAGE, NotImplementedError) as error:
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
