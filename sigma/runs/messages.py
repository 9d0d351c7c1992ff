"""The command line's edges: what `resume=` means, and errors as one sentence.

Loads neither PyTorch nor Lightning, so that help and most slips are answered at once.
"""

import errno
import json
import logging
import os
import re
import signal
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sigma.errors import UserError
from sigma.runs.check import accepted, suggest
from sigma.runs.folder import COMMAND, RunTakenError, note_failure, quoted
from sigma.runs.identity import GONE

log = logging.getLogger(__name__)
MISCONFIGURATION = "lightning.pytorch.utilities.exceptions.MisconfigurationException"
SIGTERM = "lightning.pytorch.utilities.exceptions.SIGTERMException"
OUT_OF_MEMORY = "torch.OutOfMemoryError"
CONF = Path(__file__).parents[2] / "conf"
LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})
# A path that is not there, not allowed, or a file where a folder should be, or the reverse.
UNUSABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOENT, errno.EEXIST, errno.EISDIR
)  # fmt: skip
# Launchers that packages bring, and the extra that brings them.
LAUNCHERS = {
    "joblib": "joblib",
    "submitit_local": "submitit",
    "submitit_slurm": "submitit",
    "ray": "ray",
}


def expand_resume(arguments: list[str]) -> list[str]:
    """``resume=<run folder>`` -> that run's own command line, its folder, and ``resume=true``.

    Other arguments stay and, coming last, win (``trainer.max_epochs=300`` to go on for longer).
    Flags come before all overrides, which Hydra's parser wants side by side.
    """
    folders = [a.split("=", 1)[1] for a in arguments if a.startswith("resume=")]
    if not folders or folders[-1].lower() in {"true", "false"}:
        return arguments
    folder = Path(folders[-1])
    saved, older = folder / COMMAND, folder / ".hydra" / "overrides.yaml"
    flags: list[str] = []
    if saved.is_file():
        command = json.loads(saved.read_text())
        flags, overrides = command["flags"], command["overrides"]
    elif older.is_file():  # of a run before there was the other, or one that never began to train
        overrides = [o for o in map(str, OmegaConf.load(older)) if not o.startswith("resume=")]
    else:
        print(
            f"error: resume={folder} is not the folder of a run ({saved} is missing); give the "
            "folder that holds its checkpoints, or resume=true with hydra.run.dir=…",
            file=sys.stderr,
        )
        raise SystemExit(1)
    # Keys of an earlier version that typed them; they decided nothing.
    overrides = [o for o in overrides if o.lstrip("+~").split("=", 1)[0] not in GONE]
    given = [a for a in arguments if not a.startswith("resume=")]
    # A word that is neither is a flag's value (--config-dir conf2).
    typed = [a for a in given if not a.startswith("-") and ("=" in a or a.startswith("~"))]
    flags = [*flags, *(a for a in given if a not in typed)]
    return [*flags, *overrides, *typed, f"hydra.run.dir={quoted(str(folder))}", "resume=true"]


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it, the outermost first."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)


def is_of(error: BaseException, name: str) -> bool:
    """Whether an exception is of the class of this name.

    Not loaded for the question: what is not loaded has raised nothing.
    """
    module, _, of_class = name.rpartition(".")
    return isinstance(error, getattr(sys.modules.get(module), of_class, ()))


def user_message(error: BaseException) -> str | None:
    """One sentence for what the user can mend, or None for a bug, which keeps its traceback."""
    chain = list(causes(error))
    for seen in chain:
        if isinstance(seen, UserError):
            return str(seen)
    for seen in chain:
        message = hydra_message(seen) or system_message(seen)
        if message is not None:
            return message
    return None


def hydra_message(error: BaseException) -> str | None:
    """For what Hydra, OmegaConf and Lightning refuse."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        if group == "hydra/launcher" and option in LAUNCHERS:
            return absent_launcher(option)
        return f"There is no {group} '{option}'; {suggest(option, list(error.options))}"
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and error.parent_node is not None:
        return unknown_key(error)
    if isinstance(error, OverrideParseException):
        return (
            f"Cannot read '{error.override}': settings are written key=value, with quotes round "
            "a value that holds , = : or spaces (key='\"a b\"'); see python train.py --help."
        )
    if isinstance(error, ConfigCompositionException) and isinstance(
        error.__cause__, ConfigKeyError | ConfigAttributeError
    ):
        return None  # the cause says more
    if isinstance(error, ConfigCompositionException):
        wanted = re.search(r"Could not load 'hydra/launcher/(\w+)'", str(error))
        if wanted is not None and wanted[1] in LAUNCHERS:
            return absent_launcher(wanted[1])
    if isinstance(error, ValueError) and "Config group override must be" in str(error):
        return no_option(sys.argv[1:])
    if isinstance(error, InstantiationException) and (
        isinstance(cause := error.__cause__, ValueError)
        or (cause is not None and refused_by_library(cause))
    ):
        where = str(error).rpartition("full_key: ")[2] if "full_key" in str(error) else "The config"
        return f"{where}: {one_line(cause)}"
    if isinstance(error, CompactHydraException) and not isinstance(error, InstantiationException):
        return one_line(error)
    if isinstance(error, OmegaConfBaseException):
        return one_line(error)
    if is_of(error, MISCONFIGURATION):
        absent = "backend found" in str(error)
        hint = " Use trainer.accelerator=cpu, or auto for what there is." if absent else ""
        return f"The trainer refuses its settings: {one_line(error)}{hint}"
    if isinstance(error, RuntimeError) and "conditioned on metric" in str(error):
        return f"callbacks.early_stopping.monitor: {one_line(error)}"
    return None


def absent_launcher(option: str) -> str:
    """What to install for a launcher that a package brings."""
    return (
        f"The package of hydra/launcher={option} is not installed: "
        f"pip install -e '.[{LAUNCHERS[option]}]'."
    )


def no_option(arguments: list[str]) -> str:
    """For ``logger=null`` and the like, of which Hydra says neither the group nor its options."""
    for word in arguments:
        group, _, value = word.lstrip("+").partition("=")
        options = [path.stem for path in (CONF / group).glob("*.yaml")] if group else []
        if not options or value in options:
            continue
        none = {
            "logger": " For none, logger=none; for one less, ~logger.<name>.",
            "callbacks": " For one less, ~callbacks.<name>.",
        }.get(group, "")
        return f"{group}={value} names no {group}; {suggest(value, options)}{none}"
    return "A group takes the name of one of its options; see python train.py --help."


def refused_by_library(error: BaseException) -> bool:
    """Whether what the config gave to a target is what a library refuses.

    So it is when the call itself fails (an argument is missing or not known), or when all code that
    ran below the call is a library's. Where any of ours or of the user's ran, it may be a bug.
    """
    if not isinstance(error, TypeError | AttributeError | ImportError | LookupError):
        return False
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    below = [f for f in frames if not f.f_globals.get("__name__", "").startswith("hydra.")]
    return all(
        f.f_code.co_filename.startswith((*LIBRARIES, "<frozen "))
        and not f.f_globals.get("__name__", "").startswith("sigma.")
        for f in below
    )


def observers(group: DictConfig, name: str, kind: type) -> list[Any]:
    """The callbacks or loggers of a config; null leaves one out, as ``~`` does.

    Raises:
        UserError: one that is something else.
    """
    made = instantiate(group, _convert_="all")
    for key, part in made.items():
        if part is not None and not isinstance(part, kind):
            raise UserError(
                f"{name}.{key}={part} is no {kind.__name__.lower()}; give the class of one: "
                f"'+{name}.{key}={{_target_: package.Class}}'."
            )
    return [part for part in made.values() if part is not None]


def note_working_directory(cfg: DictConfig) -> None:
    """Say where Hydra has gone to before the data is looked for or downloaded there."""
    if not HydraConfig.get().job.chdir:
        return
    paths = {f"dataset.{key}": cfg.dataset.get(key) for key in ("path", "root")}
    relative = [f"{key}={p}" for key, p in paths.items() if p and not Path(p).is_absolute()]
    if relative:
        log.warning(
            "hydra.job.chdir=true: relative paths start from the run's folder, %s; there, too, %s "
            "(give an absolute path for another place).",
            *(Path.cwd(), " and ".join(relative)),
        )


def unknown_key(error: ConfigKeyError | ConfigAttributeError) -> str:
    """What there is beside a key that is not, or how to add it where the target takes it."""
    key, parent = str(error.key), error.parent_node
    place = str(error.full_key or key).rpartition(".")[0]
    known = [str(k) for k in parent] if isinstance(parent, DictConfig) else []
    if "_target_" in known and key in accepted(str(parent["_target_"])):
        return f"{place}.{key} is not set yet; add it with a plus: +{place}.{key}=…"
    known = [name for name in known if not name.startswith("_")]
    return f"{place or 'The config'} has no key '{key}'; {suggest(key, known)}"


def system_message(error: BaseException) -> str | None:
    """For a full disk, a folder that cannot be written, too little memory, and what is killed."""
    if isinstance(error, KeyboardInterrupt):
        return "Stopped by the keyboard."
    if is_of(error, SIGTERM):
        return "Stopped by SIGTERM (a time limit, docker stop or kill)."
    if isinstance(error, OSError):
        path = error.filename2 or error.filename  # of a copy, where it goes
        where = f" ({path})" if path else ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return f"The disk is full or its quota is used up{where}; free some space."
        if error.errno in UNUSABLE:
            return f"Cannot read or write{where}: {error.strerror}."
    # Of joblib's launcher; the same error without the word is a bug (what cannot be pickled).
    if isinstance(error, BrokenProcessPool) and "terminated" in str(error):
        return (
            "A worker process was killed, most often for lack of memory. Start the same command "
            "again: finished runs are skipped and stopped ones resume. A lower "
            "hydra.launcher.n_jobs=… runs fewer at once."
        )
    if isinstance(error, RuntimeError) and "PytorchStreamWriter failed" in str(error):
        return "A checkpoint could not be written; is the disk full?"
    refused = isinstance(error, RuntimeError) and "tried to allocate" in str(error)
    if refused or isinstance(error, MemoryError) or is_of(error, OUT_OF_MEMORY):
        return "Out of memory; lower dataset.batch_size, dataset.max_length or model.hidden_size."
    return None


def one_line(error: BaseException) -> str:
    """A message without line breaks, indents and Hydra's full_key tail."""
    return " ".join(str(error).split("full_key:")[0].split())


def quiet() -> None:
    """Leave out the warnings that nobody here can act on."""
    # Lightning 2.6 asks torch in a way torch 2.13 would like to see changed; nothing here can.
    warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
    # A counted model has nothing to optimise; Lightning asks whether that is on purpose.
    warnings.filterwarnings("ignore", r".*this fit will run with no optimizer")
    warnings.filterwarnings("ignore", r".*`training_step` returned `None`")
    # A resumed run finds its own checkpoints there.
    warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")
    # torchmetrics has gathered the ranks' counts before; what is logged is one number already.
    warnings.filterwarnings("ignore", r".*It is recommended to use `self.log\(.*sync_dist=True")


@contextmanager
def explained() -> Iterator[None]:
    """Show what the user can mend as one sentence and exit with 1; let bugs through.

    A SIGTERM ends with 143, as it does in every program.
    """
    # Unless told to raise, Hydra prints a traceback of its own and exits; what the user had asked
    # for is kept beside it.
    os.environ.setdefault("SIGMA_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    quiet()
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        # Lightning turns Ctrl-C and SIGTERM into exits, the latter into one with code 0. Neither is
        # an Exception to Hydra, so a multirun ends with it, too.
        if isinstance(error, SystemExit) and not any(
            isinstance(seen, KeyboardInterrupt) or is_of(seen, SIGTERM) for seen in causes(error)
        ):
            raise
        message = user_message(error)
        terminated = is_of(error, SIGTERM)
        if message is None or (os.environ["SIGMA_FULL_ERROR"] == "1" and not terminated):
            raise
        print(f"error: {message}", file=sys.stderr)
        for note in dict.fromkeys(n for e in causes(error) for n in getattr(e, "__notes__", [])):
            print(note, file=sys.stderr)
        raise SystemExit(128 + signal.SIGTERM if terminated else 1) from None


@contextmanager
def explained_job() -> Iterator[None]:
    """The same for one job: at once, so that Hydra adds nothing; in a multirun the next goes on."""
    if HydraConfig.get().mode != RunMode.MULTIRUN:
        with explained():
            yield
        return
    quiet()  # a parallel launcher's processes begin here
    try:
        yield
    except RunTakenError as error:
        log.info("Skipped: %s", error)
    except Exception as error:
        sentence = user_message(error) or repr(error)
        log.error("This job failed: %s", sentence)
        note_failure(Path(HydraConfig.get().runtime.output_dir), sentence)
        raise
