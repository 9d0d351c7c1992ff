"""The task: encoding without padding work, masking, chance, extra losses, nothing to train."""

import functools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.build import accelerator, set_precision
from sigma.datamodules.batches import Batch, FlatSequences
from sigma.encoding import length_groups, target_states
from sigma.errors import UserError
from sigma.losses import CrossEntropy
from sigma.models.mamba import Mamba
from sigma.models.sigma import Sigma
from sigma.task import SequenceTask


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


def test_encoding_by_length_changes_neither_states_nor_gradients() -> None:
    net, data = model(), batch()
    results = []
    for by_length in (False, True):
        states = target_states(net, data, by_length)
        loss = F.cross_entropy(net.logits(states), data.targets - 1, reduction="none")
        gradients = torch.autograd.grad(loss.mean(), list(net.parameters()))
        results.append([states, loss, *gradients])
    for whole, grouped in zip(*results, strict=True):
        torch.testing.assert_close(whole, grouped, rtol=1e-9, atol=1e-11)


def test_length_groups_cover_every_row_once() -> None:
    lengths = sorted(
        torch.randint(1, 200, (3000,), generator=torch.Generator().manual_seed(1)).tolist()
    )
    groups = length_groups(lengths)
    assert [i for first, last in groups for i in range(first, last)] == list(range(3000))
    work = sum((last - first) * lengths[last - 1] for first, last in groups)
    assert work < 1.35 * sum(lengths)
    assert length_groups([5]) == [(0, 1)]


def test_several_targets_a_row_keep_their_order() -> None:
    net, data = model(), batch()
    rows = torch.arange(len(data.lengths)).repeat_interleave(2).flip(0)
    columns = torch.stack([torch.zeros_like(data.lengths), data.lengths - 1], 1).flatten().flip(0)
    several = data._replace(target_rows=rows, target_columns=columns)
    torch.testing.assert_close(
        target_states(net, several, True), target_states(net, several, False), rtol=1e-9, atol=1e-11
    )


def test_masked_history_is_left_out_of_the_ranking() -> None:
    data = batch(mask=True)
    whole = task()
    ranks = whole.evaluation_step("val", data)
    net = whole.model
    scores = net.logits(target_states(net, data, False))  # type: ignore[operator]
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


class Fixed(nn.Module):
    """A model that does not care for padding and scores all items alike."""

    padding_invariant = True

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, items: Tensor, lengths: Tensor) -> Tensor:
        return torch.zeros(*items.shape, 3) + self.weight

    def logits(self, states: Tensor, items: Tensor | None = None) -> Tensor:
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

    def extra_loss(self, items: Tensor, lengths: Tensor, states: Tensor, targets: Tensor) -> Tensor:
        assert len(items) == len(lengths)
        assert len(states) == len(targets)
        return 2.0 * len(items) + 0 * states.sum()


def test_a_models_extra_loss_is_added(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
    data, losses = batch(), []
    for net in (Fixed(), WithExtra()):
        whole = SequenceTask(net, optimizer, CrossEntropy(COUNTS))
        monkeypatch.setattr(whole, "log", lambda *_, **__: None)
        loss = whole.training_step(data, 0)
        assert loss is not None
        losses.append(loss.item())
    assert losses[1] - losses[0] == pytest.approx(2 * len(data.items), rel=1e-5)


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
        states = target_states(trained.model, data, True)
        value = trained.loss(states, data.targets, trained.logits)
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


def test_targets_that_are_as_many_as_rows_but_not_one_each() -> None:
    net, data = model(), batch()
    rows = torch.arange(len(data.lengths)) // 2 * 2
    uneven = data._replace(target_rows=rows, target_columns=torch.zeros_like(rows))
    states = net(data.items, data.lengths)
    for by_length in (False, True):
        torch.testing.assert_close(target_states(net, uneven, by_length), states[rows, 0])


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
