"""MovieLens latest-small: 610 users, 3,650 items, 90,274 interactions after the filter."""

from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.download import Source
from sigma.datamodules.statistics import Expected


class MLLatestSmall(SequenceDataModule):
    files = ("ratings.csv", "ml-latest-small.zip")
    expected = Expected(
        "MovieLens latest-small of September 2018, users and items in [5, inf)", 610, 3_650, 90_274
    )
    sources = (
        Source(  # changes from time to time, so there is no checksum to hold it to
            "ml-latest-small.zip",
            "https://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
            "http://files.grouplens.org/datasets/movielens/ml-latest-small.zip",
        ),
    )
