"""A history that goes on, one item at a time, at a cost that its length does not change.

A causal recurrent model (Mamba4Rec with either Mamba, RecMamba, GRU4Rec, the causal SIGMA) reads a
history once. All it still has to know of it then are a few small tensors: see ``sigma.ops.stream``.
"""

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from sigma.models.base import Model, title
from sigma.ops.stream import Stream


class Session:
    """One history of item indices from 1, oldest first.

    Its state is that of the model's pass over the whole history, to rounding. Beyond the model's
    ``max_length``, where evaluation leaves the oldest items out, a session goes on and forgets
    none; a model with learned positions ends there with a UserError.

    Args:
        model: in evaluation.
        history: may be empty.

    What raises an error adds nothing.

    Raises:
        ValueError: the model is in training, or reads all items again as each one comes.
    """

    def __init__(self, model: Model, history: Sequence[int] = ()) -> None:
        if model.training:
            raise ValueError("model must be in evaluation; call model.eval() first.")
        if not model.causal:
            raise ValueError(f"{title(model)} is not causal: a new item changes what it reads.")
        if model.time is not None:
            raise ValueError(f"{title(model)} reads times, which a session does not have.")
        self.model = model
        self.device = next(chain(model.parameters(), model.buffers())).device
        self._stream = Stream(1)
        self._state: Tensor | None = None
        if len(history):
            self.add(*history)
        else:  # so that a model that cannot go on is refused here, not at its first item
            Session(model, [1])

    def __len__(self) -> int:
        """Items so far."""
        return int(self._stream.lengths)

    @property
    def nbytes(self) -> int:
        """What is kept of the items, however many they are."""
        return self._stream.nbytes

    def add(self, *items: int) -> None:
        """Read on.

        Raises:
            ValueError: an index below 1.
            IndexError: an index beyond the catalogue (on CUDA, PyTorch's assertion).
        """
        states = self._stream.read(self.model, indices([items], self.device))
        self._state = states[0].clone()  # one that may be used outside of inference mode

    @property
    def state(self) -> Tensor:
        """(D,), after the last item.

        Raises:
            ValueError: there is no item.
        """
        if self._state is None:
            raise ValueError("The session has no item, and so no state.")
        return self._state

    @torch.inference_mode()
    def scores(self) -> Tensor:
        """(K,), of items 1 … K as the next one."""
        return self.model.logits(self.state[None])[0]


def indices(items: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """(B, n) on the device."""
    index = torch.tensor(items)
    if not index.numel() or int(index.min()) < 1:
        raise ValueError("items must be indices from 1, at least one.")
    return index.to(device)


def add_to_all(sessions: Sequence[Session], items: Sequence[int]) -> None:
    """Add one item to each of several sessions of one model, in one pass.

    Raises:
        ValueError: models differ, or an index is below 1.
    """
    model = sessions[0].model
    if any(session.model is not model for session in sessions):
        raise ValueError("sessions must be of one model.")
    stream = Stream.joined([session._stream for session in sessions])
    states = stream.read(model, indices([[item] for item in items], sessions[0].device))
    for session, part, state in zip(sessions, stream.parted(), states, strict=True):
        session._stream, session._state = part, state.clone()
