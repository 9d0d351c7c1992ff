"""SIGMA and its baselines: sequential recommendation with Hydra and Lightning."""

import os

__version__ = "0.1.0"

# Both are read when PyTorch is loaded, which is after this package.
# Threads that wait by spinning starve whatever shares the cores with them, each other included (ten
# times slower beside one other job on two cores); this bridges the gap between two operations.
os.environ.setdefault("GOMP_SPINCOUNT", "20000")
# Scores of a batch against all items are a hundred megabytes: large pages save most of the time
# that the system otherwise spends handing them out page by page (a cross entropy takes half).
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def __getattr__(name: str) -> object:
    """``from sigma import Recommender``, without PyTorch before it is asked for."""
    if name != "Recommender":
        raise AttributeError(f"module 'sigma' has no attribute '{name}'")
    from sigma.recommender import Recommender

    return Recommender
