"""What a trial of a search draws: settings, some of which stand under a value of another.

A space is written as in ``conf/search.yaml``: a key has Hydra's ``interval``, ``range`` or
``choice``, or a mapping of its values to what a trial with this value draws further, so that what
does not go together is never drawn:

    objective:
      next_item: {dataset.batch_size: 'choice(512, 2048)'}
      all_positions: {dataset.batch_size: 'choice(64, 256)'}
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, Transformer
from hydra.utils import instantiate

from sigma.build import defaults
from sigma.errors import UserError
from sigma.runs.files import CONF
from sigma.runs.identity import register


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, both included; whole ones where these are ints."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """Values, as texts of the command line, each with what is drawn under it."""

    branches: dict[str, "Space"]


Space = dict[str, Interval | Choice]
Settings = dict[str, str | float]  # one trial's
Overrides = Mapping[str, Override]


def text(value: object) -> str:
    """A value as it is typed."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def setting(override: Override) -> Interval | Choice:
    """What an override of Hydra's grammar lets a trial draw.

    Raises:
        UserError: an interval that has no numbers.
    """
    value = override.value()
    if not isinstance(value, IntervalSweep):
        texts = override.sweep_iterator(transformer=Transformer.encode)
        return Choice({text(value): {} for value in texts})
    interval = Interval(value.start, value.end, "log" in value.tags)
    if interval.low > interval.high or (interval.log and interval.low <= 0):
        raise UserError(f"Cannot draw from {override.input_line}: there is no such number.")
    return interval


def space(content: Mapping[str, Any], typed: Mapping[str, Override]) -> Space:
    """What is written of a model, where what is typed takes the place of its key, or comes last.

    Raises:
        UserError: an interval that has no numbers.
    """
    drawn, keys = _branch(content, typed)
    added = {k: o for k, o in typed.items() if k not in keys and o.is_sweep_override()}
    return drawn | {key: setting(override) for key, override in added.items()}


def _branch(content: Mapping[str, Any], typed: Mapping[str, Override]) -> tuple[Space, set[str]]:
    """The space of this part of what is written, and all its keys."""
    drawn: Space = {}
    keys = set(content)
    for key, written in content.items():
        inner: dict[str, Space] = {}
        for value, further in written.items() if isinstance(written, Mapping) else ():
            inner[value], below = _branch(further or {}, typed)
            keys |= below
        override = typed.get(key)
        if override is None:
            grammar = f"choice({','.join(inner)})" if inner else str(written)
            (override,) = OverridesParser.create().parse_overrides([f"{key}={grammar}"])
        if override.is_sweep_override():
            drawn[key] = values = setting(override)
            if isinstance(values, Choice):
                drawn[key] = Choice({v: inner.get(v, {}) for v in values.branches})
        else:
            drawn |= inner.get(text(override.value()), {})
    return drawn, keys


def draw(space: Space, trial: Any, place: str = "") -> Settings:
    """The settings of an Optuna trial, which knows each by ``place`` and key: under another value
    a key may have other values.
    """
    drawn: Settings = {}
    for key, values in space.items():
        name = f"{place}{key}"
        if isinstance(values, Choice):
            value = drawn[key] = trial.suggest_categorical(name, list(values.branches))
            drawn |= draw(values.branches[value], trial, f"{name}={value} ")
        else:
            suggest = trial.suggest_int if isinstance(values.low, int) else trial.suggest_float
            drawn[key] = suggest(name, values.low, values.high, log=values.log)
    return drawn


def examples(space: Space) -> Iterator[Settings]:
    """Settings as trials might draw them, with every value that others stand under."""
    parts: list[list[Settings]] = []
    for key, values in space.items():
        if isinstance(values, Interval):
            parts.append([{key: values.low}])
            continue
        branches = values.branches if any(values.branches.values()) else [*values.branches][:1]
        parts.append(
            [{key: v} | further for v in branches for further in examples(values.branches[v])]
        )
    for combination in product(*parts):
        yield {key: value for part in combination for key, value in part.items()}


def restricted(space: Space, refusal: Callable[[Settings], str]) -> Space:
    """Without values that do not go with what is typed, of settings that others stand under.

    Args:
        refusal: why a run cannot have these settings; empty where it can.

    Raises:
        UserError: nothing can be drawn.
    """
    result = dict(space)
    for key, values in space.items():
        if not isinstance(values, Choice) or not any(values.branches.values()):
            continue
        alone = {value: Choice({value: further}) for value, further in values.branches.items()}
        refusals = {v: [*map(refusal, examples(result | {key: one}))] for v, one in alone.items()}
        fits = {v: values.branches[v] for v, reasons in refusals.items() if not all(reasons)}
        result[key] = Choice(fits) if fits else values
    if reason := refusal(next(examples(result))):
        raise UserError(reason)
    return result


def composed(overrides: Sequence[str]) -> Any:
    """A run's config; in it a misspelt key is found before anything is drawn."""
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


def words_of(settings: Settings) -> list[str]:
    return [f"{key}={value}" for key, value in settings.items()]


def refusal(overrides: Sequence[str]) -> str:
    """Why a run cannot be a trial, as its objective cannot train its model; empty where it can."""
    config = composed(overrides)
    if config.dataset.train_on_val:
        return (
            "A search chooses by validation, and dataset.train_on_val=true leaves none; leave it "
            "out, and train the best settings with it afterwards."
        )
    length = defaults(config.model, max_length=config.dataset.max_length)
    model = instantiate(config.model, num_items=1, **length, _convert_="all")
    try:
        instantiate(config.objective).check(model)
    except UserError as error:
        return str(error)
    return ""
