"""The result row: what a finished run leaves for every table, as one line of JSON.

Written by ``sigma.callbacks.ResultRow`` as ``row.json``, kept by ``experiments.collect`` in
``results/rows.jsonl``, read by all reports. ``metrics``, ``data`` and ``config`` are the same for
the same seed, machine and commit; ``efficiency`` is what was measured that time.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from sigma.errors import UserError
from sigma.files import atomic_path
from sigma.runs.identity import SCHEMA, is_masked, run_id, upgraded
from sigma.runs.records import damaged, read

Finite = Annotated[float, Field(allow_inf_nan=False)]
Metrics = dict[str, Finite | None]
REWRITE = "delete it, and the run's command goes on from the last checkpoint and writes it anew"


@dataclass(frozen=True)
class Split:
    """``val`` at the best epoch, and ``test``: ``ndcg@10``, ``unseen/long/hr@5`` and their like."""

    val: Metrics
    test: Metrics


@dataclass(frozen=True, config=ConfigDict(extra="allow"))
class Data:
    """Statistics of the processed data (``sigma.datamodules.statistics``)."""

    users: int
    items: int
    interactions: int
    average_length: Finite
    sparsity: Finite
    train_samples: int
    val_samples: int
    test_samples: int
    val_repeats: int | None = None  # older rows did not count them
    test_repeats: int | None = None
    left_out: int | None = None  # nor this
    val_cold: int | None = None  # targets whose item training never has; nor did they count those
    test_cold: int | None = None
    name: str = ""
    expected: dict[str, Any] | None = None
    matches: bool | None = None


@dataclass(frozen=True)
class Code:
    """The commit that made the row; None where git could not say."""

    commit: str | None
    dirty: bool | None


@dataclass(frozen=True)
class Row:
    """One finished run."""

    schema: int
    model: str
    dataset: str
    seed: int
    metrics: Split
    best_epoch: int | None  # from 0; None where no validation chose one
    epochs: int  # that were trained
    parameters: int
    data: Data
    efficiency: dict[str, Any]  # seconds, samples a second, bytes
    git: Code
    versions: dict[str, str]
    hardware: dict[str, Any]
    finished: str  # UTC, ISO 8601
    config: dict[str, Any]  # resolved; paths are relative or names only
    objective: str = "NextItem"
    evaluation: str = "full"  # or what targets were ranked among, ``1000 uniform negatives``
    precision: str | None = None
    scan: str | None = None  # the backend of the operations on packed rows
    ancestor: dict[str, Any] | None = None  # the run whose weights it began from
    search: dict[str, int] | None = None  # this run is a trial of, ``{"trials": 50, "trial": 7}``

    @property
    def run_id(self) -> str:
        return run_id(self.config)

    def score(self, monitor: str) -> float:
        """The best epoch's value of a metric such as ``val/ndcg@10``; NaN where it has none.

        A run that was trained on the validation has none at all.
        """
        if self.config["dataset"].get("train_on_val"):
            return float("nan")
        value = self.metrics.val[monitor.removeprefix("val/")]
        return float("nan") if value is None else value

    @classmethod
    def parse(cls, content: Any) -> Self:
        """A row of any schema.

        Raises:
            ValueError: a part is missing or of another kind, or a number is not finite.
            UserError: the row is of a newer version.
        """
        schema = content.get("schema") if isinstance(content, dict) else None
        if not isinstance(schema, int):
            raise ValueError("this is no result row: it has no schema")
        if schema > SCHEMA:
            raise UserError(f"schema {schema} is newer than {SCHEMA}; update this code")
        try:
            row: Self = TypeAdapter(cls).validate_python(content)
            if is_masked(row.config):
                parts = (row.metrics.val, row.metrics.test)
                unseen = (
                    {f"unseen/{name}": value for name, value in part.items()} for part in parts
                )
                object.__setattr__(row, "metrics", Split(*unseen))
            config = upgraded(row.config, schema)
            _ = run_id(config)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise ValueError(f"{place}: {first['msg']}") from None
        except (KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(f"its config is not a run's ({reason})") from None
        object.__setattr__(row, "config", config)
        return row

    @classmethod
    def read(cls, path: Path) -> Self:
        """The row of a run's folder.

        Raises:
            UserError: it is damaged, or of a newer version.
        """
        content = read(path, dict[str, Any], REWRITE)
        try:
            return cls.parse(content)
        except UserError as error:
            raise UserError(f"{path}: {error}.") from None
        except ValueError as error:
            raise damaged(path, error, REWRITE) from None

    def content(self) -> dict[str, Any]:
        plain: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json")
        return plain

    def write(self, path: Path) -> None:
        """Whole or not at all: a table must never read half a row."""
        with atomic_path(path) as partial:
            partial.write_text(json.dumps(self.content(), indent=1, sort_keys=True))
