"""Whether a run can be logged to W&B as it goes, told from the environment."""

import netrc
import os
from pathlib import Path
from urllib.parse import urlparse


def has_login() -> bool:
    """Whether a key is set or a netrc file knows W&B's host."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = os.environ.get("NETRC") or str(Path.home() / ".netrc")
    try:
        return netrc.netrc(path).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def choose_mode() -> str:
    """``online`` with a login, else ``offline``; WANDB_MODE has the last word."""
    asked = os.environ.get("WANDB_MODE", "")
    if asked in ("online", "offline", "disabled"):
        return asked
    return "online" if has_login() else "offline"
