"""A run's command line: how it is written down, and how ``resume=<folder>`` finds it again."""

from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from sigma.errors import UserError
from sigma.runs.files import COMMAND
from sigma.runs.identity import GONE
from sigma.runs.records import read_command
from sigma.runs.trust import check_flags, check_links, check_overrides, packages


def quoted(text: str) -> str:
    """Text as a value on Hydra's command line."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def flags() -> list[str]:
    """The flags that say where this job's config comes from."""
    hydra = HydraConfig.get()
    sources = hydra.runtime.config_sources
    added = [f"--config-dir={s.path}" for s in sources if s.provider == "command-line"]
    return [f"--config-name={hydra.job.config_name}", *added]


def typed() -> dict[str, Any]:
    """This job's flags and overrides, as ``expand_resume`` reads them."""
    overrides = [o for o in HydraConfig.get().overrides.task if not o.startswith("resume=")]
    return {"flags": flags(), "overrides": overrides}


def expand_resume(arguments: list[str]) -> list[str]:
    """``resume=<run folder>`` -> that run's own command line, its folder, and ``resume=true``.

    Other arguments stay and, coming last, win (``trainer.max_epochs=300`` to go on for longer).
    Flags come before all overrides, which Hydra's parser wants side by side. The folder may be a
    stranger's: ``allow=my_package`` is ours, and lets it name classes of that package.

    Raises:
        UserError: no run, or one whose command line is not to be trusted.
    """
    folders = [a.split("=", 1)[1] for a in arguments if a.startswith("resume=")]
    if not folders or folders[-1].lower() in {"true", "false"}:
        return arguments
    folder = Path(folders[-1])
    command, source = read_command(folder), folder / COMMAND
    if command is None:
        raise UserError(
            f"resume={folder} is not the folder of a run ({source} is missing); give the folder "
            "that holds its checkpoints, or resume=true with hydra.run.dir=…"
        )
    check_links(folder)
    rest = [a for a in arguments if not a.startswith(("resume=", "allow="))]
    allow = packages(*(a.split("=", 1)[1] for a in arguments if a.startswith("allow=")))
    # A word that is neither is a flag's value (--config-dir conf2).
    added = [a for a in rest if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    options = [a for a in rest if a not in added]
    # Keys of an earlier version that typed them; they decided nothing.
    obsolete = ("resume", *GONE)
    overrides = [o for o in command.overrides if o.lstrip("+~").split("=", 1)[0] not in obsolete]
    return [
        *check_flags(source, command.flags, options),
        *options,
        *check_overrides(source, overrides, added, allow),
        *added,
        f"hydra.run.dir={quoted(str(folder))}",
        "resume=true",
    ]
