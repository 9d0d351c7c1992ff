"""Yelp Open Dataset: 82,899 users, 64,209 items (the paper's; it does not say which release)."""

from sigma.datamodules.base import Expected, SequenceDataModule


class Yelp(SequenceDataModule):
    files = ("yelp_academic_dataset_review.json*", "yelp*.inter")
    expected = Expected("a Yelp release, users and items in [5, 100)", 82_899, 64_209)
    absent = (
        "Yelp asks for a form before it hands out its data: get yelp_academic_dataset_review.json "
        "(and yelp_academic_dataset_business.json for names) from https://www.yelp.com/dataset and "
        "put it into {folder}, or name a local copy with dataset.path=."
    )
