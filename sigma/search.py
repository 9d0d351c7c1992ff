"""A hyper-parameter search's study: where it lies, what may be drawn, and the trial a job runs.

A search keeps everything in ``search.db`` (SQLite, Optuna's) in its sweep folder; a trial's number
is its job's. Optuna is optional and imported only here and only when a search needs it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.utils import instantiate
from omegaconf import OmegaConf

from sigma.errors import UserError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.study import Study
    from optuna.trial import Trial

FILE = "search.db"
NAME = "search"


def needs_optuna() -> Any:
    """The module ``optuna``, quiet.

    Raises:
        UserError: it is not installed.
    """
    try:
        import optuna
    except ImportError:
        raise UserError("A search needs Optuna: pip install -e '.[optuna]'.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def storage(folder: Path) -> Any:
    """The folder's SQLite file; jobs that write at once wait up to a minute for each other."""
    optuna = needs_optuna()
    url = f"sqlite:///{(folder / FILE).absolute()}"
    return optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": 60}})


def load(folder: Path, pruner: Any = None) -> Study:
    """The study of a search's folder.

    Raises:
        UserError: Optuna is absent, or the folder holds no search.
    """
    optuna = needs_optuna()
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} holds no search ({FILE} is missing); give a search's folder.")
    study: Study = optuna.load_study(study_name=NAME, storage=storage(folder), pruner=pruner)
    return study


def drawn(override: Override) -> BaseDistribution:
    """What ``interval``, ``range``, ``choice`` or ``a,b`` of Hydra's grammar lets a trial draw.

    ``tag(log, interval(a, b))`` is uniform in the logarithm, ``int(interval(a, b))`` whole numbers
    with both ends; ``range(a, b, step)`` excludes ``b``, as anywhere in Hydra.

    Raises:
        UserError: a range or interval that holds nothing.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    value = override.value()
    try:
        if isinstance(value, IntervalSweep):
            low, high = value.start, value.end
            assert low is not None
            assert high is not None
            log = "log" in value.tags
            if isinstance(low, int) and isinstance(high, int):
                return IntDistribution(low, high, log=log)
            return FloatDistribution(float(low), float(high), log=log)
        if isinstance(value, RangeSweep):
            values: list[Any] = list(override.sweep_iterator())
            step = abs(value.step)
            if all(isinstance(v, int) for v in values) and isinstance(step, int):
                return IntDistribution(min(values), max(values), step=step)
            return FloatDistribution(min(values), max(values), step=step)
        values = list(override.sweep_iterator())
        if not all(v is None or isinstance(v, bool | int | float | str) for v in values):
            values = texts(override)  # lists and mappings, as they are written
        return CategoricalDistribution(values)
    except ValueError as error:
        raise UserError(f"Cannot draw from {override.input_line}: {error}") from None


def texts(override: Override) -> list[str]:
    """A choice's values as the command line takes them."""
    return [str(v) for v in override.sweep_iterator(transformer=Transformer.encode)]


def suggest(trial: Trial, space: Mapping[str, Override]) -> list[str]:
    """One override for each key; a trial that has drawn already keeps what it drew."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    overrides = []
    for key, override in space.items():
        name, given = key.lstrip("+"), drawn(override)
        value: Any
        if isinstance(given, CategoricalDistribution):
            chosen = trial.suggest_categorical(name, given.choices)
            value = texts(override)[int(given.to_internal_repr(chosen))]
        elif isinstance(given, IntDistribution):
            value = trial.suggest_int(name, given.low, given.high, step=given.step, log=given.log)
        else:
            assert isinstance(given, FloatDistribution)
            value = trial.suggest_float(name, given.low, given.high, step=given.step, log=given.log)
        overrides.append(f"{key}={value}")
    return overrides


def this_trial() -> Trial | None:
    """The trial this job runs; None outside a search."""
    hydra = HydraConfig.get()
    # A single run has no number, unless it is a job of a search in processes of its own.
    if OmegaConf.is_missing(hydra.job, "num"):
        return None
    folder = Path(hydra.sweep.dir)
    if not (folder / FILE).is_file():
        return None
    optuna = needs_optuna()
    study = load(folder, instantiate(hydra.sweeper.get("pruner")))
    (frozen,) = (t for t in study.get_trials(deepcopy=False) if t.number == hydra.job.num)
    trial: Trial = optuna.trial.Trial(study, frozen._trial_id)
    return trial


def first(override: Override) -> str:
    """Some value of what is drawn, as the command line takes it."""
    value = override.value()
    return str(value.start) if isinstance(value, IntervalSweep) else texts(override)[0]
