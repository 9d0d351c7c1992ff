"""Looks over a composed config before anything is built, so that a slip costs a second.

Every ``_target_`` is looked up, and the keys beside it are held against the annotations of its
arguments: their types, and the ranges that stand there (``Annotated[int, Field(ge=1)]``). Settings
that are possible but whose row would be wrong, or never come, are refused, too. PyTorch is loaded
by the first target that needs it; ``sigma.runs.messages`` has uses for this module before.
"""

import inspect
import json
import logging
import typing
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from sigma.errors import UserError, excerpt

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # what it cannot find we say
SETTINGS = {  # of the config itself
    "seed": Annotated[int, Field(ge=0, lt=2**32)],
    "matmul_precision": Literal["highest", "high", "medium"],
    "tags": list[str],
    "init_from": str | None,
}
VARIADIC = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
NEEDS_NODE = ("needs_python_object", "callable_type")  # pydantic's errors for what YAML cannot say

# A row's epochs are whole, and the numbers of one are those of its one validation: what stops or
# validates elsewhere would put another epoch's numbers beside the checkpoint that is tested.
ONCE = "every epoch is validated once, at its end, as in the paper"
ENDS = "a run ends with an epoch; set trainer.max_epochs or trainer.min_epochs"
ALL_THREE = "a row needs training, validation and test; null is the whole set"
# Option of the trainer -> whether a value is good, and what it must be.
TRAINER: dict[str, tuple[Callable[[Any], bool], str]] = {
    "check_val_every_n_epoch": (lambda v: v == 1, f"1: {ONCE}"),
    # The whole number 1 would be after each batch.
    "val_check_interval": (lambda v: v is None or (v == 1 and type(v) is float), f"1.0: {ONCE}"),
    "max_epochs": (lambda v: v is not None and (v >= 1 or v == -1), "at least 1, or -1"),
    "accumulate_grad_batches": (lambda v: v >= 1, "at least 1"),
    "max_steps": (lambda v: v == -1, f"-1: {ENDS}"),
    "max_time": (lambda v: v is None, f"null: {ENDS}"),
    "min_steps": (lambda v: v is None, f"null: {ENDS}"),
    "overfit_batches": (lambda v: v == 0, "0: each epoch draws its batches anew"),
    "limit_train_batches": (lambda v: v != 0, f"above 0: {ALL_THREE}"),
    "limit_val_batches": (lambda v: v != 0, f"above 0: {ALL_THREE}"),
    "limit_test_batches": (lambda v: v != 0, f"above 0: {ALL_THREE}"),
    "enable_checkpointing": (lambda v: v is not False, "true: the best epoch's one is tested"),
}
# Callbacks that a run's result depends on, by key: what is tested, and what stands in the row.
CALLBACKS = {"best": "BestCheckpoint", "history": "History", "efficiency": "Efficiency"}


def suggest(name: str, known: list[str]) -> str:
    """``did you mean 'x'? There are: …`` for a message about an unknown name."""
    known = [option for option in known if not option.startswith("_")]  # a base of others
    if not known:
        return "another option of its group may have it (see python train.py --help)."
    names = f"here are: {', '.join(sorted(known))}."
    close = get_close_matches(name, known, n=1)
    return f"did you mean '{close[0]}'? T{names}" if close else f"t{names}"


def parameters(target: Any) -> dict[str, inspect.Parameter] | None:
    """Arguments of a callable, those its bases take through ``**options`` among them.

    So are those of a model's layers (``layer_type``). None when they cannot all be known.
    Annotations are resolved, Any where they cannot be.
    """
    result: dict[str, inspect.Parameter] = {}
    bases = target.__mro__[:-1] if inspect.isclass(target) else ()
    for function in [c.__dict__["__init__"] for c in bases if "__init__" in c.__dict__] or [target]:
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            return None
        try:
            hints = typing.get_type_hints(function, include_extras=True)
        except Exception:  # a name that only type checkers know
            hints = {}
        for name, parameter in signature.parameters.items():
            if parameter.kind not in VARIADIC:
                result.setdefault(name, parameter.replace(annotation=hints.get(name, Any)))
        if not any(p.kind == p.VAR_KEYWORD for p in signature.parameters.values()):
            result.pop("self", None)
            layer = getattr(target, "layer_type", None)
            return ((parameters(layer) if layer else None) or {}) | result
    return None


def accepted(target: str) -> list[str]:
    """Names of the arguments a ``_target_`` takes; none when they cannot be known."""
    try:
        return list(parameters(get_object(target)) or {})
    except Exception:  # importing it may fail in any way
        return []


def targets(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """``(key, node)`` of every mapping that has a ``_target_``."""
    if isinstance(node, dict) and "_target_" in node:
        yield key, node
    if isinstance(node, dict | list):
        for name, child in node.items() if isinstance(node, dict) else enumerate(node):
            yield from targets(child, f"{key}.{name}" if key else str(name))


def check_value(key: str, value: Any, annotation: Any) -> None:
    """Hold one value, as YAML has it, against an annotation."""
    try:
        adapter = TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True))
    except Exception:  # an annotation that pydantic cannot read
        return
    try:
        # Of JSON, where a list is a tuple, too.
        adapter.validate_json(json.dumps(value, default=str), strict=True)
        return
    except ValidationError as error:
        errors = error.errors(include_url=False)
    readable = [e for e in errors if e["type"] not in NEEDS_NODE]
    for part in (readable or errors)[0]["loc"]:
        inside = isinstance(value, dict) and part in value
        if inside or (isinstance(value, list) and isinstance(part, int) and part < len(value)):
            key, value = f"{key}.{part}", value[part]
    text = excerpt(value if isinstance(value, str) else json.dumps(value, default=str))
    if not readable:
        raise UserError(f"{key}={text} needs a mapping with a _target_; leave the default there.")
    if readable[0]["type"] in ("tuple_type", "list_type"):
        raise UserError(f"{key}={text} must be a list, such as [5,null] ('{key}=[5,null]').")
    texts = [
        e["msg"].removeprefix("Input should be ").removeprefix("Value error, ") for e in readable
    ]
    raise UserError(f"{key}={text} must be {' or '.join(dict.fromkeys(texts))}.")


def check_node(key: str, node: dict[str, Any]) -> None:
    """See that a node's ``_target_`` is there and takes the node's arguments."""
    try:
        known = parameters(get_object(node["_target_"]))
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{key}._target_={node['_target_']} cannot be imported: {reason}") from None
    if known is None:
        return
    arguments = {name: value for name, value in node.items() if not name.startswith("_")}
    for name, value in arguments.items():
        if name not in known:
            # What has no default and is not in the config comes from the program itself.
            ours = [n for n, p in known.items() if p.default is not p.empty or n in node]
            raise UserError(f"{key} has no key '{excerpt(name)}'; {suggest(name, ours)}")
        implicit = value is None and known[name].default is None  # Optional, though not said
        if not implicit and not any(targets(value)):
            check_value(f"{key}.{name}", value, known[name].annotation)


def check_callbacks(callbacks: dict[str, Any]) -> None:
    """See that CALLBACKS are there, under whatever key; a subclass does as well."""
    classes = [get_object(node["_target_"]) for _, node in targets(callbacks)]
    for key, name in CALLBACKS.items():
        base = get_object(f"sigma.callbacks.{name}")
        if not any(inspect.isclass(c) and issubclass(c, base) for c in classes):
            raise UserError(
                f"callbacks.{key} is missing, on which the run's row depends; leave it there, or "
                f"give a subclass of sigma.callbacks.{name}."
            )


def check_validation(config: dict[str, Any]) -> None:
    """See that nothing waits for a validation that a run trains on."""
    final = (config.get("dataset") or {}).get("train_on_val")
    if final and (config.get("callbacks") or {}).get("early_stopping"):
        raise UserError(
            "dataset.train_on_val=true leaves no validation to stop by; say how long to train with "
            "trainer.max_epochs= (one more than the best epoch, which counts from 0, of the run "
            "that was validated) and callbacks.early_stopping=null."
        )


def check_optimizer(node: dict[str, Any]) -> None:
    """Build the optimizer for one number: only it knows what it refuses."""
    import torch

    try:
        instantiate(node, _convert_="all")([torch.nn.Parameter(torch.zeros(1))])
    except (TypeError, ValueError, InstantiationException) as error:
        reason = excerpt(" ".join(str(error).split()), 200)
        raise UserError(f"task.optimizer: {reason}") from None


def check_config(config: dict[str, Any]) -> None:
    """Check every target of a resolved config.

    Raises:
        UserError: a target that does not exist, an argument it does not take, a value that does
            not fit, settings that no row could come of.
    """
    for name in SETTINGS.keys() & config.keys():
        check_value(name, config[name], SETTINGS[name])
    evaluation, task, trainer = (config.get(k) or {} for k in ("evaluation", "task", "trainer"))
    sampled = evaluation.get("sampled")
    if sampled is not None and not (isinstance(sampled, dict) and "_target_" in sampled):
        raise UserError("evaluation.sampled needs evaluation=sampled beside it.")
    for key, node in targets(config):
        if "monitor" in node and node["monitor"] != evaluation.get("monitor"):
            raise UserError(
                f"{key}.monitor={node['monitor']} must be evaluation.monitor: one metric stops the "
                "run and chooses the checkpoint that is tested; set evaluation.monitor instead."
            )
        check_node(key, node)
    if 10 not in task.get("ks", [10]):
        raise UserError(f"task.ks={task['ks']} must hold 10, which the tables show.")
    for name, (good, needed) in TRAINER.items():
        if name in trainer and not good(trainer[name]):
            value = json.dumps(trainer[name])
            raise UserError(f"trainer.{name}={value} must be {needed}.")
    check_validation(config)
    if task.get("optimizer", {}).get("_partial_"):
        check_optimizer(task["optimizer"])
    # A development run tests the last weights and writes no row.
    if "callbacks" in config and not trainer.get("fast_dev_run"):
        check_callbacks(config["callbacks"])
