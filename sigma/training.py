"""Two things beside the training step: losses that are no numbers, and the fastest optimizer."""

import functools
import inspect
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

WATCHED_STEPS = 64  # whose losses are looked at together: looking waits for the device

BuildOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class LossWatch:
    """Looks for losses that are no numbers: on the CPU at once, elsewhere at many together."""

    def __init__(self) -> None:
        self.steps: list[tuple[int, Tensor]] = []

    def add(self, step: int, loss: Tensor) -> tuple[int, float] | None:
        """Remember the loss of a step; what ``broken`` says when it is time to look."""
        self.steps.append((step, loss))
        due = len(self.steps) >= WATCHED_STEPS or loss.device.type == "cpu"
        return self.broken() if due else None

    def broken(self) -> tuple[int, float] | None:
        """Step and loss of the first that is no number, of those not looked at yet."""
        steps, self.steps = self.steps, []
        losses = torch.stack([loss for _, loss in steps]).tolist() if steps else []
        pairs = ((step, loss) for (step, _), loss in zip(steps, losses, strict=True))
        return next(((step, loss) for step, loss in pairs if not math.isfinite(loss)), None)


def fused(build: BuildOptimizer) -> BuildOptimizer:
    """The optimizer with all parameters in one kernel, where it can and the user did not choose."""
    settings = dict(getattr(build, "keywords", {}))
    kind = build.func if isinstance(build, functools.partial) else build
    if "fused" not in inspect.signature(kind).parameters or settings.get("foreach"):
        return build
    return functools.partial(build, **{"fused": True, **settings})
