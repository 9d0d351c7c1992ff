"""Amazon Video Games, 2014 5-core: 24,303 users, 10,672 items (many papers', not SIGMA's)."""

from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.download import Source
from sigma.datamodules.statistics import Expected

SNAP = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"


class Games2014(SequenceDataModule):
    files = ("ratings_Video_Games.csv*", "reviews_Video_Games_5.json*", "games_2014.txt")
    expected = Expected("Amazon 2014, users and items in [5, inf)", 24_303, 10_672, 231_780)
    sources = (  # no checksum of either is known
        Source("ratings_Video_Games.csv", f"{SNAP}/ratings_Video_Games.csv"),
        Source("reviews_Video_Games_5.json.gz", f"{SNAP}/reviews_Video_Games_5.json.gz"),
    )
