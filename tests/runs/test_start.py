"""What a start does not load: facts of ``sys.modules``, not times."""

import sys
from pathlib import Path

import pytest

from tests.runs.front_door import arguments, run

MAIN = """
import runpy, sys
sys.argv[0] = "train.py"
try:
    runpy.run_path("train.py", run_name="__main__")
finally:
    print("loaded:", *sys.modules)
"""
HEAVY = {
    *("lightning", "matplotlib", "numpy", "optuna", "pandas", "pyarrow", "scipy", "sympy"),
    *("tensorboard", "torch", "torchmetrics", "transformers", "triton", "wandb"),
}


def start(code: str, *typed: str, expect: int = 0) -> tuple[set[str], str]:
    """The modules a Python process of its own names at its end, and what else it says."""
    output = run(sys.executable, "-c", code, *typed, expect=expect)
    (names,) = (line for line in output.splitlines() if line.startswith("loaded: "))
    return set(names.split()[1:]), output.replace(names, "")


@pytest.mark.parametrize(
    ("typed", "answer", "code"),
    [
        (["--help"], "Groups and their options", 0),
        (["--cfg", "job"], "matmul_precision: highest", 0),
        (["modle=sigma"], "error: The config has no key 'modle'; did you mean 'model'?", 1),
    ],
    ids=["help", "config", "slip"],
)
def test_an_answer_without_a_run_takes_neither_pytorch_nor_lightning(
    typed: list[str], answer: str, code: int
) -> None:
    loaded, output = start(MAIN, *typed, expect=code)
    assert answer in output
    assert not loaded & HEAVY


@pytest.mark.slow
def test_a_run_loads_what_it_is_configured_for(data: Path, tmp_path: Path) -> None:
    loaded, output = start(MAIN, *arguments(tmp_path, data, "trainer.fast_dev_run=true"))
    assert "GPU available" not in output  # Lightning's notices, by hydra.job_logging
    assert {"torch", "lightning"} <= loaded
    assert not loaded & {"optuna", "scipy", "tensorboard", "transformers", "wandb"}


@pytest.mark.slow
def test_what_was_answered_for_torchmetrics_alone_is_as_it_was() -> None:
    pytest.importorskip("scipy")
    loaded, _ = start("""
import gc, sys
from sigma.environment import UNUSED, load_lightning
load_lightning()
print("loaded:", *sys.modules)
assert gc.isenabled()
from lightning_utilities.core.imports import RequirementCache, module_available, package_available
assert package_available("scipy") and module_available("scipy") and RequirementCache("scipy")
from torchmetrics.functional.audio import permutation_invariant_training
""")
    assert not loaded & {"scipy", "transformers"}
