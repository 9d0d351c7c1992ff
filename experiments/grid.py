"""An experiment's runs, from its YAML without running them: what to expect, by identity."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import product
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from sigma.errors import UserError
from sigma.runs.files import CONF
from sigma.runs.identity import register, resolved, run_id


@dataclass(frozen=True)
class Job:
    """One run an experiment asks for; composed when its settings are asked for.

    Attributes:
        shared: what Hydra is given for it, ``key=value``, but for the seed.
    """

    shared: tuple[str, ...]
    seed: int

    @property
    def overrides(self) -> tuple[str, ...]:
        """All that Hydra is given for it."""
        return (*self.shared, f"seed={self.seed}")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved settings that decide its result."""
        cfg = composed(self.shared)
        cfg.seed = self.seed  # composing takes a tenth of a second, a seed nothing
        try:
            return resolved(cfg)
        except ValueError as error:
            raise UserError(f"{' '.join(self.shared)}: {error}") from error

    @property
    def is_composed(self) -> bool:
        """Whether its settings were asked for."""
        return "config" in vars(self)

    @cached_property
    def run_id(self) -> str:
        return run_id(self.config)

    @property
    def model(self) -> str:
        """The model's name; a file of ``conf/model`` is named after it."""
        return self.override("model") or str(self.config["model"]["name"])

    @property
    def dataset(self) -> str:
        return self.override("dataset") or str(self.config["dataset"]["name"])

    def override(self, key: str) -> str | None:
        """The value of an override, such as ``variant``."""
        return dict(override.split("=", 1) for override in self.overrides).get(key)


@cache
def composed(overrides: tuple[str, ...]) -> DictConfig:
    """The config of ``python train.py *overrides``, composed once a process.

    Raises:
        UserError: an override that Hydra refuses.
    """
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            return compose("config", list(overrides), return_hydra_config=True)
        except HydraException as error:
            raise UserError(" ".join(str(error).split())) from error


def experiments() -> list[str]:
    """Names of all experiments there are."""
    return sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


def expand(overrides: Sequence[str]) -> list[Job]:
    """The jobs of ``python train.py -m *overrides``, in Hydra's order, composed.

    Raises:
        UserError: an override that Hydra refuses, or an unknown experiment.
    """
    jobs = jobs_of(*overrides)
    for job in jobs:
        _ = job.run_id
    return list(jobs)


@cache
def jobs_of(*overrides: str) -> tuple[Job, ...]:
    """``expand``, but nothing is composed yet.

    Raises:
        UserError: an override that Hydra cannot read, or an unknown experiment.
    """
    try:
        values = _values(overrides)
    except HydraException as error:
        raise UserError(" ".join(str(error).split())) from error
    if "experiment" in values:
        values = choices(",".join(values["experiment"])) | values
    seeds = values.pop("seed", None)
    jobs: list[Job] = []
    for combination in product(*values.values()):
        pairs = zip(values, combination, strict=True)
        shared = tuple(f"{key}={value}" for key, value in pairs)
        try:
            jobs += [Job(shared, int(seed)) for seed in seeds or [composed(shared).seed]]
        except ValueError as error:
            raise UserError(f"seed={','.join(seeds or [])} must be whole numbers.") from error
    return tuple(jobs)


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
