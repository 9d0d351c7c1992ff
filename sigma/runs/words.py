"""Slips on the command line that Hydra answers with a traceback, its usage, or not at all."""

import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, RangeSweep, ValueType
from hydra.errors import HydraException

from sigma.errors import UserError, excerpt
from sigma.runs.files import CONF

FLAGS = (
    *("--config-", "--package", "--cfg", "--info", "--resolve", "--help", "--hydra-help"),
    *("--version", "--run", "--multirun", "--shell-completion", "--experimental-rerun"),
)
MODES = {"-r": "--run", "-m": "--multirun", "-c": "--cfg", "-i": "--info"}
PLAIN = ("dataset.where", "dataset.time_format")  # settings of text with signs of its own
ACTS = "=,:{}[]()#'\"\\$&"  # signs in a value that mean something to Hydra


def quoted(text: str) -> str:
    """Text as a value on Hydra's command line, where a backslash acts before a quote alone."""
    return "'" + re.sub(r"(\\*)('|$)", lambda m: 2 * m[1] + ("\\'" if m[2] else ""), text) + "'"


def with_quotes(words: Sequence[str]) -> list[str]:
    """The words, settings of plain text between the quotes that Hydra wants."""
    result = []
    for word in words:
        key, _, value = word.partition("=")
        if key.lstrip("+") in PLAIN and value not in ("", "null") and value[0] not in "'\"":
            word = f"{key}={quoted(value)}"
        result.append(word)
    return result


def for_a_shell(text: str) -> str:
    """A word between quotes, double ones where that is as good."""
    return shlex.quote(text) if set(text) & set('"$`\\!') else f'"{text}"'


def unreadable(word: str) -> str:
    """A sentence about a setting that Hydra cannot read, with the sign that it stumbles over."""
    key, equals, value = word.partition("=")
    sign = next((sign for sign in value if sign in ACTS or sign.isspace()), None)
    if not equals or sign is None or not key.lstrip("+~").replace(".", "").isidentifier():
        return (
            f"Cannot read '{excerpt(word, 200)}': settings are written key=value; see "
            "python train.py --help."
        )
    name = "a space" if sign.isspace() else f"the sign {sign}"
    return (
        f"Cannot read '{excerpt(word, 200)}': {name} means something to Hydra there; if it is part "
        f"of the value, type {excerpt(for_a_shell(f'{key}={quoted(value)}'), 300)}."
    )


def jobs(override: Override, folders: Sequence[Path]) -> list[Any]:
    """The values of a sweep's setting, as Hydra's sweeper has them; none of what draws.

    Args:
        folders: of configs, where a group's options are.
    """
    value: Any = override.value()
    if isinstance(value, Glob):
        group = override.key_or_group
        names = {path.stem for folder in folders for path in (folder / group).glob("*.yaml")}
        return list(value.filter(sorted(names)))
    if isinstance(value, RangeSweep) and not value.step:
        raise UserError(f"{override.input_line}: the third number of range is a step, and not 0.")
    return list(override.sweep_iterator())


def parsed(words: Sequence[str]) -> Iterator[Override]:
    """The settings that can be read; Hydra says what is wrong with the others."""
    parser = OverridesParser.create()
    for word in words:
        try:
            yield parser.parse_override(word)
        except HydraException:
            continue


def check_words(words: Sequence[str]) -> None:
    """See that a command line asks for something, and in Hydra's own manner.

    Raises:
        UserError: dashes before a setting, two modes, a range to draw from, or no job at all.
    """
    for word in words:
        if word.startswith("--") and "=" in word and not word.startswith(FLAGS):
            right = excerpt(shlex.quote(word.lstrip("-")), 200)
            raise UserError(f"Settings are written without dashes: {right}.")
    modes = [MODES.get(word, word) for word in words]
    asked = dict.fromkeys(mode for mode in modes if mode in MODES.values())
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} do not go together; leave one of them out.")
    if "--multirun" not in asked:
        return
    for word in words:
        if word.startswith("resume=") and word[7:].lower() not in ("true", "false"):
            raise UserError(f"{excerpt(word, 200)} is one run; leave --multirun out.")
    added = [Path(w.split("=", 1)[1]) for w in words if w.startswith("--config-dir=")]
    for override in parsed([word for word in words if not word.startswith("-")]):
        if not override.is_sweep_override():
            continue
        setting = excerpt(override.input_line, 200)
        if override.value_type == ValueType.INTERVAL_SWEEP:
            raise UserError(
                f"{setting} is a range to draw from, as a search does (python -m "
                "experiments.search); a multirun takes values: choice(0.1,0.2) or range(1,4)."
            )
        if not jobs(override, [CONF, *added]):
            raise UserError(f"{setting} holds no value, so there is nothing to run.")
