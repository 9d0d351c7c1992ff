"""Result rows, read and put together: which runs belong to one cell, and which may stand together.

A cell of a table is every seed of one setting. Rows of the same setting made under another
protocol (length of the history, filter, masking, stopping, data, tuning) never share a column.
"""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sigma.errors import UserError
from sigma.runs.identity import SCHEMA, digest, identity, run_id, upgraded

# Settings that decide what a number means, not which model made it.
PROTOCOL = (
    "dataset.max_length",
    "model.max_length",  # of positions, the same number
    "dataset.user_bounds",
    "dataset.item_bounds",
    "dataset.drop_duplicates",
    "dataset.split",
    "dataset.val_fraction",
    "dataset.test_fraction",
    "dataset.mask_history",
    "evaluation",
    "callbacks.early_stopping.patience",
    "trainer.max_epochs",
    "trainer.limit_train_batches",
    "trainer.limit_val_batches",
    "trainer.limit_test_batches",
)
# When training ends: of a counted model it says nothing.
STOPPING = (
    "callbacks.early_stopping.patience",
    "trainer.max_epochs",
    "trainer.limit_train_batches",
)
# Experiments whose runs are no results of the paper's protocol, so that none stands in its tables:
# three epochs for their seconds, trials of a search, sampled rankings of other lengths.
ASIDE = ("table3", "mambarec_efficiency", "fair_search", "mambarec_context")
COUNTS = ("users", "items", "interactions")  # of the data: another vintage has others
METRICS = ("hr@10", "ndcg@10", "mrr@10")


class MixedProtocolError(UserError):
    """Rows that do not belong side by side."""


def is_protocol(key: str) -> bool:
    """Whether a dotted setting is part of the protocol."""
    return any(key == name or key.startswith(name + ".") for name in PROTOCOL)


def setting(config: dict[str, Any]) -> str:
    """What a cell of a table is: the identity of its runs without protocol, seed and data seed.

    A data seed of its own stays: two runs of one seed in one cell would count as two seeds.
    """
    kept = {k: v for k, v in identity(config).items() if not is_protocol(k)}
    if kept.get("dataset.seed") == kept["seed"]:
        kept.pop("dataset.seed")
    kept.pop("seed")
    return digest(kept)


@dataclass(frozen=True)
class Row:
    """One finished run.

    Attributes:
        path: its file.
        content: as ``ResultRow`` wrote it.
        ranks_path: its ranks per user, or None.
    """

    path: Path
    content: dict[str, Any]
    ranks_path: Path | None

    @cached_property
    def config(self) -> dict[str, Any]:
        return upgraded(self.content["config"], self.content["schema"])

    @cached_property
    def run_id(self) -> str:
        return run_id(self.config)

    @cached_property
    def setting(self) -> str:
        return setting(self.config)

    @property
    def model(self) -> str:
        return str(self.content["model"])

    @property
    def dataset(self) -> str:
        return str(self.content["dataset"])

    @property
    def seed(self) -> int:
        return int(self.content["seed"])

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """What must be equal for two rows to stand in one column."""
        found = {k: v for k, v in identity(self.config).items() if is_protocol(k)}
        if self.counted:
            found = {k: v for k, v in found.items() if k not in STOPPING}
        found |= {f"data.{name}": self.content["data"][name] for name in COUNTS}
        found["tuning trials"] = self.trials
        return found

    @property
    def counted(self) -> bool:
        """Whether nothing was trained."""
        return not self.content["parameters"]

    @property
    def trials(self) -> int:
        """Of the search this run is a trial of; 0 where it is of none."""
        return int((self.content.get("search") or {}).get("trials", 0))

    @property
    def aside(self) -> bool:
        """Whether it stands in no table of the paper's results."""
        return self.trials > 0 or self.content["config"].get("group") in ASIDE

    def of_protocol(self, key: str) -> Any:
        """The value of a protocol's setting, None where it is off; ``...`` where it has no say."""
        silent = (self.counted and key in STOPPING) or key == "model.max_length"
        return self.protocol.get(key, ... if silent else None)

    def metric(self, split: str, name: str) -> float | None:
        """Of ``val`` or ``test``, None where the row has none; ``name`` such as ``ndcg@10``."""
        value = self.content["metrics"][split].get(name)
        return None if value is None else float(value)

    @cached_property
    def ranks(self) -> pd.DataFrame | None:
        """The ranks of all test users in full ranking, ordered by user; None without them."""
        if self.ranks_path is None:
            return None
        frame = pd.read_parquet(self.ranks_path)
        if "greater" not in frame:  # of a sampled ranking
            return None
        return frame.sort_values(["user", "history_length"], ignore_index=True)

    def per_user(self, metric: str = "ndcg@10") -> pd.Series | None:
        """Each test user's own metric, by user and history length."""
        if self.ranks is None:
            return None
        index = pd.MultiIndex.from_frame(self.ranks[["user", "history_length"]])
        return pd.Series(gains(self.ranks, metric), index)


def gains(ranks: pd.DataFrame, metric: str) -> np.ndarray[Any, Any]:
    """(users,) float64: each user's expected metric, such as ``hr@10``, by the project's tie rule.

    Args:
        ranks: columns ``greater`` and ``ties``, see ``sigma.ranking.metrics.target_ranks``.
    """
    # Here: most of what reads a ledger asks for no user's gains and goes without PyTorch.
    import torch

    from sigma.ranking.metrics import expected_gains, gain_table

    name, cut = metric.split("@")
    above, ties = (torch.tensor(ranks[c].to_numpy(dtype="int64")) for c in ("greater", "ties"))
    return expected_gains(gain_table(name, int(cut)), above, ties).numpy()


@dataclass
class Ledger:
    """All rows found.

    Attributes:
        rows: one for each run, the latest where a run was made more than once.
        notes: what was found besides, in sentences: damaged files, runs made more than once.
    """

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @cached_property
    def by_setting(self) -> dict[tuple[str, str], list[Row]]:
        """(data set, setting) -> rows, by seed."""
        found: dict[tuple[str, str], list[Row]] = defaultdict(list)
        for row in sorted(self.rows, key=lambda r: (r.seed, r.run_id)):
            if not row.aside:
                found[row.dataset, row.setting].append(row)
        return found

    def rows_of(self, config: dict[str, Any]) -> list[Row]:
        """Every seed of a run's setting, whatever its protocol."""
        return self.by_setting.get((str(config["dataset"]["name"]), setting(config)), [])


def read(places: Iterable[Path]) -> Ledger:
    """Rows of folders: ``*.json`` in them (``<run>.ranks.parquet`` beside), and runs' folders.

    Raises:
        UserError: a place that is not there.
    """
    ledger = Ledger()
    kept: dict[str, Row] = {}
    for place in places:
        if not place.is_dir():
            raise UserError(f"There is no folder {place} to read rows from.")
        for path in [*sorted(place.glob("*.json")), *sorted(place.glob("*/row.json"))]:
            row = _row(path, ledger.notes)
            if row is None:
                continue
            other = kept.get(row.run_id)
            if other is not None and other.content["finished"] != row.content["finished"]:
                old, row = sorted((other, row), key=lambda r: str(r.content["finished"]))
                ledger.notes.append(
                    f"{row.run_id} was run more than once; the latest counts "
                    f"({row.path.name}), not {old.path.name}."
                )
            kept[row.run_id] = row
    ledger.rows = sorted(kept.values(), key=lambda r: r.run_id)
    return ledger


def _check(content: dict[str, Any]) -> None:
    """See that the report finds in a row what it will ask for.

    Raises:
        ValueError: a metric or count that is no number, or a newer row than this code knows.
        KeyError, TypeError, AttributeError: a part is missing or of another kind.
    """
    if content["schema"] > SCHEMA:
        raise ValueError(f"schema {content['schema']} is newer than {SCHEMA}; update this code")
    for split in ("val", "test"):
        for name, value in content["metrics"][split].items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{split} {name} is {value}")
    _ = [content["git"][name] for name in ("commit", "dirty")]
    _ = [content["hardware"][name] for name in ("cpu", "threads")]
    _ = [content[part].keys() for part in ("efficiency", "versions")]
    counts = ("average_length", "sparsity", "train_samples", "test_samples", *COUNTS)
    numbers = [*(content["data"][name] for name in counts), content["epochs"]]
    if content["best_epoch"] is not None:
        numbers.append(content["best_epoch"])
    for value in numbers:
        math.isfinite(value)  # refuses what is no number
    _ = content["finished"]


def _row(path: Path, notes: list[str]) -> Row | None:
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict) or "metrics" not in content or "config" not in content:
            return None  # another kind of file
        ranks = path.with_name(
            "ranks.parquet" if path.name == "row.json" else f"{path.stem}.ranks.parquet"
        )
        row = Row(path, content, ranks if ranks.is_file() else None)
        _ = row.run_id, row.setting, row.protocol, row.model, row.dataset, row.seed, row.aside
        _check(content)
        try:
            _ = row.ranks
        except (OSError, ValueError, KeyError) as error:
            notes.append(f"{ranks} cannot be read ({error}); {path.name} counts without its ranks.")
            row = Row(path, content, None)
        return row
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        notes.append(f"{path} is not a row that can be read ({type(error).__name__}: {error}).")
        return None


def check_protocol(column: str, rows: Sequence[Row]) -> None:
    """Refuse rows of different protocols in one column.

    Raises:
        MixedProtocolError: naming each setting that differs, its values, and a row of each.
    """
    differing = []
    for key in sorted({key for row in rows for key in row.protocol}):
        values: dict[str, list[Row]] = defaultdict(list)
        for row in rows:
            value = row.of_protocol(key)
            if value is not ...:
                values[json.dumps(value)].append(row)
        if len(values) > 1:
            told = ", ".join(
                f"{value} ({len(own)} row{'s' if len(own) > 1 else ''}, such as {own[0].path.name})"
                for value, own in sorted(values.items(), key=lambda item: -len(item[1]))
            )
            differing.append(f"{key} is {told}")
    if differing:
        raise MixedProtocolError(
            f"{column} would put rows of different protocols into one column: "
            f"{'; '.join(differing)}. Keep them in different folders, or choose with "
            "--where key=value."
        )


def narrowed(ledger: Ledger, conditions: Sequence[str]) -> Ledger:
    """Only rows whose setting is as told, ``dataset.max_length=50``; ``null`` is off.

    A counted model has no stopping rule, so none leaves it out.

    Raises:
        UserError: not of that form, or no row is as told.
    """
    rows = ledger.rows
    for condition in conditions:
        key, equals, value = condition.partition("=")
        if not equals:
            raise UserError(f"--where takes key=value, such as dataset.max_length=50: {condition}")
        with suppress(ValueError):
            value = json.dumps(json.loads(value))  # [3,null] is [3, null]
        found = {row.run_id: _of(row, key) for row in rows}
        fits = [row for row in rows if found[row.run_id] in (value, ...)]
        if rows and all(found[row.run_id] is ... for row in fits):
            there = sorted({str(v) for v in found.values() if v is not ...})
            raise UserError(
                f"No row has {condition}; "
                + (f"{key} is {', '.join(there[:8])} in those there are." if there else "")
            )
        rows = fits
    return Ledger(rows, ledger.notes)


def _of(row: Row, key: str) -> Any:
    """A row's setting as the command line has it; ``...`` where it has no say."""
    value = row.of_protocol(key)
    if value is None:
        value = identity(row.config).get(key)
    return value if value is ... or isinstance(value, str) else json.dumps(value)


def history_bins(row: Row, edges: Sequence[int]) -> pd.DataFrame | None:
    """Users and HR@10 by length of history; columns bin, users, hr@10.

    Args:
        edges: first lengths of the bins, the last open upwards.
    """
    if row.ranks is None:
        return None
    hits = gains(row.ranks, "hr@10")
    place = np.digitize(row.ranks["history_length"].to_numpy(), list(edges)) - 1
    lines = []
    for at, first in enumerate(edges):
        inside = place == at
        last = edges[at + 1] - 1 if at + 1 < len(edges) else None
        name = f"{first}+" if last is None else (f"{first}" if last == first else f"{first}–{last}")
        lines.append(
            {
                "bin": name,
                "users": int(inside.sum()),
                "hr@10": float(hits[inside].mean()) if inside.any() else float("nan"),
            }
        )
    return pd.DataFrame(lines)
