"""MovieLens 100K."""

from sigma.datamodules.base import Expected, SequenceDataModule
from sigma.datamodules.sets.publishers import movielens, recbole


class ML100K(SequenceDataModule):
    files = ("u.data", "ml-100k.inter", "ml-100k.zip")
    expected = Expected("MovieLens 100K, users and items in [5, inf)", 943, 1_349, 99_287)
    sources = (
        movielens("ml-100k", "md5:0e33842e24a9c977be4e0107933c0723"),
        recbole("MovieLens/ml-100k.zip", "ml-100k-recbole.zip"),
    )
