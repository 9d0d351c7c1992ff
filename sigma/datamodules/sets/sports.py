"""Amazon Sports and Outdoors (the paper's).

The paper does not say which release. The 2014 one has 35,598 users with five interactions or more,
too few, so 2018 is expected and downloaded.
"""

from sigma.datamodules.base import Expected, SequenceDataModule
from sigma.datamodules.sets.publishers import amazon_2018, recbole

SHA256 = "sha256:da8d746f1602d5ff01d4056c8f55b228996a30d40069b658d71388b0bf3df5d6"


class Sports(SequenceDataModule):
    files = (
        *("Sports_and_Outdoors.csv*", "Amazon_Sports_and_Outdoors.inter"),
        "ratings_Sports_and_Outdoors.csv*",
    )
    expected = Expected("Amazon 2018, users and items in [5, 200)", 75_184, 48_566)
    sources = (
        amazon_2018("Sports_and_Outdoors.csv", SHA256),
        recbole("Amazon_ratings/Amazon2018/Amazon_Sports_and_Outdoors.zip"),
    )
