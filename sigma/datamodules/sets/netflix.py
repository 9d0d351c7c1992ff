"""The Netflix Prize: 100,480,507 ratings of 17,770 films by 480,189 users, before the filter."""

from sigma.datamodules.base import SequenceDataModule
from sigma.datamodules.sets.publishers import recbole


class Netflix(SequenceDataModule):
    files = ("combined_data_*.txt", "mv_*.txt", "netflix.inter")
    # Netflix took its own file back; copies of it, which want an account or a second unpacking, are
    # https://www.kaggle.com/netflix-inc/netflix-prize-data and
    # https://archive.org/details/nf_prize_dataset.tar.
    sources = (recbole("Netflix/netflix.zip"),)
