"""What models share that count the training data instead of learning from it.

``count`` is called once with the training histories. All it keeps are whole numbers in buffers, so
a checkpoint needs no data and a change of precision rounds nothing; scores are computed in float64
or in whole numbers and returned as float32, so that items whose scores are equal by definition stay
equal. Such a model has no parameters.

Symbols: T places of packed rows, M places that are read, W items in a state, K items, R rows scored
at once.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma.errors import UserError
from sigma.models.base import Model
from sigma.ops import Rows
from sigma.ops.scores import Logits

CELLS = 1 << 23  # how many elements a temporary may have, but for single rows that need more


def owners(offsets: Tensor) -> Tensor:
    """The group of each of the flat values that ``offsets`` (groups + 1,) divides."""
    groups = torch.arange(len(offsets) - 1, device=offsets.device)
    return groups.repeat_interleave(offsets.diff())


def offsets_of(groups: Tensor, number: int) -> Tensor:
    """Offsets (number + 1,) of flat values whose sorted groups, from 0, are ``groups``."""
    return F.pad(torch.bincount(groups, minlength=number).cumsum(0), (1, 0))


def gathered(offsets: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Every flat value of several groups.

    Args:
        offsets: (all groups + 1,); group g owns the values from ``offsets[g]`` to before the next.
        groups: (n,) groups wanted, in any order, repeats too.

    Returns:
        ``which`` (values,) index into ``groups``, rising, and ``place`` (values,) of each value.
    """
    first = offsets[groups]
    sizes = offsets[groups + 1] - first
    which = torch.arange(len(groups), device=groups.device).repeat_interleave(sizes)
    shift = first - (sizes.cumsum(0) - sizes)
    return which, torch.arange(len(which), device=groups.device) + shift[which]


def rank_in_group(groups: Tensor, number: int) -> Tensor:
    """0, 1, … within each group, for sorted ``groups`` (n,) from 0 to below ``number``."""
    first = offsets_of(groups, number)[groups]
    return torch.arange(len(groups), device=groups.device) - first


def tally(keys: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Distinct ``keys`` (n,), all below ``size``, in rising order, and how often each occurs."""
    if size > 4 * len(keys):
        return keys.unique(return_counts=True)
    counts = torch.bincount(keys, minlength=1)  # many times faster where few cells stay empty
    found = counts.nonzero().squeeze(1)
    return found, counts[found]


def last_places(states: Tensor, num_items: int) -> Tensor:
    """Where each item stands last in a history, (R, K + 1): 1 … W, 0 for items not in it.

    Args:
        states: (R, W) the last W items, padding on the left.
        num_items: K.
    """
    places = torch.arange(1, states.shape[1] + 1, device=states.device).expand_as(states)
    table = places.new_zeros(len(states), num_items + 1)
    table.scatter_reduce_(1, states, places, "amax")
    table[:, 0] = 0
    return table


def distinct(states: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, item and last place of each distinct item of each history, row by row, oldest first.

    Args:
        states: (R, W).
        table: of ``last_places``.
    """
    places = torch.arange(1, states.shape[1] + 1, device=states.device)
    rows, columns = (table.gather(1, states) == places).nonzero(as_tuple=True)
    return rows, states[rows, columns], columns + 1


class Counted(Model):
    """Packed items (T,) -> states (M, W), the last W items of the row up to each place.

    A subclass fills buffers in ``count`` and scores in ``scores``.

    Args:
        num_items: K.
        width: W.
        name: what tables call the model.
    """

    causal = True
    counted = True
    interactions: Tensor

    def __init__(self, num_items: int, width: int, name: str) -> None:
        super().__init__()
        self.name = name
        self.num_items = num_items
        self.width = width
        self.keep(interactions=torch.zeros((), dtype=torch.int64))

    def keep(self, **buffers: Tensor) -> None:
        """Register buffers, or replace them on the device they are on.

        Each in memory of its own: loading a checkpoint writes into it.
        """
        for name, value in buffers.items():
            old = self._buffers.get(name)
            self.register_buffer(
                name, value.to(value.device if old is None else old.device, copy=True)
            )

    def scores(self, states: Tensor) -> Tensor:
        """States (R, W) -> float32 scores (R, K) of items 1 … K."""
        raise NotImplementedError

    def cells(self) -> int:
        """Elements of the largest temporary ``scores`` needs for one row."""
        return self.num_items + 1

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        first = rows.offsets[rows.row_of(places)]
        back = torch.arange(self.width - 1, -1, -1, device=items.device)
        source = places[:, None] - back
        return items[source.clamp(min=0)].masked_fill(source < first[:, None], 0)

    @property
    def logits(self) -> Logits:
        return self.score

    def score(self, states: Tensor, items: Tensor | None = None) -> Tensor:
        """States (M, W) -> scores (M, K) of items 1 … K, or (M, n) of ``items`` (M, n).

        Raises:
            UserError: nothing was counted.
        """
        if not self.interactions:
            raise UserError(
                f"The model {self.name} has counted no interactions; run it with "
                "objective=counted, or load a checkpoint of such a run."
            )
        columns = self.num_items if items is None else items.shape[1]
        out = torch.empty(len(states), columns, dtype=torch.float32, device=states.device)
        step = max(1, CELLS // self.cells())
        for i in range(0, len(states), step):
            part = self.scores(states[i : i + step])
            out[i : i + step] = part if items is None else part.gather(1, items[i : i + step] - 1)
        return out

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Buffers take the sizes saved: those depend on the data that was counted."""
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if saved is not None and buffer is not None and saved.shape != buffer.shape:
                self._buffers[name] = buffer.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args)
