"""An experiment's runs, from its YAML without running them: what to expect, by identity."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from sigma.errors import UserError
from sigma.runs.files import CONF
from sigma.runs.identity import register, resolved, run_id


@dataclass(frozen=True)
class Job:
    """One run an experiment asks for.

    Attributes:
        overrides: what Hydra is given for it, ``key=value``.
        config: the resolved settings that decide its result.
    """

    run_id: str
    overrides: tuple[str, ...]
    config: dict[str, Any]

    @property
    def model(self) -> str:
        return str(self.config["model"]["name"])

    @property
    def dataset(self) -> str:
        return str(self.config["dataset"]["name"])

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    def override(self, key: str) -> str | None:
        """The value of an override, such as ``variant``."""
        return dict(override.split("=", 1) for override in self.overrides).get(key)


def experiments() -> list[str]:
    """Names of all experiments there are."""
    return sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def expand(overrides: Sequence[str]) -> list[Job]:
    """The jobs of ``python train.py -m *overrides``, in Hydra's order.

    Raises:
        UserError: an override that Hydra refuses, or an unknown experiment.
    """
    return list(jobs_of(*overrides))


@cache
def jobs_of(*overrides: str) -> tuple[Job, ...]:
    """``expand``, composed once a process."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return tuple(_jobs(overrides))
        except HydraException as error:
            raise UserError(" ".join(str(error).split())) from error
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"{' '.join(overrides)}: {error}") from error


def _jobs(overrides: Sequence[str]) -> list[Job]:
    values = _values(overrides)
    if "experiment" in values:
        values = choices(",".join(values["experiment"])) | values
    seeds = values.pop("seed", None)
    jobs = []
    for combination in product(*values.values()):
        shared = [f"{key}={value}" for key, value in zip(values, combination, strict=True)]
        cfg = compose("config", shared, return_hydra_config=True)
        for seed in seeds or [cfg.seed]:  # composing takes a tenth of a second, a seed nothing
            cfg.seed = int(seed)
            config = resolved(cfg)
            jobs.append(Job(run_id(config), (*shared, f"seed={seed}"), config))
    return jobs


def choices(experiment: str) -> dict[str, list[str]]:
    """What an experiment sweeps over of itself, by key; composes nothing.

    Raises:
        UserError: there is no such experiment.
    """
    if experiment not in experiments():
        raise UserError(
            f"There is no experiment '{experiment}'; there are: {', '.join(experiments())}."
        )
    content = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    params = OmegaConf.select(content, "hydra.sweeper.params") or {}
    return _values([f"{key}={value}" for key, value in params.items()])


def _values(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Every value of each key; of a key that comes twice, those of the last.

    Raises:
        UserError: values that are drawn as a search goes on.
    """
    values: dict[str, list[str]] = {}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element()
        if override.is_discrete_sweep():
            values[key] = list(map(str, override.sweep_string_iterator()))
        elif override.is_sweep_override():
            raise UserError(
                f"{override.input_line} is drawn as a search goes on, so its runs cannot be listed "
                "before; the search itself shows them (python -m experiments.search)."
            )
        else:
            values[key] = [str(override.get_value_element_as_str())]
    return values
