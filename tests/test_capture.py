"""On a GPU: a captured step is the step kernel by kernel, losses and weights to the bit."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning.fabric.utilities import move_data_to_device

from sigma.capture import CapturedStep, Inputs
from sigma.datamodules.batches import FlatSequences, filled
from sigma.losses import CrossEntropy
from sigma.task import SequenceTask
from tests.in_process import call
from tests.models.checks import composed
from tests.runs.front_door import ROOT, Patch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
K, L, ROWS = 60, 20, 64
MODELS = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")}
TRAINED = sorted(MODELS - {"item_knn", "markov", "popularity", "vmis_knn"})


def batches(mask_token: int | None, twins: bool) -> Iterator[Inputs]:
    """Random batches of one size, on the device."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 40, (300,), generator=generator)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    items = torch.randint(1, K + 1, (int(offsets[-1]),), generator=generator, dtype=torch.int32)
    times = torch.randint(0, 10**7, items.shape, generator=generator).cumsum(0)
    flat = FlatSequences(items, offsets, L, times, next_times=True)
    while True:
        users = torch.randint(0, 300, (ROWS,), generator=generator)
        batch = flat.batch(offsets[users + 1] - 1)
        if mask_token is not None:
            batch = batch._replace(items=batch.items.index_fill(0, batch.places, mask_token))
        if twins:
            batch = batch._replace(twins=(batch.items, batch.rows))
        batch = move_data_to_device(filled(batch), torch.device("cuda"))
        yield Inputs(batch.items, batch.rows, batch.places, batch.targets, batch.twins)


def task_on_the_gpu(name: str) -> SequenceTask:
    torch.manual_seed(0)
    config = composed(name, f"dataset.max_length={L}").model
    model = instantiate(config, num_items=K, _convert_="all")
    optimizer = functools.partial(torch.optim.Adam, lr=1e-3)
    return SequenceTask(model, optimizer, CrossEntropy(torch.ones(K))).cuda().train()


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("half", [False, True])
def test_replays_are_the_kernels_to_the_bit(name: str, half: bool, monkeypatch: Patch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as Lightning sets it
    torch.use_deterministic_algorithms(True)
    outcomes = []
    for capture in (False, True):
        task = task_on_the_gpu(name)
        adam = task.configure_optimizers()
        assert adam is not None
        step = CapturedStep(task.batch_loss, list(task.parameters())) if capture else None
        torch.manual_seed(1)
        losses = []
        for _, inputs in zip(range(8), batches(task.model.mask_token, True), strict=False):
            with torch.autocast("cuda", torch.bfloat16, enabled=half):
                loss = (step or task.batch_loss)(inputs)
            loss.backward()
            adam.step()
            adam.zero_grad()
            losses.append(loss.detach().clone())
            del loss  # its graph would hold gradient nodes of this stream into a recording
        if step is not None:
            assert not step.refused
            assert any(step.recordings.values())
        outcomes.append([torch.stack(losses), *(p.detach().clone() for p in task.parameters())])
    for eager, replayed in zip(*outcomes, strict=True):
        assert torch.equal(eager, replayed)


def test_a_run_is_the_same_captured_or_not_and_resumed(tmp_path: Path, monkeypatch: Patch) -> None:
    """Metrics and ranks to the bit, also of a run that was stopped after an epoch."""
    common = [
        *("model=sigma", "dataset=simulated", "dataset.shop.num_users=600", "logger=none"),
        *("dataset.batch_size=128", "trainer.accelerator=cuda", "resume=true"),
    ]
    rows = []
    for name, words in {"eager": ["task.capture=false"], "captured": [], "stopped": []}.items():
        folder = tmp_path / name
        command = [*common, *words, f"hydra.run.dir={folder}"]
        if name == "stopped":
            assert call(monkeypatch, *command, "trainer.max_epochs=1") == 0
            (folder / "row.json").unlink()
        assert call(monkeypatch, *command, "trainer.max_epochs=3") == 0
        rows.append(json.loads((folder / "row.json").read_text())["metrics"])
    assert rows[0] == rows[1] == rows[2]


def test_a_step_waits_for_nothing() -> None:
    """No synchronisation by the host, as PyTorch sees it, in a step that is replayed or not."""
    task = task_on_the_gpu("sigma")
    step = CapturedStep(task.batch_loss, list(task.parameters()))
    source = batches(None, False)
    for _ in range(4):
        step(next(source)).backward()
    inputs = next(source)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(inputs).backward()
        task.batch_loss(inputs).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
