"""LFM-1b: 1,088,161,692 times a track was heard on Last.fm (Schedl, ICMR 2016)."""

from sigma.datamodules.base import Expected, SequenceDataModule
from sigma.datamodules.sets.publishers import recbole


class LFM1B(SequenceDataModule):
    files = ("LFM-1b_LEs.txt*", "lfm1b-tracks.inter", "LFM-1b.zip")
    expected = Expected("LFM-1b's tracks, no filter", 120_322, 31_634_450, 1_088_161_692)
    # Its publisher's own file is behind a page that is gone (http://www.cp.jku.at/datasets/LFM-1b);
    # this holds the same events.
    sources = (recbole("LFM-1b/not_merged/lfm1b-tracks.zip"),)
