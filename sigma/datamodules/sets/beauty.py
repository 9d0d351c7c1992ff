"""Amazon Beauty, 2014 5-core: 22,363 users, 12,101 items, 198,502 interactions (the paper's)."""

from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.download import Source
from sigma.datamodules.statistics import Expected

SNAP = "snap.stanford.edu/data/amazon/productGraph/categoryFiles"
RECBOLE = "https://recbole.s3-accelerate.amazonaws.com/ProcessedDatasets/Amazon_ratings"


class Beauty(SequenceDataModule):
    files = ("ratings_Beauty.csv*", "reviews_Beauty_5.json*", "Amazon_Beauty.inter", "beauty.txt")
    expected = Expected("Amazon 2014, users and items in [5, inf)", 22_363, 12_101, 198_502)
    # The ratings come first: their order in the file, which decides ties of the same day, is that
    # of the RecBole file behind the paper. No checksum of the other two is known.
    sources = (
        Source(
            "ratings_Beauty.csv",
            f"https://{SNAP}/ratings_Beauty.csv",
            f"http://{SNAP}/ratings_Beauty.csv",
            sha256="17d5232b90444beecfe758ce1446e5300230491f3a88ac802992ca95fc4c150f",
        ),
        Source("Amazon_Beauty.zip", f"{RECBOLE}/Amazon_Beauty.zip"),
        Source("reviews_Beauty_5.json.gz", f"https://{SNAP}/reviews_Beauty_5.json.gz"),
    )
