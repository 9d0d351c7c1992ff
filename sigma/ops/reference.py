"""The selective scan, written from the equations and nothing else; everything is held to it."""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
    u: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor | None,
    dt_bias: Tensor,
) -> Tensor:
    """Selective state space model, step by step (Mamba, Gu & Dao 2023, algorithm 2).

    Δ_t = softplus(dt_t + dt_bias)
    h_t = exp(Δ_t A) ⊙ h_{t-1} + Δ_t u_t B_t,    h_0 = 0
    y_t = (h_t C_t + D ⊙ u_t) ⊙ SiLU(z_t)

    Args:
        u: (B, L, d) input.
        dt: (B, L, d) raw step size.
        A: (d, N), negative.
        B: (B, L, N).
        C: (B, L, N).
        D: (d,) skip.
        z: (B, L, d) gate, or None for no gate.
        dt_bias: (d,).

    Returns:
        y (B, L, d) in the type of ``u``.
    """
    delta = F.softplus(dt + dt_bias)
    h = torch.zeros(u.shape[0], *A.shape, dtype=A.dtype, device=u.device)
    ys = []
    for t in range(u.shape[1]):
        step = delta[:, t, :, None]
        h = torch.exp(step * A) * h + step * u[:, t, :, None] * B[:, t, None, :]
        ys.append((h * C[:, t, None, :]).sum(-1))
    y = torch.stack(ys, dim=1) + D * u
    return (y if z is None else y * F.silu(z)).to(u.dtype)
