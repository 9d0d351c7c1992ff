"""What every model in ``conf/model`` promises: shapes, rows apart, causality, states at any places,
graphs, steps that wait for nothing, and the front door.
"""

import functools
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sigma.capture import Inputs
from sigma.errors import UserError
from sigma.losses import BPR, CrossEntropy
from sigma.models.base import Model
from sigma.ops import Rows, rows_of
from sigma.task import SequenceTask
from tests.front_door import ROOT, run
from tests.in_process import call

MODELS = sorted(path.stem for path in (ROOT / "conf" / "model").glob("*.yaml"))
K, L = 20, 9
# Sizes at which an epoch takes a moment; of those keys that a model has.
SMALL = {"hidden_size": 16, "gru_size": 12, "inner_size": 24, "mamba.state_size": 4}


@functools.cache
def composed(name: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [f"model={name}", f"dataset.max_length={L}", *overrides])


def small(name: str) -> list[str]:
    model = composed(name).model
    return [
        f"model.{key}={value}"
        for key, value in SMALL.items()
        if OmegaConf.select(model, key) is not None
    ]


def built(name: str, **settings: object) -> Any:
    """The small model as it starts, in training."""
    torch.manual_seed(0)
    return instantiate(composed(name, *small(name)).model, num_items=K, _convert_="all", **settings)


def build(name: str, **settings: object) -> Any:
    """The small model in evaluation; of a counted one, it has counted."""
    model = built(name, **settings)
    if model.counted:
        items = torch.randint(1, K + 1, (200,), generator=torch.Generator().manual_seed(1))
        model.count(items, torch.arange(0, 201, 10))
    return model.eval()


def without_dropout(name: str, **settings: object) -> Any:
    """The model in training, but for ``settings`` without any dropout; skips if it is counted."""
    off = {key: 0.0 for key in composed(name).model if key.endswith("dropout")}
    model = built(name, **(off | settings))
    if model.counted:
        pytest.skip(f"{name} is counted, not trained")
    return model


LENGTHS = (L, 1, 2, 5)
TARGETS = torch.tensor([3, 9, 1, 12])


def batch(lengths: tuple[int, ...] = LENGTHS, seed: int = 2) -> tuple[Tensor, Rows]:
    """Items end to end, and their rows; as a loader has it, none is longer than L."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(1, K + 1, (sum(lengths),), generator=generator)
    return items, rows_of(torch.tensor(lengths), L)


def ends(rows: Rows) -> Tensor:
    """The places of the last items."""
    return rows.offsets[1:] - 1


def every_state(model: Model, items: Tensor, rows: Rows) -> Tensor:
    return model(items, rows, torch.arange(len(items)))


def last_states(model: Model, items: Tensor, rows: Rows) -> Tensor:
    return model(items, rows, ends(rows))


def step_loss(model: Model, inputs: Inputs, loss: nn.Module) -> Tensor:
    """What a training step minimises; the model's own loss is in it."""
    return SequenceTask(model, torch.optim.Adam, loss).batch_loss(inputs)


def weighted(states: Tensor) -> Tensor:
    """A scalar that each entry of the states moves otherwise."""
    weight = torch.linspace(-1, 1, states.numel(), dtype=states.dtype)
    return (states * weight.reshape(states.shape)).sum()


def outcome(model: Model, states: Tensor) -> list[Tensor]:
    """States, and the gradients that every parameter gets from them."""
    parameters = list(model.parameters())
    if not parameters:
        return [states]
    gradients = torch.autograd.grad(weighted(states), parameters, materialize_grads=True)
    return [states, *gradients]


def assert_close(got: list[Tensor], wanted: list[Tensor]) -> None:
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_scores_have_the_shape_of_the_catalogue(name: str) -> None:
    model = build(name)
    assert isinstance(model, Model)
    items, rows = batch()
    assert len(every_state(model, items, rows)) == len(items)
    states = last_states(model, items, rows)
    scores = model.logits(states)
    assert scores.shape == (4, K)
    assert torch.isfinite(scores).all()
    some = torch.tensor([[3, K, 1], [1, 1, 2], [K, 5, 4], [9, 8, 7]])
    torch.testing.assert_close(model.logits(states, some), scores.gather(1, some - 1))
    few = some[:, :1]  # ``tied_scores`` has another way for them
    torch.testing.assert_close(model.logits(states, few), scores.gather(1, few - 1))
    for trait in ("causal", "leaks_on_purpose", "reads_batch", "counted"):
        assert isinstance(getattr(model, trait), bool)
    assert model.counted == (not list(model.parameters()))
    assert model.mask_token in (None, K + 1)
    assert model.name == name


@pytest.mark.parametrize("name", MODELS)
def test_a_rows_states_do_not_depend_on_the_rows_beside_it(name: str) -> None:
    model = build(name).double()
    items, rows = batch()
    together = every_state(model, items, rows)
    for part, states in zip(items.split(LENGTHS), together.split(LENGTHS), strict=True):
        alone = every_state(model, part, rows_of(torch.tensor([len(part)]), L))
        torch.testing.assert_close(alone, states, rtol=1e-6, atol=1e-9)


# Models that read each row with padding behind it, up to L columns, and settings that no YAML has.
READS_PADDING = {
    ("echo_sigma", ()),
    ("linrec", ()),
    ("linrec_authors", ()),
    ("moe_matrrec", (("leak", True),)),
    ("sigma_released", ()),
}
WANTS_WHOLE_ROWS = {"echo", "fearec", "fearec_authors"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        *((name, {}) for name in MODELS),
        ("linrec", {"mask_padding": True}),
        ("moe_matrrec", {"leak": True}),
    ],
    ids=str,
)
def test_columns_move_states_of_models_that_read_padding_and_of_no_other(
    name: str, settings: dict[str, Any]
) -> None:
    model = build(name, **settings).double()
    items, rows = batch((5, 1, 2, 4))
    wide = last_states(model, items, rows)
    fewer = rows._replace(longest=6)
    if name in WANTS_WHOLE_ROWS:
        with pytest.raises(UserError, match=r"max_length"):
            last_states(model, items, fewer)
        return
    narrow = last_states(model, items, fewer)
    if (name, tuple(settings.items())) in READS_PADDING:
        assert (narrow - wide).abs().max() > 1e-4
    else:
        torch.testing.assert_close(narrow, wide, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_the_future_moves_states_as_a_model_says(name: str) -> None:
    """Never those of a causal model, and its own item always does."""
    model = build(name)
    items, rows = batch()
    before = every_state(model, items, rows)
    moved = False
    for position in (1, 4, L - 1):
        changed = items.clone()
        changed[position:L] = changed[position:L] % K + 1  # of the first row
        after = every_state(model, changed, rows)
        if model.causal:
            torch.testing.assert_close(
                model.logits(after[:position]), model.logits(before[:position]),
                rtol=1e-4, atol=1e-5,
            )  # fmt: skip
        moved |= not torch.allclose(after[:position].float(), before[:position].float(), atol=1e-5)
        assert not torch.equal(after[position], before[position])
    assert moved != model.causal


@pytest.mark.parametrize("places", [[8, 9, 11, 16], [2, 3, 8, 11, 14], [0, 9], [16]], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_states_at_some_places_are_those_of_all(name: str, places: list[int]) -> None:
    """Values and gradients: the last of each row; several of a row and none of another; few."""
    model = build(name).double()
    items, rows = batch()
    some = torch.tensor(places)
    got = outcome(model, model(items, rows, some))
    assert_close(got, outcome(model, every_state(model, items, rows)[some]))


@pytest.mark.parametrize("name", MODELS)
def test_what_lies_behind_the_last_row_changes_nothing(name: str) -> None:
    """States, loss and gradients; places that only fill a batch up are taken there, too."""
    model = build(name).double()
    items, rows = batch((*LENGTHS, 9, 8, 9, 7))
    targets = torch.arange(1, 9)
    filled = F.pad(items, (0, 5))
    want, got = last_states(model, items, rows), last_states(model, filled, rows)
    assert_close(outcome(model, got), outcome(model, want))
    if model.counted:
        return
    places = F.pad(ends(rows), (0, 3), value=len(filled) - 1)
    found = []
    for inputs in (
        Inputs(items, rows, ends(rows), targets),
        Inputs(filled, rows, ends(rows), targets),
        Inputs(filled, rows, places, F.pad(targets, (0, 3))),
    ):
        states = model(*inputs[:3])
        assert states.isfinite().all()
        loss = CrossEntropy(torch.ones(K))(states, inputs.targets, model.logits)
        parameters = list(model.parameters())
        gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
        found.append([states[:8], loss, *gradients])
    assert_close(found[1], found[0])
    assert_close(found[2], found[0])


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_products_move_the_loss_and_gradients_a_little(name: str) -> None:
    """``trainer.precision=bf16-mixed``: what autocast must not touch stays in float32."""
    model = build(name)
    if model.counted:
        pytest.skip(f"{name} is counted, not trained")
    parameters = list(model.parameters())
    items, rows = batch()
    inputs = Inputs(items, rows, ends(rows), TARGETS, (items, rows))
    found = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = step_loss(model, inputs, CrossEntropy(torch.ones(K)))
        assert value.dtype == torch.float32
        gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
        found.append((value, torch.cat([g.flatten() for g in gradients])))
    (exact, wanted), (rounded, got) = found
    assert abs(rounded - exact) < 0.02 * exact
    assert (got - wanted).norm() < 0.1 * wanted.norm()


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name: str) -> None:
    """A parameter without gradient is a part that is not wired in."""
    model = build(name).train()
    if model.counted:
        pytest.skip(f"{name} is counted, not trained")
    parameters = dict(model.named_parameters())
    items, rows = batch()
    states = last_states(model, items, rows)
    loss = F.cross_entropy(model.logits(states), TARGETS - 1)
    extra = model.extra_loss(items, rows, ends(rows), states, (items, rows))
    if extra is not None:
        loss = loss + extra
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters.values())
    if hasattr(model, "items") and not getattr(model, "padding_item", False):
        assert not model.items.weight[0].any()
        assert not model.items.weight.grad[0].any()
    silent = {key for key, p in parameters.items() if p.grad is None or not p.grad.any()}
    assert not silent


@pytest.mark.parametrize("name", MODELS)
def test_each_dropout_acts_in_training_alone(name: str) -> None:
    plain = without_dropout(name).eval()
    items, rows = batch()
    for key in composed(name).model:
        if key.endswith("dropout"):
            model = without_dropout(name, **{key: 0.5})
            # In the attention of the time domain, which this setting leaves out.
            idle = (name, key) == ("fearec", "attention_dropout")
            twice = (every_state(model, items, rows) for _ in range(2))
            assert torch.equal(*twice) == idle, key
            still = every_state(model.eval(), items, rows)
            assert torch.equal(still, every_state(plain, items, rows)), key


# Switches that change what is computed and that no YAML sets.
SWITCHED = [
    ("linrec", {"mask_padding": True}),
    ("moe_matrrec", {"leak": True}),
    (
        "sigma_released",
        dict.fromkeys(("cross_gate", "look_ahead", "reinit_mamba", "padding_item"), False)
        | {"flip_until": None},
    ),
]
EVERY = [*((name, {}) for name in MODELS), *SWITCHED]


@pytest.mark.parametrize(("name", "settings"), EVERY, ids=str)
def test_learns_a_handful_of_users_by_heart(name: str, settings: dict[str, Any]) -> None:
    """HR@1 = 1 on what it was trained on; a model's own loss beside the cross entropy."""
    model = without_dropout(name, **settings)
    # No two end alike, so that a first-order model can learn them, too.
    histories = [[7], [2, 1], [10, 3, 5], [5, 3, 10], [2, 12, 1, 9], [6, 11, 3, 9, 4], [8, 2] * 4]
    targets = torch.tensor([3, 9, 1, 12, 5, 20, 3])
    if model.mask_token is not None:  # it stands where the next item is asked for
        histories = [[*history, model.mask_token] for history in histories]
    items = torch.tensor([item for history in histories for item in history])
    rows = rows_of(torch.tensor([len(history) for history in histories]), L)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        states = last_states(model, items, rows)
        loss = F.cross_entropy(model.logits(states), targets - 1)
        # Each history its own twin: one with the same target.
        extra = model.extra_loss(items, rows, ends(rows), states, (items, rows))
        loss = loss if extra is None else loss + extra
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = model.eval().logits(last_states(model, items, rows))
    assert (scores.argmax(1) + 1).tolist() == targets.tolist()


# --- graphs ---


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), EVERY, ids=str)
def test_compiles_once_for_all_sizes(name: str, settings: dict[str, Any]) -> None:
    """``task.compile=true``: states and gradients are those without."""
    model = without_dropout(name, **settings).double()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="aot_eager")
    for i, lengths in enumerate((LENGTHS, (3, 9, 7), (4, 1, 6, 9, 2))):
        items, rows = batch(lengths)
        with torch.compiler.set_stance("default" if i == 0 else "fail_on_recompile"):
            states = compiled(items, rows, ends(rows))
        assert_close(outcome(model, states), outcome(model, last_states(model, items, rows)))


@pytest.mark.parametrize(("name", "settings"), EVERY, ids=str)
def test_exports_for_all_sizes(name: str, settings: dict[str, Any]) -> None:
    model = build(name, **settings)
    sizes = {0: torch.export.Dim.DYNAMIC}
    items, rows = batch()
    exported = torch.export.export(
        model, (items, rows, ends(rows)), dynamic_shapes=(sizes, Rows(sizes, None), sizes)
    )
    for lengths in (LENGTHS, (3, 9, 7), (4, 1, 6, 9, 2)):
        items, rows = batch(lengths)
        got = exported.module()(items, rows, ends(rows))
        torch.testing.assert_close(got, last_states(model, items, rows))


# --- a step waits for nothing ---


def shapes(value: Any) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in tree_leaves(value) if isinstance(x, Tensor)]


class Calls(TorchDispatchMode):
    """Every operation called, with the shapes it is given and returns."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "sigma":
            # Elsewhere: within a mode such as this one it could not use ``torch.func``.
            with ThreadPoolExecutor(1) as pool:
                out = pool.submit(torch.no_grad()(func), *args, **(kwargs or {})).result()
        else:
            out = func(*args, **(kwargs or {}))
        self.seen.append((str(func), shapes(args), shapes(out)))
        return out


WAITS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "equal")


@pytest.mark.parametrize("loss", [CrossEntropy, BPR])
@pytest.mark.parametrize(("name", "settings"), EVERY, ids=str)
def test_a_step_calls_the_same_operations_whatever_the_lengths(
    name: str, settings: dict[str, Any], loss: type[nn.Module]
) -> None:
    """So it can be captured on CUDA: no shape depends on the data, and nothing asks the device.

    Operations of ``sigma.ops`` count as one each.
    """
    model = built(name, **settings)
    if model.counted:
        pytest.skip(f"{name} is counted, not trained")
    if loss is BPR and getattr(model, "padding_item", False):
        pytest.skip("a loss with negatives knows no padding item")
    losses, found = loss(torch.ones(K, dtype=torch.int64)), []
    for lengths in (LENGTHS, (4, 4, 6, 3), (1, 1, 6, 9)):
        items, rows = batch(lengths)
        items = F.pad(items, (0, 1))
        inputs = Inputs(items, rows, ends(rows), TARGETS, (items, rows))
        with Calls() as calls:
            torch.autograd.grad(
                step_loss(model, inputs, losses), list(model.parameters()), allow_unused=True
            )
        found.append(calls.seen)
    assert found[0] == found[1] == found[2]
    called = {name.split(".")[1] for name, *_ in found[0]}
    assert not called.intersection(WAITS)


def overrides(folder: Path, name: str) -> list[str]:
    return [
        f"model={name}",
        *small(name),
        "dataset=simulated",
        "dataset.shop.num_users=60",
        "dataset.shop.num_items=40",
        "dataset.shop.num_categories=5",
        "dataset.user_bounds=[4,null]",
        "dataset.item_bounds=[1,null]",
        f"dataset.max_length={L}",
        "dataset.batch_size=64",
        "logger=none",
        f"hydra.run.dir={folder}",
    ]


@pytest.mark.parametrize("name", MODELS)
def test_trains_checkpoints_resumes_and_tests(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after an epoch and resumed, a run ends in the row of one that was not stopped."""
    trained = composed(name).trainer.max_epochs > 1
    epochs = "trainer.max_epochs=2" if trained else "trainer.max_epochs=1"
    found = []
    for folder in (tmp_path / "whole", tmp_path / "stopped"):
        command = [*overrides(folder, name), "resume=true"]
        if folder.name == "stopped" and trained:
            assert call(monkeypatch, *command, "trainer.max_epochs=1") == 0
            (folder / "row.json").unlink()
        assert call(monkeypatch, *command, epochs) == 0
        row = json.loads((folder / "row.json").read_text())
        assert row["model"] == name
        assert row["evaluation"] == "full"
        assert 0 <= row["metrics"]["test"]["hr@10"] <= 1
        ranks = pd.read_parquet(folder / "ranks.parquet")
        found.append((row["metrics"], row["best_epoch"], row["parameters"], ranks))
    assert found[0][:3] == found[1][:3]
    pd.testing.assert_frame_equal(found[0][3], found[1][3])


@pytest.mark.parametrize(
    ("name", "typed", "answer"),
    [
        ("bert4rec", "objective=next_item", "bert4rec predicts masked items; use objective=cloze"),
        ("bert4rec", "objective=all_positions", "bert4rec predicts masked items"),
        ("fearec", "objective=all_positions", "fearec is not causal"),
        ("sasrec", "objective=counted", "sasrec learns by gradients; use objective=next_item"),
        ("markov", "objective=next_item", "markov is counted, not trained; use objective=counted"),
        ("sigma_released", "loss=bce", "so it needs loss=cross_entropy; or set model.padding_item"),
        ("fearec_authors", "objective=next_item", "objective=next_item_twins"),
        ("sasrec", "model.num_heads=3", "must be a multiple of model.num_heads=3"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(
    name: str,
    typed: str,
    answer: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *overrides(tmp_path, name), typed) == 1
    captured = capsys.readouterr()
    assert answer in captured.err
    assert "Traceback" not in captured.err + captured.out


def two_processes(tmp_path: Path, *typed: str) -> list[tuple[dict[str, Any], pd.DataFrame, Any]]:
    """Row, ranks and best weights of one process and of two, where nothing is drawn at random."""
    found = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        command = [
            *overrides(folder, "sasrec"), "objective=all_positions", "dataset.batch_size=16",
            "model.dropout=0", "model.attention_dropout=0", "trainer.max_epochs=2",
            "trainer=ddp", f"trainer.devices={devices}", "trainer.accelerator=cpu", *typed,
        ]  # fmt: skip
        output = run(sys.executable, ROOT / "train.py", *command)
        assert "recommended" not in output  # no advice of Lightning on what is right already
        row = json.loads((folder / "row.json").read_text())
        ranks = pd.read_parquet(folder / "ranks.parquet")
        assert len(ranks) == row["data"]["test_samples"]
        best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
        model = {k: v for k, v in best["state_dict"].items() if k.startswith("model.")}
        found.append((row, ranks, model))
    return found


def test_two_processes_rank_every_user_as_one_does(tmp_path: Path) -> None:
    """With the very same weights (a rate too small to move any): each rank, tie and metric."""
    one, two = two_processes(tmp_path, "task.optimizer.lr=1e-20")
    for name, weight in one[2].items():  # biases that start at 0 have moved by 1e-20 a step
        torch.testing.assert_close(two[2][name], weight, rtol=0, atol=1e-15)
    pd.testing.assert_frame_equal(one[1], two[1])  # users, targets, lengths, ranks, ties
    for stage in ("val", "test"):
        assert one[0]["metrics"][stage].keys() == two[0]["metrics"][stage].keys()
        for name, value in one[0]["metrics"][stage].items():
            if name != "loss":
                assert two[0]["metrics"][stage][name] == pytest.approx(value, abs=1e-6), name
    assert one[0]["best_epoch"] == two[0]["best_epoch"]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Shards and the mean over all targets: the same weights, ranks and metrics, to rounding."""
    one, two = two_processes(tmp_path)
    for name, weight in one[2].items():
        torch.testing.assert_close(two[2][name], weight, rtol=1e-3, atol=1e-4)
    assert one[1][["user", "target"]].equals(two[1][["user", "target"]])
    moved = (one[1]["greater"] - two[1]["greater"]).abs()
    assert moved.mean() < 0.1  # rounding may swap neighbours
    for stage in ("val", "test"):
        ours = two[0]["metrics"][stage]["ndcg@10"]
        assert one[0]["metrics"][stage]["ndcg@10"] == pytest.approx(ours, abs=0.01)


def test_counted_models_run_in_one_process(tmp_path: Path) -> None:
    typed = [*overrides(tmp_path, "markov"), "trainer.devices=2", "trainer.accelerator=cpu"]
    output = run(sys.executable, ROOT / "train.py", *typed, expect=1)
    assert "markov learns nothing by gradients and runs in one process" in output
    assert "Traceback" not in output
