"""MovieLens latest-small; it changes from time to time, so there is no checksum to hold it to."""

from sigma.datamodules.base import Expected, SequenceDataModule
from sigma.datamodules.sets.publishers import movielens


class MLLatestSmall(SequenceDataModule):
    files = ("ratings.csv", "ml-latest-small.zip")
    expected = Expected(
        "MovieLens latest-small of September 2018, users and items in [5, inf)", 610, 3_650, 90_274
    )
    sources = (movielens("ml-latest-small"),)
