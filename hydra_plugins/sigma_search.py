"""Hydra's sweeper for a search by Optuna: ``python train.py -m hydra/sweeper=optuna …``.

Hydra finds sweepers in this namespace only. Its own ``hydra-optuna-sweeper`` needs Optuna 2, keeps
the trial from the job, so nothing can be pruned, and ends the search with the first job that fails.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from sigma import search
from sigma.errors import Pruned, UserError

log = logging.getLogger(__name__)
# Their sequence is one for the whole study and lies in it; all others draw from a generator.
SEQUENCES = ("QMCSampler", "GridSampler", "BruteForceSampler")
RETRY_OF = "retry_of"  # a trial's attribute: the number of the failed one it repeats


class OptunaSweeper(Sweeper):
    """Draws settings, runs them through Hydra's launcher, and keeps every result in the study.

    A search that was killed goes on with the same command and ``hydra.sweep.dir``: trials that had
    ended stay, those that were running go on from their checkpoints. A job that fails is recorded
    as failed, with its reason, and the rest go on; the next start tries its settings once more, as
    a further trial in the same folder.

    Args:
        sampler: of ``optuna.samplers``; its ``seed`` and the trial's number decide each draw, so
            that a search that was stopped draws what it would have drawn.
        pruner: of ``optuna.pruners``, or None.
        n_trials: trials of the whole search, those of an earlier start counted, second tries not.
        n_jobs: trials at once, for a launcher that runs jobs in parallel.
        direction: ``maximize`` or ``minimize``.
        params: key -> ``interval``, ``range`` or ``choice`` of Hydra's grammar; the command line
            adds to it, changes it, and fixes what it gives one value.
    """

    def __init__(
        self,
        sampler: DictConfig,
        pruner: DictConfig | None,
        n_trials: int,
        n_jobs: int,
        direction: str,
        params: dict[str, str] | None = None,
    ) -> None:
        self.sampler, self.pruner = sampler, pruner
        self.n_trials, self.n_jobs = n_trials, n_jobs
        self.direction = direction
        self.params = dict(params or {})
        self.space: dict[str, Override] = {}
        self.fixed: list[str] = []

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.cfg = config
        self.loader = hydra_context.config_loader
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        """Run the search to its end.

        Raises:
            UserError: Optuna is absent, nothing is to be searched, the folder holds another search
                or is in use, or no trial succeeded.
        """
        optuna = search.needs_optuna()
        if self.n_trials < 1 or self.n_jobs < 1:
            raise UserError("hydra.sweeper.n_trials and n_jobs must be at least 1.")
        self._split(arguments)
        folder = Path(str(self.cfg.hydra.sweep.dir)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(folder / "search.lock", timeout=0):
                OmegaConf.save(self.cfg, folder / "multirun.yaml")
                study = optuna.create_study(
                    study_name=search.NAME,
                    storage=search.storage(folder),
                    sampler=instantiate(self.sampler),
                    pruner=instantiate(self.pruner),
                    direction=self.direction,
                    load_if_exists=True,
                )
                self._check_same(study, folder)
                self._run(study)
        except Timeout:
            raise UserError(f"Another process is at the search in {folder}.") from None
        self._report(study, folder)

    def _split(self, arguments: list[str]) -> None:
        """What is drawn, and what every trial has; of a key given twice the later counts."""
        parser = OverridesParser.create(config_loader=self.loader)
        fixed: dict[str, str] = {}
        written = [f"{key}={value}" for key, value in self.params.items()]
        for override in parser.parse_overrides([*written, *arguments]):
            key = override.get_key_element()
            bare = key.lstrip("+")
            for known in (bare, f"+{bare}", f"++{bare}"):
                self.space.pop(known, None)
                fixed.pop(known, None)
            if override.is_sweep_override():
                self.space[key] = override
            else:
                fixed[key] = str(override.input_line)
        self.fixed = list(fixed.values())
        if not self.space:
            model = self.cfg.hydra.runtime.choices.get("model")
            raise UserError(
                f"There is nothing to search: model '{model}' has no conf/search/{model}.yaml and "
                "the command line no interval(…), range(…) or choice(…)."
            )
        # A key that does not exist is found before anything is drawn.
        probe = [f"{k}={search.first(o)}" for k, o in self.space.items()]
        self.loader.load_sweep_config(self.cfg, [*self.fixed, *probe])

    def _check_same(self, study: Any, folder: Path) -> None:
        """Refuse to mix two searches in one study."""
        settings = {
            "overrides": sorted(self.fixed),
            "space": {k: str(o.input_line).partition("=")[2] for k, o in self.space.items()},
            "sampler": OmegaConf.to_container(self.sampler, resolve=True),
            "pruner": self.pruner and OmegaConf.to_container(self.pruner, resolve=True),
        }
        before = study.user_attrs.get("settings")
        if before is None:
            study.set_user_attr("settings", settings)
        elif before != settings:
            changed = [key for key in settings if settings[key] != before.get(key)]
            raise UserError(
                f"{folder} holds a search with another {' and '.join(changed)} "
                f"({'; '.join(f'{key}: {before.get(key)}' for key in changed)}); "
                "continue it unchanged or choose a new hydra.sweep.dir."
            )

    def _run(self, study: Any) -> None:
        from optuna.trial import Trial, TrialState

        before = study.get_trials(deepcopy=False)
        # Nobody else is at this search, so what runs in the study was killed.
        killed = [Trial(study, t._trial_id) for t in before if t.state == TrialState.RUNNING]
        if killed:
            log.info("Trials that were stopped go on: %s", ", ".join(str(t.number) for t in killed))
        retried = {t.user_attrs.get(RETRY_OF) for t in before}
        failed = [t for t in before if t.state == TrialState.FAIL and t.number not in retried]
        while True:
            batch, killed = killed[: self.n_jobs], killed[self.n_jobs :]
            if not batch:
                trials = study.get_trials(deepcopy=False)
                left = min(self.n_jobs, self.n_trials - len(first_tries(trials)))
                for number in range(len(trials), len(trials) + left):
                    study.sampler = self._sampler(number)
                    batch.append(study.ask())
            if not batch:
                # After all draws, which thus are those of a search that was never stopped.
                again, failed = failed[: self.n_jobs], failed[self.n_jobs :]
                batch = [self._retry(study, trial) for trial in again]
            if not batch:
                return
            jobs = []
            for trial in batch:
                study.sampler = self._sampler(trial.number)
                jobs.append([*self.fixed, *search.suggest(trial, self.space), "resume=true"])
            # A job's number is its trial's; a launcher counts on from one.
            pairs = list(zip(batch, jobs, strict=True))
            for _, group in itertools.groupby(
                enumerate(pairs), lambda entry: entry[1][0].number - entry[0]
            ):
                part = [pair for _, pair in group]
                results = self.launcher.launch([job for _, job in part], part[0][0].number)
                for (trial, job), result in zip(part, results, strict=True):
                    self._tell(study, trial, job, result)

    def _retry(self, study: Any, failed: Any) -> Any:
        """A failed trial once more, running: killed from here on, it goes on as any other.

        Its run resumes, and has been seen by the pruner up to where it failed.
        """
        from optuna.trial import Trial, TrialState, create_trial

        study.add_trial(
            create_trial(
                state=TrialState.RUNNING,
                params=failed.params,
                distributions=failed.distributions,
                intermediate_values=failed.intermediate_values,
                user_attrs={RETRY_OF: failed.number},
                # Without it, samplers that walk through a grid would spend a point here.
                system_attrs={"fixed_params": failed.params},
            )
        )
        trial = Trial(study, study.get_trials(deepcopy=False)[-1]._trial_id)
        log.info("Trial %d failed; trial %d tries it again.", failed.number, trial.number)
        return trial

    def _sampler(self, number: int) -> Any:
        if "seed" not in self.sampler or str(self.sampler._target_).endswith(SEQUENCES):
            return instantiate(self.sampler)
        return instantiate(self.sampler, seed=self.sampler.seed + number)

    def _tell(self, study: Any, trial: Any, job: list[str], result: JobReturn) -> None:
        from optuna.trial import TrialState

        # Here: to list its plugins, every Hydra program of this environment imports this file.
        from sigma.runs.messages import user_message

        value: Any = result._return_value  # return_value raises what the job raised
        trial.set_user_attr("folder", Path(result.hydra_cfg.hydra.runtime.output_dir).name)  # type: ignore[union-attr]
        trial.set_user_attr("overrides", job[:-1])
        if result.status == JobStatus.COMPLETED and math.isfinite(value):
            self._end(study, trial, float(value))
            log.info("Trial %d: %.4f", trial.number, value)
        elif isinstance(value, Pruned):
            self._end(study, trial, state=TrialState.PRUNED)
            log.info("Trial %d: pruned", trial.number)
        else:
            reason = f"its score is {value}"
            if isinstance(value, BaseException):
                reason = user_message(value) or repr(value)
            trial.set_user_attr("error", reason[:1000])
            self._end(study, trial, state=TrialState.FAIL)
            log.warning("Trial %d failed: %s", trial.number, trial.user_attrs["error"])

    def _end(self, study: Any, trial: Any, *result: Any, **state: Any) -> None:
        """Keep a trial's end; a grid that is used up ends the drawing."""
        try:
            study.tell(trial, *result, **state)
        except RuntimeError as error:  # a grid stops a study that Optuna runs, which this is not
            if "Study.stop" not in str(error):
                raise
            log.info("Every point of the grid has been tried.")
            self.n_trials = 0

    def _report(self, study: Any, folder: Path) -> None:
        from optuna.trial import TrialState

        trials = study.get_trials(deepcopy=False)
        if not any(t.state == TrialState.COMPLETE for t in trials):
            errors = [t.user_attrs["error"] for t in trials if "error" in t.user_attrs]
            last = f" The last one: {errors[-1]}" if errors else ""
            raise UserError(
                f"None of the search's {len(first_tries(trials))} trials succeeded.{last}"
            )
        best = study.best_trial
        log.info("Best of %d trials is %d: %.4f", len(first_tries(trials)), best.number, best.value)
        log.info("All of them: python -m experiments.search %s", folder)


def first_tries(trials: Sequence[Any]) -> list[Any]:
    """Trials without those that repeat a failed one."""
    return [trial for trial in trials if RETRY_OF not in trial.user_attrs]
