"""The selective scan, forward and backward: our backends beside others' and beside the floor.

    python -m experiments.benchmarks.scan                 the paper's sizes: L 50, d 128, N 32
    python -m experiments.benchmarks.scan --rows 2048 --lengths 50 100 200 --out results/benchmarks

Peers, where importable: ``mambapy``'s parallel scan (pip install mambapy), ``mamba_ssm``'s kernel
(CUDA), a plain loop of PyTorch operations (``reference``). All compute the same function, softplus,
skip and gate included, on the same seeded inputs; a second line of each case gives how far its
output is from the reference in float64. The floor is a machine that does nothing but move each
input, output and gradient once and take each exponential once (forward, and again backward, as the
states are recomputed); rates of both are measured here, in the same process.
"""

import statistics
from typing import Any

from experiments.benchmarks.measure import (
    Case,
    Memory,
    device,
    keep,
    parser,
    rounds,
    seconds,
    summary,
)
from experiments.canvas import picture

OURS = {"cpu": ("cpu", "blocked"), "cuda": ("triton", "blocked")}
PLACED = (0, 1, 3, 4, 6)  # inputs that have a value at each place: u, dt, B, C, z
PEERS = {"cpu": ("reference", "mambapy"), "cuda": ("reference", "mambapy", "mamba_ssm")}


def inputs(case: Case, on: Any) -> list[Any]:
    """u, dt, A, B, C, D, z, bias as parameters of the case's sizes."""
    import torch

    generator = torch.Generator().manual_seed(0)
    rows, length, d, n = (case[key] for key in ("rows", "length", "channels", "states"))
    kind = getattr(torch, case["kind"])

    def draw(*shape: int, kind: Any = kind) -> Any:
        return torch.randn(shape, generator=generator).to(on, kind).requires_grad_()

    full = torch.float32
    a = (-torch.arange(1.0, n + 1).repeat(d, 1)).to(on).requires_grad_()
    return [
        *(draw(rows * length, d), draw(rows * length, d), a),
        *(draw(rows * length, n), draw(rows * length, n), draw(d, kind=full)),
        *(draw(rows * length, d), draw(d, kind=full)),
    ]


def mambapy(u: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any) -> Any:
    """The scan as mambapy's ``MambaBlock`` calls it: Blelloch's, over the padded power of two."""
    import torch.nn.functional as F
    from mambapy.pscan import pscan

    delta = F.softplus(dt + bias)
    decay = (delta.unsqueeze(-1) * A).exp()
    states = pscan(decay, delta.unsqueeze(-1) * B.unsqueeze(2) * u.unsqueeze(-1))
    return ((states @ C.unsqueeze(-1)).squeeze(3) + D * u) * F.silu(z)


def floor(case: Case, on: Any) -> float:
    """Seconds to move all inputs, outputs and gradients once and take the exponentials."""
    import torch

    rows, length, d, n = (case[key] for key in ("rows", "length", "channels", "states"))
    block = torch.randn(2**22, device=on)  # 16 MiB; a copy reads and writes it
    copied = torch.empty_like(block)
    move = statistics.median(seconds(lambda: copied.copy_(block), on, 0.2)) / (2 * block.nbytes)
    chunk = block[: 2**14].clone() if on.type == "cpu" else block
    calls = 200 if on.type == "cpu" else 1

    def exponentials() -> None:
        for _ in range(calls):
            torch.exp(chunk, out=copied[: len(chunk)])

    exp = statistics.median(seconds(exponentials, on, 0.2)) / (calls * len(chunk))
    size = getattr(torch, case["kind"]).itemsize
    # Forward reads u, dt, z, B, C and writes y; backward reads those and gy and writes as many.
    moved = rows * length * size * ((3 * d + 2 * n + d) + (3 * d + 2 * n + d) + (3 * d + 2 * n))
    return max(moved * move, 2 * rows * length * d * n * exp)


def one(case: Case) -> Case:
    import torch

    from sigma.ops import selective_scan, whole_rows

    on = device(case["device"])
    if case["backend"] == "floor":
        return {"ms": 1e3 * floor(case, on)}
    given = inputs(case, on)

    length = case["length"]

    def scan(*tensors: Any) -> Any:
        rows = whole_rows(len(tensors[0]) // length, length, on)
        if case["backend"] == "mambapy":  # rows side by side
            wide = (
                x.unflatten(0, (-1, length)) if i in PLACED else x for i, x in enumerate(tensors)
            )
            return mambapy(*wide).flatten(0, 1)
        return selective_scan(*tensors, rows, case["backend"])

    few = [x.detach()[: 2 * length] if i in PLACED else x.detach() for i, x in enumerate(given)]
    exact = selective_scan(
        *(x.double() for x in few), whole_rows(2, length, on), backend="reference"
    )
    error = ((scan(*few).double() - exact).abs().max() / exact.abs().max()).item()
    weight = torch.randn(given[0].shape, device=on).to(given[0])
    memory = Memory(on)
    forward = []

    def step() -> None:
        y = scan(*given)
        torch.autograd.grad(y, given, weight)

    spent = seconds(step, on, case["seconds"])
    with torch.no_grad():
        forward = seconds(lambda: scan(*given), on, case["seconds"] / 4)
    return {
        "ms": 1e3 * statistics.median(spent),
        "forward_ms": 1e3 * statistics.median(forward),
        "peak_mib": memory.mib(),
        "error": error,
    }


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--rows", type=int, default=256)
    made.add_argument("--lengths", type=int, nargs="+", default=[50])
    made.add_argument("--channels", type=int, default=128)
    made.add_argument("--states", type=int, default=32)
    made.add_argument("--kinds", nargs="+", default=["float32"], help="float32, bfloat16")
    made.add_argument("--backends", nargs="+", help="all that can run here otherwise")
    made.add_argument("--seconds", type=float, default=1.0, help="least time of a measurement")
    options = made.parse_args()
    on = device(options.device)
    backends = options.backends or [*OURS[on.type], *PEERS[on.type]]
    cases = [
        {
            "backend": backend,
            "length": length,
            "kind": kind,
            "rows": options.rows,
            "channels": options.channels,
            "states": options.states,
            "device": on.type,
            "seconds": options.seconds,
        }
        for kind in options.kinds
        for length in options.lengths
        for backend in [*backends, "floor"]
    ]
    frame = rounds("experiments.benchmarks.scan", cases, options.repeats, one, options.one)
    table = summary(frame, ["kind", "length", "backend"], "ms").drop(
        columns=["rows", "channels", "states", "seconds"]
    )
    best = OURS[on.type][0]
    ours = table["ms"].xs(best, level="backend")
    table[f"times_{best}"] = table["ms"] / ours.reindex(table.index.droplevel("backend")).values
    keep(table, f"scan_{on.type}", options.out, on)
    if options.out is not None:
        draw(table, best, options.out / f"scan_{on.type}.png", cases[0])


def draw(table: Any, best: str, path: Any, case: Case) -> None:
    """Bars of milliseconds on a log scale, with how many times ours each takes."""
    figure = picture(7, 0.6 + 0.32 * len(table))
    axes = figure.add_subplot()
    names = [f"{backend}, L {length}, {kind}" for kind, length, backend in table.index]
    mine = [backend in OURS[case["device"]] for *_, backend in table.index]
    colours = ["#0072B2" if m else "#999999" for m in mine]
    bars = axes.barh(names, table["ms"], color=colours)
    labels = [
        f" {ms:.3g} ms, {x:.2g}x" for ms, x in zip(table["ms"], table[f"times_{best}"], strict=True)
    ]
    axes.bar_label(bars, labels, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlim(table["ms"].min() / 2, table["ms"].max() * 8)
    axes.invert_yaxis()
    axes.set_xlabel(
        f"forward and backward, ms ({case['rows']} rows, d {case['channels']}, N {case['states']})"
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()
