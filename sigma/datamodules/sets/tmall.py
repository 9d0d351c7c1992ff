"""Tmall of IJCAI-15: 54,925,330 actions of 424,170 users on 1,090,390 items, before the filter."""

from sigma.datamodules.base import SequenceDataModule


class Tmall(SequenceDataModule):
    files = ("user_log_format1.csv*", "data_format1.zip")
    absent = (
        "Tmall's data want an account: get data_format1.zip (Repeat Buyers Prediction) from "
        "https://tianchi.aliyun.com/dataset/42 and put user_log_format1.csv into {folder}, or name "
        "a local copy with dataset.path=."
    )
