"""What a start does not load: facts of ``sys.modules``, not times."""

import subprocess
import sys
from pathlib import Path

import pytest

import sigma.callbacks
from tests.runs.front_door import ROOT, SMALL, environment, write_sequences

MAIN = """
import runpy, sys
sys.argv[0] = "train.py"
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    print("loaded:", *sys.modules)
"""
HEAVY = {
    "lightning", "matplotlib", "numpy", "optuna", "pandas", "pyarrow", "scipy", "sympy",
    "tensorboard", "torch", "torch._dynamo", "torchmetrics", "transformers", "triton", "wandb",
}  # fmt: skip


def start(code: str, *arguments: str, expect: int = 0) -> tuple[set[str], str]:
    """The modules a Python process of its own names at its end, and what else it says."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=240,
    )  # fmt: skip
    assert done.returncode == expect, done.stdout
    (names,) = (line for line in done.stdout.splitlines() if line.startswith("loaded: "))
    return set(names.split()[1:]), done.stdout.replace(names, "")


@pytest.mark.parametrize(
    ("typed", "answer", "code"),
    [
        (["--help"], "Groups and their options", 0),
        (["--hydra-help"], "--config-dir", 0),
        (["--cfg", "job"], "matmul_precision: highest", 0),
        (["modle=sigma"], "error: The config has no key 'modle'; did you mean 'model'?", 1),
        (["model=sgima"], "error: There is no model 'sgima'; did you mean 'sigma'?", 1),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, list) else "",
)
def test_an_answer_without_a_run_takes_neither_pytorch_nor_lightning(
    typed: list[str], answer: str, code: int
) -> None:
    loaded, said = start(MAIN, *typed, expect=code)
    assert answer in said
    assert not loaded & HEAVY


def test_a_run_loads_what_it_is_configured_for(tmp_path: Path) -> None:
    data = write_sequences(tmp_path / "tiny.txt", users=60, items=30)
    typed = [f"dataset.path={data}", f"dataset.root={tmp_path}", f"hydra.run.dir={tmp_path / 'a'}"]
    loaded, said = start(MAIN, *SMALL, *typed, "trainer.fast_dev_run=true")
    assert "Development run" in said
    assert "GPU available" not in said  # Lightning's notices, by hydra.job_logging
    assert {"torch", "lightning", "sigma.callbacks.progress"} <= loaded
    assert not loaded & {"optuna", "scipy", "tensorboard", "transformers", "wandb"}
    assert "sigma.callbacks.wandb" not in loaded


def test_what_was_answered_for_torchmetrics_alone_is_as_it_was() -> None:
    pytest.importorskip("scipy")
    start("""
import gc, sys
from sigma.environment import UNUSED, load_lightning
load_lightning()
assert not {*UNUSED} & {*sys.modules}
assert gc.isenabled() and not gc.get_freeze_count()
from lightning_utilities.core.imports import RequirementCache, module_available, package_available
from torchmetrics.utilities.imports import _SCIPY_AVAILABLE
assert package_available("scipy") and module_available("scipy") and RequirementCache("scipy")
assert _SCIPY_AVAILABLE
from torchmetrics.functional.audio import permutation_invariant_training
print("loaded:", *sys.modules)
""")


def test_a_callback_brings_its_own_module() -> None:
    loaded, _ = start("""
import sys
from sigma.callbacks import RandomState
print("loaded:", *sys.modules)
""")
    assert {n for n in loaded if n.startswith("sigma.callbacks.")} == {
        "sigma.callbacks.random_state"
    }
    for name in sigma.callbacks.__all__:
        assert getattr(sigma.callbacks, name).__name__ == name
    assert set(sigma.callbacks.__all__) <= set(dir(sigma.callbacks))
    with pytest.raises(AttributeError, match="no attribute 'Nope'"):
        sigma.callbacks.Nope  # noqa: B018
