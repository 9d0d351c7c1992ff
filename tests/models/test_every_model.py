"""What every model in ``conf/model`` promises: shapes, padding, causality, and the front door."""

import functools
import json
import sys
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

import sigma.encoding
from sigma.datamodules.batches import Batch
from sigma.encoding import target_states
from sigma.losses import CrossEntropy
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


def build(name: str) -> Any:
    config = composed(name, *small(name))
    torch.manual_seed(0)
    model = instantiate(config.model, num_items=K, _convert_="all")
    if hasattr(model, "count"):
        items = torch.randint(1, K + 1, (200,), generator=torch.Generator().manual_seed(1))
        model.count(items, torch.arange(0, 201, 10))
    return model.eval()


def rows(model: nn.Module) -> tuple[Tensor, Tensor]:
    lengths = torch.tensor([L, 1, 2, 5])
    items = torch.randint(1, K + 1, (4, L), generator=torch.Generator().manual_seed(2))
    return items * (torch.arange(L) < lengths[:, None]), lengths


@pytest.mark.parametrize("name", MODELS)
def test_scores_have_the_shape_of_the_catalogue(name: str) -> None:
    model = build(name)
    items, lengths = rows(model)
    hidden = model(items, lengths)
    assert hidden.shape[:2] == items.shape
    states = hidden[torch.arange(4), lengths - 1]
    scores = model.logits(states)
    assert scores.shape == (4, K)
    assert torch.isfinite(scores).all()
    some = torch.tensor([[3, K, 1], [1, 1, 2], [K, 5, 4], [9, 8, 7]])
    torch.testing.assert_close(model.logits(states, some), scores.gather(1, some - 1))
    few = some[:, :1]  # ``tied_scores`` has another way for them
    torch.testing.assert_close(model.logits(states, few), scores.gather(1, few - 1))
    assert isinstance(model.padding_invariant, bool)
    assert isinstance(model.causal, bool)
    assert model.name == name


@pytest.mark.parametrize("name", MODELS)
def test_padding_moves_scores_as_a_model_says(name: str) -> None:
    """Not those of a model that says so; those of the others, or their padding is for nothing."""
    model = build(name)
    items, lengths = rows(model)
    wide = model(items, lengths)
    for row, length in enumerate(lengths.tolist()):
        if model.padding_invariant:
            alone = model(items[row : row + 1, :length], lengths[row : row + 1])
            torch.testing.assert_close(
                model.logits(alone[0, -1:]), model.logits(wide[row, length - 1][None]),
                rtol=1e-4, atol=1e-5,
            )  # fmt: skip
        elif length < L:  # what stands in the padding reaches the state (all these read it)
            other = items.clone()
            other[row, length:] = 1
            moved = model(other, lengths)[row, length - 1]
            assert not torch.equal(moved, wide[row, length - 1])


@pytest.mark.parametrize("name", MODELS)
def test_the_future_moves_states_as_a_model_says(name: str) -> None:
    """Never those of a causal model, and its own item always does."""
    model = build(name)
    items, lengths = rows(model)
    before = model(items, lengths)[0]
    moved = False
    for position in (1, 4, L - 1):
        changed = items.clone()
        changed[0, position:] = changed[0, position:] % K + 1
        after = model(changed, lengths)[0]
        if model.causal:
            torch.testing.assert_close(
                model.logits(after[:position]), model.logits(before[:position]),
                rtol=1e-4, atol=1e-5,
            )  # fmt: skip
        moved |= not torch.allclose(after[:position].float(), before[:position].float(), atol=1e-5)
        assert not torch.equal(after[position], before[position])
    assert moved != model.causal


@pytest.mark.parametrize("name", MODELS)
def test_states_are_the_same_however_they_are_asked_for(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One column of each row, in length groups or not: states and gradients of the whole pass."""
    monkeypatch.setattr(sigma.encoding, "MIN_ROWS", 1)
    model = build(name).double()
    lengths = torch.tensor([L, 1, 2, 5, 3, 8, 2])
    items = torch.randint(1, K + 1, (7, L), generator=torch.Generator().manual_seed(2))
    items *= torch.arange(L) < lengths[:, None]
    rows, none = torch.arange(7), torch.empty(0, dtype=torch.int64)
    batch = Batch(items, lengths, rows, rows + 1, rows, lengths - 1, lengths, none, none)
    parameters = list(model.parameters())
    may_group = model.padding_invariant or getattr(model, "cuts_columns", False)

    def outcome(states: Tensor) -> list[Tensor]:
        states = states.double()  # those of some counted models are not
        if not parameters:
            return [states]
        loss = (states * torch.linspace(-1, 1, states.numel()).reshape(states.shape)).sum()
        return [states, *torch.autograd.grad(loss, parameters, materialize_grads=True)]

    whole = outcome(model(items, lengths)[rows, lengths - 1])
    for by_length in {False, may_group}:
        for got, wanted in zip(outcome(target_states(model, batch, by_length)), whole, strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_products_move_the_loss_and_gradients_a_little(name: str) -> None:
    """``trainer.precision=bf16-mixed``: what autocast must not touch stays in float32."""
    model = build(name)
    parameters = list(model.parameters())
    if not parameters:
        pytest.skip(f"{name} is counted, not trained")
    items, lengths = rows(model)
    twice = items.repeat(2, 1), lengths.repeat(2)  # the second half is of twins
    targets, ends = torch.tensor([3, 9, 1, 12]), (torch.arange(4), lengths - 1)
    loss, found = CrossEntropy(torch.ones(K)), []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            states = model(items, lengths)[ends]
            value = loss(states, targets, model.logits)
            if hasattr(model, "extra_loss"):
                value = value + model.extra_loss(*twice, states, targets)
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
    parameters = dict(model.named_parameters())
    if not parameters:
        pytest.skip(f"{name} is counted, not trained")
    items, lengths = rows(model)
    targets = torch.tensor([3, 9, 1, 12])
    if hasattr(model, "extra_loss"):
        items, lengths = items.repeat(2, 1), lengths.repeat(2)
    states = model(items, lengths)[torch.arange(4), lengths[:4] - 1]
    loss = F.cross_entropy(model.logits(states), targets - 1)
    if hasattr(model, "extra_loss"):
        loss = loss + model.extra_loss(items, lengths, states, targets)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters.values())
    if hasattr(model, "items") and not getattr(model, "padding_item", False):
        assert not model.items.weight[0].any()
        assert not model.items.weight.grad[0].any()
    silent = {key for key, p in parameters.items() if p.grad is None or not p.grad.any()}
    assert not silent


def without_dropout(name: str, **settings: object) -> Any:
    """The model in training, but for ``settings`` without any dropout; skips if it is counted."""
    config = composed(name, *small(name)).model
    off = {key: 0.0 for key in config if key.endswith("dropout")}
    torch.manual_seed(0)
    model = instantiate(config, num_items=K, _convert_="all", **(off | settings))
    if hasattr(model, "count"):
        pytest.skip(f"{name} is counted, not trained")
    return model


@pytest.mark.parametrize("name", MODELS)
def test_each_dropout_acts_in_training_alone(name: str) -> None:
    plain = without_dropout(name).eval()
    items, lengths = rows(plain)
    for key in composed(name).model:
        if key.endswith("dropout"):
            model = without_dropout(name, **{key: 0.5})
            # In the attention of the time domain, which this setting leaves out.
            idle = (name, key) == ("fearec", "attention_dropout")
            assert torch.equal(model(items, lengths), model(items, lengths)) == idle, key
            assert torch.equal(model.eval()(items, lengths), plain(items, lengths)), key


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


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, {}) for name in MODELS), *SWITCHED], ids=str
)
def test_learns_a_handful_of_users_by_heart(name: str, settings: dict[str, Any]) -> None:
    """HR@1 = 1 on what it was trained on; a model's own loss beside the cross entropy."""
    model = without_dropout(name, **settings)
    # No two end alike, so that a first-order model can learn them, too.
    histories = [[7], [2, 1], [10, 3, 5], [5, 3, 10], [2, 12, 1, 9], [6, 11, 3, 9, 4], [8, 2] * 4]
    targets = torch.tensor([3, 9, 1, 12, 5, 20, 3])
    if hasattr(model, "mask_token"):  # it stands where the next item is asked for
        histories = [[*history, model.mask_token] for history in histories]
    items = torch.tensor([history + [0] * (L - len(history)) for history in histories])
    lengths = torch.tensor([len(history) for history in histories])
    users = torch.arange(len(lengths))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(100):
        states = model(items, lengths)[users, lengths - 1]
        loss = F.cross_entropy(model.logits(states), targets - 1)
        if hasattr(model, "extra_loss"):  # each history its own twin: one with the same target
            loss = loss + model.extra_loss(items.repeat(2, 1), lengths.repeat(2), states, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = model.eval().logits(model(items, lengths)[users, lengths - 1])
    assert (scores.argmax(1) + 1).tolist() == targets.tolist()


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
