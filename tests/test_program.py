"""Every model as a program of PyTorch's own operations: its scores are the model's."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sigma.datamodules.batches import Batch
from sigma.datamodules.objectives import Cloze
from sigma.errors import UserError
from sigma.ops import Rows
from sigma.program import FORMATS, ExportedModel, Inputs, inputs_of, program, pt2
from tests.models import checks

W = 4  # columns
BATCHES = ((4, 1, 2), (3,), (3, 4, 1, 2, 2, 4, 3))
FLIPS = {"r": 1}
# One of each way through the operations; all that the others have more is layers. SIGMA itself is
# run where this project is not.
QUICK: list[tuple[str, dict[str, Any]]] = [("gru4rec", {}), ("bert4rec_tuned", {})]
SLOW: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in ("popularity", "hstu_time", "esasrec", "fearec_authors", "echo")),
    ("linrec", {"mask_padding": True}),
    ("moe_matrrec", {"leak": True}),
    ("sigma_released", {}),
]


def built(name: str, **settings: object) -> Any:
    """A small model for rows of at most W items, off its start."""
    if "max_length" in checks.composed(name).model:
        settings["max_length"] = W
    model = checks.build(name, **settings)
    if not model.counted:
        checks.shake(model, 0.1)
    return model.requires_grad_(False)


def batch(lengths: tuple[int, ...]) -> tuple[Tensor, Rows]:
    return checks.packed(*checks.padded(lengths, W))


def asked(model: Any, lengths: tuple[int, ...]) -> tuple[Inputs, Tensor]:
    """Histories as a file reads them, and the model's scores."""
    items, rows = batch(lengths)
    inputs = inputs_of(model, items, rows, W)
    if model.mask_token is not None:
        none = torch.empty(0, dtype=torch.int64)
        masked = Batch(items, rows, checks.ends(rows), none, 0, none, none)
        items, rows, *_ = Cloze().evaluation(masked, checks.K)
    return inputs, model.logits(checks.last_states(model, items, rows))


def moved(items: Tensor) -> Tensor:
    """Rows with their zeros at other places."""
    order = torch.randperm(W, generator=torch.Generator().manual_seed(0)).tolist()
    rows = []
    for row in items.tolist():
        real = iter(item for item in row if item)
        filled = sorted(order[: sum(item > 0 for item in row)])
        rows.append([next(real) if place in filled else 0 for place in range(W)])
    return torch.tensor(rows)


@pytest.mark.parametrize(
    ("name", "settings"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)],
    ids=str,
)
def test_scores_are_the_models(name: str, settings: dict[str, Any]) -> None:
    model = built(name, **settings)
    run = program(ExportedModel(model), asked(model, BATCHES[0])[0]).module()
    for lengths in BATCHES:
        inputs, scores = asked(model, lengths)
        answer = run(*inputs.named().values())
        torch.testing.assert_close(answer, scores, rtol=1e-5, atol=1e-5)
        if inputs.times is None:
            torch.testing.assert_close(run(moved(inputs.items)), answer)
    empty = {key: torch.zeros_like(x[:1]) for key, x in inputs.named().items()}
    assert run(*empty.values()).isfinite().all()


def test_the_best_unseen_items(tmp_path: Path) -> None:
    """From the file, with its notes."""
    model = built("gru4rec")
    inputs, scores = asked(model, BATCHES[2])
    content = pt2(program(ExportedModel(model, 3, unseen=True), inputs), {"notes": "[1]"})
    best, items = FORMATS[".pt2"][1](content)(**inputs.named())
    for row, seen, got, numbers in zip(scores, inputs.items, best, items, strict=True):
        left = [i for i in range(1, checks.K + 1) if i not in seen.tolist()]
        want = sorted(left, key=lambda i: -row[i - 1])[:3]
        assert numbers.tolist() == want
        torch.testing.assert_close(got, row[[i - 1 for i in want]])


@pytest.mark.parametrize("name", ["item_knn", "markov", "vmis_knn"])
def test_what_counts_lists_is_refused(name: str) -> None:
    model = built(name)
    with pytest.raises(UserError, match=r"sigma\.recommend runs it"):
        program(ExportedModel(model), asked(model, BATCHES[0])[0])


ALONE = """
import json, sys, torch
sys.modules["sigma"] = None  # as if it were not installed
notes = {"notes": ""}
model = torch.export.load("model.pt2", extra_files=notes).module()
print(json.dumps([notes["notes"], model(torch.tensor(json.loads(sys.argv[1]))).tolist()]))
"""


@pytest.mark.slow
def test_runs_where_this_project_is_not(tmp_path: Path) -> None:
    model = built("sigma", **FLIPS)
    inputs, scores = asked(model, BATCHES[2])
    content = pt2(program(ExportedModel(model), inputs), {"notes": "of mine"})
    assert str(Path(__file__).parents[1]).encode() not in content
    (tmp_path / "model.pt2").write_bytes(content)
    command = [sys.executable, "-I", "-c", ALONE, json.dumps(inputs.items.tolist())]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    notes, answer = json.loads(result.stdout)
    assert notes == "of mine"
    torch.testing.assert_close(torch.tensor(answer), scores, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sigma", "bert4rec_tuned", "hstu_time", "fearec_authors"])
def test_onnx(name: str) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (extra export)")
    model = built(name, **(FLIPS if name == "sigma" else {}))
    write, read = FORMATS[".onnx"]
    content = write(program(ExportedModel(model), asked(model, BATCHES[0])[0]), {"notes": "mine"})
    assert str(Path(__file__).parents[1]).encode() not in content
    ask = read(content)
    for lengths in BATCHES:
        inputs, scores = asked(model, lengths)
        torch.testing.assert_close(ask(**inputs.named())[0], scores, rtol=1e-5, atol=1e-5)
