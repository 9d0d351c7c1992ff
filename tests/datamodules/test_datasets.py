"""Every data set through its own YAML, on generated raw files and on the real ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from sigma.datamodules.base import SequenceDataModule
from sigma.errors import UserError
from tests.datamodules import raw_files as raw

REPO = Path(__file__).parents[2]
CONF = REPO / "conf" / "dataset"
REAL = REPO.parent / "shared" / "data"
ROWS = raw.interactions(users=20, items=12, n=400)
NAMES = sorted({p.stem for p in CONF.glob("[!_]*.yaml")} - {"simulated"})


def dataset(name: str, root: Path = Path("data"), **settings: Any) -> SequenceDataModule:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(name)
    config.update(root=str(root), **settings)
    return instantiate(config, seed=5, _convert_="all")


def real(name: str, *others: Any) -> Any:
    """Parameters with the file of ../shared/data, skipped where it is not there."""
    path = REAL / name
    missing = pytest.mark.skipif(not path.exists(), reason=f"../shared/data/{name} is not there")
    return pytest.param(path, *others, marks=[missing, pytest.mark.data])


RAW: dict[str, Callable[[Path], Any]] = {
    "beauty": lambda p: raw.amazon_2014(p / "ratings_Beauty.csv", ROWS),
    "sports": lambda p: raw.amazon_2018(p / "Sports_and_Outdoors.csv", ROWS),
    "games": lambda p: raw.amazon_2018(p / "Video_Games.csv", ROWS),
    "games_2014": lambda p: raw.amazon_2014(p / "ratings_Video_Games.csv", ROWS),
    "yelp": lambda p: raw.yelp(p, ROWS),
    "ml_1m": lambda p: raw.ml_1m(p, ROWS),
    "ml_100k": lambda p: raw.ml_100k(p, ROWS),
    "ml_latest_small": lambda p: raw.ml_csv(p, ROWS),
    "ml_32m": lambda p: raw.ml_csv(p, ROWS),
    "lfm_1b": lambda p: raw.lfm_1b(p / "LFM-1b_LEs.txt", ROWS),
    "netflix": lambda p: raw.netflix(p, ROWS),
    "tmall": lambda p: raw.tmall(p / "user_log_format1.csv", ROWS),
    "kuairand": lambda p: raw.kuairand(p / "KuaiRand-27K", "27k", ROWS),
    "kuairand_1k": lambda p: raw.zipped(
        raw.kuairand(p.parent / "KuaiRand-1K", "1k", ROWS), "gztar"
    ).rename(p / "KuaiRand-1K.tar.gz"),
    "kuairand_pure": lambda p: raw.kuairand(p, "pure", ROWS),
    "custom": lambda p: raw.parquet(p / "mine.parquet", ROWS),
}


@pytest.mark.parametrize("name", NAMES)
def test_data_set_from_its_own_folder(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / name).mkdir()
    RAW[name](tmp_path / name)
    data = dataset(name, tmp_path)
    data.setup()
    assert (data.name, data.seed) == (name, 5)
    stats = data.statistics
    assert (stats.users, stats.items, stats.interactions) == (20, 12, 400)
    assert (stats.average_length, stats.sparsity) == (20, 1 - 400 / 240)
    assert (stats.train_samples, stats.val_samples, stats.test_samples) == (340, 20, 20)
    assert stats.matches is (None if name in ("custom", "netflix", "tmall") else False)
    if name == "beauty":
        assert "beauty has 20 users instead of 22,363, 12 items instead of 12,101" in caplog.text
        assert "expected vintage (Amazon 2014, users and items in [5, inf))" in caplog.text
    assert data.max_length == (200 if name == "ml_1m" else 50)
    upper = {"sports": 200, "yelp": 100}.get(name)  # the paper's
    lower = None if name.startswith(("kuairand", "lfm")) else 5
    assert data.user_bounds == data.item_bounds == (lower, upper)
    assert next(iter(data.train_dataloader())).items.max() <= data.num_items == 12
    assert len(next(iter(data.val_dataloader())).users) == 20


@pytest.mark.parametrize("name", ["kuairand", "netflix", "tmall", "lfm_1b"])
def test_histories_are_in_order_of_time(name: str, tmp_path: Path) -> None:
    """In order of time, then of the file; the Netflix Prize's goes by film, odd ones last."""
    (tmp_path / name).mkdir()
    RAW[name](tmp_path / name)
    data = dataset(name, tmp_path, user_bounds=[None, None], item_bounds=[None, None]).sequences
    rows = ROWS
    if name == "netflix":
        films = list(dict.fromkeys(row.item for row in ROWS))
        rows = sorted(ROWS, key=lambda row: (row.item % 2, films.index(row.item)))
    # Of the others, seconds in these tests; of these two, days.
    time = (lambda t: t % 60) if name in ("netflix", "tmall") else int
    for at, user in enumerate(data.user_ids):
        expected = [row for row in rows if str(row.user) == user]
        expected.sort(key=lambda row: time(row.time))
        items = data.items[data.offsets[at] : data.offsets[at + 1]]
        assert data.item_ids[items - 1].tolist() == [str(row.item) for row in expected]


def test_artists_and_recboles_tracks_of_lfm_1b(tmp_path: Path) -> None:
    path = raw.lfm_1b(tmp_path / "LFM-1b_LEs.txt", ROWS)
    columns = {"item": "artist_id"}
    assert dataset("lfm_1b", tmp_path, path=str(path), columns=columns).num_items == 3
    tracks = "user_id:token\ttracks_id:token\ttimestamp:float\n"
    tracks += "".join(f"{u}\t{i}\t{t}\n" for u, i, t in ROWS)
    path = raw.write(tmp_path / "lfm1b-tracks.inter", tracks)
    assert dataset("lfm_1b", tmp_path, path=str(path)).num_items == 12


def test_a_log_that_is_named_is_read_alone(tmp_path: Path) -> None:
    folder = raw.kuairand(tmp_path / "x", "pure", ROWS) / "data"
    path = folder / "log_standard_4_22_to_5_08_pure.csv"
    assert dataset("kuairand", tmp_path, path=str(path)).statistics.interactions == 200
    assert dataset("custom", tmp_path, path=str(folder)).statistics.interactions == 400


@pytest.mark.parametrize("name", NAMES)
def test_any_data_set_takes_any_format(name: str, tmp_path: Path) -> None:
    text, table = (
        raw.sequence_text(tmp_path / "a.txt", ROWS),
        raw.recbole(tmp_path / "b", "x", ROWS),
    )
    archive = raw.zipped(raw.ml_1m(tmp_path / "c", ROWS))
    for path in (text, table, archive, raw.amazon_reviews(tmp_path / "d.json.gz", ROWS)):
        assert dataset(name, tmp_path / "root", path=str(path)).statistics.interactions == 400


def test_where_data_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"asks for a form.*put it into .*yelp, or name"):
        dataset("yelp", tmp_path).setup()
    with pytest.raises(UserError, match=r"want an account: .*csv into .*tmall, or name"):
        dataset("tmall", tmp_path).setup()
    monkeypatch.setenv("HOME", str(tmp_path))
    raw.csv_table(tmp_path / "mine.csv", ROWS)
    assert dataset("custom", tmp_path, path="~/mine.csv").statistics.interactions == 400


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("split", "random"), ("malformed", "ignore"), ("columns", {"usr": "a"}), ("path", "")),
        *((name, v) for name in ("max_length", "batch_size", "eval_batch_size") for v in (0, -1)),
        *(("batch_size", 1.5), ("eval_batch_size", "many"), ("val_fraction", 0.0)),
        *(("user_bounds", v) for v in ([5], 5, ["a", None], [-1, None])),
        *(("item_bounds", v) for v in ([5], 5, ["a", None], [-1, None])),
    ],
)
def test_arguments_out_of_range(argument: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(InstantiationException) as error:
        dataset("custom", tmp_path, **{argument: value})
    assert isinstance(error.value.__cause__, ValueError)
    assert argument in str(error.value.__cause__)


@pytest.mark.parametrize("split", ["leave_one_out", "global_time"])
def test_data_that_leaves_no_samples(split: str, tmp_path: Path) -> None:
    path = str(raw.write(tmp_path / "a.csv", "user,item,time\n1,1,5\n1,2,5\n2,1,5\n2,2,5\n"))
    bounds = {"user_bounds": [1, None], "item_bounds": [1, None]}
    with pytest.raises(UserError, match="leaves no samples to train, validate and test on"):
        dataset("custom", tmp_path, path=path, split=split, **bounds).setup()


def test_zip_in_a_folder_that_is_not_ours_is_unpacked_into_root(tmp_path: Path) -> None:
    path = raw.zipped(raw.ml_1m(tmp_path / "theirs" / "ml-1m", ROWS))
    for file in (path.parent / "ml-1m").iterdir():
        file.unlink()
    before = sorted(path.parent.rglob("*"))
    for copy in (path, path.parent):
        assert dataset("ml_1m", tmp_path / "root", path=str(copy)).statistics.interactions == 400
    assert sorted(path.parent.rglob("*")) == before
    assert len(list((tmp_path / "root" / "unpacked" / "ml_1m").iterdir())) == 1


REAL_SETS = {
    "beauty": ("beauty.txt", (22_363, 12_101, 198_502), ""),
    "games_2014": ("games_2014.txt", (24_303, 10_672, 231_780), ""),
    "games": ("games_2014.txt", (24_303, 10_672, 231_780), "the expected vintage (Amazon 2018"),
    "ml_100k": ("ml-100k", (943, 1_349, 99_287), ""),
    # The shared copy lacks 5,528 of the interactions, which is said.
    "ml_1m": ("ml-1m.txt", (6_040, 3_415, 994_079), "994,079 interactions instead of 999,611"),
}


@pytest.mark.parametrize(
    ("path", "name", "counts", "mismatch"),
    [real(file, name, *rest) for name, (file, *rest) in REAL_SETS.items()],
)
def test_real_data(path: Path, name: str, counts: tuple, mismatch: str, tmp_path: Path) -> None:
    stats = dataset(name, tmp_path, path=str(path)).statistics
    assert (stats.users, stats.items, stats.interactions) == counts
    assert stats.matches is not bool(mismatch)
    assert mismatch in (stats.mismatch() or "")
    if name == "beauty":
        samples = (stats.train_samples, stats.val_samples, stats.test_samples)
        assert samples == (131_413, 22_363, 22_363)
        assert (round(stats.average_length, 2), round(stats.sparsity, 4)) == (8.88, 0.9993)


@pytest.mark.parametrize("path", [real("ml-100k")])
def test_real_targets_that_differ_by_recboles_times(path: Path, tmp_path: Path) -> None:
    """Against sorting the file in plain Python: of 943 users a sixth get another test item."""
    lines = (path / "ml-100k.inter").read_text().splitlines()[1:]
    rows = [(u, i, int(float(time))) for u, i, _, time in (line.split("\t") for line in lines)]
    whole: list[dict[str, list[str]]] = []
    for float32_times in (None, True):
        every = {"user_bounds": [None, None], "item_bounds": [None, None], "path": str(path)}
        data = dataset("ml_100k", tmp_path, float32_times=float32_times, **every).sequences
        spans = zip(data.offsets, data.offsets[1:], strict=False)
        items = [data.item_ids[data.items[a:b] - 1].tolist() for a, b in spans]
        histories = dict(zip(data.user_ids.tolist(), items, strict=True))
        want: dict[str, list[str]] = {}
        for u, i, _ in sorted(rows, key=lambda r: np.float32(r[2]) if float32_times else r[2]):
            want.setdefault(u, []).append(i)
        assert histories == want
        whole.append(histories)
    exact, rounded = whole
    test, val = (sum(exact[u][-k] != rounded[u][-k] for u in exact) for k in (1, 2))
    assert (len(exact), test, val) == (943, 149, 254)


@pytest.mark.parametrize("path", [real("ml-latest-small")])
def test_real_ml_latest_small_has_a_damaged_line(
    path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The shared copy has text in the time of line 522, which is said. Mended, it matches."""
    with pytest.raises(UserError, match=r"ratings\.csv, line 522: the time "):
        dataset("ml_latest_small", tmp_path, path=str(path)).setup()
    lines = (path / "ratings.csv").read_text().splitlines()
    lines[521] = "5,39,3.0,847434961"
    mended = raw.write(tmp_path / "x" / "ratings.csv", "\n".join(lines) + "\n")
    assert dataset("ml_latest_small", tmp_path, path=str(mended)).statistics.matches is True
    # User 5 and item 39 have many more, so that the filter takes nothing along with the line.
    stats = dataset("ml_latest_small", tmp_path, path=str(path), malformed="skip").statistics
    assert "1 of 100,837 lines left out, the first of them line 522: " in caplog.text
    assert (stats.users, stats.items, stats.interactions) == (610, 3_650, 90_274 - 1)
