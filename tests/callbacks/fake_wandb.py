"""W&B's runs at their public seam: what ``wandb.init`` was asked for and what the run was given."""

from types import SimpleNamespace
from typing import Any

import pytest

wandb = pytest.importorskip("wandb")


class Run:
    """What one run was given."""

    url = "https://wandb.example.org/run"

    def __init__(self, **options: Any) -> None:
        self.options, self.id = options, options["id"]
        self.settings = SimpleNamespace(mode=options["mode"])
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
