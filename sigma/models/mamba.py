"""The Mamba block (Mamba-1), with the public parameter names, and what stacks of it share.

Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023.

Symbols: d = expand * D inner size, N state size, k convolution width, R = rank of the step size's
projection.

    x, z = split(X W_in)                                                      (T, d) each       (1)
    x    = SiLU(causal depthwise convolution of x, width k)                   (T, d)            (2)
    Δ', B, C = split(x W_x)                                       (T, R), (T, N), (T, N)        (3)
    y    = selective scan(x, Δ' W_dt, A = -exp(A_log), B, C, D) ⊙ SiLU(z)     (T, d)            (4)
    Y    = y W_out                                                            (T, D)            (5)

Parameters have the names, shapes and initial draw of ``mamba_ssm.Mamba``; the range of the first
step sizes is an argument.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.arguments import Count, Positive, Share
from sigma.models.layers import TiedItems, at, encode, init_normal
from sigma.ops import (
    Places,
    Rows,
    causal_conv,
    packed,
    padded,
    padded_places,
    places_of,
    selective_scan,
    whole_rows,
)

MambaFactory = Callable[[int], nn.Module]  # hidden size -> Mamba block


class MambaBlock(nn.Module):
    """A Mamba of either generation, (T, D) -> (T, D), or (M, D) at places; causal."""


def step_bias(number: int, low: float, high: float) -> Tensor:
    """What softplus makes step sizes of, log-uniform between two: mamba_ssm's draw, (number,)."""
    low, high = math.log(low), math.log(high)
    step = torch.exp(torch.rand(number) * (high - low) + low).clamp(min=1e-4)
    return step + torch.log(-torch.expm1(-step))  # the inverse of softplus


class Mamba(MambaBlock):
    """One Mamba-1 block.

    Args:
        state_size: N.
        conv_width: k.
        expand: d / D.
        step_min: least step size Δ at the start, drawn log-uniform per channel.
        step_max: largest.
        backend: of the scan, see ``sigma.ops.choose_backend``.
    """

    def __init__(
        self,
        hidden_size: Count,
        state_size: Count = 32,
        conv_width: Count = 4,
        expand: Count = 2,
        step_min: float = 1e-3,
        step_max: float = 0.1,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        inner = expand * hidden_size
        self.rank = math.ceil(hidden_size / 16)
        self.state_size = state_size
        self.backend = backend
        self.in_proj = nn.Linear(hidden_size, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, conv_width, groups=inner, padding=conv_width - 1)
        self.x_proj = nn.Linear(inner, self.rank + 2 * state_size, bias=False)
        self.dt_proj = nn.Linear(self.rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, hidden_size, bias=False)
        nn.init.uniform_(self.dt_proj.weight, -(self.rank**-0.5), self.rank**-0.5)
        with torch.no_grad():
            self.dt_proj.bias.copy_(step_bias(inner, step_min, step_max))

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        assert self.conv1d.bias is not None
        if places is None:
            x, z = self.in_proj(states).chunk(2, dim=-1)  # eq. 1: (T, d), (T, d)
        else:  # z is multiplied behind the scan, so only where it is read
            to_x, to_z = self.in_proj.weight.chunk(2)
            x, z = F.linear(states, to_x), F.linear(at(states, places), to_z)  # eq. 1: (M, d)
        taps = self.conv1d.weight[:, 0]
        x = causal_conv(x, taps, self.conv1d.bias, rows, silu=True, backend=self.backend)  # eq. 2
        sizes = [self.rank, self.state_size, self.state_size]
        dt, B, C = self.x_proj(x).split(sizes, dim=-1)  # eq. 3: (T, R), (T, N), (T, N)
        dt = F.linear(dt, self.dt_proj.weight)  # (T, d); its bias is added within the scan
        A = -torch.exp(self.A_log.float() if self.A_log.dtype != torch.float64 else self.A_log)
        gate = z if places is None else None
        y = selective_scan(  # eq. 4: (T, d)
            x, dt, A, B, C, self.D, gate, self.dt_proj.bias, rows, self.backend
        )
        if places is not None:
            y = at(y, places) * F.silu(z)  # eq. 4: (M, d)
        return self.out_proj(y)  # eq. 5


def init_around_mamba(module: nn.Module, *, reinit_mamba: bool) -> None:
    """``init_normal`` on the module and all below it, Mamba blocks only with ``reinit_mamba``.

    With it, blocks start as the code of Mamba4Rec's and SIGMA's authors really does it: mamba_ssm
    marks dt_proj's bias ``_no_reinit``, but their ``apply`` does not read the mark. So the first
    step sizes are softplus(0) = 0.69. Convolution, A and D keep mamba_ssm's draw.
    """
    if isinstance(module, MambaBlock) and not reinit_mamba:
        return
    for child in module.children():
        init_around_mamba(child, reinit_mamba=reinit_mamba)
    init_normal(module)


class MambaStack(TiedItems):
    """LayerNorm(dropout(E[items])), then layers; what Mamba4Rec, both SIGMAs and both ECHOs share.

    Arguments that are not of the stack are those of its layers.

    Attributes:
        layer_type: a layer is called with states (T, D), rows and places, for (M, D).
    """

    layer_type: type[nn.Module]

    def __init__(
        self,
        num_items: int,
        hidden_size: Count = 64,
        num_layers: Count = 1,
        dropout: Share = 0.2,
        name: str = "",
        temperature: Positive | None = None,
        normalize: bool | None = None,
        **of_layers: Any,
    ) -> None:
        head: dict[str, Any] = {"temperature": temperature, "normalize": normalize}
        super().__init__(num_items, hidden_size, dropout, name, **head)
        self.norm = nn.LayerNorm(hidden_size, eps=1e-12)
        self.layers = nn.ModuleList(
            self.layer_type(hidden_size, dropout=dropout, **of_layers) for _ in range(num_layers)
        )

    def embedding(self, items: Tensor) -> Tensor:
        return self.norm(self.dropout(self.items(items)))

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        read = places_of(places, items.shape[0])
        return encode(self.layers, self.embedding(items), rows, read)


class Columns(NamedTuple):
    """Which columns of a padded batch (B, L) a layer must read, and where it is read."""

    lengths: Tensor  # (B,) n_u
    rows: Rows  # these columns end to end, of each row n_u, or all L
    size: int  # T, their number
    places: Places | None = None  # (M,) in them; None is all of them
    cells: Places | None = None  # the same among the cells (B L,)

    def pack(self, states: Tensor) -> Tensor:
        """(B, L, D) -> (T, D)."""
        if self.places is None:
            return states.flatten(0, 1)
        return packed(states, self.rows, self.size)

    def take(self, states: Tensor) -> Tensor:
        """(B, L, D) -> (M, D)."""
        return at(states.flatten(0, 1), self.cells)


class PaddedMambaStack(MambaStack):
    """A stack whose layers read padding, as their authors' do: (B, L, D), columns -> (M, D).

    All but the last layer are read at every column, the last one where a state is asked for.
    """

    def __init__(
        self,
        num_items: int,
        reinit_mamba: bool = True,
        padding_item: bool | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_items, **options)
        init_around_mamba(self, reinit_mamba=reinit_mamba)
        if padding_item:
            self.draw_padding()

    def forward(self, items: Tensor, rows: Rows, places: Tensor) -> Tensor:
        width, size, lengths = rows.longest, items.shape[0], rows.offsets.diff()
        states = self.embedding(padded(items, rows, width))  # (B, L, D)
        number = states.shape[0]
        every = Columns(lengths, whole_rows(number, width, items.device), number * width)
        for layer in self.layers[:-1]:
            states = layer(states, every).view_as(states)
        read, cells = places_of(places, size), padded_places(rows, places, width)
        return self.layers[-1](states, Columns(lengths, rows, size, read, cells))
