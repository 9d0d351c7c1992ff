"""The task: encoding without padding work, losses, masking, NaN."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.datamodules.batches import Batch, FlatSequences
from sigma.encoding import length_groups, target_states
from sigma.errors import UserError
from sigma.losses import bpr, cross_entropy
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
    return SequenceTask(model(), functools.partial(torch.optim.Adam, lr=1e-3), **options)  # type: ignore[arg-type]


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


def scores_of(states: Tensor) -> Tensor:
    return states  # the states are the scores


def test_cross_entropy_by_hand() -> None:
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]], dtype=torch.float64)
    want = 0.0
    for row, target in zip(scores.tolist(), [2, 1], strict=True):
        want -= row[target - 1] - math.log(sum(math.exp(s) for s in row))
    got = cross_entropy(scores, torch.tensor([2, 1]), scores_of)
    assert got.item() == pytest.approx(want / 2)


def test_bpr_draws_every_item_but_the_target() -> None:
    targets = torch.arange(1, 5).repeat(500)
    # Item j scores 10^j: the loss against a drawn negative tells which item was drawn.
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0]).repeat(2000, 1).double()
    torch.manual_seed(0)
    seen: set[tuple[int, int]] = set()
    for target, row in zip(targets[:400], scores[:400], strict=True):
        loss = bpr(row[None], target[None], scores_of).item()
        difference = round(math.log(math.expm1(loss)))
        seen.add((int(target), int(target) + difference))
    assert seen == {(t, n) for t in range(1, 5) for n in range(1, 5) if n != t}


def test_bpr_value_with_two_items() -> None:
    scores = torch.tensor([[1.5, 0.25]], dtype=torch.float64)
    got = bpr(scores, torch.tensor([1]), scores_of).item()
    assert got == pytest.approx(-math.log(1 / (1 + math.exp(-1.25))))


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

    def logits(self, states: Tensor) -> Tensor:
        return states.sum(1, keepdim=True).expand(-1, 20)


def test_constant_model_ranks_like_chance() -> None:
    constant = SequenceTask(Fixed(), functools.partial(torch.optim.Adam, lr=1e-3))
    constant.evaluation_step("test", batch())
    assert constant.ranking("test").compute()["hr@10"].item() == pytest.approx(10 / 20)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hinge"}, "choose from bpr, cross_entropy"),
        ({"ks": [5, 20]}, "must hold positive cut-offs and 10"),
        ({"groups": {"short": [0]}}, "must be a pair"),
        ({"ks": [0, 10]}, "must hold positive cut-offs and 10"),
    ],
)
def test_impossible_settings(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        task(**options)
