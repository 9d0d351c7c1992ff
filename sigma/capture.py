"""A training step as one replay: forward, loss and backward captured in CUDA graphs.

A small model's step is hundreds of kernels of a few microseconds each, which the host cannot launch
as fast as a GPU runs them. Batches have one of a few sizes (``datamodules.batches.filled``), so the
kernels of a step can be recorded once a size and be launched together from then on. What is
recorded computes the gradients, too; they reach the parameters through autograd, so clipping,
accumulation, schedulers, several processes and the optimizer are what they are without.

The first batch of a size runs kernel by kernel, which compiles what there is to compile; the second
is recorded. Draws come from PyTorch's generator either way, in the same order, so results are the
same bits, as long as the loss is not scaled by anything but powers of two.
"""

import functools
import gc
import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sigma.datamodules.batches import tensors_of, with_tensors
from sigma.errors import UserError
from sigma.ops.rows import Rows

log = logging.getLogger(__name__)

SIZES = 24  # recorded at most; each holds its gradients


class Inputs(NamedTuple):
    """What a training step reads of a batch; see ``datamodules.batches.Batch``."""

    items: Tensor
    rows: Rows
    places: Tensor
    targets: Tensor
    twins: tuple[Tensor, Rows] | None = None


Step = Callable[[Inputs], Tensor]


@functools.cache
def side_stream(device: int) -> torch.cuda.Stream:
    """One for all recordings: a pool's free memory and cuBLAS's workspace belong to a stream."""
    return torch.cuda.Stream(device)


def record_cuda_graph(work: Callable[[], Any], pool: Any) -> tuple[Any, Any, Any]:
    """Record ``work`` on the current device: its graph, its result, and its memory pool.

    Nothing it draws counts: the generator stands afterwards where it stood.

    Raises:
        RuntimeError: ``work`` waits for the device, which a graph cannot; nothing was begun.
        UserError: the recording broke off; CUDA's state is not to be relied on after that.
    """
    before, stream = torch.cuda.current_stream(), side_stream(torch.cuda.current_device())
    state, mode = torch.cuda.get_rng_state(), torch.cuda.get_sync_debug_mode()
    pool = pool or torch.cuda.graph_pool_handle()
    graph, collecting = torch.cuda.CUDAGraph(), gc.isenabled()
    gc.disable()  # nothing may be freed while it is recorded
    try:
        stream.wait_stream(before)
        with torch.cuda.stream(stream), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
            try:
                work()  # what libraries set up at their first call on a stream
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        before.wait_stream(stream)
        try:  # other threads, such as a logger's, may use the device meanwhile
            with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
                result = work()
        except RuntimeError as error:
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"The training step cannot be captured in a CUDA graph ({reason}); go on with "
                "task.capture=false, which computes the same."
            ) from error
    finally:
        if collecting:
            gc.enable()
        torch.cuda.set_rng_state(state)
    return graph, result, pool


def end_to_end(gradients: Sequence[Tensor | None]) -> Tensor:
    """All of them in one tensor, so that the host scales them by one kernel, not one each.

    Each begins at a multiple of four numbers, as kernels that read several at once want it.
    """
    flat = [g.reshape(-1) for g in gradients if g is not None]
    return torch.cat([F.pad(g, (0, -len(g) % 4)) if len(g) % 4 else g for g in flat])


def views(flat: Tensor, shapes: Sequence[torch.Size | None]) -> list[Tensor | None]:
    sizes = [0 if shape is None else shape.numel() for shape in shapes]
    pieces = flat.split([size + -size % 4 for size in sizes])
    return [
        None if shape is None else piece[:size].view(shape)
        for piece, size, shape in zip(pieces, sizes, shapes, strict=True)
    ]


class Recording(NamedTuple):
    """A step of one size: where it reads, how it is run again, and where its results lie."""

    inputs: Inputs
    graph: Any  # has ``replay``
    loss: Tensor
    gradients: Tensor  # end to end
    shapes: Sequence[torch.Size | None]  # None of a parameter without gradient


class _Replayed(torch.autograd.Function):
    """The loss of a recording; its gradients were computed with it."""

    @staticmethod
    def forward(ctx: Any, recording: Recording, *parameters: Tensor) -> Tensor:
        recording.graph.replay()
        ctx.recording = recording
        return recording.loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # New tensors, which become a parameter's gradient as they are.
        return None, *views(ctx.recording.gradients * grad, ctx.recording.shapes)


class CapturedStep:
    """``step`` by replay, where a batch of its size has been seen before.

    Each loss's backward pass comes before the next call, and no loss is kept alive beyond that: its
    graph would hold the parameters' gradient nodes on another stream while a step is recorded.

    Args:
        step: inputs -> loss, a scalar, by operations of static shapes that never ask the device,
            and under autocast without its cache: a cast made outside would be read after the
            weights moved on.
        parameters: that the loss depends on.
        record: as ``record_cuda_graph``.
    """

    def __init__(
        self,
        step: Step,
        parameters: Sequence[nn.Parameter],
        record: Callable[[Callable[[], Any], Any], tuple[Any, Any, Any]] = record_cuda_graph,
    ) -> None:
        self.step = step
        self.parameters = [p for p in parameters if p.requires_grad]
        self.record = record
        self.seen: set[Any] = set()
        self.recordings: dict[Any, Recording] = {}
        self.pool: Any = None
        self.refused = False

    def __call__(self, inputs: Inputs) -> Tensor:
        """The loss, which passes gradients to the parameters."""
        key = self._key(inputs)
        recording = self.recordings.get(key)
        if recording is None and key in self.seen and len(self.recordings) < SIZES:
            recording = self._recorded(key, inputs)
        if recording is None:
            self.seen.add(key)
            return self.step(inputs)
        for slot, new in zip(tensors_of(recording.inputs), tensors_of(inputs), strict=True):
            slot.copy_(new)
        loss: Tensor = _Replayed.apply(recording, *self.parameters)
        return loss

    def _key(self, inputs: Inputs) -> Any:
        """What a recording is bound to."""
        device = inputs.items.device.type
        half = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        twins = inputs.twins and inputs.twins[1].longest
        shapes = tuple(x.shape for x in tensors_of(inputs))
        return shapes, inputs.rows.longest, twins, half

    def _recorded(self, key: Any, inputs: Inputs) -> Recording | None:
        if self.refused:
            return None
        slots = with_tensors(inputs, (x.clone() for x in tensors_of(inputs)))
        shapes: list[torch.Size | None] = []

        def work() -> tuple[Tensor, Tensor]:
            with torch.enable_grad():
                loss = self.step(slots)
            with torch.autocast(slots.items.device.type, enabled=False):  # as backward() runs
                grads = torch.autograd.grad(loss, self.parameters, allow_unused=True)
            shapes[:] = [None if g is None else g.shape for g in grads]
            return loss.detach(), end_to_end(grads)

        try:
            graph, (loss, gradients), self.pool = self.record(work, self.pool)
        except RuntimeError as error:  # of CUDA, in many words
            reason = str(error).splitlines()[0][:200]
            log.warning("The training step cannot be captured (%s); it runs by kernels.", reason)
            self.refused = True
            return None
        self.recordings[key] = recording = Recording(slots, graph, loss, gradients, shapes)
        return recording
