"""Amazon Beauty, 2014 5-core (the paper's)."""

from sigma.datamodules.base import Expected, SequenceDataModule
from sigma.datamodules.sets.publishers import amazon_2014, recbole

SHA256 = "sha256:17d5232b90444beecfe758ce1446e5300230491f3a88ac802992ca95fc4c150f"


class Beauty(SequenceDataModule):
    files = ("ratings_Beauty.csv*", "reviews_Beauty_5.json*", "Amazon_Beauty.inter", "beauty.txt")
    expected = Expected("Amazon 2014, users and items in [5, inf)", 22_363, 12_101, 198_502)
    # The ratings come first: their order in the file, which decides ties of the same day, is that
    # of the RecBole file behind the paper.
    sources = (
        amazon_2014("ratings_Beauty.csv", SHA256),
        recbole("Amazon_ratings/Amazon_Beauty.zip"),
        amazon_2014("reviews_Beauty_5.json.gz"),
    )
