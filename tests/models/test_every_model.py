"""What every model in ``conf/model`` promises: shapes, rows apart, causality, any places."""

import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.errors import InstantiationException
from torch import Tensor, nn

from sigma.capture import Inputs
from sigma.errors import UserError
from sigma.losses import CrossEntropy
from sigma.models.layers import Dropout
from tests.models import checks
from tests.models.checks import MODELS, TRAINED, K, L, batch, build, every_state, last_states


@pytest.mark.parametrize("name", MODELS)
def test_scores_have_the_shape_of_the_catalogue(name: str) -> None:
    model = build(name)
    items, rows = batch()
    assert len(every_state(model, items, rows)) == len(items)
    states = last_states(model, items, rows)
    scores = model.logits(states)
    assert scores.shape == (4, K)
    assert torch.isfinite(scores).all()
    some = torch.tensor([[3, K, 1], [1, 1, 2], [K, 5, 4], [9, 8, 7]])
    for part in (some, some[:, :1]):  # ``tied_scores`` has another way for few
        torch.testing.assert_close(model.logits(states, part), scores.gather(1, part - 1))
    assert model.counted == (not list(model.parameters())) == (name in checks.COUNTED)
    assert model.mask_token in (None, K + 1)
    assert model.name == name


@pytest.mark.parametrize("name", MODELS)
def test_a_rows_states_do_not_depend_on_the_rows_beside_it(name: str) -> None:
    model = build(name).double()
    lengths = checks.LENGTHS
    items, rows = batch(lengths)
    together = every_state(model, items, rows)
    for part, states in zip(items.split(lengths), together.split(lengths), strict=True):
        alone = every_state(model, part, checks.one_row(len(part), L))
        torch.testing.assert_close(alone, states, rtol=1e-6, atol=1e-9)


WANTS_WHOLE_ROWS = {"echo", "fearec", "fearec_authors"}
READS_PADDING = {"echo_sigma", "linrec", "linrec_authors", "sigma_logged"}  # up to L columns
RELEASED: list[dict[str, Any]] = [
    {"flip_until": 5},
    {"look_ahead": False},
    {"flip_until": None, "r": 2, "padding_item": False},
    {"flip_until": 0},
    {"flip_until": 1, "look_ahead": False},  # the only causal one
    {"flip_until": None, "r": 2, "look_ahead": False},
]
FORMS = [*checks.EVERY, *(("sigma_released", settings) for settings in RELEASED)]


def reads_padding(name: str, settings: dict[str, Any]) -> bool:
    if name == "sigma_released":
        return settings.get("look_ahead", True) or settings.get("flip_until", 45) not in (None, 1)
    return (name in READS_PADDING and not settings) or "leak" in settings


@pytest.mark.parametrize(("name", "settings"), FORMS, ids=str)
def test_columns_move_states_of_models_that_read_padding_and_of_no_other(
    name: str, settings: dict[str, Any]
) -> None:
    model = build(name, **settings).double()
    checks.shake(model, 0.1)  # or a column of padding may be all zeros
    items, rows = batch((5, 1, 2, 4))
    wide = last_states(model, items, rows)
    fewer = rows._replace(longest=5)
    if name in WANTS_WHOLE_ROWS:
        with pytest.raises(UserError, match=r"max_length"):
            last_states(model, items, fewer)
        return
    narrow = last_states(model, items, fewer)
    assert torch.allclose(narrow, wide, rtol=1e-6, atol=1e-9) != reads_padding(name, settings)


@pytest.mark.parametrize("name", TRAINED)
def test_a_row_longer_than_the_positions_is_refused(name: str) -> None:
    """There are L, and one more where a mask token stands behind the items."""
    model = build(name)
    if not hasattr(model, "positions"):
        return
    longest = L + (model.mask_token is not None)
    if name not in WANTS_WHOLE_ROWS:
        items = torch.ones(longest, dtype=torch.long)
        assert every_state(model, items, checks.one_row(longest)).isfinite().all()
    items = torch.ones(longest + 1, dtype=torch.long)
    with pytest.raises(UserError, match="max_length"):
        every_state(model, items, checks.one_row(longest + 1))


@pytest.mark.parametrize(("name", "settings"), FORMS, ids=str)
def test_the_future_moves_states_as_a_model_says(name: str, settings: dict[str, Any]) -> None:
    """Never those of a causal model, and its own item always does."""
    model = build(name, **settings)
    items, rows = batch()
    before = every_state(model, items, rows)
    moved = False
    for position in (1, 4, L - 1):
        changed = items.clone()
        changed[position:L] = changed[position:L] % K + 1  # of the first row
        after = every_state(model, changed, rows)
        if model.causal:
            ours, theirs = (model.logits(x[:position]) for x in (after, before))
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        moved |= not torch.allclose(after[:position].float(), before[:position].float(), atol=1e-5)
        assert not torch.equal(after[position], before[position])
    assert moved != model.causal
    if name == "sigma_released":
        assert model.causal == (settings.get("flip_until") == 1)


@pytest.mark.parametrize("places", [[8, 9, 11, 16], [2, 3, 8, 11, 14], [0, 9]], ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_states_at_some_places_are_those_of_all(name: str, places: list[int]) -> None:
    """Values and gradients: the last of each row; several of a row and none of another; few."""
    model = build(name).double()
    items, rows = batch()
    some = torch.tensor(places)
    checks.assert_same(model, model(items, rows, some), every_state(model, items, rows)[some])


@pytest.mark.parametrize("name", MODELS)
def test_what_lies_behind_the_last_row_changes_nothing(name: str) -> None:
    """States, loss and gradients; places that only fill a batch up are taken there, too."""
    model = build(name).double()
    items, rows = batch((*checks.LENGTHS, 9, 8, 9, 7))
    longer, targets = F.pad(items, (0, 5)), torch.arange(1, 9)
    places = F.pad(checks.ends(rows), (0, 3), value=len(longer) - 1)
    results = []
    for case in (
        Inputs(items, rows, checks.ends(rows), targets),
        Inputs(longer, checks.timed(rows, len(longer)), places, F.pad(targets, (0, 3))),
    ):
        states = model(*case[:3])
        assert states.isfinite().all()
        loss = CrossEntropy(torch.ones(K))(states, case.targets, model.logits)
        results.append(torch.hstack([states[:8].flatten(), loss]))
    checks.assert_same(model, results[1], results[0])


def inputs() -> Inputs:
    items, rows = batch()
    return Inputs(items, rows, checks.ends(rows), checks.TARGETS, (items, rows))


@pytest.mark.parametrize("name", TRAINED)
def test_bfloat16_products_move_the_loss_and_gradients_a_little(name: str) -> None:
    """``trainer.precision=bf16-mixed``: what autocast must not touch stays in float32."""
    model = build(name)
    parameters = list(model.parameters())
    results = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = checks.step_loss(model, inputs(), CrossEntropy(torch.ones(K)))
        assert value.dtype == torch.float32
        gradients = torch.autograd.grad(value, parameters, materialize_grads=True)
        results.append((value, torch.cat([g.flatten() for g in gradients])))
    (exact, want), (rounded, got) = results
    assert abs(rounded - exact) < 0.02 * exact
    assert (got - want).norm() < 0.1 * want.norm()


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_names_the_rows_of_its_items(name: str) -> None:
    """Those are the parameters that grow with the catalogue, and only their rows do."""
    model, larger = checks.built(name).eval(), checks.built(name, num_items=K + 3)
    shapes = {key: value.shape for key, value in larger.state_dict().items()}
    rows = model.item_rows()
    for key, value in model.state_dict().items():
        grows = value.shape != shapes[key]
        assert grows == (key in rows)
        if grows:
            assert shapes[key] == (len(value) + 3, *value.shape[1:])
    ids = torch.tensor([[1, K]])
    states = torch.randn(1, model.logits.weight.shape[1])
    before = model.logits(states, ids)
    with torch.no_grad():
        for key, first in rows.items():
            table = model.get_parameter(key)
            table[first], table[first + K - 1] = table[first + K - 1].clone(), table[first].clone()
    torch.testing.assert_close(model.logits(states, ids).flip(1), before)


@pytest.mark.parametrize("name", TRAINED)
def test_every_parameter_learns(name: str) -> None:
    """A parameter without gradient is a part that is not wired in."""
    model = build(name).train()
    parameters = dict(model.named_parameters())
    checks.step_loss(model, inputs(), CrossEntropy(torch.ones(K))).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in parameters.values())
    if not getattr(model, "padding_item", False):
        assert not model.items.weight[0].any()
        assert not model.items.weight.grad[0].any()
    assert not {key for key, p in parameters.items() if p.grad is None or not p.grad.any()}


# D, I, g: dropout of states, of a feed-forward layer's inner ones, of gates; n: a norm of just what
# was dropped out, +: of anything else, such as its sum with a residual.
RELEASES = ("sigma_logged", "sigma_released")
ORDERS = {
    "bert4rec": "+D D+D+ D+D+ +",
    "bert4rec_tuned": "+D D+D+",
    "echo": "Dn D+ D+D+ Dn",
    "echo_sigma": "Dn + + Dn ID+",
    "esasrec": "DDn D+ID",
    "fearec": "+D D+D+ D+D+",
    "gru4rec": "D",
    "gsasrec": "Dn +ID ++ID +",
    "hstu": "Dn+D ++D",
    "hstu_time": "Dn+D ++D",
    "linrec": "+D D+D+ D+D+",
    "mamba2": "Dn D+ID+ D+ID+",
    "mamba4rec": "Dn D+ID+ D+ID+",
    "mamba4rec_one_layer": "Dn DnID+",
    "moe_matrrec": "D D+ D+",
    "recmamba": "D",
    "sasrec": "+D D+D+ D+D+",
    "sasrec_authors": "Dn +ID ++ID +",
    "sasrec_tuned": "Dn +ID ++ID ++ID +",
    "sigma": "Dn D+ID+",
    "sigma_logged": "Dn g Dn ID+",
    "sigma_causal": "Dn D+ID+",
    "sigma_released": "Dn gg Dn ID+",
}


@pytest.mark.parametrize("name", ORDERS)
def test_dropouts_and_norms_come_in_the_order_of_the_equations(name: str) -> None:
    model = checks.built(name, **{"gate_dropout": 0.1} if name in RELEASES else {})
    size, order, dropped = model.items.weight.shape[1], [], [None]

    def drop(module: nn.Dropout, args: tuple[Tensor], out: Tensor) -> None:
        if module.p:
            order.append("g" if module.p == 0.1 else "D" if out.shape[-1] == size else "I")
            dropped[0] = out

    def norm(module: nn.LayerNorm, args: tuple[Tensor]) -> None:
        order.append("n" if args[0] is dropped[0] else "+")

    for module in model.modules():
        assert type(module) is not nn.Dropout  # most of a step's time on the CPU
        if isinstance(module, Dropout):
            module.register_forward_hook(drop)
        if isinstance(module, nn.LayerNorm):
            module.register_forward_pre_hook(norm)
    last_states(model, *batch())
    assert "".join(order) == ORDERS[name].replace(" ", "")


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("sasrec", {"num_heads": 3}, "num_heads=3 must divide hidden_size=16"),
        ("sasrec", {"num_heads": 0}, "num_heads=0 must divide"),
        ("sasrec", {"activation": "tanh"}, "activation='tanh' must be gelu or relu"),
        ("mamba2", {"mamba": {"head_size": 5}}, "head_size=5 must divide expand"),
        ("fearec", {"global_ratio": 0.0}, "global_ratio=0.0 must be above 0"),
        ("fearec", {"num_layers": 7, "global_ratio": 0.1}, "leaves a layer none of the 5"),
        ("fearec", {"spatial_ratio": 1.5}, "spatial_ratio=1.5 must be between 0 and 1"),
        ("fearec", {"max_length": 2}, r"max_length=2\) must be between 1 delay"),
        ("fearec", {"topk_factor": 9.0}, "topk_factor=9.0"),
        ("fearec", {"contrast": "both"}, "contrast='both' must be"),
        ("fearec", {"similarity": "l2"}, "similarity='l2' must be"),
        ("fearec", {"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ("fearec", {"frequency_weight": 0.1}, "needs pairs to compare"),
        ("sigma_released", {"flip_until": -1}, "flip_until=-1 and r=5 count items"),
        ("sigma_released", {"r": -2}, "r=-2 count items"),
        ("sigma_released", {"mix": [0.5, 0.5]}, r"mix=\[0\.5, 0\.5\] must hold three weights"),
        ("item_knn", {"neighbours": 0}, "neighbours=0 must be at least 1"),
        ("item_knn", {"shrinkage": -0.5}, "shrinkage=-0.5 must be at least 0"),
        ("item_knn", {"decay": 0.0}, "decay=0.0 must be above 0 and at most 1"),
        ("vmis_knn", {"max_length": 1}, "max_length=1 must be at least 2"),
        ("vmis_knn", {"sessions": 0}, "sessions=0, neighbours=100 must be at least 1"),
        ("vmis_knn", {"neighbours": 0}, "neighbours=0 must be at least 1"),
        ("markov", {"smoothing": -1.0}, "smoothing=-1.0 must be at least 0"),
    ],
    ids=str,
)
def test_impossible_settings_are_named(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InstantiationException) as error:
        checks.built(name, **settings)
    cause = error.value.__cause__
    assert isinstance(cause, ValueError)
    assert re.search(message, str(cause))


PAPERS = ("bert4rec", "echo", "echo_sigma", "fearec", "gru4rec", "linrec", "sasrec", "sigma")


def test_the_papers_dropout_is_that_of_the_data_set() -> None:
    for name in PAPERS:
        assert checks.composed(name).model.dropout == 0.3
        assert checks.composed(name, "dataset=ml_1m").model.dropout == 0.2


@pytest.mark.parametrize("name", TRAINED)
def test_each_dropout_acts_in_training_alone(name: str) -> None:
    plain = checks.without_dropout(name).eval()
    items, rows = batch()
    for key in checks.composed(name).model:
        if key.endswith("dropout"):
            model = checks.without_dropout(name, **{key: 0.5})
            # In the attention of the time domain, which this setting leaves out.
            idle = (name, key) == ("fearec", "attention_dropout")
            twice = (every_state(model, items, rows) for _ in range(2))
            assert torch.equal(*twice) == idle, key
            still = every_state(model.eval(), items, rows)
            assert torch.equal(still, every_state(plain, items, rows)), key
