"""The benchmarks on tiny cases: their tables and fits, not their numbers."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from experiments.benchmarks import (
    against,
    catalogue,
    data,
    efficiency,
    export,
    gpu,
    length,
    measure,
    models,
    newer,
    operations,
    recommend,
    scale,
    session,
)
from tests.in_process import call
from tests.runs.front_door import SMALL, Capture, Patch, write_sequences
from tests.test_hindsight import trained

SHOP = ["dataset.shop.num_users=80", "dataset.shop.num_items=60"]
CPU = torch.device("cpu")
Lines = Callable[..., pd.DataFrame]


@pytest.fixture(autouse=True)
def _settings_are_put_back() -> Iterator[None]:
    """A case has a process to itself outside these tests."""
    state, deterministic = torch.get_rng_state(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_rng_state(state)
    torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def lines_of(tmp_path: Path, monkeypatch: Patch) -> Lines:
    """Runs a benchmark's ``main``, its cases in this process, and reads the table it writes."""
    monkeypatch.setenv("SIGMA_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(measure, "isolated", lambda work, *arguments: work(*arguments))

    def run(script: ModuleType, name: str, options: str) -> pd.DataFrame:
        common = f"--repeats 1 --device cpu --seconds 0.001 --out {tmp_path}"
        monkeypatch.setattr(sys, "argv", ["benchmark", *f"{options} {common}".split()])
        script.main()
        return pd.read_csv(tmp_path / f"{name}.csv")

    return run


TINY = {
    "catalogue_cpu": (catalogue, "--items 50 9000 --rows 8 --limit 0.0005"),
    "data": (data, "--interactions 20000"),
    "length": (length, "--lengths 8 16 --rows 4 --items 30 --models sigma sasrec"),
    "models": (models, f"{' '.join(SHOP)} --models popularity sasrec"),
    "scale": (scale, "--interactions 4000 --model gru4rec --steps 1"),
    "session": (session, "--lengths 12 16 --items 30 --models gru4rec --together 2"),
    "scan_cpu": (operations, "scan --rows 3 --lengths 5 --backends cpu blocked reference"),
}


def columns_of(name: str) -> list[str]:
    """Of a committed table; a scan's had an error, too."""
    frame = pd.read_csv(measure.ROOT / "results" / "benchmarks" / f"{name}.csv")
    return [column for column in frame if column != "error"]


@pytest.mark.parametrize("name", TINY)
def test_tables_have_the_columns_of_those_committed(
    name: str, lines_of: Lines, tmp_path: Path
) -> None:
    lines = lines_of(TINY[name][0], name, TINY[name][1])
    assert list(lines) == columns_of(name)
    if name == "catalogue_cpu":  # the matrix of 9,000 scores is over the limit
        assert lines["loss"].tolist() == ["chunks", "matrix", "chunks"]
    if name == "data":
        assert lines["users"].tolist() == [500, 500]
    if name == "length":
        assert (len(lines), lines["ms_per_row"].min() > 0) == (2 * 2 * 2, True)
        fits = pd.read_csv(tmp_path / "length_exponents.csv")
        assert list(fits) == columns_of("length_exponents")
        assert np.isfinite(fits["time"]).all()
    if name == "models":
        assert lines["of_sasrec"].isna().tolist() == [True, False]
    if name == "scale":
        assert lines["of_smallest"].tolist() == [1]
    if name == "session":
        assert lines["largest_error"].max() < 1e-5
        assert lines["state_kib"].nunique() == 1
    if name == "scan_cpu":
        assert lines["times_cpu"][0] == 1


@pytest.mark.slow
def test_efficiency(lines_of: Lines, capsys: Capture, monkeypatch: Patch) -> None:
    monkeypatch.setattr(efficiency, "LAYERED", "simulated")
    options = "--data simulated= beauty=none.txt --models sasrec sigma nonesuch"
    lines = lines_of(efficiency, "tables_efficiency", options)
    assert list(lines) == columns_of("tables_efficiency")
    assert capsys.readouterr().out.count("beauty is skipped") == 1
    lines = lines.set_index(["table", "model"])
    names = ["sasrec", "sigma", "nonesuch", "sigma x 1", "sigma x 2", "sigma x 4"]
    assert lines.index.get_level_values("model").tolist() == names
    columns = ["infer_ms", "infer_low", "train_ms", "infer_process_mib", "train_process_mib"]
    assert lines.drop(index="nonesuch", level="model")[columns].notna().all(axis=None)
    assert lines.loc[("3, 7", "sigma"), "infer_ms_of_sigma"] == 1


@pytest.mark.parametrize(
    ("operation", "backend"),
    [("conv", "pytorch"), ("attend 2x32", "pytorch"), ("scan", "mambapy"), ("scan", "blocked")],
)
def test_peers_compute_the_same(operation: str, backend: str, monkeypatch: Patch) -> None:
    if backend == "mambapy":
        pytest.importorskip("mambapy")
    monkeypatch.setattr(operations, "DROPOUT", 0.0)
    case = {"operation": operation, "length": 6, "rows": 2, "ragged": False, "device": CPU}
    results = []
    for name in ("auto", backend):
        call, inputs = operations.contender(case | {"backend": name, "kind": "float32"})
        results.append(call(*inputs))
    ours, theirs = results
    theirs = theirs.transpose(1, 2) if backend == "pytorch" else theirs
    torch.testing.assert_close(ours, theirs.reshape(ours.shape))


def test_steps_of_training_that_count(monkeypatch: Patch) -> None:
    """The warm ones have no say."""
    config = measure.composed("model=gru4rec", *SHOP)
    sequence_data, task = measure.built(config, CPU)
    steps, clock = [], iter(range(1000))
    monkeypatch.setattr(models, "now", lambda _: float(next(clock)))

    def run(inputs: models.Inputs) -> torch.Tensor:
        steps.append(inputs)
        return task.batch_loss(inputs)

    result = models.train(sequence_data, task, CPU, 0.0, run, warm=2, number=4)
    assert len(steps) == 2 + 4
    assert result["step_ms"] == 1e3 / 4
    targets = sum(int((inputs.targets > 0).sum()) for inputs in steps[2:])
    assert result["targets_per_second"] == targets


@pytest.mark.slow
def test_another_checkout_runs_its_own_code(tmp_path: Path) -> None:
    """Here this one's, in a process of its own."""
    case = {"code": "this", "checkouts": {"this": measure.ROOT}, "least": 0.0, "model": "sasrec"}
    result = against.one(case | {"overrides": [*SHOP, f"dataset.root={tmp_path}"]})
    assert result.keys() == {*against.COLUMNS}
    assert result["epoch_seconds"] > 0
    assert 100 < result["operations"] < 5000


def test_the_gpus_targets_are_of_its_parts() -> None:
    assert {part for part, _ in gpu.TARGETS} <= gpu.PARTS.keys() == gpu.LIMITS.keys()


def test_the_papers_numbers() -> None:
    paper = efficiency.printed()
    assert len(paper) == 6 * 6 + 3  # Games of 2014 beside the paper's of 2018
    games, of_2014 = (paper.loc["3, 7", name] for name in ("games", "games_2014"))
    assert games.equals(of_2014)
    assert paper.index.is_unique
    ratios = efficiency.relative(paper)
    of_sigma = ratios.loc[("3, 7", "beauty", "sasrec"), "paper_ms_of_sigma"]
    assert of_sigma == pytest.approx(123 / 68)
    layers = ratios.loc[("5", "beauty", "sigma x 4"), "paper_gpu_gb_of_sigma"]
    assert layers == pytest.approx(6.83 / 3.03)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    data = write_sequences(folder / "clicks.txt")
    with pytest.MonkeyPatch.context() as patch:
        return trained(patch, folder / "sigma", data)


def test_recommendations(run: Path, lines_of: Lines, monkeypatch: Patch) -> None:
    """Every user, and as many again under other names, have the recommendations of the run."""
    ways = []

    def command(case: measure.Case) -> measure.Case:
        ways.append((case["model"], case["way"]))
        return {"seconds": 2.0, "peak_mib": 1.0}

    monkeypatch.setattr(recommend, "command", command)
    lines = lines_of(recommend, "recommend", f"{run} --times 1 2 --peer python")
    assert [*lines][:-1] == [*recommend.KEY, "seconds", "low", "high", *recommend.COLUMNS[1:]]
    assert ways == [("sigma", "command"), (recommend.PEER, "table")] * 2
    assert lines["users"].tolist() == [120] * 4 + [240] * 4
    assert lines["users_per_second"][2] == 60
    sequences = recommend.load(run).sequences
    recommend.write(run / "h.parquet", sequences, 2)
    histories, codes = pd.read_parquet(run / "h.parquet"), pd.read_csv(run / "h.csv")
    assert histories["user"].equals(codes["user"])
    assert (histories["user"] % 120).tolist() == [
        *np.arange(120).repeat(np.diff(sequences.offsets))
    ] * 2
    names = np.array(sequences.item_ids)[codes["item"] - 1]
    assert histories["item"].tolist() == [str(name) for name in names]
    assert codes["item"].tolist() == sequences.items.tolist() * 2


@pytest.mark.slow
def test_exported_files(run: Path, lines_of: Lines) -> None:
    lines = lines_of(export, "export", f"{run} --ways recommender .pt2").set_index("way")
    assert [*lines][:3] == ["model", "length", "users_per_second"]
    assert lines.loc["recommender", "of_recommender"] == 1
    assert lines.loc[".pt2", "error"] < 1e-5
    assert lines["one_ms"].min() > 0


@pytest.mark.slow
def test_newer_data(lines_of: Lines, tmp_path: Path, monkeypatch: Patch) -> None:
    """From nothing, the older run's weights as they are, and from these."""
    words: list[list[str]] = []

    def train(command: list[str]) -> None:
        words.append(command)
        assert call(monkeypatch, *command) == 0

    monkeypatch.setattr(newer, "train", train)
    data = write_sequences(tmp_path / "clicks.txt")
    overrides = " ".join([*SMALL, f"dataset.path={data}", "trainer.max_epochs=3"])
    lines = lines_of(newer, "newer", f"{overrides} --epochs 0").set_index(["start", "until"])
    assert [*lines.index] == [("nothing", "it stops"), ("older", "0"), ("older", "it stops")]
    assert lines["epochs"].tolist() == [3, 0, 3]
    assert lines["of_seconds"].iloc[0] == lines["of_ndcg@10"].iloc[0] == 1
    assert lines["of_ndcg@10"].iloc[2] > 1
    assert sum(word.startswith("init_from") for command in words for word in command) == 2


def test_the_older_file_is_the_first_part(tmp_path: Path) -> None:
    data, _ = measure.built(measure.composed("model=popularity", *SHOP), CPU)
    times = data.sequences.timestamps
    newer.write(tmp_path / "a", data.sequences, 0.6)
    older, all_of_it = (pd.read_csv(tmp_path / "a" / f"{n}.csv") for n in ("older", "newer"))
    assert times is not None
    assert all_of_it["timestamp"].tolist() == times.tolist()
    assert 0.5 < len(older) / len(times) <= 0.6
    assert older["timestamp"].max() < all_of_it["timestamp"].sort_values().iloc[len(older)]
    newer.write(tmp_path / "b", replace(data.sequences, timestamps=None), 0.6)
    older = pd.read_csv(tmp_path / "b" / "older.csv")
    lengths = np.diff(data.sequences.offsets)
    assert older.groupby("user").size().tolist() == np.ceil(0.6 * lengths).astype(int).tolist()


def test_every_kind_of_damaged_request_is_refused(run: Path) -> None:
    """By a server on a socket, as the benchmark asks it; and the load is answered."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    from experiments.benchmarks import serve
    from sigma.recommender import Recommender
    from sigma.serve import Server

    histories = [["5", "6", "7"], ["12"], ["30", "31"]]
    app = Server({"sigma": Recommender.load(run, device="cpu")}).app

    async def both() -> tuple[measure.Case, measure.Case]:
        server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        client = serve.Client(server.servers[0].sockets[0].getsockname()[1])
        case = {"rate": 200.0, "seconds": 0.2}
        requests = [serve.question([history]) for history in histories]
        load = await serve.steady(client, requests, case, serve.psutil.Process())
        refused = await serve.refusals(client, histories, 2 * 26)
        server.should_exit = True
        await task
        return load, refused

    load, refused = asyncio.run(both())
    assert (load["requests"], load["errors"]) == (40, 0)
    assert 0 < load["p50_ms"] <= load["p99_ms"] <= load["max_ms"]
    assert (refused["clear"], refused["status_5xx"], refused["others"]) == (52, 0, 0)
    assert refused["healthy"]
    assert len(set(serve.COLUMNS) - load.keys() - refused.keys()) == 3  # of the stop


def test_an_answer_that_is_clear() -> None:
    from experiments.benchmarks.serve import Answer

    text = json.dumps({"error": "k: must be at least 1."}).encode()
    assert Answer(422, text).clear
    assert Answer(400, b"Invalid HTTP request received.").clear
    for status, body in (
        (500, text),
        (200, text),
        (422, b"{}"),
        (422, b'{"error": "no"}'),
        (0, b""),
    ):
        assert not Answer(status, body).clear


@pytest.mark.slow
def test_a_server_from_its_start_to_its_stop(run: Path, lines_of: Lines) -> None:
    pytest.importorskip("uvicorn", reason="needs the extra 'serve'")
    from experiments.benchmarks import serve

    lines = lines_of(serve, "serve", f"{run} --rate 20000 --malformed 26").iloc[0]
    assert (lines["clear"], lines["healthy"], lines["cut"]) == (26, 1, 0)


def test_exponents() -> None:
    values = pd.Series({n: 3 * n**1.5 for n in (8192, 50, 100, 200, 400, 800)})
    assert length.exponent(values) == pytest.approx(1.5, abs=1e-12)
    # The smaller half and what could not be measured have no say.
    values[[50, 100]] = 7.0, float("nan")
    values[9000] = 0.0
    assert length.exponent(values) == pytest.approx(1.5)
    assert np.isnan(length.exponent(pd.Series({50: 1.0, 100: float("nan")})))


def test_medians_lowest_and_highest(monkeypatch: Patch) -> None:
    lines = pd.DataFrame({"case": ["b", "a"] * 3, "ms": [5.0, 20, 1, 10, 3, 90], "other": 7})
    monkeypatch.setattr(measure, "rounds", lambda *_: lines)
    table = measure.medians([], dict, 3, ["case"], ["ms"])
    assert list(table.index) == ["b", "a"]
    assert table.to_numpy().tolist() == [[3, 1, 5], [20, 10, 90]]


def hold(case: measure.Case) -> measure.Case:
    """Memory above the process's start, by its own measure; one case fails, one is killed."""
    if case["mib"] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    memory = measure.Memory(CPU)
    return {"peak": torch.ones(case["mib"] * 2**18)[0].item() * memory.mib()}


@pytest.mark.slow
def test_cases_have_processes_of_their_own() -> None:
    """A failing case stops no other, and this process's peak memory is not the case's."""
    ballast = torch.ones(300 * 2**18)
    frame = measure.rounds([{"mib": mib} for mib in (0, -1, 200)], hold, 1)
    assert frame["failed"].notna().tolist() == [True, True, False]
    assert frame["peak"][2] == pytest.approx(200, abs=40)
    assert len(ballast)
