"""W&B's server refuses, is silent, dies or does not know the key: what is said and waited for."""

import logging
import time
from pathlib import Path
from typing import Any

import pytest

from sigma.callbacks.wandb import RETRY, UNREACHED, WandbLogger
from tests.callbacks.fake_wandb import KEY, Run, Service, no_login, service, wandb, warnings
from tests.runs.front_door import Logged, Patch
from tests.storm.servers import server

__all__ = ["no_login", "service"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        *(("refuses", "cannot be reached"), ("silent", "cannot be reached")),
        ("wrong_key", "WANDB_API_KEY is not accepted"),
    ],
)
def test_what_cannot_be_reached_is_logged_offline(
    kind: str, reason: str, tmp_path: Path, monkeypatch: Patch, caplog: Logged
) -> None:
    """With W&B itself."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with server(kind) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        logger = WandbLogger(str(tmp_path), project="p", init_timeout=1)
        logger.log_metrics({"epoch": 0}, step=0)
        logger.finalize("failed")
        wandb.teardown()  # or its service keeps what the next test changes
    (message,) = warnings(caplog)
    assert reason in message
    assert len(list(tmp_path.glob("wandb/offline-run-*/*.wandb"))) == 1


def sweep(tmp_path: Path, runs: int, **options: Any) -> None:
    """Runs one after the other, as those of a sweep."""
    for number in range(runs):
        logger = WandbLogger(str(tmp_path / str(number)), project="p", **options)
        logger.log_metrics({"epoch": 0}, step=0)
        logger.finalize("failed")


def modes(service: Service) -> list[str]:
    return [run.options["mode"] for run in service.runs]


def fails_online(monkeypatch: Patch, service: Service, error: Exception) -> None:
    """Every online start, after it was counted."""

    def init(**options: Any) -> Run:
        run = service.init(**options)
        if options["mode"] == "online":
            raise error
        return run

    monkeypatch.setattr(wandb, "init", init)


def test_a_dead_server_is_waited_for_once_a_sweep(
    tmp_path: Path, monkeypatch: Patch, service: Service, caplog: Logged
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    fails_online(monkeypatch, service, wandb.errors.CommError("context deadline exceeded"))
    sweep(tmp_path, 3, init_timeout=0)  # what failed has taken longer
    assert modes(service) == ["online", "offline", "offline", "offline"]
    first, *others = warnings(caplog)
    assert "it cannot be reached: context deadline exceeded" in first
    assert len(others) == 2
    monkeypatch.setenv(UNREACHED, str(time.time() - RETRY - 1))
    sweep(tmp_path, 1, init_timeout=0)
    assert modes(service)[4:] == ["online", "offline"]
    service.runs.clear()
    monkeypatch.setenv(UNREACHED, "-inf")
    sweep(tmp_path, 2, init_timeout=60)  # it failed at once: another run may be lucky
    assert modes(service) == ["online", "offline"] * 2


@pytest.mark.parametrize("place", ["WANDB_API_KEY", "netrc"])
@pytest.mark.parametrize(
    "error",
    [
        wandb.errors.CommError("Failed to get resume status: returned error 401: {}"),
        wandb.errors.AuthenticationError("API key must have 40+ characters, has 5."),
    ],
)
def test_a_wrong_key_is_called_one(
    error: Exception,
    place: str,
    tmp_path: Path,
    monkeypatch: Patch,
    service: Service,
    caplog: Logged,
) -> None:
    if place == "netrc":
        (tmp_path / "netrc").write_text(f"machine api.wandb.ai login user password {KEY}\n")
    else:
        monkeypatch.setenv(place, KEY)
    fails_online(monkeypatch, service, error)
    sweep(tmp_path, 1)
    assert modes(service) == ["online", "offline"]
    (message,) = warnings(caplog)
    assert (
        f"the key in {'the netrc file' if place == 'netrc' else place} is not accepted" in message
    )
    assert ("wandb login --relogin" in message) == (place == "netrc")


def test_a_server_that_dies_is_waited_for_once(
    tmp_path: Path, monkeypatch: Patch, service: Service, caplog: Logged
) -> None:
    def finish(run: Run, exit_code: int) -> None:
        assert 0 < run.options["settings"].finish_timeout < 30
        if run.options["mode"] == "online":
            raise TimeoutError("Timed out finishing run.")

    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(Run, "finish", finish)
    caplog.set_level(logging.INFO)
    sweep(tmp_path, 2)
    assert modes(service) == ["online", "offline"]
    assert "Timed out finishing" in warnings(caplog)[0]
    assert caplog.text.count("wandb sync") == 2
