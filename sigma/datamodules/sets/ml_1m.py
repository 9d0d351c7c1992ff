"""MovieLens 1M: 6,040 users, 3,416 items, 999,611 interactions after the filter (the paper's)."""

from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.download import Source
from sigma.datamodules.statistics import Expected

RECBOLE = "https://recbole.s3-accelerate.amazonaws.com/ProcessedDatasets/MovieLens"


class ML1M(SequenceDataModule):
    files = ("ratings.dat", "ml-1m.inter", "ml-1m.txt", "ml-1m.zip")
    expected = Expected("MovieLens 1M, users and items in [5, inf)", 6_040, 3_416, 999_611)
    sources = (
        Source(
            "ml-1m.zip",
            "https://files.grouplens.org/datasets/movielens/ml-1m.zip",
            "http://files.grouplens.org/datasets/movielens/ml-1m.zip",
            md5="c4d9eecfca2ab87c1945afe126590906",
        ),
        Source("ml-1m-recbole.zip", f"{RECBOLE}/ml-1m.zip"),  # no checksum of it is known
    )
