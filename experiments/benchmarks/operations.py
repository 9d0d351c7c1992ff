"""Operations on packed rows, forward and both ways, beside their peers on the same rows padded.

    python -m experiments.benchmarks.operations scan --out results/benchmarks
    python -m experiments.benchmarks.operations "gru 64" --rows 2048 --ragged

The first writes ``scan_cpu.csv``, by default of 256 rows of 50 places; ``--ragged`` gives our own
operations rows as on Beauty, six places on average. Peers, where importable: ``mambapy``'s parallel
scan, ``mamba_ssm``'s kernel (CUDA), PyTorch's convolution, GRU (inputs' product included) and
attention. All scans compute the same function, softplus, skip and gate included.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.benchmarks import measure
from experiments.benchmarks.measure import Case, median_seconds
from sigma.ops import attend, causal_conv, gru, rows_of, selective_scan

PEERS = ("mambapy", "mamba_ssm", "pytorch")
SCANS = {
    "cpu": ["cpu", "blocked", "reference", "mambapy"],
    "cuda": ["triton", "blocked", "reference", "mambapy", "mamba_ssm"],
}
CHANNELS, STATES, DROPOUT = 128, 32, 0.3
COLUMNS = ["ms", "forward_ms", "peak_mib"]
T = 0  # stands for the number of places
# Of the inputs, in the order of the operation's arguments.
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "scan": [
        *((T, CHANNELS), (T, CHANNELS), (CHANNELS, STATES), (T, STATES), (T, STATES)),
        *((CHANNELS,), (T, CHANNELS), (CHANNELS,)),
    ],
    "conv": [(T, CHANNELS), (CHANNELS, 4), (CHANNELS,)],
    "gru 64": [(T, 192), (192, 64), (192,)],
    "gru 128": [(T, 384), (384, 128), (384,)],
    "attend 2x32": [(T, 2, 32)] * 3,
    "attend 8x8": [(T, 8, 8)] * 3,
}


def inputs_of(operation: str, places: int, kind: torch.dtype, on: torch.device) -> list[Tensor]:
    """Seeded leaves; what has no place is float32, and the scan's A negative."""
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for first, *others in SHAPES[operation]:
        x = torch.randn((first or places, *others), generator=generator)
        if (first, *others) == (CHANNELS, STATES):
            x = -torch.arange(1.0, STATES + 1).repeat(CHANNELS, 1)
        inputs.append(x.to(on, torch.float32 if first else kind).requires_grad_())
    return inputs


def contender(case: Case) -> tuple[Callable[..., Tensor], list[Tensor]]:
    """What is measured, ours on packed rows or a peer on the same rows padded; its inputs."""
    operation, backend, length, on = (case[k] for k in ("operation", "backend", "length", "device"))
    lengths = torch.full((case["rows"],), length)
    if case["ragged"] and backend not in PEERS:
        torch.manual_seed(0)
        lengths = (torch.empty(case["rows"]).exponential_(1 / 5).long() + 1).clamp(max=length)
    rows = rows_of(lengths.to(on), length)
    inputs = inputs_of(operation, int(lengths.sum()), getattr(torch, case["kind"]), on)
    name, _, size = operation.partition(" ")
    if backend not in PEERS:
        ours: dict[str, Callable[..., Tensor]] = {
            "scan": lambda *x: selective_scan(*x, rows, backend),
            "conv": lambda *x: causal_conv(*x, rows, True),
            "gru": lambda *x: gru(*x, rows),
            "attend": lambda *x: attend(*x, rows, dropout=DROPOUT),
        }
        return ours[name], inputs

    def wide(x: Tensor) -> Tensor:  # (B, L, …), or heads and channels before positions
        x = x.detach().unflatten(0, (-1, length))
        swapped = x if backend == "mambapy" or name == "gru" else x.transpose(1, 2)
        return swapped.contiguous().requires_grad_()

    placed = [shape[0] == T for shape in SHAPES[operation]]
    inputs = [wide(x) if yes else x for x, yes in zip(inputs, placed, strict=True)]
    if name == "gru":
        module = torch.nn.GRU(int(size), int(size), batch_first=True, device=on)
        x = inputs[0][..., : int(size)].detach().contiguous().requires_grad_()
        return lambda x, *_: module(x)[0], [x, *module.parameters()]
    peers: dict[str, Callable[..., Tensor]] = {
        "scan": mambapy if backend == "mambapy" else mamba_ssm,
        "conv": lambda x, weight, bias: F.silu(
            F.conv1d(x, weight[:, None], bias, padding=3, groups=CHANNELS)[..., :length]
        ),
        "attend": lambda *x: F.scaled_dot_product_attention(*x, is_causal=True, dropout_p=DROPOUT),
    }
    return peers[name], inputs


def mamba_ssm(*inputs: Tensor) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return selective_scan_fn(*inputs, delta_softplus=True).transpose(1, 2)


def mambapy(u: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any) -> Tensor:
    """The scan as mambapy's ``MambaBlock`` calls it: Blelloch's, over the padded power of two."""
    from mambapy.pscan import pscan

    delta = F.softplus(dt + bias)
    decay = (delta.unsqueeze(-1) * A).exp()
    states = pscan(decay, delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1))
    return ((states @ C.unsqueeze(-1)).squeeze(3) + D * u) * F.silu(z)


def one(case: Case) -> Case:
    """Milliseconds and MiB of one operation by one backend."""
    on, least = case["device"], case["least"]
    call, inputs = contender(case)
    memory = measure.Memory(on)
    gradient = torch.randn_like(call(*inputs))

    def both_ways() -> None:
        torch.autograd.grad(call(*inputs), inputs, gradient)

    ms = 1e3 * median_seconds(both_ways, least)
    with torch.no_grad():
        forward_ms = 1e3 * median_seconds(lambda: call(*inputs), least / 4)
    return {"ms": ms, "forward_ms": forward_ms, "peak_mib": memory.mib()}


def main() -> None:
    arguments = measure.parser(__doc__)
    arguments.add_argument("operation", choices=SHAPES)
    arguments.add_argument("--rows", type=int, default=256)
    arguments.add_argument("--lengths", type=int, nargs="+", default=[50])
    arguments.add_argument("--kinds", nargs="+", default=["float32"], help="float32, bfloat16")
    arguments.add_argument("--backends", nargs="+", help="all that can run here otherwise")
    arguments.add_argument("--ragged", action="store_true", help="rows as on Beauty")
    options = arguments.parse_args()
    on, operation = options.device, options.operation
    every = SCANS[on.type] if operation == "scan" else ["auto", "pytorch"]
    backends = options.backends or every
    axes = {"kind": options.kinds, "length": options.lengths, "backend": backends}
    sizes = {"operation": [operation], "rows": [options.rows], "ragged": [options.ragged]}
    cases = measure.grid(options, **axes, **sizes)
    table = measure.medians(cases, one, options.repeats, [*axes], COLUMNS)
    best = table["ms"].xs(backends[0], level="backend").reindex(table.index.droplevel("backend"))
    table[f"times_{backends[0]}"] = table["ms"] / best.to_numpy()
    measure.keep(table, f"{operation.replace(' ', '_')}_{on.type}", options.out, on)


if __name__ == "__main__":
    main()
