"""What PyTorch and Lightning go by when they are loaded; to be imported before them."""

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError
from typing import Any

# Threads that wait by spinning for long starve whatever shares the cores with them, each other
# included (ten times slower beside one other job on two cores); this is enough to bridge the gap
# between two operations.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# Scores of a batch against all items are a hundred megabytes: large pages save most of the time
# that the system otherwise spends handing them out page by page (a cross entropy takes half).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

# Lightning loads torchmetrics, and that every metric it has: those of sound with SciPy's signal
# processing, those of text with transformers where it happens to be installed. For metrics that
# rank nothing that takes half as much time as all the rest, and neither library has a setting.
UNUSED = ("scipy", "transformers")


class Unseen:
    """First in ``sys.meta_path``: no version of UNUSED packages is found; imports pass it by."""

    def find_spec(self, *_: Any) -> None:
        return None

    def find_distributions(self, context: DistributionFinder.Context) -> Iterator[Distribution]:
        if context.name in UNUSED:
            raise PackageNotFoundError(context.name)
        return iter(())


@contextmanager
def unused_unseen() -> Iterator[None]:
    """Answer torchmetrics' question whether UNUSED packages are installed with no.

    Only the question: whoever imports one has it, within and later.
    """
    from lightning_utilities.core import imports

    available, unseen = getattr(imports, "package_available", None), Unseen()
    if available is None:  # of another version; then loading takes longer
        yield
        return
    imports.package_available = lambda name: name not in UNUSED and available(name)  # type: ignore[assignment]
    sys.meta_path.insert(0, unseen)
    try:
        yield
    finally:
        sys.meta_path.remove(unseen)
        imports.package_available = available
        imports.module_available.cache_clear()  # it remembers the answers


@contextmanager
def uncollected() -> Iterator[None]:
    """Spare loading its garbage collections: of what is loaded next to nothing is garbage."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        # Together they do no more than count all that is there as old; as new it would be gone
        # through three times in the next moments.
        gc.freeze()
        gc.unfreeze()
        if collecting:
            gc.enable()


def load_lightning() -> None:
    """Load Lightning, without what torchmetrics needs UNUSED packages for.

    A process that loads it so lacks what torchmetrics leaves out where transformers is not
    installed: BERTScore, InfoLM and CLIPScore. What needs SciPy looks for it when it is called.
    """
    with uncollected():
        import torch  # noqa: F401  its own questions are answered as ever

        with unused_unseen():
            import torchmetrics  # noqa: F401
        import lightning  # noqa: F401
