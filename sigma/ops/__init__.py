"""Operations on packed rows: a plain reference of each, and the backends held to it."""

from sigma.ops.attend import attend
from sigma.ops.conv import causal_conv
from sigma.ops.dispatch import backend_of, capture_reason, choose_backend
from sigma.ops.gru import gru
from sigma.ops.moves import (
    Places,
    delay,
    flip,
    packed,
    padded,
    padded_places,
    places_of,
    spread,
    take,
    unfold,
    whole_rows,
)
from sigma.ops.pointwise import pointwise_attend
from sigma.ops.rows import Rows, rows_of
from sigma.ops.scan import selective_scan
from sigma.ops.stream import Stream

__all__ = [
    "Places",
    "Rows",
    "Stream",
    "attend",
    "backend_of",
    "capture_reason",
    "causal_conv",
    "choose_backend",
    "delay",
    "flip",
    "gru",
    "packed",
    "padded",
    "padded_places",
    "places_of",
    "pointwise_attend",
    "rows_of",
    "selective_scan",
    "spread",
    "take",
    "unfold",
    "whole_rows",
]
