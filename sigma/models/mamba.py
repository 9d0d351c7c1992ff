"""The Mamba block (Mamba-1), with the public parameter names.

Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", 2023.

Symbols: T places of packed rows, M places that are read, D hidden size, d = expand * D inner size,
N state size, k convolution width, R = rank of the step size's projection.

    x, z = split(X W_in)                                                      (T, d) each       (1)
    x    = SiLU(causal depthwise convolution of x, width k)                   (T, d)            (2)
    Δ', B, C = split(x W_x)                                       (T, R), (T, N), (T, N)        (3)
    y    = selective scan(x, Δ' W_dt, A = -exp(A_log), B, C, D) ⊙ SiLU(z)     (T, d)            (4)
    Y    = y W_out                                                            (T, D)            (5)

Parameters have the names and shapes of ``mamba_ssm.Mamba``, so state dicts move both ways.
Departures: none; initialisation is that of ``mamba_ssm``, with the range of the first step sizes as
arguments.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.models.layers import at
from sigma.ops import Places, Rows, causal_conv, selective_scan


class Mamba(nn.Module):
    """One Mamba block, (T, D) -> (T, D); causal.

    Args:
        hidden_size: D.
        state_size: N.
        conv_width: k.
        expand: d / D.
        step_min: least step size Δ at the start.
        step_max: largest; between the two Δ is drawn log-uniform, per channel.
        backend: of the scan, see ``sigma.ops.choose_backend``.
    """

    def __init__(
        self,
        hidden_size: int,
        state_size: int = 32,
        conv_width: int = 4,
        expand: int = 2,
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
        self._init_step(step_min, step_max)

    def _init_step(self, low: float, high: float) -> None:
        """Step sizes start log-uniform in [low, high], as in ``mamba_ssm``."""
        bound = self.rank**-0.5
        nn.init.uniform_(self.dt_proj.weight, -bound, bound)
        step = torch.exp(
            torch.rand_like(self.dt_proj.bias) * (math.log(high) - math.log(low)) + math.log(low)
        ).clamp(min=1e-4)
        with torch.no_grad():  # the inverse of softplus
            self.dt_proj.bias.copy_(step + torch.log(-torch.expm1(-step)))

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        """(T, D) -> (T, D), or (M, D) at places."""
        assert self.conv1d.bias is not None
        if places is None:
            x, z = self.in_proj(states).chunk(2, dim=-1)  # (1)
        else:
            to_x, to_z = self.in_proj.weight.chunk(2)
            x, z = F.linear(states, to_x), F.linear(at(states, places), to_z)
        x = causal_conv(x, self.conv1d.weight[:, 0], self.conv1d.bias, rows, silu=True)  # (2)
        sizes = [self.rank, self.state_size, self.state_size]
        dt, B, C = self.x_proj(x).split(sizes, dim=-1)  # (3)
        dt = F.linear(dt, self.dt_proj.weight)  # its bias is added within the scan
        A = -torch.exp(self.A_log.float() if self.A_log.dtype != torch.float64 else self.A_log)
        gate = z if places is None else None
        y = selective_scan(  # (4)
            x, dt, A, B, C, self.D, gate, self.dt_proj.bias, rows, self.backend
        )
        if places is not None:
            y = at(y, places) * F.silu(z)
        return self.out_proj(y)  # (5)
