"""Settings that would fail late, or silently mean something else, are refused at once."""

from collections.abc import Mapping
from typing import Any

from sigma.errors import UserError

SPLITS = ("leave_one_out", "global_time")
MALFORMED = ("error", "skip")


def check_settings(data: Any) -> None:
    """Check the settings of a ``SequenceDataModule``.

    Raises:
        UserError: one is out of its range.
    """
    for name in ("max_length", "batch_size", "eval_batch_size"):
        value = getattr(data, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"dataset.{name}={value} must be a whole number of at least 1.")
    for name in ("user_bounds", "item_bounds"):
        bounds = getattr(data, name)
        pair = isinstance(bounds, list | tuple) and len(bounds) == 2
        if not pair or any(b is not None and (type(b) is not int or b < 0) for b in bounds):
            raise UserError(
                f"dataset.{name}={bounds} must be a pair [lower, upper) of whole numbers or null, "
                "such as [5,null]."
            )
    if data.split_name not in SPLITS:
        raise UserError(f"Unknown dataset.split '{data.split_name}'; choose {' or '.join(SPLITS)}.")
    if data.malformed not in MALFORMED:
        raise UserError(
            f"Unknown dataset.malformed '{data.malformed}'; choose {' or '.join(MALFORMED)}."
        )
    if data.columns is not None and not isinstance(data.columns, Mapping):
        raise UserError(
            f"dataset.columns={data.columns} must be names by role, such as "
            "dataset.columns.user=visitor."
        )
    if data.path is not None and not str(data.path).strip():
        raise UserError("dataset.path is empty; give a file, or null for the data set's own.")
    unknown = set(data.columns or {}) - {"user", "item", "timestamp"}
    if unknown:
        raise UserError(
            f"Unknown dataset.columns {', '.join(sorted(unknown))}; there are user, item and "
            "timestamp."
        )
