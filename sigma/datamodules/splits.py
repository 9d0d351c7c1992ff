"""Which positions of the flat array are predicted in training, validation and test.

A sample is one position p of ``Sequences.items``: the item at p is the target, and the items of
the same user before p are the input. No prefix is ever materialised.

Every split cuts a history into three spans, training, validation and test, in this order.
"""

import logging
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Literal

import numpy as np

from sigma.datamodules.preprocess import Sequences
from sigma.datamodules.spans import Spans
from sigma.errors import UserError, excerpt

log = logging.getLogger(__name__)

Targets = Literal["successive", "first", "last", "random"]
Moment = int | str
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Split:
    """Target positions, each (samples,) int64 and increasing."""

    samples: Spans  # those of training, which may be too many for a list
    val: np.ndarray
    test: np.ndarray
    train_end: np.ndarray  # (users,) first position of each user that training must not see

    @cached_property
    def train(self) -> np.ndarray:
        return self.samples.positions()

    def seen(self, data: Sequences) -> Spans:
        """The positions that training may see."""
        return Spans(data.offsets[:-1], self.train_end)


def _targets(starts: np.ndarray, stops: np.ndarray, targets: Targets, seed: int) -> np.ndarray:
    """Positions within spans that follow one another, by ``targets``."""
    if targets == "successive":
        return Spans(starts, stops).positions()
    some = starts < stops
    first, last = starts[some], stops[some] - 1
    if targets == "random":
        # This generator's numbers are the same in every version of NumPy.
        draws = np.random.RandomState(seed).random_sample(len(starts))[some]
        return first + (draws * (last - first + 1)).astype(np.int64)
    return first if targets == "first" else last


def _split(
    data: Sequences, val: np.ndarray, test: np.ndarray, targets: Targets, train_on_val: bool
) -> Split:
    """From where each user's validation and test begin, (users,) positions; training is before.

    Args:
        targets: of a user's span, in the words of "Time to Split" (Gusak et al., RecSys 2025,
            fig. 1c): ``successive`` each item, or the ``first``, the ``last`` or a ``random`` one,
            the same on every start. The input is all before the target, of its own span, too.
        train_on_val: training has the validation, and there is none; the test stays as it is.
    """
    train_end = test if train_on_val else val
    after = data.offsets[:-1] + 1  # a user's first item has no input
    return Split(
        Spans(after, train_end),
        _targets(np.maximum(train_end, after), test, targets, 0),
        _targets(np.maximum(test, after), data.offsets[1:], targets, 1),
        train_end,
    )


def leave_one_out(data: Sequences, train_on_val: bool = False) -> Split:
    """Last item of each user is the test target, the second-last validation, the rest training.

    A user's first sample always trains, as in RecBole: two items give one training sample, three
    give a training and a test sample.
    """
    samples = np.diff(data.offsets) - 1
    test = data.offsets[1:] - (samples >= 2)
    return _split(data, test - (samples >= 3), test, "last", train_on_val)


def global_time(
    data: Sequences,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    val_start: Moment | None = None,
    test_start: Moment | None = None,
    targets: Targets = "successive",
    train_on_val: bool = False,
) -> Split:
    """Two moments in time cut the data: nothing from the first on is ever trained on.

    The leak-free alternative to leave-one-out: there, one user's training items may be later than
    another user's test item.

    Args:
        val_fraction, test_fraction: the moments are the quantiles of all timestamps such that about
            these shares of the interactions lie after them; interactions of the same timestamp
            always fall on the same side.
        val_start, test_start: the moments themselves, dates or numbers, in place of the fractions.
        targets, train_on_val: of ``_split``.

    Raises:
        ValueError: fractions out of range.
        UserError: no timestamps, or moments that are none, or outside the data.
    """
    if data.timestamps is None:
        raise UserError(
            "A split by global_time needs timestamps, and this data set has none; split it by "
            "leave_one_out."
        )
    if val_start is None or test_start is None:
        cuts = _quantiles(data.timestamps, val_fraction, test_fraction)
    else:
        cuts = _moments(data.timestamps, val_start, test_start)
    val, test = (_after(data, data.timestamps < cut) for cut in cuts)
    return _split(data, val, test, targets, train_on_val)


def _after(data: Sequences, first: np.ndarray) -> np.ndarray:
    """Each user's position, (users,), behind the items of a mask (n,), which are the first ones."""
    starts = data.offsets[:-1]
    counts: np.ndarray = np.add.reduceat(first, starts, dtype=np.int64)
    return starts + counts


def _quantiles(times: np.ndarray, val_fraction: float, test_fraction: float) -> list[int]:
    if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
        raise ValueError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction} must be positive and "
            "sum to less than 1"
        )
    n = len(times)
    # A fraction of less than one interaction rounds to a place behind the last.
    cuts = [int(n * (1 - val_fraction - test_fraction)), int(n * (1 - test_fraction))]
    moments: list[int] = np.sort(times)[np.minimum(cuts, n - 1)].tolist()
    return moments


def _moments(times: np.ndarray, val_start: Moment, test_start: Moment) -> list[int]:
    first, last = int(times.min()), int(times.max())
    # The largest time tells what they count: seconds up to the year 5138, and so on.
    second = next((10**k for k in (0, 3, 6) if abs(last) < 10 ** (11 + k)), 10**9)
    val, test = (_moment(value, second) for value in (val_start, test_start))
    if not first < val < test <= last:
        raise UserError(
            f"dataset.val_start={excerpt(val_start)} and dataset.test_start={excerpt(test_start)} "
            "must be two moments within the data, in this order; its times go from "
            f"{_date(first, second)} to {_date(last, second)}."
        )
    return [val, test]


def _moment(value: Moment, second: int) -> int:
    text = str(value).strip()
    if re.fullmatch(r"[+-]?\d{1,19}", text):
        return int(text)
    try:
        date = datetime.fromisoformat(text)
    except ValueError:
        raise UserError(
            f"{excerpt(text)} is no moment; dataset.val_start and dataset.test_start are dates "
            "such as 2014-01-31 or 2014-01-31T18:00:00, or numbers as the data's times are."
        ) from None
    since = (date if date.tzinfo else date.replace(tzinfo=UTC)) - EPOCH
    return since // timedelta(microseconds=1) * second // 10**6


def _date(time: int, second: int) -> str:
    """``1997-09-20T03:05:10 (874724710)``, or the number alone where it is no date."""
    try:
        date = EPOCH + timedelta(seconds=time // second)
    except OverflowError:
        return str(time)
    return f"{date:%Y-%m-%dT%H:%M:%S} ({time})"


def by_files(data: Sequences, targets: Targets = "successive", train_on_val: bool = False) -> Split:
    """The parts of ``Sequences.parts``, by which each user's items are in order.

    Raises:
        UserError: the data has no parts.
    """
    parts, starts = data.parts, data.offsets[:-1]
    if parts is None:
        raise UserError("dataset.split=files needs files, and this data set is read from none.")
    val, test = (_after(data, parts < part) for part in (1, 2))
    if strangers := int((val == starts).sum()):
        log.warning(
            "%s of %s users have nothing in the training file; their first item is no target.",
            f"{strangers:,}",
            f"{data.num_users:,}",
        )
    if data.timestamps is not None:
        earlier = np.flatnonzero(np.diff(data.timestamps) < 0) + 1
        if back := len(np.setdiff1d(earlier, starts)):
            log.warning(
                "The files are not in order of time: %s times a user's later file begins before "
                "the one before it ends.",
                f"{back:,}",
            )
    return _split(data, val, test, targets, train_on_val)
