"""MovieLens 32M: 32,000,204 ratings before the filter."""

from sigma.datamodules.base import Expected, SequenceDataModule
from sigma.datamodules.sets.publishers import movielens


class ML32M(SequenceDataModule):
    files = ("ratings.csv", "ml-32m.zip")
    # Every user of the release has 20 ratings or more; its items after the filter: not known.
    expected = Expected("MovieLens 32M, users and items in [5, inf)", 200_948)
    sources = (movielens("ml-32m", "md5:d472be332d4daa821edc399621853b57"),)
