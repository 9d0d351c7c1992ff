"""Amazon Video Games, 2014 5-core (many papers', not SIGMA's)."""

from sigma.datamodules.base import Expected, SequenceDataModule
from sigma.datamodules.sets.publishers import amazon_2014


class Games2014(SequenceDataModule):
    files = ("ratings_Video_Games.csv*", "reviews_Video_Games_5.json*", "games_2014.txt")
    expected = Expected("Amazon 2014, users and items in [5, inf)", 24_303, 10_672, 231_780)
    sources = (amazon_2014("ratings_Video_Games.csv"), amazon_2014("reviews_Video_Games_5.json.gz"))
