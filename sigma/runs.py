"""One run's folder: where it stands, whether it may go on, and whether it is done."""

import json
from pathlib import Path
from typing import Any

import lightning as L
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from sigma.errors import UserError

# What may differ when a run goes on: none of it changes what an epoch computes.
FREE = (
    "resume",
    "callbacks",
    "logger",
    "group",
    "tags",
    "dataset.path",
    "dataset.root",
    "trainer.max_epochs",
    "trainer.default_root_dir",
    "trainer.log_every_n_steps",
    "trainer.enable_model_summary",
    "trainer.fast_dev_run",
)


def determining(config: dict[str, Any]) -> dict[str, Any]:
    """The flattened part of a resolved config that decides what a run computes."""
    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                walk(f"{prefix}.{key}" if prefix else str(key), value)
        else:
            flat[prefix] = node

    walk("", config)
    return {k: v for k, v in flat.items() if not any(k == f or k.startswith(f + ".") for f in FREE)}


class RunFolder:
    """The folder Hydra made for this run.

    Args:
        cfg: the run's config, resolved.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.path = Path(HydraConfig.get().runtime.output_dir)
        self.row_path = self.path / "row.json"
        self.resume = cfg.resume is True
        self.config: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]

    def checkpoint_to_resume(self) -> str | None:
        """The last checkpoint, when resuming and there is one.

        Raises:
            UserError: the folder's run was made with other settings.
        """
        last = self.path / "checkpoints" / "last.ckpt"
        if not self.resume or not last.is_file():
            return None
        self._check_unchanged()
        return str(last)

    def _check_unchanged(self) -> None:
        before = determining(json.loads((self.path / "config.json").read_text()))
        now = determining(self.config)
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        if changed:
            raise UserError(
                f"The run in {self.path} was started with another "
                + ", ".join(f"{k} ({before.get(k)}, now {now.get(k)})" for k in changed)
                + "; resume it unchanged or choose a new hydra.run.dir."
            )

    def start(self) -> None:
        """Keep the resolved config beside what the run will write."""
        (self.path / "config.json").write_text(json.dumps(self.config, indent=1))

    def finished_score(self) -> float | None:
        """Best validation score of a run that is to be resumed but has ended already.

        Raises:
            UserError: it was made with other settings.
        """
        if not self.resume or not self.row_path.is_file():
            return None
        self._check_unchanged()
        metric = self.config["evaluation"]["monitor"].removeprefix("val/")
        return float(json.loads(self.row_path.read_text())["metrics"]["val"][metric])

    def best_score(self, trainer: L.Trainer) -> float:
        """Best validation score, the number a sweep optimises (NaN in a development run)."""
        best = getattr(trainer.checkpoint_callback, "best_model_score", None)
        return float("nan") if best is None else float(best)
