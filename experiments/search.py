"""Hyper-parameter searches by Optuna, of equal budgets; each trial is a run of ``train.py``.

    python -m experiments.search model=sigma dataset=beauty
    python -m experiments.search experiment=fair_search n_trials=50 jobs=4
    python -m experiments.search model=sasrec model.dropout='interval(0,0.7)' model.num_layers=1

Words of its own: ``n_trials=20`` (of each search, those of an earlier start counted), ``jobs=1``
(searches at once) and ``folder=search`` (where each has a folder). All others are ``train.py``'s;
``interval`` and ``choice`` add to the model's space in ``conf/search.yaml``. Several models, data
sets, seeds or monitors (``evaluation.monitor=val/ndcg@10,val/unseen/ndcg@10``) are a search each.
They take turns, a trial each, so that at every moment all have spent as much.

The same command again goes on where it was stopped, draws what it would have drawn, and shows what
there is when all is done. A trial that does worse than the median of others after as many epochs
is pruned and leaves no row.
"""

import asyncio
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from tqdm import tqdm

from experiments.grid import choices
from experiments.space import composed, draw, refusal, restricted, space, words_of
from sigma.errors import RunTakenError, UserError
from sigma.runs.command import quoted
from sigma.runs.files import CONF, LOCK, ROW, SCRIPT
from sigma.runs.messages import explained
from sigma.runs.row import Row

try:
    import optuna
    from optuna.trial import Trial, TrialState
except ImportError:
    raise SystemExit("error: A search needs Optuna: pip install -e '.[optuna]'.") from None

optuna.logging.set_verbosity(optuna.logging.WARNING)
# Of several values, each is a search of its own.
STARTS = ("model", "dataset", "seed", "evaluation.monitor")
WORDS = {"n_trials": 20, "jobs": 1, "folder": "search"}
TERMINATED = 128 + signal.SIGTERM
TABLE = ("hr@10", "ndcg@10", "unseen/hr@10", "unseen/ndcg@10")  # of the best trial's test


class Pruning(Callback):
    """Reports a trial's epochs; ends its run before the next one where others did better.

    Not at an epoch's end: then its checkpoint and curves are still to be written. Optuna's own
    callback takes the living trial, which a command line cannot hold.
    """

    def __init__(self, storage: str, study: str, trial: int) -> None:
        pruner = optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=5)
        loaded = optuna.load_study(study_name=study, storage=storage, pruner=pruner)
        trials = optuna.storages.get_storage(storage)
        key = trials.get_study_id_from_name(study)
        self.trial = Trial(loaded, trials.get_trial_id_from_study_id_trial_number(key, trial))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            score = trainer.callback_metrics[str(pl_module.monitor)]
            self.trial.report(float(score), trainer.current_epoch)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.strategy.broadcast(trainer.is_global_zero and self.trial.should_prune()):
            if trainer.is_global_zero:
                self.trial.set_user_attr("pruned", trainer.current_epoch)
            raise UserError(f"pruned before epoch {trainer.current_epoch}")


class Search:
    """One search: what all trials have, what each draws, and its study."""

    def __init__(self, overrides: list[str], words: Any) -> None:
        typed = OverridesParser.create().parse_overrides(overrides)
        self.words = words
        self.fixed = [str(o.input_line) for o in typed if not o.is_sweep_override()]
        config = composed(self.fixed)
        self.model, self.dataset = (
            config.hydra.runtime.choices[group] for group in ("model", "dataset")
        )
        self.metric = config.evaluation.monitor.removeprefix("val/")
        written: Any = OmegaConf.to_container(OmegaConf.load(CONF / "search.yaml"))
        last = {o.get_key_element(): o for o in typed}  # of a key given twice
        drawn = space(written.get(self.model, {}), last)
        if not drawn:
            raise UserError(
                f"There is nothing to search: conf/search.yaml has no '{self.model}' "
                "and the command line no interval(…) or choice(…)."
            )
        self.space = restricted(drawn, lambda s: refusal([*self.fixed, *words_of(s)]))
        name = f"{self.model}-{self.dataset}-s{config.seed}-{self.metric}"
        self.name = name.replace("/", "-")
        self.folder = Path(words.folder, self.name).absolute()
        self.storage = f"sqlite:///{self.folder / 'search.db'}"

    def open(self, stack: ExitStack) -> None:
        """Take the folder for this process, and tell the study of trials that cannot go on.

        Raises:
            UserError: another process has it, or it holds another search.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(FileLock(self.folder / LOCK, timeout=0))
        except Timeout:
            raise UserError(f"Another process is at the search in {self.folder}.") from None
        self.study = optuna.create_study(
            study_name=self.name, storage=self.storage, direction="maximize", load_if_exists=True
        )
        settings = {"overrides": sorted(self.fixed), "space": str(self.space)}
        if self.study.user_attrs.get("settings", settings) != settings:
            raise UserError(
                f"{self.folder} holds a search with other settings or another space; go on with "
                "it unchanged, or start anew in another folder=…."
            )
        self.study.set_user_attr("settings", settings)
        for trial in self.running():
            if "settings" not in trial.user_attrs:  # killed while it was drawn
                self.study.tell(trial.number, state=TrialState.FAIL)

    def running(self) -> list[Any]:
        """Nobody else is at this search, so what runs when it starts was killed."""
        return [trial for trial in self.study.trials if trial.state is TrialState.RUNNING]

    def ended(self) -> list[Any]:
        """Trials that count; another is drawn for each that failed."""
        counted = (TrialState.COMPLETE, TrialState.PRUNED)
        return [trial for trial in self.study.trials if trial.state in counted]

    def failures(self) -> int:
        return sum(trial.state is TrialState.FAIL for trial in self.study.trials)

    async def run(self, turns: asyncio.Semaphore, bar: Any) -> None:
        """Go through the trials that are left, each when it is this search's turn."""
        begun = [(trial.number, trial.user_attrs["settings"]) for trial in self.running()]
        while len(self.ended()) < self.words.n_trials and self.failures() <= self.words.n_trials:
            async with turns:  # first come, first served
                number, settings = begun.pop(0) if begun else self.ask()
                outcome = await self.run_trial(number, settings)
            ended, drawn = len(self.ended()), " ".join(words_of(settings))
            place = f"{self.name} {ended} of {self.words.n_trials}"
            tqdm.write(f"{place}, trial {number}: {outcome}\n  {drawn}")
            bar.update(self.study.trials[number].state is not TrialState.FAIL)

    def ask(self) -> tuple[int, dict[str, Any]]:
        """A new trial's number and what it draws, which depends on the trials before it alone."""
        number = len(self.study.trials)
        self.study.sampler = optuna.samplers.TPESampler(seed=number)
        trial = self.study.ask()
        settings = draw(self.space, trial)
        trial.set_user_attr("settings", settings)
        return number, settings

    async def run_trial(self, number: int, settings: dict[str, Any]) -> str:
        """Run a trial to its end, and tell the study how it ended, in words, too."""
        row_path = self.trial_folder(number) / ROW
        sentence = await train(self.command(number, settings), self.words.jobs)
        trial = self.study.trials[number]
        epochs = f"{len(trial.intermediate_values)} epochs"
        if not sentence:
            score = Row.read(row_path).score(self.metric)
            self.study.tell(number, score)
            return f"{score:.4f} after {epochs}"
        pruned = "pruned" in trial.user_attrs
        self.study.tell(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)
        if number >= 2 and not self.ended():
            raise UserError(f"None of the trials in {self.folder} succeeded; the last: {sentence}")
        return f"pruned after {epochs}" if pruned else sentence

    def trial_folder(self, number: int) -> Path:
        return self.folder / f"trial-{number:03d}"

    def command(self, number: int, settings: dict[str, Any]) -> list[str]:
        """The command line of a trial; started again, it goes on with it."""
        folder = self.trial_folder(number)
        storage = f"sqlite:///{folder / '..' / 'search.db'}"  # from the run's folder, as in its row
        pruning = {"_target_": "experiments.search.Pruning", "trial": number}
        pruning |= {"storage": quoted(storage), "study": quoted(self.name)}
        words = settings | {f"+callbacks.pruning.{key}": value for key, value in pruning.items()}
        words |= {"resume": "true", "hydra.run.dir": quoted(str(folder))}
        words |= {"callbacks.row.search": f"{{trials:{self.words.n_trials},trial:{number}}}"}
        typed = ["group=fair_search", *self.fixed, *words_of(words)]
        return [sys.executable, str(SCRIPT), *typed]

    def line(self) -> dict[str, Any]:
        """What the search has spent, and its best trial by validation; a file of all trials."""
        columns = ("number", "state", "value", "duration", "user_attrs")
        frame = self.study.trials_dataframe(columns)
        frame.to_csv(self.folder / "trials.csv", index=False)
        trials = self.ended()
        line: dict[str, Any] = {"search": self.name, "trials": len(trials)}
        line["pruned"] = sum(trial.state is TrialState.PRUNED for trial in trials)
        line["epochs"] = sum(len(trial.intermediate_values) for trial in trials)
        if line["pruned"] == len(trials):
            raise UserError(f"None of the trials in {self.folder} succeeded.")
        best = self.study.best_trial
        test = Row.read(self.trial_folder(best.number) / ROW).metrics.test
        line |= {"best": best.number, "validation": best.value}
        return line | {f"test {name}": test.get(name) for name in TABLE}

    def best_command(self) -> str:
        settings = self.study.best_trial.user_attrs["settings"]
        return shlex.join(["python", "train.py", *self.fixed, *words_of(settings)])


async def train(command: list[str], jobs: int) -> str:
    """Run ``train.py`` to its end, one of ``jobs`` processes; the sentence it failed with, if so.

    Raises:
        UserError: another process is at the trial.
        SystemExit: it was stopped by SIGTERM; the next start goes on with it.
    """
    share = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // jobs, 1))}
    pipes = {"stdout": asyncio.subprocess.DEVNULL, "stderr": asyncio.subprocess.PIPE}
    process = await asyncio.create_subprocess_exec(*command, env=share | os.environ, **pipes)
    try:
        _, errors = await process.communicate()
    finally:
        if process.returncode is None:  # the search is stopped, and leaves none behind
            process.terminate()
            await process.wait()
    said = [line for line in errors.decode().splitlines() if line.startswith("error: ")]
    sentence = said[-1].removeprefix("error: ") if said else "it failed without a word"
    if process.returncode == RunTakenError.exit_code:
        raise UserError(sentence)
    if process.returncode in (TERMINATED, -signal.SIGTERM):
        raise SystemExit(TERMINATED)
    return sentence if process.returncode else ""


async def run(searches: Sequence[Search], words: Any) -> None:
    """All searches in turns, under one bar with the time that is left."""
    turns = asyncio.Semaphore(words.jobs)
    total, ended = words.n_trials * len(searches), sum(len(s.ended()) for s in searches)
    with tqdm(total=total, initial=min(ended, total), unit="trial") as bar:
        await asyncio.gather(*(search.run(turns, bar) for search in searches))


def starts(typed: Sequence[str]) -> list[list[str]]:
    """The overrides of each search: what an experiment sweeps over is as if it were typed."""
    parser = OverridesParser.create()
    experiment = {word.partition("=")[2] for word in typed if word.startswith("experiment=")}
    swept = choices(experiment.pop()) if experiment else {}
    words = [f"{key}={','.join(values)}" for key, values in swept.items()]
    last = {o.get_key_element(): o for o in parser.parse_overrides([*words, *typed])}
    several = [last.pop(key) for key in STARTS if key in last and last[key].is_sweep_override()]
    shared = [str(override.input_line) for override in last.values()]
    values = [[f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()] for o in several]
    return [[*combination, *shared] for combination in product(*values)]


def main() -> None:
    typed = sys.argv[1:]
    if not typed or {"-h", "--help"} & set(typed):
        print(__doc__)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(TERMINATED))
    with explained(), ExitStack() as stack:
        ours = [word for word in typed if word.partition("=")[0] in WORDS]
        words = OmegaConf.merge(OmegaConf.create(WORDS), OmegaConf.from_dotlist(ours))
        others = [word for word in typed if word not in ours]
        searches = [Search(overrides, words) for overrides in starts(others)]
        for search in searches:
            search.open(stack)
        asyncio.run(run(searches, words))
        table = pd.DataFrame([search.line() for search in searches])
        print(table.to_markdown(index=False, floatfmt=".4f"))
        for search in searches:
            print(search.best_command(), flush=True)


if __name__ == "__main__":
    main()
