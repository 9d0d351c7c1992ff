"""Looks over a composed config before anything is built, so that a slip costs a second.

Every ``_target_`` is looked up and the keys beside it are held against its arguments: their names,
their plain types, and ranges of names that mean the same everywhere. Without this a misspelt
optimizer argument would only show once the data is loaded. Settings that are possible but whose row
would be wrong, or never come, are refused, too. PyTorch is loaded by the first target that needs
it: ``sigma.runs.messages`` has uses for this module before.
"""

import inspect
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from hydra.utils import get_object, instantiate

from sigma.errors import UserError

# name -> (what it must be, check); of whatever target it is an argument.
Range = tuple[str, Callable[[Any], bool]]
COUNTS = (
    *("hidden_size", "num_layers", "num_heads", "state_size", "conv_width", "expand"),
    *("inner_size", "gru_size", "max_length", "copies", "negatives", "number"),
)
COUNT: Range = ("a whole number of at least 1", lambda v: v >= 1)
RANGES: dict[str, Range] = {
    **dict.fromkeys(COUNTS, COUNT),
    "max_epochs": ("at least 1, or -1 for no limit", lambda v: v >= 1 or v == -1),
    "accumulate_grad_batches": COUNT,
    "devices": (
        "at least 1, or -1 for all",
        lambda v: isinstance(v, str | list) or v >= 1 or v == -1,
    ),
    "dropout": ("from 0 to below 1", lambda v: 0 <= v < 1),
    "attention_dropout": ("from 0 to below 1", lambda v: 0 <= v < 1),
    "mask_ratio": ("above 0 and at most 1", lambda v: 0 < v <= 1),
    "fine_tune_ratio": ("from 0 to 1", lambda v: 0 <= v <= 1),
    "lr": ("above 0", lambda v: 0 < v < math.inf),
    "betas": (
        "two numbers from 0 to below 1",
        lambda v: len(v) == 2 and max(v) < 1 and min(v) >= 0,
    ),
    "weight_decay": ("at least 0", lambda v: v >= 0),
    "patience": ("at least 0", lambda v: v >= 0),
    "every_seconds": ("above 0", lambda v: v > 0),
    "r": ("at least 0", lambda v: v >= 0),
}
PLAIN = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}

# A row's epochs are whole, and the numbers of one are those of its one validation: what stops or
# validates elsewhere would put another epoch's numbers beside the checkpoint that is tested.
ONCE = "every epoch is validated once, at its end, as in the paper"
ENDS = "it ends a run within an epoch; set trainer.{} instead"
NOTHING = "a row needs all three, training, validation and test; null is the whole set"
# Option of the trainer -> (what it must be, check, why).
TRAINER: dict[str, tuple[str, Callable[[Any], bool], str]] = {
    "check_val_every_n_epoch": ("1", lambda v: v == 1, ONCE),
    "val_check_interval": (
        "1.0",
        lambda v: v is None or (v == 1 and type(v) is float),  # the whole number 1 is one batch
        ONCE + "; for shorter epochs set trainer.limit_train_batches=0.25",
    ),
    "max_epochs": (
        "at least 1, or -1 for no limit",
        lambda v: v is not None,
        "Lightning would choose a number of its own",
    ),
    "max_steps": ("-1", lambda v: v == -1, ENDS.format("max_epochs")),
    "max_time": ("null", lambda v: v is None, ENDS.format("max_epochs")),
    "min_steps": ("null", lambda v: v is None, ENDS.format("min_epochs")),
    "overfit_batches": (
        "0",
        lambda v: v == 0,
        "batches are drawn anew each epoch, so there are none to overfit to; for short epochs set "
        "trainer.limit_train_batches",
    ),
    "limit_train_batches": ("above 0", lambda v: v != 0, NOTHING),
    "limit_val_batches": ("above 0", lambda v: v != 0, NOTHING),
    "limit_test_batches": ("above 0", lambda v: v != 0, NOTHING),
    "enable_checkpointing": ("true", lambda v: v is not False, "the best epoch's one is tested"),
}
# Callback -> the key of its own, and what is wrong without it; a subclass does as well.
BEST = ("sigma.callbacks.BestCheckpoint", "best", "it chooses the epoch that is tested")
OF_ROW = [
    ("sigma.callbacks.History", "history", "callbacks.row takes the best validation from it"),
    ("sigma.callbacks.Efficiency", "efficiency", "callbacks.row takes times and memory from it"),
]


def suggest(name: str, known: list[str]) -> str:
    """``did you mean 'x'? There are: …`` for a message about an unknown name."""
    known = [one for one in known if not one.startswith("_")]  # a base that others build on
    if not known:
        return "another option of its group may have it (see python train.py --help)."
    listed = f"here are: {', '.join(sorted(known))}."
    close = get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'? T{listed}" if close else f"t{listed}"


def parameters(target: Any) -> dict[str, inspect.Parameter] | None:
    """Arguments of a callable, those its bases take through ``**options`` among them.

    None when they cannot all be known.
    """
    found: dict[str, inspect.Parameter] = {}
    chain = [target]
    if inspect.isclass(target):
        chain = [
            c.__dict__["__init__"]
            for c in target.__mro__
            if "__init__" in c.__dict__ and c is not object
        ]
        if not chain:
            return {}
    for function in chain:
        try:
            # Follows functools.wraps, as of Lightning's Trainer.
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return None
        for name, parameter in signature.parameters.items():
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                found.setdefault(name, parameter)
        if not any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values()):
            found.pop("self", None)
            return found
    return None


def accepted(target: str) -> list[str]:
    """Names of the arguments a ``_target_`` takes; none when they cannot be known."""
    try:
        return list(parameters(get_object(target)) or {})
    except Exception:  # importing it may fail in any way
        return []


def plain_types(annotation: Any) -> set[type] | None:
    """The plain types an annotation allows; None when it allows anything else as well."""
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    options = set(typing.get_args(annotation)) if union else {annotation}
    return options if options <= {*PLAIN, types.NoneType} else None


def fits(value: Any, options: set[type]) -> bool:
    """Whether a value read from YAML may stand where one of these types is wanted."""
    if isinstance(value, bool):
        return bool in options
    return isinstance(value, tuple(options)) or (isinstance(value, int) and float in options)


def targets(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """``(key, node)`` of every mapping that has a ``_target_``."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from targets(child, f"{key}.{name}" if key else str(name))


def may_be_none(parameter: inspect.Parameter) -> bool:
    """Whether null says something to the argument."""
    return parameter.default is None or types.NoneType in typing.get_args(parameter.annotation)


def check_list(key: str, value: Any, annotation: Any) -> None:
    """A value whose argument takes a sequence: text would pass for one, letter by letter.

    Raises:
        UserError: it is no list, or not of what the argument wants.
    """
    origin, of = typing.get_origin(annotation), typing.get_args(annotation)
    if origin not in (list, tuple, Sequence):
        return
    if not isinstance(value, list):
        example = "" if value is None else f", such as [{value}]"
        raise UserError(f"{key}={value} must be a list, in brackets{example}.")
    size = len(of) if origin is tuple and Ellipsis not in of else None
    if size is not None and len(value) != size:
        raise UserError(f"{key}={value} must be a list of {size} values.")
    options = plain_types(of[0]) if of else None
    if options is not None and not all(fits(v, options) for v in value):
        wanted = " or ".join(text for kind, text in PLAIN.items() if kind in options)
        raise UserError(f"Each value of {key}={value} must be {wanted}.")


def check_value(key: str, value: Any, parameter: inspect.Parameter) -> None:
    """One key against its argument's annotation and the ranges.

    Raises:
        UserError: it does not fit.
    """
    options = plain_types(parameter.annotation)
    if options is not None and not fits(value, options):
        wanted = " or ".join(text for kind, text in PLAIN.items() if kind in options)
        raise UserError(f"{key}={value} must be {wanted}.")
    check_list(key, value, parameter.annotation)
    required = parameter.default is parameter.empty
    if value is None and required and typing.get_origin(parameter.annotation) is Callable:
        raise UserError(f"{key}=null must be a mapping with a _target_; leave the default there.")
    wanted, inside = RANGES.get(parameter.name, ("", None))
    if inside is None or (value is None and may_be_none(parameter)):
        return
    try:
        good = inside(value)
    except TypeError:  # not a number
        good = False
    if not good:
        raise UserError(f"{key}={value} must be {wanted}.")


def check_trainer(trainer: dict[str, Any]) -> None:
    """Settings of the trainer under which a row would be wrong or never come.

    Raises:
        UserError: one of them.
    """
    for name, (wanted, inside, why) in TRAINER.items():
        if name in trainer and not inside(trainer[name]):
            value = "null" if trainer[name] is None else trainer[name]
            raise UserError(f"trainer.{name}={value} must be {wanted}: {why}.")
    devices, accelerator = trainer.get("devices"), trainer.get("accelerator")
    if not isinstance(devices, list):
        return
    import torch

    if accelerator == "cpu" or (accelerator == "auto" and not torch.cuda.is_available()):
        raise UserError(
            f"trainer.devices={devices} names devices and a CPU is one; give the number of "
            f"processes instead: trainer.devices={len(devices)}."
        )


def check_callbacks(callbacks: dict[str, Any]) -> None:
    """Callbacks that a run's result depends on; under whatever key, a user's subclass counts.

    Raises:
        UserError: one is missing.
    """
    found = [get_object(node["_target_"]) for _, node in targets(callbacks)]

    def there(name: str) -> bool:
        return any(inspect.isclass(c) and issubclass(c, get_object(name)) for c in found)

    for name, key, why in [BEST, *(OF_ROW if there("sigma.callbacks.ResultRow") else [])]:
        if not there(name):
            raise UserError(
                f"callbacks.{key} is missing: {why}; leave it there, or give a subclass of {name}."
            )


def check_groups(groups: Any) -> None:
    """Groups of users by history length.

    Raises:
        UserError: bounds that are none, or between which there is nobody.
    """
    if not isinstance(groups, Mapping):
        raise UserError(
            f"task.groups={groups} must be names with bounds, such as {{short: [0,5]}}."
        )
    for name, bounds in groups.items():
        pair = bounds if isinstance(bounds, list | tuple) and len(bounds) == 2 else [0, 0]
        whole = all(b is None or (type(b) is int and b >= 0) for b in pair)
        if not whole or (None not in pair and pair[0] >= pair[1]):
            raise UserError(
                f"task.groups.{name}={bounds} must be a pair [lower, upper) of history lengths, "
                "the lower one below the upper one, such as [5,20], with null for no bound."
            )


def check_optimizer(node: dict[str, Any]) -> None:
    """Values that only the optimizer itself knows to refuse; it is made for one number.

    Raises:
        UserError: what it says.
    """
    if not node.get("_partial_"):
        return
    import torch

    try:
        instantiate(node, _convert_="all")([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"task.optimizer, {node['_target_']}, refuses its settings: {reason}."
        ) from None


def check_config(config: dict[str, Any]) -> None:
    """Check every target of a resolved config.

    Raises:
        UserError: a target that does not exist, an argument it does not take, a value that does
            not fit, settings that no row could come of; the message names what there is.
    """
    seed = config.get("seed")
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise UserError(f"seed={seed} must be a whole number from 0 to 4294967295.")
    if config.get("matmul_precision") not in ("highest", "high", "medium"):
        raise UserError(
            f"matmul_precision={config.get('matmul_precision')} must be highest, high or medium."
        )
    evaluation = config.get("evaluation") or {}
    if evaluation.get("sampled") is not None and "_target_" not in evaluation["sampled"]:
        raise UserError("evaluation.sampled needs evaluation=sampled beside it.")
    check_list("tags", config.get("tags", []), list[str])
    for key, node in targets(config):
        if "monitor" in node and node["monitor"] != evaluation.get("monitor"):
            raise UserError(
                f"{key}.monitor={node['monitor']} must be evaluation.monitor "
                f"({evaluation.get('monitor')}): stopping, the checkpoint that is tested and the "
                "row go by one metric; set evaluation.monitor= instead."
            )
        try:
            target = get_object(node["_target_"])
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UserError(
                f"{key}._target_={node['_target_']} cannot be imported: {reason}"
            ) from None
        known = parameters(target)
        for name, value in node.items():
            if name.startswith("_"):
                continue
            if known is not None and name not in known:
                # What has no default and is not in the config comes from the program itself.
                ours = [n for n, p in known.items() if p.default is not p.empty or n in node]
                raise UserError(f"{key} has no key '{name}'; {suggest(name, ours)}")
            if known is not None:
                check_value(f"{key}.{name}", value, known[name])
    check_trainer(config.get("trainer") or {})
    task = config.get("task") or {}
    check_optimizer(task.get("optimizer") or {})
    check_groups(task.get("groups") or {})
    # A development run tests the last weights and writes no row.
    if "callbacks" in config and not config.get("trainer", {}).get("fast_dev_run"):
        check_callbacks(config["callbacks"])
