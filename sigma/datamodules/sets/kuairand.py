"""KuaiRand: videos seen on Kuaishou (Gao et al., CIKM 2022), in its three sizes.

Read are the logs of the standard recommendation, one after the other, not that of random videos.
"""

from sigma.datamodules.base import Expected, SequenceDataModule
from sigma.datamodules.download import Source


def _zenodo(size: str, md5: str) -> tuple[Source]:
    file = f"KuaiRand-{size}.tar.gz"
    url = f"https://zenodo.org/records/10439422/files/{file}"
    return (Source(file, url, checksum=f"md5:{md5}"),)


class KuaiRand(SequenceDataModule):
    """KuaiRand-27K: 46 GB unpacked."""

    files = ("log_standard_*.csv", "KuaiRand-27K.tar.gz")
    expected = Expected("KuaiRand-27K, no filter", 27_285, 32_038_725, 322_278_385)
    sources = _zenodo("27K", "3e3c799a24e2d23a4d2c757fbf9adf59")


class KuaiRand1K(SequenceDataModule):
    """All that a thousand of its users saw: 4 GB unpacked."""

    files = ("log_standard_*.csv", "KuaiRand-1K.tar.gz")
    expected = Expected("KuaiRand-1K, no filter", 1_000, 4_369_953, 11_713_045)
    sources = _zenodo("1K", "6b0b9c8222d67fcd4c676218edca3f1f")


class KuaiRandPure(SequenceDataModule):
    """What all of its users saw of a few thousand videos: 194 MB unpacked."""

    files = ("log_standard_*.csv", "KuaiRand-Pure.tar.gz")
    expected = Expected("KuaiRand-Pure, no filter", 27_285, 7_551, 1_436_609)
    sources = _zenodo("Pure", "0820331067a3784d9691136f772b35a7")
