"""A model as a program of PyTorch's own operations, and the files that hold one."""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma.errors import UserError
from sigma.losses import full_precision
from sigma.models.base import Model, title
from sigma.models.popularity import Popularity
from sigma.ops import Rows, padded, rows_of
from sigma.ops.plain import decompositions

LARGEST_ONNX = 2**31  # bytes, of a file in protobuf

Answer = tuple[Tensor, ...]  # what a file returns
Ask = Callable[..., Answer]  # a file to run, called with tensors by their names


class Inputs(NamedTuple):
    """What the file reads, B histories.

    Attributes:
        items: (B, L) int64, numbers of a history's last items, oldest first; 0 is none.
        times: (B, L) int64 beside them, of a model that reads times.
        now: (B,) int64, the time to recommend for, of a model that reads it.
    """

    items: Tensor
    times: Tensor | None = None
    now: Tensor | None = None

    def named(self, rows: slice = slice(None)) -> dict[str, Tensor]:
        """Those that there are."""
        return {name: x[rows] for name, x in self._asdict().items() if x is not None}


def inputs_of(model: Model, items: Tensor, rows: Rows, width: int) -> Inputs:
    """A batch's rows as the file reads them."""
    times = now = None
    if model.time is not None and rows.times is not None:
        times = padded(rows.times, rows, width)
    if model.time == "target" and rows.next_times is not None:
        now = rows.next_times[rows.offsets[1:] - 1]
    return Inputs(padded(items, rows, width), times, now)


class ExportedModel(nn.Module):
    """A model from a table of histories to scores (B, K), or to the k best and their numbers.

    Args:
        model: copied, in evaluation and without gradients.
        k: None for the scores of all items, column j of item j + 1.
        unseen: score -inf for the items of the row.
    """

    def __init__(self, model: Model, k: int | None = None, unseen: bool = False) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self.k, self.unseen = k, unseen

    def forward(
        self, items: Tensor, times: Tensor | None = None, now: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Of ``Inputs``."""
        history = items
        if self.model.mask_token is not None:  # stands for the item to predict
            history = F.pad(items, (0, 1), value=self.model.mask_token)
        number, width = history.shape
        real = history > 0
        # A row without any item holds one that is none.
        real = real | (~real.any(1, keepdim=True) & (torch.arange(width) == 0))
        rows = rows_of(real.sum(1), width)
        place = torch.where(real.flatten(), real.flatten().cumsum(0) - 1, number * width)

        def packed(x: Tensor) -> Tensor:
            """(B, L) -> (T,) with T = B L: zeros behind the last row."""
            return x.new_zeros(number * width + 1).scatter(0, place, x.flatten())[:-1]

        ends = rows.offsets[1:] - 1
        if times is not None:
            packed_times = packed(times)
            after = None if now is None else packed_times.roll(-1).scatter(0, ends, now)
            rows = rows._replace(times=packed_times, next_times=after)
        states = self.model(packed(history), rows, ends)
        if isinstance(self.model, Popularity):  # whose logits see first whether it has counted
            result = self.model.scores(states)
        else:
            result = full_precision(self.model.logits(states))
        if self.unseen:
            seen = torch.zeros(number, result.shape[1] + 1, dtype=torch.bool)
            result = result.masked_fill(seen.scatter(1, items, True)[:, 1:], float("-inf"))
        if self.k is None:
            return result
        best, column = result.topk(min(self.k, result.shape[1]))
        return best, column + 1


def program(model: ExportedModel, inputs: Inputs) -> torch.export.ExportedProgram:
    """The model as a program of PyTorch's own operations, for any number of rows.

    Raises:
        UserError: the model has no such program.
    """
    inner = model.model
    if inner.counted and not isinstance(inner, Popularity):
        raise UserError(
            f"{title(inner)} looks its scores up in lists that are as long as was counted, and an "
            "exported program has fixed shapes; python -m sigma.recommend runs it."
        )
    # Five rows, as sizes of one are taken for constants; and nobody's, as the file holds them.
    values = tuple(x.new_ones(5, *x.shape[1:]) for x in inputs.named().values())
    shapes = {name: {0: torch.export.Dim("batch", min=1)} for name in inputs.named()}
    width = inputs.items.shape[1] + (inner.mask_token is not None)
    with torch.no_grad(), quiet():
        exported = torch.export.export(model, values, dynamic_shapes=shapes)
        exported = exported.run_decompositions(decompositions(width))
    for node in exported.graph.nodes:  # the folders of this machine are nobody's business
        node.meta.pop("stack_trace", None)
    return exported


@contextmanager
def quiet() -> Iterator[None]:
    """Without what PyTorch's exporters say of themselves."""
    log = logging.getLogger("torch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def pt2(exported: torch.export.ExportedProgram, notes: dict[str, str]) -> bytes:
    """The content of a .pt2 file with notes beside the program."""
    file = io.BytesIO()
    with quiet():
        torch.export.save(exported, file, extra_files=notes)
    return file.getvalue()


def onnx(exported: torch.export.ExportedProgram, notes: dict[str, str]) -> bytes:
    """The content of an .onnx file with notes as its metadata.

    Raises:
        UserError: too large for one file.
    """
    from onnxscript import optimizer

    size = sum(x.numel() * x.element_size() for x in exported.state_dict.values())
    if size > 0.9 * LARGEST_ONNX:
        raise UserError(f"An ONNX file holds 2 GB and the weights are {size:,} bytes; use .pt2.")
    names = ["scores", "best"][: len(exported.graph_signature.user_outputs)]
    with quiet():
        # onnxruntime optimizes when it loads; what PyTorch does here takes minutes, but for this.
        model = torch.onnx.export(
            exported, dynamo=True, optimize=False, verbose=False, output_names=names
        )
        assert model is not None
        optimizer.fold_constants(model.model)
        optimizer.remove_unused_nodes(model.model)
    for node in model.model.graph:
        node.metadata_props.clear()  # which say of each where it came from
    model.model.metadata_props.update(notes)
    return model.model_proto.SerializeToString()


def ask_pt2(content: bytes) -> Ask:
    with quiet():
        module = torch.export.load(io.BytesIO(content)).module()

    def ask(**inputs: Tensor) -> Answer:
        with torch.no_grad():
            answer = module(*inputs.values())
        return (answer,) if isinstance(answer, Tensor) else tuple(answer)

    return ask


def ask_onnx(content: bytes) -> Ask:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(content, options)

    def ask(**inputs: Tensor) -> Answer:
        answer = session.run(None, {name: x.numpy() for name, x in inputs.items()})
        return tuple(torch.from_numpy(x) for x in answer)

    return ask


FORMATS = {".pt2": (pt2, ask_pt2), ".onnx": (onnx, ask_onnx)}
