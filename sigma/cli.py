"""The command line's edges: what `resume=` means, and errors as one sentence."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import OmegaConf

from sigma.errors import UserError


def expand_resume(arguments: list[str]) -> list[str]:
    """``resume=<run folder>`` -> that run's own overrides, its folder, and ``resume=true``.

    Other arguments stay and, coming last, win (``trainer.max_epochs=300`` to go on for longer).
    """
    folders = [a.split("=", 1)[1] for a in arguments if a.startswith("resume=")]
    if not folders or folders[-1].lower() in {"true", "false"}:
        return arguments
    folder = Path(folders[-1])
    saved = folder / ".hydra" / "overrides.yaml"
    if not saved.is_file():
        print(
            f"error: resume={folder} is not the folder of a run ({saved} is missing); give the "
            "folder that holds its checkpoints, or resume=true with hydra.run.dir=…",
            file=sys.stderr,
        )
        raise SystemExit(1)
    overrides = [o for o in OmegaConf.load(saved) if not str(o).startswith("resume=")]
    given = [a for a in arguments if not a.startswith("resume=")]
    return [*overrides, *given, f"hydra.run.dir={folder}", "resume=true"]


def user_message(error: BaseException) -> str | None:
    """The sentence meant for the user anywhere in an exception's chain of causes, or None."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, UserError):
            return str(seen)
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def explained() -> Iterator[None]:
    """Show errors the user can mend as one sentence and exit with 1; let others through."""
    # Hydra prints its own traceback and exits unless told to raise.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        yield
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(1) from None
