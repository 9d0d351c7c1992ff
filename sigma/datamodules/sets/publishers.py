"""Where the publishers keep their files."""

from sigma.datamodules.download import Source

SMALL = "data/amazon_v2/categoryFilesSmall"
RECBOLE = "https://recbole.s3-accelerate.amazonaws.com/ProcessedDatasets"


def movielens(name: str, md5: str | None = None) -> Source:
    url = f"files.grouplens.org/datasets/movielens/{name}.zip"
    return Source(f"{name}.zip", f"https://{url}", f"http://{url}", md5=md5)


def amazon_2014(file: str, sha256: str | None = None) -> Source:
    url = f"snap.stanford.edu/data/amazon/productGraph/categoryFiles/{file}"
    mirrors = [f"http://{url}"] if sha256 else []  # not unchecked over an open line
    return Source(file, f"https://{url}", *mirrors, sha256=sha256)


def amazon_2018(file: str, sha256: str) -> Source:
    hosts = ("mcauleylab.ucsd.edu/public_datasets", "datarepo.eng.ucsd.edu/mcauley_group")
    urls = [f"https://{host}/{SMALL}/{file}" for host in (*hosts, "jmcauley.ucsd.edu")]
    return Source(file, *urls, sha256=sha256)


def recbole(path: str, file: str | None = None) -> Source:
    """A set as RecBole processed it; no checksums of these are known."""
    return Source(file or path.split("/")[-1], f"{RECBOLE}/{path}")
