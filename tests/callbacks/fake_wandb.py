"""W&B's runs at their public seam: what ``wandb.init`` was asked for and what the run was given."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sigma.callbacks.wandb import UNREACHED

wandb = pytest.importorskip("wandb")


KEY = "0123456789" * 4


class Run:
    """What one run was given."""

    url = "https://wandb.example.org/run"

    def __init__(self, **options: Any) -> None:
        self.options, self.id = options, options["id"]
        place = Path(options.get("dir", "elsewhere")) / "wandb"
        self.settings = SimpleNamespace(mode=options["mode"], wandb_dir=str(place))
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None

    def define_metric(self, *_: Any, **__: Any) -> None:
        """Nothing to keep."""

    def log(self, line: dict[str, Any]) -> None:
        assert self.exit_code is None, "logged to a run that has ended"
        self.history.append(line)

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code

    def table(self, key: str) -> Any:
        """The table that was logged under a key, as a frame."""
        (table,) = (line[key] for line in self.history if key in line)
        return table.get_dataframe()


class Service:
    """Stands for ``wandb.init``."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def init(self, **options: Any) -> Run:
        self.runs.append(Run(**options))
        return self.runs[-1]


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    """Every W&B run started from here on."""
    fake = Service()
    monkeypatch.setattr(wandb, "init", fake.init)
    return fake


@pytest.fixture(autouse=True)
def no_login(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a key nor a setting of the user's, and a server that always answered."""
    wandb.teardown()  # first, or the address of a service that it ends would be put back
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv(UNREACHED, "-inf")  # never
    yield
    wandb.teardown()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Of this project."""
    records = [r for r in caplog.records if r.levelno >= logging.WARNING]
    return [r.getMessage() for r in records if r.name.startswith("sigma")]
