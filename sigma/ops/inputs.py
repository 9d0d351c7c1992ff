"""What each operation reads beside the rows: the one declaration that all backends share.

Tensors come first, those that take a gradient before the others.

Symbols: T places, B rows, M queries, d channels, N states of a channel, k taps, G units, H heads.
"""

from typing import NamedTuple

from torch import Tensor

Gradients = tuple[Tensor | None, ...]  # of inputs, None of one that is None


class Scan(NamedTuple):
    """What the scan reads; all of one type, but for Triton.

    Attributes:
        u: (T, d) input.
        dt: (T, d) raw step size.
        A: (d, N), negative.
        B: (T, N).
        C: (T, N).
        D: (d,) skip.
        z: (T, d) gate, or None for no gate.
        dt_bias: (d,).
    """

    u: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    z: Tensor | None
    dt_bias: Tensor


class Conv(NamedTuple):
    """What the convolution reads; all of one type, but for Triton.

    Attributes:
        x: (T, d).
        weight: (d, k); its last tap meets the current position.
        bias: (d,).
        silu: SiLU of the result.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor
    silu: bool


class Gru(NamedTuple):
    """What the recurrence reads; all of one type.

    Attributes:
        gates: (T, 3 G) the inputs' part a, of r, z and n side by side.
        weight: (3 G, G) U.
        bias: (3 G,) b.
    """

    gates: Tensor
    weight: Tensor
    bias: Tensor


class Attend(NamedTuple):
    """What attention reads.

    Attributes:
        q: (M, H, d), of the queries at ``places``.
        k: (T, H, d).
        v: (T, H, d).
        query_offsets: (B + 1,) row b's queries are query_offsets[b] … query_offsets[b + 1] - 1, at
            most as many as the longest row has places.
        places: (M,) ascending; a query's position, its place less its row's offset, may lie beyond
            the row's end.
        seed: (1,) int64, decides with head, query and key what is dropped.
        causal: a query sees its own position and those before it, otherwise its whole row.
        dropout: probability, of the weights.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    query_offsets: Tensor
    places: Tensor
    seed: Tensor
    causal: bool
    dropout: float


class Pointwise(NamedTuple):
    """What HSTU's attention reads.

    Attributes:
        q: (T, H, d).
        k: (T, H, d).
        v: (T, H, d).
        distance_bias: (L,) of a query's own position, of the one before it, and so on.
        time_bias: (G,) of buckets of time, or None for none.
        query_times: (T,) int64, beside ``time_bias``.
        key_times: (T,) int64, beside ``time_bias``.
        scale: of the weights.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    distance_bias: Tensor
    time_bias: Tensor | None
    query_times: Tensor | None
    key_times: Tensor | None
    scale: float
