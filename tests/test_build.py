"""From a config to parts: what goes together, and what is said once."""

import dataclasses
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from sigma.build import accelerator, build_trainer, carry_times, check_loss, defaults, set_precision
from sigma.datamodules.sets.simulated import Simulated
from sigma.datamodules.simulator import Shop
from sigma.errors import UserError
from sigma.losses import BPR, CrossEntropy
from sigma.ops.scores import TiedScores
from tests.tasks import COUNTS, Fixed, small_task


def test_metal_is_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerator("auto") == "auto"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert accelerator("auto") == "cpu"
    with pytest.raises(UserError, match="Metal does not have"):
        accelerator("mps")


def test_highest_precision_is_meant_for_recurrence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    before = torch.get_float32_matmul_precision()
    for name, tf32 in (("high", True), ("highest", False)):
        set_precision(name)
        assert torch.get_float32_matmul_precision() == name
        assert torch.backends.cudnn.allow_tf32 is tf32
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({}, {"seed": 3}),
        ({"seed": 5}, {}),
        ({"_target_": "torch.nn.Linear"}, {}),
        ({"_target_": "nowhere.Nothing"}, {}),
    ],
)
def test_a_class_gets_what_its_node_leaves_out(node: dict[str, Any], expected: dict) -> None:
    target = {"_target_": "sigma.datamodules.sets.simulated.Simulated"}
    assert defaults(OmegaConf.create(target | node), seed=3) == expected


def test_classes_beside_the_items_need_a_softmax_over_all() -> None:
    class Padded(Fixed):
        @property
        def logits(self) -> TiedScores:
            table: Tensor = torch.zeros(20, 3)
            return TiedScores(table, others=table[:1])

    check_loss(Padded(), CrossEntropy(COUNTS))
    check_loss(Fixed(), BPR(COUNTS))
    with pytest.raises(UserError, match="needs loss=cross_entropy"):
        check_loss(Padded(), BPR(COUNTS))


@pytest.mark.parametrize("time", [None, "history", "target"])
def test_batches_carry_the_times_that_the_model_reads(time: Any) -> None:
    data = Simulated(name="shop", shop=Shop(num_users=60, num_items=40, num_categories=5))
    model = Fixed()
    model.time = time
    carry_times(data, model)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        rows = next(iter(loader)).rows
        assert (rows.times is None) == (time is None)
        assert (rows.next_times is None) == (time != "target")
    data.sequences = dataclasses.replace(data.sequences, timestamps=None)
    if time is None:
        carry_times(data, model)
    else:
        with pytest.raises(UserError, match=r"reads times, and shop has none .*model\.time=null"):
            carry_times(data, model)


def test_several_processes_for_a_model_that_learns_nothing() -> None:
    model = Fixed()
    model.weight.requires_grad_(False)
    trainer = {"_target_": "lightning.Trainer", "accelerator": "cpu", "devices": 2, "logger": False}
    config = {"trainer": trainer, "callbacks": {}, "logger": {}}
    with pytest.raises(UserError, match="runs in one process"):
        build_trainer(OmegaConf.create(config), small_task(model))
