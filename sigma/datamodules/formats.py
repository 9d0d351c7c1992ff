"""Which reader a file needs, by its name and its first line."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path

from sigma.datamodules.interactions import Interactions, joined
from sigma.datamodules.readers import amazon, lfm_1b, movielens, netflix, sequence_text, table, yelp
from sigma.datamodules.readers.lines import open_raw, readable
from sigma.errors import UserError, excerpt, listed

TOGETHER = ("log_standard_*.csv", "combined_data_*.txt", "mv_*.txt")
"""Names of the files of one data set that a folder holds several of (KuaiRand, Netflix Prize)."""

KNOWN = (
    *("*.inter", "ratings.dat", "u.data", "ratings.csv", "ratings_*.csv", "ratings_*.csv.gz"),
    *("reviews_*.json.gz", "reviews_*.json", "yelp_academic_dataset_review.json"),
    *TOGETHER,
    *("LFM-1b_LEs.txt*", "user_log_format*.csv*"),
    *("yelp_academic_dataset_review.json.gz", "*.inter.gz", "*_5.json.gz", "*_5.json"),
    *("*.jsonl.gz", "*.jsonl", "*.parquet", "*.csv", "*.csv.gz", "*.tsv", "*.txt"),
)
"""Names of raw files, the most telling first."""

WITH_INFO = {
    "movielens dat": movielens.read_ratings_dat,
    "movielens tab": movielens.read_u_data,
    "movielens csv": movielens.read_ratings_csv,
    "amazon ratings": amazon.read_amazon_ratings,
    "amazon reviews": amazon.read_amazon_reviews,
    "amazon reviews 2023": amazon.read_amazon_reviews_2023,
    "yelp": yelp.read_yelp,
    "netflix": netflix.read_netflix,
}
Settings = Mapping[str, str | None] | None


@dataclass(frozen=True)
class RawData:
    """A file of interactions, the format it is in, the file of titles beside it, and the files that
    continue it.
    """

    path: Path
    format: str
    info: Path | None = None
    more: tuple[Path, ...] = ()

    @property
    def files(self) -> list[Path]:
        return [self.path, *([] if self.info is None else [self.info]), *self.more]

    def read(self, columns: Settings = None, malformed: str = "error") -> Interactions:
        """All interactions in the order of the file; the settings are those of a data module."""
        if not self.more:
            return self._read(columns, malformed)
        parts = (replace(self, path=path, more=()) for path in (self.path, *self.more))
        return joined(part._named(part._read(columns, malformed)) for part in parts)

    def _named(self, part: Interactions) -> Interactions:
        """With the file's name where lines of it were left out."""
        if part.skipped is None:
            return part
        reason = f"{part.skipped.reason} (in {excerpt(self.path.name)})"
        return replace(part, skipped=replace(part.skipped, reason=reason))

    def _read(self, columns: Settings, malformed: str) -> Interactions:
        match self.format:
            case "sequences":
                return sequence_text.read_sequence_text(self.path, malformed)
            case "pairs":
                return sequence_text.read_pairs(self.path, malformed)
            case "recbole":
                return table.read_recbole(self.path, self.info, columns, malformed)
            case "parquet":
                return table.read_parquet(self.path, columns)
            case "csv":
                return table.read_csv(self.path, columns, malformed)
            case "lfm_1b":
                return lfm_1b.read_listening_events(self.path, columns, malformed)
        return WITH_INFO[self.format](self.path, self.info, malformed)


def recognise(path: Path, columns: Settings = None) -> RawData:
    """The format of an existing file, and where its titles are.

    If any of the ``columns`` is named, text is taken for a table with a header.

    Raises:
        UserError: no format fits.
    """
    name = path.name.removesuffix(".gz")
    ending = Path(name).suffix.lower()
    if ending in (".parquet", ".pq"):
        return RawData(path, "parquet")
    if ending not in (".inter", ".dat", ".data", ".csv", ".tsv", ".txt", ".json", ".jsonl"):
        raise UserError(
            f"{path}: the ending '{excerpt(path.suffix)}' is not one of .csv, .tsv, .txt, "
            ".json, .dat, .data, .inter (these also with .gz), .parquet or .zip; rename or convert "
            "the file."
        )
    if ending == ".inter":
        return RawData(path, "recbole", _find(path, f"{Path(name).stem}.item"))
    if ending in (".json", ".jsonl"):
        return _json_lines(path)
    delimiter, fields = table.header_fields(path)
    if fields == [""]:
        raise UserError(f"{path} is empty; fetch it again or point dataset.path at data.")
    if name == "LFM-1b_LEs.txt" and len(fields) == len(lfm_1b.FIELDS):
        return RawData(path, "lfm_1b")
    if ending == ".txt" and len(fields) == 1 and netflix.is_heading(fields[0]):
        return RawData(path, "netflix")
    if any((columns or {}).values()):
        return RawData(path, "csv")
    if "::" in delimiter.join(fields) or ending == ".dat":
        return RawData(path, "movielens dat", _find(path, "movies.dat"))
    if delimiter == "," and {"userId", "movieId", "timestamp"} <= set(fields):
        return RawData(path, "movielens csv", _find(path, "movies.csv"))
    if ending == ".data":
        return RawData(path, "movielens tab", _find(path, "u.item"))
    unnamed = delimiter == "\t" and not any(
        table.usual_column(fields, usual) for usual in table.USUAL.values()
    )
    if ending == ".txt" and (len(fields) == 1 or table.is_number(fields[0]) or unnamed):
        return RawData(path, sequence_text.kind(path))
    if delimiter == "," and amazon.is_rating(fields):
        category = Path(name).stem.removeprefix("ratings_")
        meta = _find(path, f"meta_{category}.json", "meta_*.json")
        return RawData(path, "amazon ratings", meta)
    return RawData(path, "csv")


def _json_lines(path: Path) -> RawData:
    with readable(path), open_raw(path) as stream:
        line = next((line for line in stream if line.strip()), b"")
    if not line:
        raise UserError(f"{path} is empty; fetch it again or point dataset.path at data.")
    try:
        fields = set(json.loads(line))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{path}, line 1: not a JSON object ({excerpt(error)}); each line must hold one review."
        ) from error
    if {"business_id", "user_id"} <= fields:
        return RawData(path, "yelp", _find(path, "yelp_academic_dataset_business.json"))
    if {"asin", "reviewerID"} <= fields:
        return RawData(path, "amazon reviews", _find(path, "meta_*.json"))
    if {"parent_asin", "user_id", "timestamp"} <= fields:
        return RawData(path, "amazon reviews 2023", _find(path, "meta_*.jsonl"))
    raise UserError(
        f"{path}: a line of Amazon reviews holds reviewerID, asin and unixReviewTime (of 2023 "
        "user_id, parent_asin and timestamp), one of Yelp user_id, business_id and date, but this "
        f"file has {listed(sorted(map(str, fields)))}; convert it to CSV and use "
        "dataset=custom."
    )


def continuation(path: Path) -> tuple[Path, ...]:
    """The files beside ``path`` that hold the rest of what it holds, in order."""
    pattern = next((one for one in TOGETHER if fnmatch(path.name, one)), None)
    beside = [] if pattern is None else sorted(path.parent.glob(pattern))
    return tuple(other for other in beside if other != path)


def _find(path: Path, *patterns: str) -> Path | None:
    """The only file beside ``path`` with one of these names, gzipped or not."""
    for pattern in patterns:
        files = [*path.parent.glob(pattern), *path.parent.glob(pattern + ".gz")]
        if len(files) == 1:
            return files[0]
    return None
