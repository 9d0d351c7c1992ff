"""The task: rows side by side, masking, chance, extra losses, broken losses, the optimizer."""

import functools
import math

import pytest
import torch
from torch import Tensor
from torch.optim import Adam, Rprop

from sigma.capture import CapturedStep, Inputs
from sigma.errors import UserError
from sigma.models.base import Sequences
from sigma.models.gru4rec import GRU4Rec
from sigma.models.sigma import Sigma
from sigma.ops import Rows, rows_of
from sigma.ranking.metrics import ALL, UNSEEN
from sigma.ranking.scores import ranks
from sigma.task import SequenceTask
from sigma.training import WATCHED_STEPS
from tests.runs.front_door import Patch
from tests.tasks import Fixed, attach, batch, flat, inputs, small_sigma, small_task

assert_close = functools.partial(torch.testing.assert_close, rtol=1e-9, atol=1e-11)


def test_rows_side_by_side_are_the_rows_alone_in_states_and_gradients() -> None:
    task, data = small_task(), batch()
    weights = list(task.model.parameters())
    states, loss = task.model(data.items, data.rows, data.places), task.batch_loss(inputs(data))
    together = [states, loss, *torch.autograd.grad(loss, weights)]
    alone, losses = [], []
    rows = data.items.split(data.rows.offsets.diff().tolist())
    for row, target in zip(rows, data.targets, strict=True):
        one = rows_of(torch.tensor([len(row)]), data.rows.longest)
        last = torch.tensor([len(row) - 1])
        alone.append(task.model(row, one, last))
        losses.append(task.batch_loss(Inputs(row, one, last, target[None])))
    mean = torch.stack(losses).mean()
    apart = [torch.cat(alone), mean, *torch.autograd.grad(mean, weights)]
    for a, b in zip(together, apart, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("which", ["first and last of a row", "as many as rows"])
def test_states_stand_in_the_order_of_places(which: str) -> None:
    net, data = small_sigma(), batch()
    every = net(data.items, data.rows, torch.arange(len(data.items)))
    first, last = data.rows.offsets[:-1], data.rows.offsets[1:] - 1
    places = torch.stack([first, last], 1).flatten().unique()
    if which == "as many as rows":
        places = torch.arange(len(data.users)) * 2
    assert not torch.equal(places, last)
    assert_close(net(data.items, data.rows, places), every[places])


def test_seen_items_are_left_out_of_the_other_ranking() -> None:
    data, task, sequences = batch(), small_task(), flat()
    greater = task.evaluation_step("val", data).rankings[UNSEEN].greater
    scores = task.model.logits(task.model(data.items, data.rows, data.places))
    histories = sequences.items.split(sequences.offsets.diff().tolist())
    for user, (row, history) in enumerate(zip(scores.tolist(), histories, strict=True)):
        *seen, target = history.tolist()
        ranked = set(range(1, 21)) - set(seen) | {target}
        assert sum(row[item - 1] > row[target - 1] for item in ranked) == greater[user]


def test_constant_model_ranks_like_chance() -> None:
    constant = small_task(Fixed())
    constant.evaluation_step("test", batch())
    assert constant.ranking("test").compute()["hr@10"].item() == pytest.approx(10 / 20)


def test_the_metric_that_chooses_the_best_epoch() -> None:
    assert small_task().monitor == "val/ndcg@10"
    groups = {"short": [0, 5]}
    assert small_task(groups=groups, monitor="val/short/hr@5").monitor == "val/short/hr@5"
    for name in ("val/nope@10", "ndcg@10", "val/long/ndcg@10"):
        with pytest.raises(ValueError, match="monitor"):
            small_task(groups=groups, monitor=name)
    with pytest.raises(ValueError, match="groups"):
        small_task(groups={"short": [5, 2]})


class WithExtra(Fixed):
    """Adds twice the number of rows to the loss, and remembers its arguments."""

    def extra_loss(
        self, items: Tensor, rows: Rows, places: Tensor, states: Tensor, twins: Sequences | None
    ) -> Tensor:
        self.arguments = items, rows, places, states, twins
        return 2.0 * (len(rows.offsets) - 1) + 0 * states.sum()


def test_a_models_extra_loss_is_added() -> None:
    data, net = batch(), WithExtra()
    data = data._replace(twins=(data.items, data.rows))
    plain, extra = (small_task(model).batch_loss(inputs(data)).item() for model in (Fixed(), net))
    assert extra - plain == pytest.approx(2 * len(data.users), rel=1e-5)
    items, rows, places, states, twins = net.arguments
    assert (items, rows, places, twins) == (data.items, data.rows, data.places, data.twins)
    assert states.shape == (len(data.places), 3)


def test_a_model_without_parameters_is_not_trained() -> None:
    net = Fixed()
    net.weight.requires_grad_(False)
    assert small_task(net).configure_optimizers() is None
    assert small_task(net).training_step(batch(), 0) is None


@pytest.mark.slow
def test_a_compiled_model_computes_the_same() -> None:
    """One that becomes few kernels, as each takes a second to build."""

    def task_of(**options: bool) -> SequenceTask:
        torch.manual_seed(0)
        return small_task(GRU4Rec(20, gru_size=8, hidden_size=8, dropout=0.0), **options).double()

    outcomes = []
    for compiled in (False, True):
        task = task_of(compile=compiled)
        value = task.batch_loss(inputs(batch()))
        outcomes.append([value, *torch.autograd.grad(value, list(task.parameters()))])
        assert list(task.state_dict()) == list(task_of().state_dict())
    for plain, compiled_too in zip(*outcomes, strict=True):
        torch.testing.assert_close(compiled_too, plain, rtol=1e-7, atol=1e-9)


def test_ranking_under_mixed_precision_is_in_float32() -> None:
    """Rounded scores would tie; a model's own ``logits`` gets states of its weights' type."""
    data, net = batch(), small_sigma().float().eval()
    exact = ranks(net, data).rankings[ALL].greater
    kinds = []

    class WithLogits(Sigma):
        def logits(self, states: Tensor, items: Tensor | None = None) -> Tensor:
            kinds.append(states.dtype)
            scores = states @ self.items.weight[1:].T
            return scores if items is None else scores.gather(1, items - 1)

    net.__class__ = WithLogits
    with torch.autocast("cpu", torch.bfloat16):
        mixed = ranks(net, data).rankings[ALL]
    assert set(kinds) == {torch.float32}
    assert not mixed.ties.any()
    assert (mixed.greater - exact).abs().double().mean() < 1


def test_the_training_loss_is_a_mean_in_bfloat16_too(monkeypatch: Patch) -> None:
    """Cast with the model, its sum stops growing after a few hundred steps."""
    task = small_task()
    task.to(torch.bfloat16)  # as trainer.precision=bf16-true does
    attach(task, monkeypatch)
    task.on_train_start()
    for step in range(2000):
        task.train_loss.update(torch.tensor(9.0 if step < 200 else 3.0), 2048)
    assert float(task.train_loss.compute()) == pytest.approx(3.6)


@pytest.mark.parametrize(
    ("device", "options", "precision", "reason", "recorded"),
    [
        ("cpu", {}, "32-true", None, False),
        ("cuda", {}, "32-true", None, True),
        ("cuda", {}, "bf16-mixed", None, True),
        ("cuda", {}, "16-mixed", None, False),
        ("cuda", {}, "32-true", "no Triton", False),
        ("cuda", {"capture": False}, "32-true", None, False),
    ],
)
def test_on_cuda_a_step_is_recorded_where_it_can_be(
    device: str, options: dict, precision: str, reason: str, recorded: bool, monkeypatch: Patch
) -> None:
    task = small_task(**options)
    attach(task, monkeypatch, precision=precision)
    monkeypatch.setattr(SequenceTask, "device", torch.device(device))
    monkeypatch.setattr("sigma.task.capture_reason", lambda model, device: reason)
    task.on_train_start()
    assert isinstance(task._step, CapturedStep) == recorded
    assert recorded or task._step == task.batch_loss


class OnGpu(Tensor):
    """Says that it lies on a GPU."""

    device = torch.device("cuda", 0)


class Watched:
    """A task at step 100, in epoch 3, whose losses the test chooses."""

    def __init__(self, monkeypatch: Patch) -> None:
        self.task, steps = small_task(), {"global_step": 100, "current_epoch": 3}
        attach(self.task, monkeypatch, checkpoint_callbacks=[], **steps)

    def step(self, loss: float, kind: type = OnGpu) -> None:
        value = torch.tensor(loss, requires_grad=True).as_subclass(kind)
        self.task._step = lambda _: value
        self.task.training_step(batch(), 0)
        self.task.trainer.global_step += 1


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_on_the_cpu_every_loss_is_looked_at(broken: float, monkeypatch: Patch) -> None:
    watched = Watched(monkeypatch)
    watched.step(1.0, Tensor)
    with pytest.raises(UserError, match=rf"became {broken} at step 101 \(epoch 3\)"):
        watched.step(broken, Tensor)


def test_on_a_gpu_losses_are_looked_at_many_at_once(monkeypatch: Patch) -> None:
    """To look waits for the device; the message is of the first loss that broke."""
    watched, looks = Watched(monkeypatch), []
    monkeypatch.setattr(OnGpu, "tolist", lambda x: looks.append(len(x)) or Tensor.tolist(x))
    for _ in range(WATCHED_STEPS):
        assert not looks
        watched.step(1.0)
    for step in range(WATCHED_STEPS - 1):
        watched.step({40: math.inf, 41: math.nan}.get(step, 2.0))
    assert looks == [WATCHED_STEPS]
    with pytest.raises(UserError, match=rf"became inf at step {100 + WATCHED_STEPS + 40} "):
        watched.step(1.0)


@pytest.mark.parametrize("occasion", ["checkpoint", "validation"])
def test_no_checkpoint_or_score_is_made_of_broken_weights(
    occasion: str, monkeypatch: Patch
) -> None:
    watched = Watched(monkeypatch)

    def happens() -> None:
        task = watched.task
        task.on_save_checkpoint({}) if occasion == "checkpoint" else task.on_validation_start()

    happens()  # before any step
    for loss in (1.0, 2.0):
        watched.step(loss)
    happens()
    for loss in (1.0, math.nan, math.nan):
        watched.step(loss)
    with pytest.raises(UserError, match=r"at step 103 .* good checkpoint is none yet"):
        happens()


@pytest.mark.parametrize(
    ("kind", "settings", "device", "trainer", "fused"),
    [
        (Adam, {}, "cpu", {}, None),
        (Adam, {}, "cuda", {}, True),
        (Adam, {}, "cuda", {"precision": "bf16-mixed"}, True),
        (Adam, {}, "cuda", {"precision": "16-mixed"}, None),
        (Adam, {}, "cuda", {"precision": "bf16-mixed", "gradient_clip_val": 5.0}, None),
        (Adam, {}, "cuda", {"gradient_clip_val": 5.0}, True),
        (Adam, {"fused": False}, "cuda", {}, False),
        (Adam, {"fused": True}, "cpu", {}, True),
        (Adam, {"foreach": True}, "cuda", {}, None),
        (Rprop, {}, "cuda", {}, None),  # has no such argument
    ],
)
def test_an_optimizer_is_fused_on_cuda_unless_the_user_chose(
    kind: type, settings: dict, device: str, trainer: dict, fused: bool, monkeypatch: Patch
) -> None:
    task = small_task(optimizer=functools.partial(kind, lr=0.5, **settings))
    attach(task, monkeypatch, **trainer)
    monkeypatch.setattr(SequenceTask, "device", torch.device(device))
    optimizer = task.configure_optimizers()
    assert type(optimizer) is kind
    assert optimizer.defaults.get("fused") is fused
    (group,) = optimizer.param_groups
    assert (group["lr"], len(group["params"])) == (0.5, len(list(task.parameters())))
