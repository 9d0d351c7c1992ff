"""Amazon Video Games, 2018 ratings: 55,144 users, 17,286 items (the paper's)."""

from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.download import Source
from sigma.datamodules.statistics import Expected

SMALL = "data/amazon_v2/categoryFilesSmall/Video_Games.csv"
RECBOLE = "https://recbole.s3-accelerate.amazonaws.com/ProcessedDatasets/Amazon_ratings"


class Games(SequenceDataModule):
    files = (
        "Video_Games.csv*",
        "Amazon_Video_Games.inter",
        "ratings_Video_Games.csv*",
        "reviews_Video_Games_5.json*",
    )
    expected = Expected("Amazon 2018, users and items in [5, inf)", 55_144, 17_286)
    sources = (
        Source(
            "Video_Games.csv",
            f"https://mcauleylab.ucsd.edu/public_datasets/{SMALL}",
            f"https://datarepo.eng.ucsd.edu/mcauley_group/{SMALL}",
            f"https://jmcauley.ucsd.edu/{SMALL}",
            sha256="c3fec1cce4ee67f0d51f8b53a7e294d8bbe6f75ca1d8732256e900b3c46606d8",
        ),
        # No checksum of it is known.
        Source("Amazon_Video_Games.zip", f"{RECBOLE}/Amazon2018/Amazon_Video_Games.zip"),
    )
