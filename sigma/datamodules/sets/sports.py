"""Amazon Sports and Outdoors: 75,184 users, 48,566 items (the paper's).

The paper does not say which release. The 2014 one has 35,598 users with five interactions or more,
too few, so 2018 is expected and downloaded.
"""

from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.download import Source
from sigma.datamodules.statistics import Expected

SMALL = "data/amazon_v2/categoryFilesSmall/Sports_and_Outdoors.csv"
RECBOLE = "https://recbole.s3-accelerate.amazonaws.com/ProcessedDatasets/Amazon_ratings"


class Sports(SequenceDataModule):
    files = (
        "Sports_and_Outdoors.csv*",
        "Amazon_Sports_and_Outdoors.inter",
        "ratings_Sports_and_Outdoors.csv*",
    )
    expected = Expected("Amazon 2018, users and items in [5, 200)", 75_184, 48_566)
    sources = (
        Source(
            "Sports_and_Outdoors.csv",
            f"https://mcauleylab.ucsd.edu/public_datasets/{SMALL}",
            f"https://datarepo.eng.ucsd.edu/mcauley_group/{SMALL}",
            f"https://jmcauley.ucsd.edu/{SMALL}",
            sha256="da8d746f1602d5ff01d4056c8f55b228996a30d40069b658d71388b0bf3df5d6",
        ),
        # No checksum of it is known.
        Source(
            "Amazon_Sports_and_Outdoors.zip", f"{RECBOLE}/Amazon2018/Amazon_Sports_and_Outdoors.zip"
        ),
    )
