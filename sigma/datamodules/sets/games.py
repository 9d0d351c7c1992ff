"""Amazon Video Games, 2018 ratings: 55,144 users, 17,286 items (the paper's)."""

from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.download import Source
from sigma.datamodules.statistics import Expected


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
            (
                "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/categoryFilesSmall/Video_Games.csv",
                "https://datarepo.eng.ucsd.edu/mcauley_group/data/amazon_v2/categoryFilesSmall/Video_Games.csv",
                "https://jmcauley.ucsd.edu/data/amazon_v2/categoryFilesSmall/Video_Games.csv",
            ),
            "sha256:c3fec1cce4ee67f0d51f8b53a7e294d8bbe6f75ca1d8732256e900b3c46606d8",
        ),
        Source(  # no checksum of it was found
            "Amazon_Video_Games.zip",
            (
                "https://recbole.s3-accelerate.amazonaws.com/ProcessedDatasets"
                "/Amazon_ratings/Amazon2018/Amazon_Video_Games.zip",
            ),
        ),
    )
