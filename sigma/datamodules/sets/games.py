"""Amazon Video Games, 2018 ratings (the paper's)."""

from sigma.datamodules.base import Expected, SequenceDataModule
from sigma.datamodules.sets.publishers import amazon_2018, recbole

SHA256 = "sha256:c3fec1cce4ee67f0d51f8b53a7e294d8bbe6f75ca1d8732256e900b3c46606d8"


class Games(SequenceDataModule):
    files = (
        *("Video_Games.csv*", "Amazon_Video_Games.inter", "ratings_Video_Games.csv*"),
        "reviews_Video_Games_5.json*",
    )
    expected = Expected("Amazon 2018, users and items in [5, inf)", 55_144, 17_286)
    sources = (
        amazon_2018("Video_Games.csv", SHA256),
        recbole("Amazon_ratings/Amazon2018/Amazon_Video_Games.zip"),
    )
