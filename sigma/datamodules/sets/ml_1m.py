"""MovieLens 1M (the paper's)."""

from sigma.datamodules.base import Expected, SequenceDataModule
from sigma.datamodules.sets.publishers import movielens, recbole


class ML1M(SequenceDataModule):
    files = ("ratings.dat", "ml-1m.inter", "ml-1m.txt", "ml-1m.zip")
    expected = Expected("MovieLens 1M, users and items in [5, inf)", 6_040, 3_416, 999_611)
    sources = (
        movielens("ml-1m", "md5:c4d9eecfca2ab87c1945afe126590906"),
        recbole("MovieLens/ml-1m.zip", "ml-1m-recbole.zip"),
    )
