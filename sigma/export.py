"""A trained model as one file: ``python -m sigma.export run=<folder> out=model.pt2`` or model.onnx.

The file runs where this project is not: ``model.pt2`` with PyTorch alone (``torch.export.load``),
``model.onnx`` with onnxruntime alone. It is a program of ordinary operations with its weights, and
has the raw ids of the items and its settings beside it. Before it takes its name it is read back
and held to the model on histories of the test.

It reads items by number: 1 is the first id of the list, 0 is no item. Zeros may stand anywhere in a
row, before the history, behind it or within, and are left out; so may an item that the model does
not know. Of a row of zeros alone the scores mean nothing.
"""

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from sigma import __version__
from sigma.errors import UserError
from sigma.files import atomic_path
from sigma.losses import full_precision
from sigma.models.base import title
from sigma.program import FORMATS, Ask, ExportedModel, Inputs, inputs_of, program
from sigma.runs.files import ROW
from sigma.runs.identity import run_id
from sigma.runs.messages import explained
from sigma.runs.row import Row
from sigma.runs.trust import packages
from sigma.trained import TrainedRun, load

FORMAT = 1
SETTINGS, IDS = "settings", "items"  # metadata of ONNX; in a .pt2 files of these names, in JSON
USERS = 100  # of the test, whose scores are compared
TOLERANCE = 1e-5  # of a score; relative where it is above 1
PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def questions(run: TrainedRun) -> tuple[Inputs, Tensor]:
    """Histories of users of the test, and their scores (B, K) by the model, in float32."""
    data, model = run.data, run.task.model
    some = np.linspace(0, len(data.split.test) - 1, min(USERS, len(data.split.test)))
    batch = data.flat.batch(torch.from_numpy(data.split.test[some.astype(int)]))
    inputs = inputs_of(model, batch.items, batch.rows, data.max_length)
    batch = data.objective.evaluation(batch, data.num_items)
    with torch.no_grad():
        states = model(batch.items, batch.rows, batch.places)
        return inputs, full_precision(model.logits(states))


def difference(ask: Ask, model: ExportedModel, inputs: Inputs, expected: Tensor) -> float:
    """The largest of a file's scores from the model's, for batches of several sizes.

    Args:
        ask: the file.
        model: what the file is of.
        inputs: B histories.
        expected: (B, K) scores of all items.
    """
    if model.unseen:
        seen = F.pad(torch.zeros_like(expected, dtype=torch.bool), (1, 0))
        expected = expected.masked_fill(seen.scatter(1, inputs.items, True)[:, 1:], -torch.inf)
    largest, first = 0.0, 0
    for size in (1, 7, len(expected)):
        part = slice(first, first + size)
        first, of_part = first + size, expected[part]
        if not len(of_part):
            break
        answer, *best = ask(**inputs.named(part))
        pairs = [(answer, of_part)]
        if best:  # equal scores may change places
            k = best[0].shape[1]
            pairs = [(answer, of_part.topk(k).values), (answer, of_part.gather(1, best[0] - 1))]
        for got, want in pairs:
            gap = (got - want).abs() / want.abs().clamp(min=1)
            gap = gap.masked_fill(got == want, 0)  # of two infinities, too
            largest = max(largest, float(gap.nan_to_num(torch.inf).max()))
    return largest


def settings(run: TrainedRun, model: ExportedModel, inputs: Inputs) -> dict[str, Any]:
    """What a file says of itself."""
    config: Any = OmegaConf.to_container(run.config, resolve=True)
    row = Row.read(run.folder / ROW).content() if (run.folder / ROW).is_file() else {}
    reads = {
        "items": "(B, max_length) int64: numbers of a history's last items, oldest first; number "
        "n is the n-th of the ids, from 1; 0 is no item and may stand anywhere",
        "times": "(B, max_length) int64: the times of the items, in the data's unit",
        "now": "(B,) int64: the time to recommend for, in the data's unit",
    }
    scores = "of all items" if model.k is None else f"of the {model.k} best items, the best first"
    return {
        "format": FORMAT,
        "sigma": __version__,
        "torch": torch.__version__,
        "model": title(model.model),
        "max_length": inputs.items.shape[1],
        "num_items": run.data.num_items,
        "k": model.k,
        "ranking": "unseen" if model.unseen else "all",
        "inputs": {name: reads[name] for name in inputs.named()},
        "outputs": {"scores": f"float32, {scores}; -inf for an item of the row if unseen"}
        | ({} if model.k is None else {"best": "int64, their numbers"}),
        "run": run_id(config),
        "data": run.data.name,
        **{key: row.get(key) for key in ("git", "finished", "best_epoch", "metrics")},
    }


class Exported(NamedTuple):
    """A file that was written: of how many bytes, and how far its scores are from the model's."""

    path: Path
    size: int
    users: int  # of the test, that were compared
    difference: float
    inputs: dict[str, tuple[int, ...]]  # shapes for one history


def export(
    run: Path | TrainedRun, out: Path, k: int | None = None, unseen: bool = False
) -> Exported:
    """Write a trained model to ``out``, whole or not at all.

    Args:
        run: its folder, or what ``load`` made of it.
        out: a ``.pt2`` for PyTorch, or an ``.onnx`` for onnxruntime.
        k: the file returns the k best scores and their items' numbers; None: all scores.
        unseen: leave out the items of the row, which holds the last ``max_length`` of a history.

    Raises:
        UserError: another ending, a package that ONNX needs is missing, a model that cannot be
            exported, or a file that does not answer as the model does.
    """
    out = Path(out).expanduser()
    if k is not None and k < 1:
        raise UserError(f"k={k} must be at least 1.")
    if out.suffix not in FORMATS:
        raise UserError(f"{out} must end in {' or '.join(FORMATS)}.")
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if out.suffix == ".onnx" and missing:
        raise UserError(
            f"ONNX needs the package {missing[0]}: pip install -e '.[export]'; .pt2 needs none."
        )
    trained = run if isinstance(run, TrainedRun) else load(run)
    k = k if k is None else min(k, trained.data.num_items)
    model = ExportedModel(trained.task.model, k, unseen)
    inputs, expected = questions(trained)
    exported = program(model, inputs)
    ids = trained.sequences.catalogue.tolist()
    notes = {SETTINGS: settings(trained, model, inputs), IDS: ids}
    write, read = FORMATS[out.suffix]
    content = write(exported, {name: json.dumps(note) for name, note in notes.items()})
    with atomic_path(out) as partial:
        partial.write_bytes(content)
        largest = difference(read(partial.read_bytes()), model, inputs, expected)
        if largest > TOLERANCE:
            raise UserError(
                f"{out} is not written: its scores are up to {largest:.0e} from the model's. "
                f"Try the other format ({' or '.join(FORMATS)})."
            )
    shapes = {name: (1, *x.shape[1:]) for name, x in inputs.named().items()}
    return Exported(out, len(content), len(expected), largest, shapes)


def usage(file: Exported) -> str:
    """Three lines of Python that ask the file for one user, who has had the first item alone."""
    rows = {
        name: f"[[{int(name == 'items')}] + [0] * {shape[1] - 1}]" if len(shape) > 1 else "[0]"
        for name, shape in file.inputs.items()
    }
    if file.path.suffix == ".pt2":
        values = ", ".join(f"torch.tensor({row})" for row in rows.values())
        return (
            "import torch\n"
            f"model = torch.export.load({str(file.path)!r}).module()\n"
            f"print(model({values}))"
        )
    values = ", ".join(f'"{name}": numpy.array({row})' for name, row in rows.items())
    return (
        "import numpy, onnxruntime\n"
        f"model = onnxruntime.InferenceSession({str(file.path)!r})\n"
        f"print(model.run(None, {{{values}}}))"
    )


def main(arguments: Sequence[str]) -> None:
    options = argparse.ArgumentParser(
        "python -m sigma.export", description=__doc__, allow_abbrev=False
    )
    options.add_argument("--run", type=Path, required=True, help="the run's folder")
    options.add_argument("--out", type=Path, required=True, help="model.pt2 or model.onnx")
    options.add_argument("--k", type=int, help="return the k best items; else all scores")
    options.add_argument(
        "--unseen", type=str.lower, choices=("true", "false"), default="false", help="items alone"
    )
    options.add_argument("--path", help="the raw data, where it does not lie any more where it was")
    options.add_argument("--allow", default="", help="packages of your own, parted by commas")
    # run=a is as good as --run=a
    typed = options.parse_args([a if a.startswith("-") else f"--{a}" for a in arguments])
    with explained():
        run = load(typed.run, typed.path, packages(typed.allow))
        file = export(run, typed.out, typed.k, typed.unseen == "true")
        print(
            f"{file.path}: {file.size:,} bytes; its scores for {file.users} users of the test are "
            f"within {file.difference:.0e} of the model's. In any program:\n\n{usage(file)}"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
