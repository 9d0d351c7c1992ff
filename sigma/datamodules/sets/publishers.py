"""Where the publishers keep their files."""

from sigma.datamodules.download import Source

SMALL = "data/amazon_v2/categoryFilesSmall"
RECBOLE = "https://recbole.s3-accelerate.amazonaws.com/ProcessedDatasets"


def movielens(name: str, checksum: str | None = None) -> Source:
    url = f"files.grouplens.org/datasets/movielens/{name}.zip"
    return Source(f"{name}.zip", f"https://{url}", f"http://{url}", checksum=checksum)


def amazon_2014(file: str, checksum: str | None = None) -> Source:
    url = f"snap.stanford.edu/data/amazon/productGraph/categoryFiles/{file}"
    mirrors = [f"http://{url}"] if checksum else []  # not unchecked over an open line
    return Source(file, f"https://{url}", *mirrors, checksum=checksum)


def amazon_2018(file: str, checksum: str) -> Source:
    hosts = ("mcauleylab.ucsd.edu/public_datasets", "datarepo.eng.ucsd.edu/mcauley_group")
    urls = [f"https://{host}/{SMALL}/{file}" for host in (*hosts, "jmcauley.ucsd.edu")]
    return Source(file, *urls, checksum=checksum)


def recbole(path: str, file: str | None = None) -> Source:
    """A set as RecBole processed it; no checksums of these are known."""
    return Source(file or path.split("/")[-1], f"{RECBOLE}/{path}")
