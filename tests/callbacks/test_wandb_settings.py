"""What the user tells W&B is heard: how much it may do, and what it calls a run."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from sigma.callbacks.wandb import WandbLogger
from sigma.callbacks.wandb_settings import choose_mode, has_login
from tests.callbacks.fake_wandb import KEY, Service, no_login, service, wandb, warnings
from tests.callbacks.test_wandb import arguments
from tests.in_process import call
from tests.runs.front_door import Logged, Patch

__all__ = ["no_login", "service"]

MINE = {
    **{"WANDB_PROJECT": "mine", "WANDB_NAME": "first", "WANDB_RUN_GROUP": "few"},
    **{"WANDB_JOB_TYPE": "test", "WANDB_TAGS": "a,b"},
}


def command(word: str) -> None:
    """``wandb offline`` and the like, in the working directory."""
    from wandb.cli.cli import cli

    assert CliRunner().invoke(cli, [word]).exit_code == 0
    wandb.teardown()


def settings(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: Patch) -> Path:
    """The working directory of somebody with a key."""
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    (tmp_path / "place").mkdir()
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


def test_without_a_word_it_is_online_with_a_login(place: Path, monkeypatch: Patch) -> None:
    assert choose_mode() == "online"
    monkeypatch.delenv("WANDB_API_KEY")
    wandb.teardown()
    assert choose_mode() == "offline"
    netrc = place.parent / "netrc"
    netrc.write_text("machine api.wandb.ai login user password short\n")
    assert has_login()  # W&B says what is wrong with it
    netrc.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert has_login()
    settings(place.parent / "config" / "settings", "[default]\nbase_url = https://w.example.org\n")
    wandb.teardown()
    assert not has_login()
    netrc.write_text(f"machine w.example.org login user password {KEY}\n")
    assert choose_mode() == "online"


@pytest.mark.parametrize(
    ("typed", "expected"),
    [("offline", "offline"), ("dryrun", "offline"), ("disabled", "disabled"), ("run", "online")],
)
def test_its_variable_and_its_settings_files_are_heard(
    typed: str, expected: str, place: Path, monkeypatch: Patch, caplog: Logged
) -> None:
    user, here = place.parent / "config" / "settings", place / "wandb" / "settings"
    for path in (user, here):
        settings(path, f"[default]\nmode = {typed}\n")
        wandb.teardown()
        assert choose_mode() == expected
        settings(path, "[default]\n")  # as ``wandb online`` leaves it
    settings(here, "[default]\nmode = disabled\n")
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", typed)  # even after W&B has read its settings
    assert choose_mode() == expected
    assert not warnings(caplog)


@pytest.mark.parametrize("word", ["offline", "disabled"])
@pytest.mark.parametrize("where", [None, "elsewhere"])
def test_its_own_commands_are_heard(
    word: str, where: str | None, place: Path, monkeypatch: Patch
) -> None:
    if where:  # the command writes to there, and W&B reads only from here
        (place / where).mkdir()
        monkeypatch.setenv("WANDB_DIR", str(place / where))
    command(word)
    assert choose_mode() == word


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        # Of an earlier version.
        ("[default]\nmode = offline\ndisabled = true\n", "a settings file says mode = offline"),
        ("[default]\nmode = ofline\n", "a settings file says mode = ofline"),
        ("mode = offline\n", "/settings cannot be read"),
    ],
)
def test_a_settings_file_that_wandb_leaves_out_sends_nothing(
    text: str, reason: str, place: Path, service: Service, caplog: Logged
) -> None:
    settings(place / "wandb" / "settings", text)
    log_once(place / "run")
    assert [run.options["mode"] for run in service.runs] == ["offline"]
    (message,) = warnings(caplog)
    assert message.startswith("W&B is offline, as ")
    assert reason in message


def test_what_is_said_where_the_program_starts_counts(
    place: Path, monkeypatch: Patch, service: Service
) -> None:
    """``hydra.job.chdir`` leads away; and a command line is more than the environment."""
    settings(place / "wandb" / "settings", "[default]\nmode = offline\n")
    for name, value in MINE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_DIR", str(place / "elsewhere"))
    typed = arguments(place.parent, "trainer.max_epochs=1", "hydra.job.chdir=true")
    typed = [*typed, "logger.wandb.project=typed", f"hydra.run.dir={place / 'run'}"]
    assert call(monkeypatch, *typed) == 0
    (run,) = service.runs
    assert run.options["mode"] == "offline"
    assert run.options["project"] == "typed"
    assert not {"name", "group", "job_type", "tags", "dir"} & set(run.options)


def log_once(folder: Path, **options: Any) -> None:
    logger = WandbLogger(str(folder), **options)
    for epoch in range(2):
        logger.log_metrics({"epoch": epoch}, step=epoch)
    logger.finalize("failed")


def test_disabled_writes_nothing(place: Path, monkeypatch: Patch, service: Service) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    log_once(place)
    assert not service.runs
    assert not list(place.iterdir())


@contextmanager
def listener() -> Iterator[list[Any]]:
    """Fills with every connection to W&B's server, or through a proxy to anywhere else."""
    connections: list[Any] = []
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.MonkeyPatch.context() as patch:

        def serve() -> None:
            while True:
                try:
                    connection, address = server.accept()
                except OSError:
                    return
                connections.append(address)
                connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
                connection.close()

        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        for name in ("WANDB_BASE_URL", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
            patch.setenv(name, url)
        threading.Thread(target=serve, daemon=True).start()
        yield connections
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["nothing", "wandb offline", "dryrun", "disabled"])
def test_nothing_leaves_the_machine_against_a_setting(
    setting: str, place: Path, monkeypatch: Patch
) -> None:
    """With W&B itself, which may also send reports of itself."""
    with listener() as connections:
        if setting.startswith("wandb "):
            command(setting.removeprefix("wandb "))
        elif setting != "nothing":
            monkeypatch.setenv("WANDB_MODE", setting)
            monkeypatch.setenv("WANDB_ERROR_REPORTING", "true")
        log_once(place / "run", init_timeout=1)
        wandb.teardown()  # it has sent what it will
    assert bool(connections) == (setting == "nothing")
    assert len(list(place.glob("run/wandb/offline-run-*/*.wandb"))) == (setting != "disabled")


def test_what_is_typed_goes_before_the_users_settings_and_they_before_ours(
    place: Path, monkeypatch: Patch, service: Service
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    usual = {"project": "usual", "name": "usual", "job_type": "usual", "dir": "usual"}
    log_once(place / "run", usual=usual, tags=[])
    for name, value in MINE.items():
        monkeypatch.setenv(name, value)
    settings(place / "wandb" / "settings", "[default]\nproject = of this folder\n")
    wandb.teardown()
    log_once(place / "run", usual=usual, tags=[])
    typed = {"project": "typed", "group": "typed", "tags": ["typed"], "dir": "typed"}
    log_once(place / "run", usual=usual, **typed)
    monkeypatch.delenv("WANDB_PROJECT")
    wandb.teardown()
    log_once(place / "run", usual=usual)
    described = [
        {key: run.options[key] for key in ("tags", "group", *usual) if key in run.options}
        for run in service.runs
    ]
    assert described == [usual, {"dir": "usual"}, typed, {"dir": "usual"}]
