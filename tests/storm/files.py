"""Raw files of every format, mutated: read, or refused in one sentence, within a little memory."""

import gzip
import random
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from sigma.datamodules.readers.text import open_raw
from sigma.datamodules.sets.custom import Custom
from sigma.datamodules.titles import titles_of
from sigma.errors import printable
from sigma.runs.messages import explained
from tests.datamodules import published
from tests.datamodules import raw_files as raw
from tests.storm.forks import Action, End, limit_memory, run
from tests.storm.mutate import mutations
from tests.storm.part import Part

PROMISES = {
    "tracebacks": "mutated files",
    "ended by a signal or not in time": "mutated files",
    "more than 1 GiB of memory": "mutated files",
    "messages of more than a line or 1,200 characters": "mutated files",
    "messages with control characters": "mutated files",
    "files written elsewhere": "mutated files",
}
LIMIT = 60.0
MEMORY = 6 << 30  # bytes that a reader may ask for, for the sake of what runs beside
ROWS = raw.interactions(n=300)
CHUNK = 64 << 20
CHUNKS = 20  # of a line without an end


def of_kind(name: str, pack: str = "") -> Callable[[Path], Path]:
    """A data set as it is published, its file packed or all of it in an archive."""

    def make(folder: Path) -> Path:
        path = published.write(folder / "x", name, ROWS)
        if pack and pack in published.PACK:
            (file,) = [p for p in path.rglob("*") if p.is_file()]
            packed = file.with_name(file.name + pack)
            packed.write_bytes(published.PACK[pack](file.read_bytes()))
            file.unlink()
            return packed
        return raw.zipped(path, pack) if pack else path

    return make


def nested(folder: Path) -> Path:
    """A tar within a zip."""
    path = raw.zipped(raw.csv_table(folder / "y" / "x" / "a.csv", ROWS).parent, "tar")
    return raw.zipped(path.rename(folder / "y" / "x" / "x.tar").parent)


def with_meta(path: Path) -> Path:
    raw.amazon_meta(path.with_name("meta_Beauty.json"))
    return path


TESTED = ("movielens", "amazon", "yelp")  # below, in other words
# A file or a folder of each format there is.
FORMATS: dict[str, Callable[[Path], Path]] = {
    "ml_1m": lambda p: raw.ml_1m(p / "ml-1m", ROWS),
    "ml_100k": lambda p: raw.ml_100k(p / "ml-100k", ROWS),
    "ml_csv": lambda p: raw.ml_csv(p / "ml-32m", ROWS),
    "amazon 2014": lambda p: with_meta(raw.amazon_2014(p / "ratings_Beauty.csv", ROWS)),
    "amazon 2014 gz": lambda p: raw.amazon_2014(p / "ratings_Beauty.csv.gz", ROWS),
    "amazon 2018": lambda p: raw.amazon_2018(p / "Beauty.csv", ROWS),
    "amazon reviews": lambda p: with_meta(raw.amazon_reviews(p / "reviews_Beauty.json", ROWS)),
    "amazon reviews gz": lambda p: raw.amazon_reviews(p / "reviews_Beauty.json.gz", ROWS),
    "yelp": lambda p: raw.yelp(p / "yelp", ROWS),
    "netflix": lambda p: raw.netflix(p / "netflix", ROWS),
    "lfm_1b": lambda p: raw.lfm_1b(p / "LFM-1b_LEs.txt", ROWS),
    "tmall": lambda p: raw.tmall(p / "user_log_format1.csv", ROWS),
    "kuairand": lambda p: raw.kuairand(p / "KuaiRand-Pure", "pure", ROWS),
    "kuairand tar": lambda p: raw.zipped(raw.kuairand(p / "KuaiRand", "pure", ROWS), "gztar"),
    "recbole": lambda p: raw.recbole(p / "ml", "ml", ROWS),
    "sequences": lambda p: raw.sequence_text(p / "a.txt", ROWS),
    "csv": lambda p: raw.csv_table(p / "a.csv", ROWS),
    "csv gz": lambda p: raw.csv_table(p / "a.csv.gz", ROWS),
    "csv zip": lambda p: raw.zipped(raw.csv_table(p / "x" / "a.csv", ROWS).parent),
    "tsv": lambda p: raw.write(p / "a.tsv", "user\titem\ttime\n1\t2\t3\n" * 40),
    "parquet": lambda p: raw.parquet(p / "a.parquet", ROWS),
    "zip": lambda p: raw.zipped(raw.ml_1m(p / "ml-1m", ROWS)),
    "bz2": of_kind("userbehavior", ".bz2"),
    "xz": of_kind("movielens 20m", ".xz"),
    "zst": of_kind("brightkite", ".zst"),
    "tar in zip": nested,
    **{name: of_kind(name) for name in published.NAMES if name.split()[0] not in TESTED},
}


def mutated(data: bytes, path: Path, rng: random.Random) -> tuple[str, bytes]:
    """One mutation of a file, of a packed one often within."""
    inside = rng.random() < 0.7
    if path.suffix and path.suffix in published.PACK and ".tar" not in path.name and inside:
        with open_raw(path) as file:
            what, content = one(file.read(), rng)
        return f"within: {what}", published.PACK[path.suffix](content)
    if path.suffix == ".zip" and inside:
        return rezipped(path, rng)
    return one(data, rng)


def one(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    kinds = mutations(data, rng)
    for _ in range(rng.randrange(40)):  # they come in turn
        next(kinds)
    return next(kinds)


def rezipped(path: Path, rng: random.Random) -> tuple[str, bytes]:
    """An archive with one member mutated, or under a name that leads elsewhere."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist() if name[-1] != "/"}
    name = rng.choice(list(members))
    what, members[name] = one(members[name], rng)
    if rng.random() < 0.2:
        other = rng.choice(["../" * 3 + "storm.csv", "/storm.csv", "x" * 300 + ".csv", "a/../.."])
        members[other], what = members.pop(name), f"{what}, named {other[:20]}"
    packed = path.with_name("packed")
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, content in members.items():
            archive.writestr(member, content)
    content = packed.read_bytes()
    packed.unlink()
    return f"{name} within: {what}", content


def endless(folder: Path) -> Iterator[tuple[str, Path]]:
    """Packed files of one line of 1.3 GB."""
    for ending, start in (("txt", b"12 "), ("csv", b"x"), ("json", b'{"asin": "')):
        chunk = (b"12 " if ending == "txt" else b"x") * (CHUNK // 3)
        path = folder / f"a.{ending}.gz"
        path.write_bytes(gzip.compress(start, 1) + gzip.compress(chunk * 3, 1) * CHUNKS)
        yield f"{ending}.gz of one endless line", path
    path = folder / "a.zip"
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("a.txt", "w", force_zip64=True) as member,
    ):
        for _ in range(CHUNKS):
            member.write(b"12 " * (CHUNK // 3))
    yield "zip of one endless line", path


def reading(path: Path, root: Path, malformed: Literal["error", "skip"]) -> Action:
    """Read a file as a run does."""

    def action() -> None:
        limit_memory(MEMORY)
        with explained():
            titles_of(Custom(path=path, root=root, malformed=malformed).build())

    return action


def judge(part: Part, how: str, end: End, folder: Path) -> None:
    """Count what came of reading a file."""
    part.count("mutated files")
    part.largest("largest peak of memory, MiB:", end.peak / 2**20)
    part.largest("longest, seconds:", end.seconds)
    part.count("read", int(end.code == 0))
    part.count("refused", int(end.refused))
    said = end.output.rstrip("\n").split("\n")
    sentence = said[-1] if end.refused else ""
    broken = end.refused and not sentence.startswith("error: ")
    if end.traceback:
        part.fault("tracebacks", how, end, folder)
    elif end.code < 0 or end.late or end.code > 1:
        part.fault("ended by a signal or not in time", how, end, folder)
    elif broken or any(len(line) > 1200 for line in said):
        part.fault("messages of more than a line or 1,200 characters", how, end, folder)
    elif any(printable(line) != line for line in said):
        part.fault("messages with control characters", how, end, folder)
    if end.peak > 2**30:
        part.fault("more than 1 GiB of memory", how, end, folder)


def storm(part: Part) -> None:
    place, root, outside = (part.folder / name for name in ("raw", "root", "outside"))
    bombs = endless(place)
    for n, name in enumerate(every(part)):
        shutil.rmtree(root, ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        root = outside / "deep" / "down" / "root"
        place.mkdir()
        if n % 60 == 59 and (bomb := next(bombs, None)) is not None:
            what, path = bomb
            changed = path
        else:
            path = FORMATS[name](place)
            files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
            changed = part.rng.choice(files)
            what, content = mutated(changed.read_bytes(), changed, part.rng)
            changed.write_bytes(content)
        malformed: Literal["error", "skip"] = part.rng.choice(["error", "skip"])
        end = run(reading(path, root, malformed), part.log, LIMIT)
        how = (
            f"python train.py dataset=custom dataset.path={{files}}/{path.name} "
            f"+dataset.malformed={malformed}  # {name}, {changed.name}: {what}"
        )
        judge(part, how, end, place)
        elsewhere = [p for p in outside.rglob("storm*") if root not in p.parents]
        if elsewhere or Path("/storm.csv").exists():
            part.fault("files written elsewhere", f"{how}: {elsewhere}", end, place)
            shutil.rmtree(outside)


def every(part: Part) -> Iterator[str]:
    """Formats in turn, while there is time."""
    while True:
        for name in FORMATS:
            if not part.goes_on():
                return
            yield name
