"""MovieLens 100K: 943 users, 1,349 items, 99,287 interactions after the filter."""

from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.download import Source
from sigma.datamodules.statistics import Expected

RECBOLE = "https://recbole.s3-accelerate.amazonaws.com/ProcessedDatasets/MovieLens"


class ML100K(SequenceDataModule):
    files = ("u.data", "ml-100k.inter", "ml-100k.zip")
    expected = Expected("MovieLens 100K, users and items in [5, inf)", 943, 1_349, 99_287)
    sources = (
        Source(
            "ml-100k.zip",
            "https://files.grouplens.org/datasets/movielens/ml-100k.zip",
            "http://files.grouplens.org/datasets/movielens/ml-100k.zip",
            md5="0e33842e24a9c977be4e0107933c0723",
        ),
        Source("ml-100k-recbole.zip", f"{RECBOLE}/ml-100k.zip"),  # no checksum of it is known
    )
