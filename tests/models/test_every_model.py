"""What every model in ``conf/model`` promises: shapes, rows apart, causality, any places."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sigma.capture import Inputs
from sigma.errors import UserError
from sigma.losses import CrossEntropy
from sigma.models.base import Model
from sigma.ops import rows_of
from tests.models.every import (
    EVERY,
    LENGTHS,
    MODELS,
    TARGETS,
    K,
    L,
    assert_close,
    batch,
    build,
    composed,
    ends,
    every_state,
    last_states,
    outcome,
    step_loss,
    without_dropout,
)


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
