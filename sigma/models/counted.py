"""What models share that count the training data instead of learning from it.

``count`` is called once with the training histories. All it stores are whole numbers in buffers, so
a checkpoint needs no data and a change of precision rounds nothing; scores are computed in float64
or in whole numbers, so that items whose scores are equal by definition stay equal.

Symbols: W items in a state, R rows scored at once; a flat array is divided into groups by offsets
(groups + 1,): group g has the values from ``offsets[g]`` to before ``offsets[g + 1]``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.errors import UserError
from sigma.models.base import Model
from sigma.ops import Rows
from sigma.ops.scores import Logits

CELLS = 1 << 23  # how many elements a temporary may have, but for single rows that need more


def owners(offsets: Tensor) -> Tensor:
    """The group of each flat value."""
    groups = torch.arange(len(offsets) - 1, device=offsets.device)
    return groups.repeat_interleave(offsets.diff())


def offsets_of(groups: Tensor, number: int) -> Tensor:
    """Offsets (number + 1,) of flat values whose sorted groups, from 0, are ``groups``."""
    return F.pad(torch.bincount(groups, minlength=number).cumsum(0), (1, 0))


def members(offsets: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Index into ``groups`` (n,), rising, and place of every flat value of these groups."""
    first = offsets[groups]
    sizes = offsets[groups + 1] - first
    which = torch.arange(len(groups), device=groups.device).repeat_interleave(sizes)
    shift = first - (sizes.cumsum(0) - sizes)
    return which, torch.arange(len(which), device=groups.device) + shift[which]


def rank_in_group(groups: Tensor, number: int) -> Tensor:
    """0, 1, … within each group, for sorted ``groups`` (n,) from 0 to below ``number``."""
    first = offsets_of(groups, number)[groups]
    return torch.arange(len(groups), device=groups.device) - first


def last_places(states: Tensor, num_items: int) -> Tensor:
    """Where each item stands last in a history (R, W): (R, K + 1) of 1 … W, 0 if nowhere."""
    places = torch.arange(1, states.shape[1] + 1, device=states.device).expand_as(states)
    table = places.new_zeros(len(states), num_items + 1)
    table.scatter_reduce_(1, states, places, "amax")
    table[:, 0] = 0
    return table


def distinct(states: Tensor, table: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Row, item and last place of each history's items, oldest first; see ``last_places``."""
    places = torch.arange(1, states.shape[1] + 1, device=states.device)
    rows, columns = (table.gather(1, states) == places).nonzero(as_tuple=True)
    return rows, states[rows, columns], columns + 1


def take_sizes(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Give the buffers the sizes of those to be loaded, which depend on the data counted."""
    for name, buffer in list(module.named_buffers(recurse=False)):
        stored = state_dict.get(prefix + name)
        if stored is not None and stored.shape != buffer.shape:
            module.register_buffer(name, buffer.new_empty(stored.shape))


class Counted(Model):
    """Packed items (T,) -> states (M, W), the last W (``width``) items of the row up to each place.

    A subclass names its buffers, fills them in ``count`` and scores in ``scores``.
    """

    causal = True
    counted = True
    interactions: Tensor

    def __init__(self, num_items: int, width: int, name: str, *buffers: str) -> None:
        super().__init__()
        self.name = name or type(self).__name__.lower()
        self.num_items = num_items
        self.width = width
        self.store(interactions=torch.zeros((), dtype=torch.int64))
        self.store(**{key: torch.zeros(0, dtype=torch.int64) for key in buffers})
        self.register_load_state_dict_pre_hook(take_sizes)

    def store(self, **buffers: Tensor) -> None:
        """Register or replace buffers, on their device; copies, as loading writes into them."""
        before = dict(self.named_buffers(recurse=False))
        for name, value in buffers.items():
            device = before.get(name, value).device
            self.register_buffer(name, value.to(device, copy=True))

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
        """States (M, W) -> scores (M, K) of items 1 … K, or (M, n) of ``items`` (M, n)."""
        if not self.interactions:
            raise UserError(
                f"The model {self.name} has counted no interactions; train it with "
                "objective=counted, or load a checkpoint of such a run."
            )
        columns = self.num_items if items is None else items.shape[1]
        out = torch.empty(len(states), columns, dtype=torch.float32, device=states.device)
        step = max(1, CELLS // self.cells())
        for i in range(0, len(states), step):
            part = self.scores(states[i : i + step])
            out[i : i + step] = part if items is None else part.gather(1, items[i : i + step] - 1)
        return out
