"""Errors as one sentence: what the user can mend has no traceback, bugs keep theirs.

Loads neither PyTorch nor Lightning, so that help and most slips are answered at once.
"""

import errno
import logging
import os
import signal
import sys
import sysconfig
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import (
    CompactHydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from sigma.errors import RunTakenError, UserError
from sigma.runs.check import accepted, suggest
from sigma.runs.folder import note_failure
from sigma.runs.words import unreadable

log = logging.getLogger(__name__)
MISCONFIGURATION = "lightning.pytorch.utilities.exceptions.MisconfigurationException"
SIGTERM = "lightning.pytorch.utilities.exceptions.SIGTERMException"
OUT_OF_MEMORY = "torch.OutOfMemoryError"
KILLED_WORKER = "joblib.externals.loky.process_executor.TerminatedWorkerError"
HYDRA = str(Path(hydra.__file__).parent)
LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")})
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Warnings that nobody here can act on.
IGNORED = (
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning asks torch in a way torch 2.13 dislikes
    r".*this fit will run with no optimizer",  # a counted model has nothing to optimise
    r".*`training_step` returned `None`",
    r"Checkpoint directory .* exists and is not empty",  # of the run that goes on
    # torchmetrics has gathered the ranks' counts before; what is logged is one number already.
    r".*It is recommended to use `self.log\(.*sync_dist=True",
)


def causes(error: BaseException) -> Iterator[BaseException]:
    """An exception and what led to it, the outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def is_of(error: BaseException, name: str) -> bool:
    """Whether an exception is of the class of this name; what is not loaded has raised nothing."""
    module, _, of_class = name.rpartition(".")
    return isinstance(error, getattr(sys.modules.get(module), of_class, ()))


def one_line(error: BaseException) -> str:
    """A message without line breaks, indents, and what Hydra and OmegaConf put around it."""
    message = str(error).split("full_key:")[0].rpartition("raised while resolving interpolation: ")
    return " ".join(message[2].split())


def frames(error: BaseException | None) -> list[traceback.FrameSummary]:
    return traceback.extract_tb(getattr(error, "__traceback__", None))


def user_message(error: BaseException) -> str | None:
    """One sentence for what the user can mend, or None for a bug, which keeps its traceback."""
    for cause in causes(error):
        if isinstance(cause, UserError):
            return str(cause)
    messages = (config_message(cause) or system_message(cause) for cause in causes(error))
    return next((str(UserError(message)) for message in messages if message is not None), None)


def config_message(error: BaseException) -> str | None:
    """For what Hydra, OmegaConf, Lightning's trainer and the classes of a config refuse."""
    if isinstance(error, MissingConfigException) and error.options is not None:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        extra = " A launcher's package is an extra, such as pip install -e '.[joblib]'."
        package = extra if group == "hydra/launcher" else ""
        return f"There is no {group} '{option}'; {suggest(option, list(error.options))}{package}"
    if isinstance(error, ConfigKeyError | ConfigAttributeError) and error.parent_node is not None:
        return unknown_key(error)
    if isinstance(error, OverrideParseException):
        return unreadable(str(error.override))
    if isinstance(error, InstantiationException):
        return refusal(error)
    if isinstance(error, CompactHydraException | OmegaConfBaseException):
        says_more = isinstance(error.__cause__, ConfigKeyError | ConfigAttributeError)
        return None if says_more else one_line(error)
    if is_of(error, MISCONFIGURATION):
        return one_line(error)
    by_hydra = any(frame.filename.startswith(HYDRA) for frame in frames(error)[-1:])
    if isinstance(error, ValueError) and by_hydra:
        return f"{one_line(error)}; a group takes one of its options, such as logger=none."
    return None


def refusal(error: InstantiationException) -> str | None:
    """What a class says of its arguments, behind the key of its node.

    None where it may be a bug: code of ours or of the user's raised something else than ValueError.
    """
    cause = error.__cause__
    by_library = all(f.filename.startswith((*LIBRARIES, "<frozen ")) for f in frames(cause))
    if cause is None or not (isinstance(cause, ValueError) or by_library):
        return None
    return f"{str(error).rpartition('full_key: ')[2]}: {one_line(cause)}"


def unknown_key(error: ConfigKeyError | ConfigAttributeError) -> str:
    """What there is beside a key that is not, or how to add it where the target takes it."""
    key, parent = str(error.key), error.parent_node
    place = str(error.full_key or key).rpartition(".")[0]
    known = [str(k) for k in parent] if isinstance(parent, DictConfig) else []
    if "_target_" in known and key in accepted(str(parent["_target_"])):
        return f"{place}.{key} is not set yet; add it with a plus: +{place}.{key}=…"
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
        if error.errno in FULL:
            return f"The disk is full or its quota is used up{where}; free some space."
        return f"Cannot read or write{where}: {error.strerror}." if path else None
    if is_of(error, KILLED_WORKER):
        return (
            "A worker process was killed, most often for lack of memory. Start the same command "
            "again, with a lower hydra.launcher.n_jobs: finished runs are skipped, others go on."
        )
    if isinstance(error, RuntimeError) and "PytorchStreamWriter failed" in str(error):
        return "A checkpoint could not be written; is the disk full?"
    refused = isinstance(error, RuntimeError) and "tried to allocate" in str(error)
    if refused or isinstance(error, MemoryError) or is_of(error, OUT_OF_MEMORY):
        return "Out of memory; lower dataset.batch_size, dataset.max_length or model.hidden_size."
    return None


def quiet() -> None:
    logging.raiseExceptions = False  # a line that a full disk has no room for is no fault
    for message in IGNORED:
        warnings.filterwarnings("ignore", message)


@contextmanager
def explained() -> Iterator[None]:
    """Show what the user can mend as one sentence and exit with 1; let bugs through.

    A SIGTERM ends with 143, as it does in every program.
    """
    # Unless it is to raise, Hydra prints a traceback of its own and exits; what the user had asked
    # for is noted beside it.
    os.environ.setdefault("SIGMA_FULL_ERROR", os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"
    quiet()
    try:
        yield
    except (Exception, KeyboardInterrupt, SystemExit) as error:
        # Lightning turns Ctrl-C and SIGTERM into exits, the latter into one with code 0. Neither is
        # an Exception to Hydra, so a multirun ends with it, too.
        if isinstance(error, SystemExit) and not any(
            isinstance(cause, KeyboardInterrupt) or is_of(cause, SIGTERM) for cause in causes(error)
        ):
            raise
        message = user_message(error)
        terminated = is_of(error, SIGTERM)
        if message is None or (os.environ["SIGMA_FULL_ERROR"] == "1" and not terminated):
            raise
        print(f"error: {message}", file=sys.stderr)
        for note in dict.fromkeys(n for e in causes(error) for n in getattr(e, "__notes__", [])):
            print(note, file=sys.stderr)
        code = 128 + signal.SIGTERM if terminated else getattr(error, "exit_code", 1)
        raise SystemExit(code) from None


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
