"""A user's own data: CSV, TSV, Parquet, RecBole atomic files, sequence text."""

from sigma.datamodules.base import SequenceDataModule


class Custom(SequenceDataModule):
    absent = (
        "dataset=custom needs data: name a file or folder with dataset.path= (CSV, TSV, Parquet, "
        "RecBole .inter or one-user-a-line text), or put one into {folder}."
    )
