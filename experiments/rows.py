"""All finished runs as one DataFrame: which belong to one cell, which may share a column.

A cell of a table is every seed of one setting. Rows made under another protocol (length of the
history, filter, masking, stopping, data, tuning) never share a column, see ``check_protocol``.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic_core import from_json

from experiments.ranks import RANKS_FOLDER, RESULTS, columns
from sigma.errors import UserError
from sigma.runs.files import RANKS, ROW
from sigma.runs.identity import DUPLICATES, digest, identity, protocol_settings
from sigma.runs.row import Row

ROWS = "rows.jsonl"  # in a folder of results: one row a line
# When training ends, and which epoch is the best: of a counted model it says nothing.
STOPPING = (
    *("callbacks.early_stopping.patience", "callbacks.early_stopping.decimals"),
    *("trainer.max_epochs", "trainer.limit_train_batches", "evaluation.monitor"),
)
# Settings that decide what a number means, not which model it is of.
PROTOCOL = (
    *("dataset.max_length", "model.max_length"),  # of positions, the same number
    *("dataset.user_bounds", "dataset.item_bounds", "dataset.duplicates", "dataset.where"),
    "dataset.float32_times",
    *("dataset.split", "dataset.val_fraction", "dataset.test_fraction", "dataset.mask_history"),
    *("dataset.val_start", "dataset.test_start", "dataset.targets", "dataset.train_on_val"),
    *("evaluation", "trainer.limit_val_batches", "trainer.limit_test_batches"),
    *STOPPING,
)
COUNTS = ("users", "items", "interactions")  # of the data: another vintage has others
OTHERS = (*(f"data.{name}" for name in COUNTS), "tuning trials")  # protocol that is no setting
# Groups of runs that are no results of the paper's protocol, so that none stands in its tables:
# three epochs for their seconds, trials of a search, rankings of other lengths. Nor is any run that
# was ranked among sampled negatives.
ASIDE = ("table3", "mambarec_efficiency", "fair_search", "mambarec_context")
METRICS = ("hr@10", "ndcg@10", "mrr@10")
BEYOND = ("coverage@10", "novelty@10", "head@10")  # what is shown to all users together
# What the target is ranked among, and what stands before its metrics' names.
RANKINGS = {"all items": "", "unseen items": "unseen/"}
FIELDS = ("run_id", "model", "dataset", "seed", "best_epoch", "epochs", "finished", "config")
COLUMNS = (
    *FIELDS,
    *("label", "setting", "group", "counted", "aside"),
    *("commit", "dirty", "device", "threads", "torch"),
    *("ranks", "data.matches", "trial", *OTHERS),
    *(key for key in PROTOCOL if key != "evaluation"),
)


class MixedProtocolError(UserError):
    """Rows that do not belong side by side."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """One row where it was read."""

    name: str  # where, for a message
    content: dict[str, Any]  # as the run wrote it
    row: Row  # the same, checked and of today's schema
    ranks: Path | None  # file of its ranks per user


def label(config: Mapping[str, Any]) -> str:
    """What tables call a run's model: its name, and whether it is told when the target happened."""
    name, model = str(config["model"]["name"]), config["model"]
    return f"{name} (knows the target's time)" if model.get("time") == "target" else name


def is_protocol(key: str) -> bool:
    """Whether a dotted setting is part of the protocol."""
    return any(key == name or key.startswith(name + ".") for name in (*PROTOCOL, DUPLICATES))


def setting(config: dict[str, Any]) -> str:
    """What a cell of a table is: the identity of its runs without protocol, seed and data seed.

    A data seed that is not the seed stays: two runs of one seed in one cell would count as two.
    """
    settings = {k: v for k, v in identity(config).items() if not is_protocol(k)}
    if settings.get("dataset.seed") == settings["seed"]:
        settings.pop("dataset.seed")
    settings.pop("seed")
    return digest(settings)


def read(places: Iterable[Path]) -> tuple[list[Entry], list[str]]:
    """Rows of folders, one for each run (the latest), and in sentences what cannot be read.

    A place holds ``rows.jsonl`` with ``ranks/`` beside it, or folders of runs.

    Raises:
        UserError: a place that is not there.
    """
    entries: dict[str, Entry] = {}
    notes: list[str] = []
    for place in places:
        if not place.is_dir():
            raise UserError(f"There is no folder {place} to read rows from.")
        for name, source, ranks in _sources(place):
            try:
                content = from_json(source.read_bytes() if isinstance(source, Path) else source)
                row = Row.parse(content)
            except (OSError, ValueError) as error:
                notes.append(f"{name} is not a row that can be read ({error}).")
                continue
            if ranks.is_dir():
                ranks = ranks / f"{row.dataset}.parquet"
            entry = Entry(name, content, row, _with_ranks(row.run_id, ranks, name, notes))
            other = entries.get(row.run_id)
            if other is not None and other.row.finished != row.finished:
                old, entry = sorted((other, entry), key=lambda e: e.row.finished)
                notes.append(
                    f"{row.run_id} was run more than once; the latest counts ({entry.name}), "
                    f"not {old.name}."
                )
            entries[row.run_id] = entry
    return [entries[name] for name in sorted(entries)], notes


def _sources(place: Path) -> Iterator[tuple[str, Path | bytes, Path]]:
    """Name, text or its file, and the file of ranks or their folder, of every row of a place."""
    if (place / ROWS).is_file():
        for at, line in enumerate((place / ROWS).read_bytes().splitlines(), 1):
            yield f"{place / ROWS}, line {at},", line, place / RANKS_FOLDER
    for path in sorted(place.glob(f"**/{ROW}")):
        yield str(path), path, path.with_name(RANKS)


def _with_ranks(run_id: str, path: Path, name: str, notes: list[str]) -> Path | None:
    """The file, where it has this run's ranks."""
    if not path.is_file():
        return None
    try:
        return path if columns(run_id, path) else None
    except (OSError, ValueError) as error:
        notes.append(f"{path} cannot be read ({error}); {name} counts without its ranks.")
        return None


def frame(places: Iterable[Path] | None = None) -> pd.DataFrame:
    """A line a run, by run id.

    Columns: ``COLUMNS``; ``val/…`` and ``test/…`` metrics; ``efficiency.…`` as measured; and the
    protocol, a column a setting, as JSON (``null``: off; missing: it has no say in this run).
    ``config`` is the resolved config, ``ranks`` the file of ranks or None. What could not be read
    is in ``attrs["notes"]``, in sentences.

    ``places`` are those of ``read``, by default the committed results.
    """
    entries, notes = read([RESULTS] if places is None else places)
    rows = pd.DataFrame([_line(entry) for entry in entries])
    rows = rows.reindex(columns=pd.Index(COLUMNS).union(rows.columns, sort=False))
    for key in filter(is_protocol, rows.columns):
        # The length of positions follows the data's where it is not said.
        silent = key == "model.max_length" or (rows["counted"].astype(bool) & (key in STOPPING))
        rows[key] = rows[key].astype(object).where(rows[key].notna() | silent, "null")
    rows = rows.astype(object) if rows.empty else rows  # texts can be added to nothing, too
    rows.attrs["notes"] = notes
    return rows


def _line(entry: Entry) -> dict[str, Any]:
    row, hardware = entry.row, entry.row.hardware
    counted, group = not row.parameters, row.config.get("group")
    trials = (row.search or {}).get("trials", 0)
    protocol = {
        key: json.dumps(value)
        for key, value in protocol_settings(row.config).items()
        if is_protocol(key) and not (counted and key in STOPPING)
    }
    parts = {
        "data.": dataclasses.asdict(row.data),
        "val/": row.metrics.val,
        "test/": row.metrics.test,
        "efficiency.": row.efficiency,
    }
    return {
        **{name: getattr(row, name) for name in FIELDS},
        "label": label(row.config),
        "setting": setting(row.config),
        "group": group,
        "counted": counted,
        "aside": trials > 0 or group in ASIDE or row.evaluation != "full",
        "commit": row.git.commit,
        "dirty": bool(row.git.dirty),
        "device": hardware.get("gpu") or hardware.get("cpu", "unknown"),
        "threads": None if hardware.get("gpu") else hardware.get("threads"),
        "torch": row.versions.get("torch"),
        "ranks": entry.ranks,
        "tuning trials": trials,
        "trial": (row.search or {}).get("trial"),  # its number in the search, from 0
        **{prefix + name: value for prefix, part in parts.items() for name, value in part.items()},
        **protocol,
    }


def check_protocol(column: str, rows: pd.DataFrame) -> None:
    """Refuse rows of different protocols in one column.

    Raises:
        MixedProtocolError: naming each setting that differs, its values, and a row of each.
    """
    differing = []
    for key in sorted(key for key in rows if is_protocol(key) or key in OTHERS):
        values = rows[["run_id", key]].dropna()
        runs = values.groupby(values[key].map(str))["run_id"].agg(["size", "first"])
        if len(runs) > 1:
            runs = runs.sort_values("size", ascending=False, kind="stable")
            differing.append(
                f"{key} is "
                + ", ".join(
                    f"{value} ({n} row{'s' * (n > 1)}, such as {first})"
                    for value, n, first in runs.itertuples()
                )
            )
    if differing:
        raise MixedProtocolError(
            f"{column} would put rows of different protocols into one column: "
            f"{'; '.join(differing)}. Keep them in different folders, or choose with "
            "--where key=value."
        )


def where(rows: pd.DataFrame, conditions: Sequence[str]) -> pd.DataFrame:
    """Only rows of these settings, such as ``dataset.max_length=50``; ``null`` is off.

    A counted model has no stopping rule, so that none leaves it out.

    Raises:
        UserError: not of that form, or no row has that setting.
    """
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--where takes key=value, such as dataset.max_length=50: {condition}")
        with suppress(ValueError):
            value = json.dumps(json.loads(value))  # [3,null] is [3, null]
        if key in rows:
            values = rows[key].map(str, na_action="ignore").astype(object)
        else:
            settings = [identity(config).get(key) for config in rows["config"]]
            values = pd.Series(map(json.dumps, settings), rows.index, dtype=object)
        plain = values.str.strip('"') if len(rows) else values
        fits = values.isna() | (values == value) | (plain == value)
        if len(rows) and values[fits].isna().all():
            others = ", ".join(sorted(plain.dropna().unique())[:8])
            raise UserError(f"No row has {condition}; {key} is {others} in those there are.")
        rows = rows[fits]
    return rows
