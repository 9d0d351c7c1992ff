"""A run's command line: how it is written down, and how ``resume=<folder>`` finds it again."""

import logging
import re
import shlex
from collections.abc import Sequence
from os.path import realpath
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from sigma.errors import UserError, excerpt
from sigma.runs.files import COMMAND
from sigma.runs.identity import GONE
from sigma.runs.records import read_command, read_overrides
from sigma.runs.trust import UNTRUSTED, check_entries, entries, is_data_folder, packages
from sigma.runs.words import quoted

log = logging.getLogger(__name__)

# Where a run writes is the user's to say, and a folder's paths do not lead out of it.
PLACES = ("default_root_dir", "save_dir", "dirpath")
OUTWARDS = re.compile(r"[/\\~]|[A-Za-z]:[/\\]|(.*[/\\])?\.\.([/\\]|$)")
READ = ("dataset.path", "dataset.root", "init_from")  # but these, which are read from
RETYPE = "if you mean it, type it yourself behind resume=…"


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


def check_links(folder: Path) -> None:
    """See that what a run writes stays in its folder.

    Raises:
        UserError: a symbolic link in it leads elsewhere.
    """
    for pattern in ("*", ".hydra/*", "checkpoints/*"):
        for path in folder.glob(pattern):
            if path.is_symlink() and not Path(realpath(path)).is_relative_to(realpath(folder)):
                raise UserError(
                    f"{folder}/{excerpt(path.relative_to(folder))} is a link that leads out of "
                    "the run's folder, where nothing may be written; put in its place what it "
                    "leads to."
                )


def check_flags(source: Path, before: Sequence[str], ours: Sequence[str]) -> list[str]:
    """The flags of a folder's command line that may be typed again.

    Args:
        ours: the user's; a ``--config-dir`` among them takes the place of the folder's.

    Raises:
        UserError: one that says where code may come from.
    """
    result = []
    for flag in before:
        name, _, value = flag.partition("=")
        if name == "--config-dir":
            if any(word.startswith(("--config-dir", "-cd")) for word in ours):
                continue
            raise UserError(
                f"{source}: the run took options from {excerpt(value, 200)}, which can name any "
                f"code; if they are yours, add --config-dir={shlex.quote(excerpt(value, 200))}."
            )
        if name != "--config-name" or not re.fullmatch(r"\w[\w-]*", value):
            raise UserError(f"{source}: the flag {excerpt(flag)} is not possible; {UNTRUSTED}.")
        result.append(flag)
    return result


def left_side(word: str) -> str:
    return word.partition("=")[0]


def check_overrides(
    source: Path, before: Sequence[str], ours: Sequence[str], allow: Sequence[str]
) -> list[str]:
    """The overrides of a folder's command line that may be typed again.

    One that the user types himself gives way to his. So does a ``dataset.root`` that is no folder
    of data: nothing is downloaded to where a folder says.

    Raises:
        UserError: one that may run code, say what Hydra itself does, or lead out of the folder.
    """
    keys = {left_side(word) for word in ours}
    parser = OverridesParser.create()
    result: list[str] = []
    content: list[tuple[str, Any]] = []
    for text in before:
        if left_side(text) in keys:
            continue
        where = f"{source}: {excerpt(text)}"
        try:
            override = parser.parse_override(text)
        except HydraException:
            raise UserError(f"{where} is no setting; {UNTRUSTED}.") from None
        if override.is_sweep_override():
            raise UserError(f"{where} is not one value; {UNTRUSTED}.")
        key, value = override.key_or_group, override.value()
        if re.search(r"\bhydra\b", f"{key} {override.package}"):
            raise UserError(f"{where} is a setting of Hydra's own, not of a run; {RETYPE}.")
        if "${" in text:
            raise UserError(f"{where} is an interpolation, which could read any secret; {RETYPE}.")
        if key == "dataset.root" and not is_data_folder(value):
            log.warning("%s holds no data, so SIGMA_DATA or ./data is taken.", where)
            continue
        for inner, leaf in entries(value, key):
            leaves = isinstance(leaf, str) and OUTWARDS.match(leaf) and inner not in READ
            if leaves or inner.rpartition(".")[2] in PLACES:
                raise UserError(f"{where} leads out of the run's folder; {RETYPE}.")
            content.append((inner, leaf))
        result.append(text)
    check_entries(source, content, allow)
    return result


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
    # Of a run before there was the first, or one that never began to train, there is the second.
    command, source = read_command(folder) or read_overrides(folder), folder / COMMAND
    if command is None:
        raise UserError(
            f"resume={folder} is not the folder of a run ({source} is missing); give the folder "
            "that holds its checkpoints, or resume=true with hydra.run.dir=…"
        )
    if not source.is_file():
        source = folder / ".hydra" / "overrides.yaml"
    check_links(folder)
    rest = [a for a in arguments if not a.startswith(("resume=", "allow="))]
    allow = packages([a.split("=", 1)[1] for a in arguments if a.startswith("allow=")])
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
