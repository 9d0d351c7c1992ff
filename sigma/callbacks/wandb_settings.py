"""What the user has told Weights & Biases: by ``WANDB_…``, ``wandb offline`` or settings files."""

import logging
import os
from collections.abc import Mapping
from contextlib import chdir
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_original_cwd

from sigma.errors import excerpt

log = logging.getLogger(__name__)

# Arguments of wandb.init whose setting has another name.
NAMES = {"dir": "root_dir"} | {n: f"run_{n}" for n in ("name", "group", "job_type", "tags")}
SYNONYMS = {"run": "online", "dryrun": "offline"}


def user_settings() -> Any:
    """W&B's settings, read once and where the program began (``hydra.job.chdir`` leads away)."""
    import wandb

    with chdir(get_original_cwd() if HydraConfig.initialized() else "."):
        return wandb.setup().settings


def has_login() -> bool:
    """Whether W&B's settings (``WANDB_API_KEY``, …) or a netrc file hold a key for its server; one
    that cannot be a key also counts, as W&B says what is wrong with it.
    """
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib.wbauth import read_netrc_auth

    settings = user_settings()
    if settings.api_key or settings.identity_token_file:
        return True
    try:
        return bool(read_netrc_auth(host=settings.base_url))
    except AuthenticationError:
        return True


def mode_in_files(settings: Any) -> tuple[str, str]:
    """The mode in settings files, and what says so, also where W&B leaves a file out: for one key
    or value that it does not know; or in ``WANDB_DIR``, where ``wandb offline`` writes to.
    """
    files = settings.read_system_settings()
    for path in map(Path, filter(None, (settings.settings_system, settings.settings_workspace))):
        # The bare section is what ``wandb online`` leaves.
        if path not in files.sources and path.is_file() and len(path.read_text().split()) > 1:
            return "offline", f"{path} cannot be read"
    mode = files.all().get("mode", settings.mode)
    return SYNONYMS.get(mode, mode), f"a settings file says mode = {excerpt(mode)}"


def choose_mode() -> Any:
    """W&B's mode as it is told (``WANDB_MODE``, ``wandb offline``), else ``online`` with a login.
    Where that is not clear, nothing leaves the machine.
    """
    settings = user_settings()
    typed = os.environ.get("WANDB_MODE")
    mode = SYNONYMS.get(typed or settings.mode, typed or settings.mode)
    if mode == "online" and not typed:
        mode, reason = mode_in_files(settings)
        if mode != "online":
            mode = "disabled" if mode == "disabled" else "offline"
            log.warning("W&B is %s, as %s; WANDB_MODE=online overrules it.", mode, reason)
    return "offline" if mode == "online" and not has_login() else mode


def description(typed: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``wandb.init``: what is typed, and what is usual where neither it nor the user's
    settings of W&B (``WANDB_PROJECT``, ``WANDB_DIR``, …) say it.
    """
    settings = user_settings()
    theirs = {key for key in settings.model_fields_set if getattr(settings, key)}
    rest = {key: value for key, value in usual.items() if NAMES.get(key, key) not in theirs}
    return rest | {key: value for key, value in typed.items() if value}
