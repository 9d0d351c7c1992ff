"""The small files of a run's folder as they are read: what is damaged is one sentence."""

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from typing_extensions import TypedDict

from sigma.errors import UserError, excerpt
from sigma.runs.files import COMMAND, CONFIG
from sigma.runs.identity import current, digest, settings

Shape = TypeVar("Shape")
LIMIT = 2**26  # bytes; no such file is larger
GO_ON = "go on by the run's own command with this folder as hydra.run.dir and resume=true"
RETRAIN = "put back a copy of it, or move {} away and train the run anew"


@dataclass(frozen=True)
class DataIdentity:
    """Processed data by counts, to read, and a digest."""

    counts: str
    digest: str


@dataclass(frozen=True)
class Command:
    """What was typed for a run, on which data, and a digest of its settings.

    None where an earlier version did not say.
    """

    flags: list[str]
    overrides: list[str]
    data: DataIdentity | None = None
    settings: str | None = None


@dataclass(frozen=True)
class Failure:
    """Why a job of a sweep failed."""

    error: str


@dataclass(frozen=True)
class WandbRun:
    """Which W&B run a run is."""

    id: str


class Config(TypedDict):
    """The parts that every version's config had."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    seed: int
    model: dict[str, Any]
    dataset: dict[str, Any]
    task: dict[str, Any]
    trainer: dict[str, Any]
    callbacks: dict[str, Any]


def damaged(path: Path, error: Exception, advice: str) -> UserError:
    reason = str(error)
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = f"{excerpt(place)}: {first['msg']}" if place else first["msg"]
    return UserError(f"{path} is damaged ({excerpt(reason, 120)}); {advice}.")


def read(path: Path, shape: type[Shape], advice: str) -> Shape:
    """A JSON file's content.

    Raises:
        UserError: it is empty, cut, not JSON, nested too deep or of another shape.
    """
    with path.open("rb") as file:
        text = file.read(LIMIT)
    try:
        return TypeAdapter(shape).validate_json(text)
    except ValidationError as error:
        raise damaged(path, error, advice) from None


def read_config(folder: Path) -> dict[str, Any]:
    """The resolved config that a run was started with, of whatever version.

    Raises:
        UserError: it is missing or damaged.
    """
    path = folder / CONFIG
    advice = RETRAIN.format(folder)
    if not path.is_file():
        raise UserError(f"{path} is missing; {advice}.")
    config = dict(read(path, Config, advice))
    try:
        settings(current(config))
    except (KeyError, TypeError, AttributeError) as error:
        raise damaged(path, error, advice) from None
    return config


def check_settings(folder: Path) -> None:
    """See that a run's config has the settings it was started with: a changed digit fits, too.

    Raises:
        UserError: it has others, or is damaged.
    """
    command = read_command(folder)
    before = None if command is None else command.settings
    if before not in (None, digest(settings(read_config(folder)))):
        reason = ValueError("it has not the settings that the run was started with")
        raise damaged(folder / CONFIG, reason, RETRAIN.format(folder))


def read_command(folder: Path) -> Command | None:
    """What was typed for a run, as it wrote it down; None of an earlier version.

    Raises:
        UserError: it is damaged.
    """
    path = folder / COMMAND
    return read(path, Command, f"delete it, and {GO_ON}") if path.is_file() else None


def read_overrides(folder: Path) -> Command | None:
    """What was typed for the last start in a folder, as Hydra wrote it down; None where it did not.

    Hydra writes twice, and neither safely: it counts where both say the same.

    Raises:
        UserError: it is damaged.
    """
    path = folder / ".hydra" / "overrides.yaml"
    if not path.is_file():
        return None
    try:
        overrides = yaml.safe_load(path.read_bytes())
        hydra = yaml.safe_load(path.with_name("hydra.yaml").read_bytes())
        if overrides != hydra["hydra"]["overrides"]["task"]:
            raise ValueError("hydra.yaml beside it says otherwise")
        return TypeAdapter(Command).validate_python({"flags": [], "overrides": overrides})
    except Exception as error:  # damaged YAML fails in many ways
        raise damaged(path, error, GO_ON) from None
