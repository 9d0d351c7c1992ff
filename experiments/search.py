"""A hyper-parameter search by Optuna, one trial after another, each a run of ``train.py``.

    python -m experiments.search model=sigma dataset=beauty
    python -m experiments.search model=sigma,sasrec dataset=beauty n_trials=50
    python -m experiments.search model=sasrec model.dropout='interval(0,0.7)' model.num_layers=1

Words of its own: ``n_trials=20`` (of a search in all, those of an earlier start counted) and
``folder=search`` (each search lies in its ``<model>-<dataset>-s<seed>``). All others are
``train.py``'s; ``interval`` and ``choice`` add to the model's space in ``conf/search.yaml``.
Several models, data sets or seeds are a search each, with as many trials.

The same command again goes on where it was stopped, draws what it would have drawn, and shows what
there is when all is done. A trial that does worse than the median of others after as many epochs
is pruned and leaves no row.
"""

import shlex
import sys
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
from filelock import FileLock, Timeout
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Transformer
from lightning.pytorch.callbacks import Callback
from omegaconf import OmegaConf
from tqdm import tqdm

from sigma.errors import UserError
from sigma.runs.command import quoted
from sigma.runs.distributed import run_command
from sigma.runs.files import CONF, LOCK, ROW, SCRIPT
from sigma.runs.identity import register
from sigma.runs.messages import explained
from sigma.runs.row import Row

try:
    import optuna
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.trial import Trial, TrialState
except ImportError:
    raise SystemExit("error: A search needs Optuna: pip install -e '.[optuna]'.") from None

optuna.logging.set_verbosity(optuna.logging.WARNING)
STARTS = ("model", "dataset", "seed")  # of several values, each is a search of its own
WORDS = {"n_trials": 20, "folder": "search"}


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


def distribution(override: Override) -> Any:
    """What ``interval``, ``choice`` or ``a,b`` of Hydra's grammar lets a trial draw.

    Choices are texts, as the command line takes them.
    """
    value = override.value()
    if not isinstance(value, IntervalSweep):
        texts = override.sweep_iterator(transformer=Transformer.encode)
        return CategoricalDistribution([str(text) for text in texts])
    kind: Any = IntDistribution if isinstance(value.start, int) else FloatDistribution
    try:
        return kind(value.start, value.end, log="log" in value.tags)
    except ValueError as error:
        raise UserError(f"Cannot draw from {override.input_line}: {error}") from None


def composed(overrides: list[str]) -> Any:
    """A run's config; in it a misspelt key is found before anything is drawn."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", overrides, return_hydra_config=True)


class Search:
    """One search: what all trials have, what each draws, and its study."""

    def __init__(self, overrides: list[str], words: Any) -> None:
        parser, self.words = OverridesParser.create(), words
        typed = parser.parse_overrides(overrides)
        self.fixed = [str(o.input_line) for o in typed if not o.is_sweep_override()]
        config = composed(self.fixed)
        model, dataset = (config.hydra.runtime.choices[group] for group in ("model", "dataset"))
        self.metric = config.evaluation.monitor.removeprefix("val/")
        space: Any = OmegaConf.load(CONF / "search.yaml").get(model, {})
        written = parser.parse_overrides([f"{key}={value}" for key, value in space.items()])
        last = {o.get_key_element(): o for o in [*written, *typed]}  # of a key given twice
        self.space = {k: distribution(o) for k, o in last.items() if o.is_sweep_override()}
        if not self.space:
            raise UserError(
                f"There is nothing to search: conf/search.yaml has no '{model}' "
                "and the command line no interval(…) or choice(…)."
            )
        some = {k: d.choices[0] if hasattr(d, "choices") else d.low for k, d in self.space.items()}
        composed([*self.fixed, *(f"{key}={value}" for key, value in some.items())])
        self.name = f"{model}-{dataset}-s{config.seed}"
        self.folder = Path(words.folder, self.name).absolute()
        self.storage = f"sqlite:///{self.folder / 'search.db'}"

    def run(self) -> None:
        """Go through the trials that are left, and show all of them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / LOCK, timeout=0):
                self.run_trials()
        except Timeout:
            raise UserError(f"Another process is at the search in {self.folder}.") from None

    def run_trials(self) -> None:
        study = optuna.create_study(
            study_name=self.name, storage=self.storage, direction="maximize", load_if_exists=True
        )
        settings = {"overrides": sorted(self.fixed), "space": str(self.space)}
        if study.user_attrs.get("settings", settings) != settings:
            raise UserError(
                f"{self.folder} holds a search with other settings or another space; go on with "
                "it unchanged, or start anew in another folder=…."
            )
        study.set_user_attr("settings", settings)
        for trial in study.trials:
            # Nobody else is at this search, so what runs was killed, perhaps while it was drawn.
            if trial.state.name == "RUNNING" and trial.params.keys() == self.space.keys():
                self.run_trial(study, trial.number, trial.params)
            elif trial.state.name == "RUNNING":
                study.tell(trial.number, state=TrialState.FAIL)
        rest = range(self.words.n_trials - len(ended(study)))
        for _ in tqdm(rest, self.name, unit="trial"):  # with the time that is left
            number = len(study.trials)
            study.sampler = optuna.samplers.TPESampler(seed=number)  # the same after a stop
            self.run_trial(study, number, study.ask(self.space).params)
        self.show(study)

    def run_trial(self, study: Any, number: int, params: dict[str, Any]) -> None:
        """Run a trial to its end, and tell the study how it ended."""
        folder = self.folder / f"trial-{number:03d}"
        outcome = self.train(folder, number, params)
        if not outcome:
            score = Row.read(folder / ROW).metrics.val[self.metric]
            study.tell(number, score)
            outcome = f"{score:.4f}"
        else:
            pruned = "pruned" in study.trials[number].user_attrs
            study.tell(number, state=TrialState.PRUNED if pruned else TrialState.FAIL)
        rest = f"{len(ended(study))} of {self.words.n_trials}"
        tqdm.write(f"{self.name} trial {number}: {outcome}  ({rest})")

    def train(self, folder: Path, number: int, params: dict[str, Any]) -> str:
        """Run ``train.py`` in a process of its own; the sentence it failed with, if it failed."""
        pruning = {"_target_": "experiments.search.Pruning", "trial": number}
        pruning |= {"storage": quoted(self.storage), "study": quoted(self.name)}
        words = params | {f"+callbacks.pruning.{key}": value for key, value in pruning.items()}
        words |= {"resume": "true", "hydra.run.dir": quoted(str(folder))}
        words |= {"callbacks.row.trials": self.words.n_trials}
        typed = ["group=fair_search", *self.fixed, *(f"{k}={v}" for k, v in words.items())]
        command = [sys.executable, str(SCRIPT), *typed]
        status, sentence = run_command(command, quiet=True)
        if status in (143, -15):  # by SIGTERM; the next start goes on with it
            raise SystemExit(143)
        return sentence or "it failed" * bool(status)

    def show(self, study: Any) -> None:
        """All trials, and the best one's command line."""
        frame = study.trials_dataframe(("number", "state", "value", "duration", "params"))
        frame.to_csv(self.folder / "trials.csv", index=False)
        print(frame.to_string(index=False, na_rep="", float_format="{:.4g}".format))
        if "COMPLETE" not in set(frame["state"]):
            raise UserError(f"None of the {len(frame)} trials succeeded.")
        words = [*self.fixed, *(f"{key}={value}" for key, value in study.best_params.items())]
        print(f"Best: trial {study.best_trial.number}, {self.metric} {study.best_value:.4f}")
        print(shlex.join(["python", "train.py", *words]), flush=True)


def ended(study: Any) -> list[Any]:
    """Trials that count; of failed ones there are as many more at the next start."""
    return [trial for trial in study.trials if trial.state.name in ("COMPLETE", "PRUNED")]


def main() -> None:
    typed = sys.argv[1:]
    if not typed or {"-h", "--help"} & set(typed):
        print(__doc__)
        return
    with explained():
        ours = [word for word in typed if word.partition("=")[0] in WORDS]
        words = OmegaConf.merge(OmegaConf.create(WORDS), OmegaConf.from_dotlist(ours))
        parsed = OverridesParser.create().parse_overrides([w for w in typed if w not in ours])
        several = [o for o in parsed if o.key_or_group in STARTS and o.is_sweep_override()]
        shared = [str(o.input_line) for o in parsed if o not in several]
        values = [[f"{o.key_or_group}={v}" for v in o.sweep_string_iterator()] for o in several]
        for starts in product(*values):
            Search([*starts, *shared], words).run()


if __name__ == "__main__":
    main()
