"""The task: rows side by side, masking, chance, extra losses, replayed steps, broken losses."""

import functools
import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sigma.build import accelerator, set_precision
from sigma.capture import SIZES, CapturedStep, Inputs, tensors_of
from sigma.datamodules.batches import Batch, FlatSequences
from sigma.errors import UserError
from sigma.losses import CrossEntropy
from sigma.models.base import Model, Sequences
from sigma.models.mamba import Mamba
from sigma.models.sigma import Sigma
from sigma.ops import Rows, rows_of
from sigma.task import WATCHED_STEPS, SequenceTask


def flat(users: int = 300, seed: int = 0) -> FlatSequences:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, 25, (users,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = torch.randint(1, 21, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
    return FlatSequences(items, offsets, 12)


def batch(mask: bool = False) -> Batch:
    data = flat()
    return data.batch(data.offsets[1:] - 1, mask_history=mask)


def model(dropout: float = 0.0) -> Sigma:
    torch.manual_seed(0)
    mamba = functools.partial(Mamba, state_size=4)
    return Sigma(20, mamba=mamba, hidden_size=8, dropout=dropout, r=2).double()


def task(**options: object) -> SequenceTask:
    optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
    return SequenceTask(model(), optimizer, CrossEntropy(COUNTS), **options)  # type: ignore[arg-type]


COUNTS = torch.ones(20, dtype=torch.int64)


def inputs(data: Batch) -> Inputs:
    return Inputs(data.items, data.rows, data.places, data.targets, data.twins)


def test_rows_side_by_side_are_the_rows_alone_in_states_and_gradients() -> None:
    whole, data = task(), batch()
    states = whole.states(data)
    loss = whole.batch_loss(inputs(data))
    together = [states, loss, *torch.autograd.grad(loss, list(whole.model.parameters()))]
    alone, losses = [], []
    rows = data.items.split(data.rows.offsets.diff().tolist())
    for row, target in zip(rows, data.targets, strict=True):
        one = rows_of(torch.tensor([len(row)]), data.rows.longest)
        last = torch.tensor([len(row) - 1])
        alone.append(whole.model(row, one, last))
        losses.append(whole.batch_loss(Inputs(row, one, last, target[None])))
    mean = torch.stack(losses).mean()
    apart = [torch.cat(alone), mean, *torch.autograd.grad(mean, list(whole.model.parameters()))]
    for a, b in zip(together, apart, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_several_targets_a_row_keep_their_order() -> None:
    net, data = model(), batch()
    every = net(data.items, data.rows, torch.arange(len(data.items)))
    first, last = data.rows.offsets[:-1], data.rows.offsets[1:] - 1
    places = torch.stack([first, last], 1).flatten().unique()
    assert len(data.users) < len(places) < 2 * len(data.users)
    torch.testing.assert_close(
        net(data.items, data.rows, places), every[places], rtol=1e-9, atol=1e-11
    )


def test_targets_that_are_as_many_as_rows_but_not_one_each() -> None:
    net, data = model(), batch()
    every = net(data.items, data.rows, torch.arange(len(data.items)))
    places = torch.arange(len(data.users)) * 2
    assert not torch.equal(places, data.rows.offsets[1:] - 1)
    torch.testing.assert_close(
        net(data.items, data.rows, places), every[places], rtol=1e-9, atol=1e-11
    )


def test_masked_history_is_left_out_of_the_ranking() -> None:
    data = batch(mask=True)
    whole = task()
    ranks = whole.evaluation_step("val", data)
    net = whole.model
    scores = net.logits(whole.states(data))
    items, offsets = flat().items.tolist(), flat().offsets.tolist()
    for user, row in enumerate(scores.tolist()):
        history, target = (
            set(items[offsets[user] : offsets[user + 1] - 1]),
            items[offsets[user + 1] - 1],
        )
        above = [
            j for j, s in enumerate(row, 1) if s > row[target - 1] and j not in history - {target}
        ]
        assert len(above) == ranks.greater[user]


class Fixed(Model):
    """A model that scores all items alike."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        return torch.zeros(len(places), 3) + self.weight

    def logits(self, states: Tensor, items: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return states.sum(1, keepdim=True).expand(-1, 20)


def test_constant_model_ranks_like_chance() -> None:
    optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
    constant = SequenceTask(Fixed(), optimizer, CrossEntropy(COUNTS))
    constant.evaluation_step("test", batch())
    assert constant.ranking("test").compute()["hr@10"].item() == pytest.approx(10 / 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": [5, 20]}, "must hold positive cut-offs and 10"),
        ({"groups": {"short": [0]}}, "must be a pair"),
        ({"ks": [0, 10]}, "must hold positive cut-offs and 10"),
    ],
)
def test_impossible_settings(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(**options)


class WithExtra(Fixed):
    """Adds twice the number of rows to the loss, and remembers what it was given."""

    def extra_loss(
        self, items: Tensor, rows: Rows, places: Tensor, states: Tensor, twins: Sequences | None
    ) -> Tensor:
        self.given = items, rows, places, states, twins
        return 2.0 * (len(rows.offsets) - 1) + 0 * states.sum()


def test_a_models_extra_loss_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
    data, losses = batch(), []
    data = data._replace(twins=(data.items, data.rows))
    for net in (Fixed(), WithExtra()):
        whole = SequenceTask(net, optimizer, CrossEntropy(COUNTS))
        monkeypatch.setattr(whole, "log", lambda *_, **__: None)
        loss = whole.training_step(data, 0)
        assert loss is not None
        losses.append(loss.item())
    assert losses[1] - losses[0] == pytest.approx(2 * len(data.users), rel=1e-5)
    items, rows, places, states, twins = net.given
    assert (items, rows, places, twins) == (data.items, data.rows, data.places, data.twins)
    assert states.shape == (len(data.places), 3)


def test_a_model_without_parameters_is_not_trained() -> None:
    net = Fixed()
    net.weight.requires_grad_(False)
    counted = SequenceTask(net, functools.partial(torch.optim.Adam, lr=1e-3), CrossEntropy(COUNTS))
    assert counted.configure_optimizers() is None
    assert counted.training_step(batch(), 0) is None


def test_a_compiled_model_computes_the_same() -> None:
    data = batch()
    outcomes = []
    for compiled in (False, True):
        trained = task(compile=compiled).double()
        value = trained.batch_loss(inputs(data))
        gradients = torch.autograd.grad(value, list(trained.parameters()))
        outcomes.append([value, *gradients])
        assert list(trained.state_dict()) == list(task().state_dict())
    for plain, compiled_too in zip(*outcomes, strict=True):
        torch.testing.assert_close(compiled_too, plain, rtol=1e-7, atol=1e-9)


def test_ranking_under_mixed_precision_is_in_float32() -> None:
    """Rounded scores would tie; a model's own ``logits`` gets states of its weights' type."""
    data, trained = batch(), task()
    trained = trained.float().eval()
    exact = trained.target_ranks(data)
    kinds = []

    class Own(Sigma):
        def logits(self, states: Tensor, items: Tensor | None = None) -> Tensor:  # type: ignore[override]
            kinds.append(states.dtype)
            scores = states @ self.items.weight[1:].T
            return scores if items is None else scores.gather(1, items - 1)

    trained.model.__class__ = Own
    with torch.autocast("cpu", torch.bfloat16):
        greater, ties = trained.target_ranks(data)
    assert set(kinds) == {torch.float32}
    assert not ties.any()
    assert (greater - exact[0]).abs().double().mean() < 1


def test_metal_is_left_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    assert accelerator("auto") == "auto"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert accelerator("auto") == "cpu"
    with pytest.raises(UserError, match="Metal does not have"):
        accelerator("mps")


def test_the_training_loss_is_a_mean_in_bfloat16_too() -> None:
    """Cast with the model, its sum stops growing after a few hundred steps."""
    one = task()
    one.to(torch.bfloat16)  # as trainer.precision=bf16-true does
    one.trainer = SimpleNamespace(world_size=1)  # type: ignore[assignment]
    one.on_train_start()
    for step in range(2000):
        one.train_loss.update(torch.tensor(9.0 if step < 200 else 3.0), 2048)
    assert float(one.train_loss.compute()) == pytest.approx(3.6)


def test_highest_precision_is_meant_for_recurrence_too() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    try:
        for name, tf32 in (("highest", False), ("high", True)):
            set_precision(name)
            assert torch.get_float32_matmul_precision() == name
            assert torch.backends.cudnn.allow_tf32 is tf32
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


# --- a training step as a replay, by a stand-in for CUDA graphs ---


class Tape:
    """Runs the work again, and puts its results where those of the recording lie."""

    def __init__(self, work: Callable[[], Any]) -> None:
        self.work = work
        self.result = work()
        self.replays = 0

    def replay(self) -> None:
        self.replays += 1
        (loss, gradients), (new, news) = self.result, self.work()
        loss.copy_(new)
        for old, gradient in zip(gradients, news, strict=True):
            assert (old is None) == (gradient is None)
            if old is not None:
                old.copy_(gradient)


class Recorder:
    """Keeps the tapes, and the pools it was given."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []
        self.pools: list[Any] = []

    def __call__(self, work: Callable[[], Any], pool: Any) -> tuple[Tape, Any, Any]:
        self.tapes.append(Tape(work))
        self.pools.append(pool)
        return self.tapes[-1], self.tapes[-1].result, "pool"

    @property
    def replays(self) -> list[int]:
        return [tape.replays for tape in self.tapes]


def captured(whole: SequenceTask) -> tuple[CapturedStep, Recorder]:
    recorder = Recorder()
    return CapturedStep(whole.batch_loss, list(whole.parameters()), recorder), recorder


def drawn(seed: int, rows: int = 20, width: int = 6) -> Inputs:
    """Rows of one length, so that all of as many rows are of one size."""
    items = torch.randint(1, 21, (rows * width,), generator=torch.Generator().manual_seed(seed))
    among = rows_of(torch.full((rows,), width), 12)
    return Inputs(items, among, among.offsets[1:] - 1, items[among.offsets[:-1]])


def gradients(loss: Tensor, whole: SequenceTask) -> list[Tensor | None]:
    whole.zero_grad()
    loss.backward()
    return [p.grad for p in whole.parameters()]


def assert_same_bits(got: list[Tensor | None], want: list[Tensor | None]) -> None:
    for a, b in zip(got, want, strict=True):
        assert a is b is None or torch.equal(a, b)


def test_the_second_batch_of_a_size_and_later_ones_are_replays() -> None:
    whole = task()
    step, recorder = captured(whole)
    for number in range(4):
        given = drawn(number)
        loss = step(given)
        assert recorder.replays == ([number] if number else [])
        own = list(step.recordings.values())
        for recording in own:  # copied, so that the batch's own memory is free
            for kept, new in zip(tensors_of(recording.inputs), tensors_of(given), strict=True):
                assert torch.equal(kept, new)
                assert kept.data_ptr() != new.data_ptr()
        got = [loss.detach(), *gradients(loss, whole)]
        plain = whole.batch_loss(given)
        assert_same_bits(got, [plain.detach(), *gradients(plain, whole)])
    assert len(own) == 1


def test_what_a_replay_gave_is_not_written_over_by_the_next() -> None:
    whole = task()
    step, _ = captured(whole)
    step(drawn(0))
    loss = step(drawn(1))
    value, first = loss.item(), gradients(loss, whole)
    copies = [None if g is None else g.clone() for g in first]
    whole.zero_grad()
    step(drawn(2)).backward()
    assert loss.item() == value
    assert_same_bits(first, copies)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_gradients_of_replays_add_up(scale: float) -> None:
    """As trainer.accumulate_grad_batches has them, each loss divided."""
    whole = task()
    step, recorder = captured(whole)
    step(drawn(0))
    results = []
    for run in (step, whole.batch_loss):
        whole.zero_grad()
        for number in (1, 2):
            (scale * run(drawn(number))).backward()
        results.append([p.grad for p in whole.parameters()])
    assert recorder.replays == [2]
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-15)
        assert scale != 1 or torch.equal(a, b)


def test_a_replay_follows_the_weights() -> None:
    whole = task()
    step, recorder = captured(whole)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    for number in range(4):
        given = drawn(number)
        plain = whole.batch_loss(given)
        loss = step(given)
        assert torch.equal(loss, plain)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert recorder.replays == [3]


def test_each_size_has_a_recording_up_to_a_limit() -> None:
    whole = task()
    step, recorder = captured(whole)
    sizes = range(1, SIZES + 4)
    for seed in range(3):
        for rows in sizes:
            given = drawn(seed, rows)
            assert torch.equal(step(given), whole.batch_loss(given))
    assert recorder.replays == [2] * SIZES
    assert recorder.pools == [None] + ["pool"] * (SIZES - 1)  # which all of them share
    assert len(step.recordings) == SIZES


def test_recordings_differ_by_whatever_they_are_bound_to() -> None:
    whole = task()
    step, recorder = captured(whole)
    given = drawn(0)
    longer = given._replace(rows=Rows(given.rows.offsets, 13))
    fewer = given._replace(places=given.places[1:], targets=given.targets[1:])
    twins = given._replace(twins=(given.items, given.rows))
    longer_twins = given._replace(twins=(given.items, longer.rows))
    others = (given, longer, fewer, twins, longer_twins)
    for _ in range(2):
        for one in others:
            assert torch.equal(step(one), whole.batch_loss(one))
    assert recorder.replays == [1] * len(others)


def test_twins_are_copied_for_a_replay() -> None:
    class Sum(Fixed):
        def extra_loss(self, *given: Any) -> Tensor:
            items, rows = given[-1]
            return (items.sum() + rows.offsets.sum()) * (1 + self.weight.sum())

    whole = SequenceTask(Sum(), torch.optim.Adam, CrossEntropy(COUNTS))
    step, recorder = captured(whole)
    for number in range(3):
        other = drawn(number + 10)
        given = drawn(number)._replace(twins=(other.items, other.rows))
        assert torch.equal(step(given), whole.batch_loss(given))
    assert recorder.replays == [2]


def test_a_parameter_that_the_loss_does_not_read_keeps_no_gradient() -> None:
    class Idle(Fixed):
        def __init__(self) -> None:
            super().__init__()
            self.idle = nn.Parameter(torch.ones(2))
            self.still = nn.Parameter(torch.ones(2), requires_grad=False)
            self.late = nn.Parameter(torch.zeros(3))

        def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
            return super().forward(items, rows, places) + self.late

        def logits(self, states: Tensor, items: Tensor | None = None) -> Tensor:  # type: ignore[override]
            return states.sum(1, keepdim=True) * torch.arange(20.0)

    whole = SequenceTask(Idle(), torch.optim.Adam, CrossEntropy(COUNTS))
    step, recorder = captured(whole)
    step(drawn(0))
    got = gradients(step(drawn(1)), whole)
    assert recorder.replays == [1]
    assert_same_bits(got, gradients(whole.batch_loss(drawn(1)), whole))
    assert [name for name, p in whole.model.named_parameters() if p.grad is None] == [
        "idle",
        "still",
    ]
    assert whole.model.late.grad.abs().min() > 0


def test_a_step_that_cannot_be_recorded_runs_plainly_ever_after(
    caplog: pytest.LogCaptureFixture,
) -> None:
    whole, tries = task(), []

    def record(work: Callable[[], Any], pool: Any) -> Any:
        tries.append(pool)
        raise RuntimeError("operation not permitted when stream is capturing\nCompile with …")

    step = CapturedStep(whole.batch_loss, list(whole.parameters()), record)
    for seed in range(3):
        for rows in (5, 6):
            given = drawn(seed, rows)
            loss = step(given)
            got = [loss.detach(), *gradients(loss, whole)]
            plain = whole.batch_loss(given)
            assert_same_bits(got, [plain.detach(), *gradients(plain, whole)])
    assert len(tries) == 1
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "(operation not permitted when stream is capturing); it runs by" in caplog.text


def test_half_precision_has_recordings_of_its_own() -> None:
    whole = task().float()
    step, recorder = captured(whole)
    kinds = []
    for number in range(3):
        given = drawn(number)
        for half in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                loss = step(given)
                plain = whole.batch_loss(given)
            got = [loss.detach(), *gradients(loss, whole)]
            assert_same_bits(got, [plain.detach(), *gradients(plain, whole)])
            kinds.append(loss.item())
    assert recorder.replays == [2, 2]
    assert len(set(kinds)) == 6
    with torch.autocast("cpu", torch.float16):
        step(drawn(0))
    assert (len(step.recordings), len(step.seen)) == (2, 3)


@pytest.mark.parametrize("options", [{}, {"capture": False}])
def test_on_the_cpu_nothing_is_recorded(options: dict) -> None:
    whole = task(**options)
    whole.trainer = SimpleNamespace(world_size=1, precision="32-true")  # type: ignore[assignment]
    whole.on_train_start()
    assert whole._step == whole.batch_loss


@pytest.mark.parametrize(
    ("options", "precision", "reason", "recorded"),
    [
        ({}, "32-true", None, True),
        ({}, "bf16-mixed", None, True),
        ({}, "16-mixed", None, False),
        ({}, "32-true", "no Triton", False),
        ({"capture": False}, "32-true", None, False),
    ],
)
def test_on_cuda_a_step_is_recorded_where_it_can_be(
    options: dict,
    precision: str,
    reason: str | None,
    recorded: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = task(**options)
    whole.trainer = SimpleNamespace(world_size=1, precision=precision)  # type: ignore[assignment]
    monkeypatch.setattr(SequenceTask, "device", torch.device("cuda", 0))
    monkeypatch.setattr("sigma.task.capture_reason", lambda model, device: reason)
    whole.on_train_start()
    assert isinstance(whole._step, CapturedStep) == recorded
    if not recorded:
        assert whole._step == whole.batch_loss


# --- losses that are no numbers ---


class Elsewhere(Tensor):
    """Says that it lies on a GPU."""

    device = torch.device("cuda", 0)  # type: ignore[assignment]


def watched(monkeypatch: pytest.MonkeyPatch) -> SequenceTask:
    """A task at step 100, in epoch 3."""
    whole = task()
    whole.trainer = SimpleNamespace(  # type: ignore[assignment]
        world_size=1, global_step=100, current_epoch=3, checkpoint_callbacks=[]
    )
    monkeypatch.setattr(whole, "log", lambda *_, **__: None)
    return whole


def told(whole: SequenceTask, loss: float, cpu: bool = False) -> None:
    """One training step of this loss."""
    value = torch.tensor(loss, requires_grad=True)
    whole._step = lambda _: value if cpu else value.as_subclass(Elsewhere)
    whole.training_step(batch(), 0)
    whole.trainer.global_step += 1  # type: ignore[misc]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_on_the_cpu_every_loss_is_looked_at(broken: float, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = watched(monkeypatch)
    told(whole, 1.0, cpu=True)
    with pytest.raises(UserError, match=rf"became {broken} at step 101 \(epoch 3\)"):
        told(whole, broken, cpu=True)


def test_elsewhere_losses_are_looked_at_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """To look waits for the device; the message is of the first loss that broke."""
    whole = watched(monkeypatch)
    looks = []
    monkeypatch.setattr(Elsewhere, "tolist", lambda x: looks.append(len(x)) or Tensor.tolist(x))
    for _ in range(WATCHED_STEPS):
        assert not looks
        told(whole, 1.0)
    assert looks == [WATCHED_STEPS]
    for step in range(WATCHED_STEPS - 1):
        told(whole, {40: math.inf, 41: math.nan}.get(step, 2.0))
    assert looks == [WATCHED_STEPS]
    with pytest.raises(UserError, match=rf"became inf at step {100 + WATCHED_STEPS + 40} "):
        told(whole, 1.0)


@pytest.mark.parametrize("occasion", ["checkpoint", "validation"])
def test_no_checkpoint_or_score_is_made_of_broken_weights(
    occasion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = watched(monkeypatch)
    whole.trainer.checkpoint_callbacks.append(  # type: ignore[attr-defined]
        SimpleNamespace(best_model_path="good.ckpt")
    )

    def happens() -> None:
        if occasion == "checkpoint":
            whole.on_save_checkpoint({})
        else:
            whole.on_validation_start()

    happens()  # before any step
    for loss in (1.0, 2.0):
        told(whole, loss)
    happens()
    for loss in (1.0, math.nan, math.nan):
        told(whole, loss)
    with pytest.raises(UserError, match=r"at step 103 .* good checkpoint is good\.ckpt"):
        happens()


# --- the optimizer ---


class Fusing(torch.optim.SGD):
    """Keeps what it was asked for."""

    def __init__(self, params: Any, lr: float, fused: Any = "no", foreach: Any = "no") -> None:
        super().__init__(params, lr)
        self.asked = fused, foreach


class Old(torch.optim.SGD):
    """Knows nothing of the kind."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        self.asked = "no", "no"


@pytest.mark.parametrize(
    ("kind", "settings", "device", "precision", "asked"),
    [
        (Fusing, {}, "cpu", "32-true", ("no", "no")),
        (Fusing, {}, "cuda", "32-true", (True, "no")),
        (Fusing, {}, "cuda", "bf16-mixed", (True, "no")),
        (Fusing, {}, "cuda", "16-mixed", ("no", "no")),
        (Fusing, {}, "cuda", "bf16-mixed, clipped", ("no", "no")),
        (Fusing, {}, "cuda", "32-true, clipped", (True, "no")),
        (Fusing, {"fused": False}, "cuda", "32-true", (False, "no")),
        (Fusing, {"fused": True}, "cpu", "32-true", (True, "no")),
        (Fusing, {"foreach": True}, "cuda", "32-true", ("no", True)),
        (Old, {}, "cuda", "32-true", ("no", "no")),
    ],
)
def test_an_optimizer_is_fused_on_cuda_unless_the_user_chose(
    kind: type,
    settings: dict,
    device: str,
    precision: str,
    asked: tuple,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    optimizer = functools.partial(kind, lr=0.5, **settings)
    whole = SequenceTask(model(), optimizer, CrossEntropy(COUNTS))
    precision, _, clip = precision.partition(", ")
    whole.trainer = SimpleNamespace(  # type: ignore[assignment]
        precision=precision, gradient_clip_val=5.0 if clip else None
    )
    monkeypatch.setattr(SequenceTask, "device", torch.device(device))
    built = whole.configure_optimizers()
    assert type(built) is kind
    assert built.asked == asked
    assert built.param_groups[0]["lr"] == 0.5
    assert len(built.param_groups[0]["params"]) == len(list(whole.parameters()))
