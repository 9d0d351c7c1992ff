"""Sessions, one item at a time, beside the pass over the whole history."""

import functools
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from sigma.errors import UserError
from sigma.models.base import Model
from sigma.ops import rows_of
from sigma.session import Session, add_to_all
from tests.models import checks
from tests.models.checks import K, L
from tests.ops.cases import no_cuda

LONGEST = 3 * L  # evaluation would cut such a history
RECURRENT: list[tuple[str, dict[str, Any]]] = [
    ("gru4rec", {"num_layers": 2}),
    ("mamba2", {}),
    ("mamba4rec", {}),
    ("mamba4rec_one_layer", {}),
    ("mambarec", {"max_length": LONGEST}),
    ("recmamba", {"max_length": LONGEST}),
    ("sigma", {"partial_flip": False, "num_layers": 2}),
    *(("sigma_causal", {"num_layers": 2} | options) for options in ({}, {"r": 1}, {"r": 50})),
    *(("sigma_causal", {key: False}) for key in ("partial_flip", "gate", "gru", "shared_mamba")),
]
ALIKE = {"gru4rec_bce", "mamba4rec_cosine", "sigma_tuned"}  # other settings of those
STREAMS = {name for name, settings in RECURRENT if "partial_flip" not in settings} | ALIKE
each_model = pytest.mark.parametrize(("name", "settings"), RECURRENT, ids=str)
TOLERANCES = {torch.float64: 1e-10, torch.float32: 2e-5}


@functools.cache
def model_of(name: str, kind: torch.dtype, **settings: Any) -> Model:
    """Off its start, where little would reach the states."""
    model = checks.build(name, **settings)
    checks.shake(model, 0.2)
    return model.to(kind)


@torch.no_grad()
def states_of(model: Model, items: list[int]) -> Tensor:
    """(T, D), by one pass."""
    index = torch.tensor(items)
    return checks.every_state(model, index, rows_of(torch.tensor([len(items)])))


def history(length: int = LONGEST, seed: int = 0) -> list[int]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(1, K + 1, (length,), generator=draw).tolist()


@pytest.mark.parametrize("kind", TOLERANCES, ids=str)
@each_model
def test_a_session_is_the_pass_over_all_of_its_items(
    name: str, settings: dict[str, Any], kind: torch.dtype
) -> None:
    model, items = model_of(name, kind, **settings), history()
    want, tolerance = states_of(model, items), TOLERANCES[kind]
    parts = {"one by one": [1] * LONGEST, "long ones first": [20, 1, 1, 3, 2], "at once": [LONGEST]}
    for case, sizes in (parts | {"few": [1, 2, 1, 4, 5, 1, 13]}).items():
        session = Session(model)
        for first, last in pairwise(accumulate(sizes, initial=0)):
            session.add(*items[first:last])
            state, message = want[last - 1], f"{case}, {last} items"
            error = (session.state - state).abs().max() / state.abs().max()
            assert session.state.dtype == kind
            assert error < tolerance, message
            assert len(session) == last
    session = Session(model, items[:5])
    torch.testing.assert_close(session.state, want[4], rtol=tolerance, atol=tolerance)
    want = model.logits(want[4:5])[0]
    torch.testing.assert_close(session.scores(), want, rtol=tolerance, atol=tolerance)


@each_model
def test_sessions_go_on_side_by_side(name: str, settings: dict[str, Any]) -> None:
    """Of different lengths; one has no item so far."""
    model = model_of(name, torch.float64, **settings)
    histories = [history(n, seed=n) for n in (4, 0, 1, 11)]
    sessions = [Session(model, items) for items in histories]
    for turn in range(1, 4):
        new = [turn, K, 1, turn + 1]
        add_to_all(sessions, new)
        for items, item, session in zip(histories, new, sessions, strict=True):
            items.append(item)
            torch.testing.assert_close(session.state, states_of(model, items)[-1])
            assert len(session) == len(items)
    sessions[0].add(7)  # and alone again
    torch.testing.assert_close(sessions[0].state, states_of(model, [*histories[0], 7])[-1])


@no_cuda
@pytest.mark.gpu
@each_model
def test_sessions_on_a_gpu(name: str, settings: dict[str, Any]) -> None:
    items, model = history(), model_of(name, torch.float32, **settings)
    want = states_of(model, items)
    model = checks.build(name, **settings)
    checks.shake(model, 0.2)
    session = Session(model.cuda(), items[:-4])
    for i, item in enumerate(items[-4:], LONGEST - 4):
        session.add(item)
        error = (session.state.cpu() - want[i]).abs().max() / want[i].abs().max()
        assert error < 1e-4
    session.add(*items[:3])
    want = states_of(model.cpu(), items + items[:3])[-1]
    torch.testing.assert_close(session.state.cpu(), want, rtol=1e-3, atol=1e-4)


def bytes_of(session: Session) -> int:
    values = [carry.value for carry in session._stream.carries]
    return sum(value.untyped_storage().nbytes() for value in [*values, session.state])


@each_model
def test_its_memory_does_not_grow(name: str, settings: dict[str, Any]) -> None:
    model = model_of(name, torch.float64, **settings)
    short, long = Session(model, [1]), Session(model, history(LONGEST - 1))
    before = bytes_of(short)
    assert before == bytes_of(long)
    add_to_all([short, long], [1, 2])
    assert bytes_of(short) == bytes_of(long) == before
    for session in (short, long):
        assert session.state.untyped_storage().nbytes() == session.state.nbytes


@pytest.mark.parametrize(("name", "settings"), checks.EVERY, ids=str)
def test_every_other_model_refuses(name: str, settings: dict[str, Any]) -> None:
    model = checks.build(name, **settings)
    if name in STREAMS:
        assert len(Session(model)) == 0
        return
    message = "is not causal|reads times|cannot go on from item to item"
    for items in ([], [1, 2, 3]):
        with pytest.raises(ValueError, match=message):
            Session(model, items)


def test_a_model_with_learned_positions_ends_with_them() -> None:
    model = model_of("recmamba", torch.float64)
    session = Session(model, history(L))
    state = session.state
    with pytest.raises(UserError, match="max_length"):
        session.add(1)
    assert session.state is state
    assert len(session) == L
    with pytest.raises(UserError, match="max_length"):
        Session(model, history(L + 1))


def test_what_is_wrong_is_said_and_changes_nothing() -> None:
    model = model_of("mamba4rec", torch.float64)
    session = Session(model)
    with pytest.raises(ValueError, match="no item"):
        session.scores()
    session.add(3)
    state = session.state
    for wrong in ([0], [-1], [2, 0], []):
        with pytest.raises(ValueError, match="indices from 1"):
            session.add(*wrong)
    with pytest.raises(IndexError):
        session.add(K + 1)
    assert session.state is state
    assert len(session) == 1
    with pytest.raises(ValueError, match="one model"):
        add_to_all([session, Session(model_of("mamba2", torch.float64))], [1, 2])
    with pytest.raises(ValueError, match=r"model\.eval"):
        Session(checks.built("mamba4rec"), [1])
