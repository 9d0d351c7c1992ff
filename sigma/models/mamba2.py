"""The Mamba-2 block, with the public parameter names.

Dao & Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured
State Space Duality", ICML 2024. ``model=mamba2`` stacks it as Mamba4Rec stacks Mamba. So does
SSD4Rec (Qu et al., 2024) in the code of TiM4Rec's authors, but for biases of the block's two maps
and a hard swish, which they put for SiLU where the heads are no multiple of 8.

Symbols: d = expand * D inner size, N state size, k convolution width, P head size, H = d / P heads.

    z, x, Δ' = split(X W_in)                             (T, d), (T, d + 2N), (T, H)            (1)
    x, B, C  = split(SiLU(causal depthwise convolution of x, width k))
                                                         (T, d), (T, N), (T, N)                 (2)
    Δ_t = softplus(Δ'_t + b),  h_t = exp(Δ_t A) h_{t-1} + Δ_t x_t B_t,  A = -exp(A_log)
    y_t = h_t C_t + D x_t      in each head: Δ, A and D are one number, x_t is (P,), h_t (P, N) (3)
    Y   = RMSNorm(y ⊙ SiLU(z)) W_out                     (T, D)                                 (4)

So it is Mamba's selective scan, whose A and Δ the channels of a head share, and that is how it is
computed: for N = 32 … 128 the C kernel was faster than the paper's products of chunks by PyTorch.
Parameters have the names, shapes and initial draw of ``mamba_ssm.Mamba2`` with ngroups 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.arguments import Count
from sigma.models.layers import at
from sigma.models.mamba import MambaBlock, step_bias
from sigma.ops import Places, Rows, causal_conv, selective_scan
from sigma.ops.rows import typed


class Mamba2(MambaBlock):
    """One Mamba-2 block.

    Args:
        state_size: N.
        conv_width: k.
        expand: d / D.
        head_size: P, divides d.
        step_min: least step size Δ at the start, drawn log-uniform per head.
        step_max: largest.
        backend: of the scan, see ``sigma.ops.choose_backend``.
    """

    def __init__(
        self,
        hidden_size: Count,
        state_size: Count = 128,
        conv_width: Count = 4,
        expand: Count = 2,
        head_size: Count = 64,
        step_min: float = 1e-3,
        step_max: float = 0.1,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        inner = expand * hidden_size
        if inner % head_size:
            raise ValueError(
                f"head_size={head_size} must divide expand * hidden_size = {inner}, the inner size."
            )
        heads, mixed = inner // head_size, inner + 2 * state_size
        self.sizes = [inner, state_size, state_size]
        self.head_size = head_size
        self.backend = backend
        self.in_proj = nn.Linear(hidden_size, inner + mixed + heads, bias=False)
        self.conv1d = nn.Conv1d(mixed, mixed, conv_width, groups=mixed, padding=conv_width - 1)
        self.dt_bias = nn.Parameter(step_bias(heads, step_min, step_max))
        self.A_log = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.D = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out_proj = nn.Linear(inner, hidden_size, bias=False)

    def channels(self, values: Tensor) -> Tensor:
        """One value a head (…, H) -> each channel's (…, d)."""
        return values[..., None].expand(*values.shape, self.head_size).flatten(-2)

    def gate(self, states: Tensor, places: Places | None) -> Tensor:
        """z of eq. 1, (M, d): it is multiplied behind the scan, so only where it is read."""
        return F.linear(at(states, places), self.in_proj.weight[: self.sizes[0]])

    def inputs(self, states: Tensor, rows: Rows) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (T, d), Δ' (T, H), B and C (T, N) of eq. 2."""
        assert self.conv1d.bias is not None
        mixed = F.linear(states, self.in_proj.weight[self.sizes[0] :])  # eq. 1: (T, d + 2 N + H)
        x, dt = mixed.split([sum(self.sizes), len(self.D)], dim=-1)
        taps = self.conv1d.weight[:, 0]
        x = causal_conv(x, taps, self.conv1d.bias, rows, silu=True, backend=self.backend)  # eq. 2
        x, B, C = x.split(self.sizes, dim=-1)
        return x, dt, B, C

    def scan(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        z: Tensor | None,
        rows: Rows,
    ) -> Tensor:
        """y of eq. 3, times SiLU(z) if there is one; A and D are (H,)."""
        dt, A, D, bias = (self.channels(v) for v in (dt, A, D, self.dt_bias))
        A = A[:, None].expand(-1, B.shape[1])
        return selective_scan(x, dt, A, B, C, D, z, bias, rows, self.backend)

    def decay(self) -> Tensor:
        """A, (H,); never in half precision."""
        return -torch.exp(self.A_log.float() if self.A_log.dtype != torch.float64 else self.A_log)

    def forward(self, states: Tensor, rows: Rows, places: Places | None = None) -> Tensor:
        z, (x, dt, B, C) = self.gate(states, places), self.inputs(states, rows)
        gate = z if places is None else None
        y = self.scan(x, dt, self.decay(), B, C, self.D, gate, rows)  # eq. 3: (T, d)
        if places is not None:
            y = at(y, places) * F.silu(z)  # eq. 4: (M, d)
        return self.close(y)

    def close(self, y: Tensor) -> Tensor:
        """Eq. 4 of y ⊙ SiLU(z); the norm is not in half precision."""
        return self.out_proj(self.norm(typed(y, self.norm.weight.dtype)))
