"""What the tests of several models share beside ``slow``: a batch, its states, and checks."""

import functools
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from torch import Tensor, nn

from sigma.models.mamba import Mamba
from sigma.ops import Rows, rows_of
from tests.runs.front_door import ROOT

K = 12  # items
MAMBA = functools.partial(Mamba, state_size=3, step_min=0.2, step_max=0.8)


def composed(model: str, *overrides: str) -> DictConfig:
    """The configuration of a run."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", [f"model={model}", *overrides])


def rows(width: int = 7, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Items (5, width) and lengths: a full row, one of one item, short ones."""
    lengths = torch.tensor([width, 1, 2, 3, width - 2])
    items = torch.randint(1, K + 1, (5, width), generator=torch.Generator().manual_seed(seed))
    return items * (torch.arange(width) < lengths[:, None]), lengths


def real(padded: Tensor, lengths: Tensor) -> Tensor:
    """(B, L, …) -> (T, …), what stands at real items, row by row."""
    return padded[torch.arange(padded.shape[1]) < lengths[:, None]]


def packed_rows(items: Tensor, lengths: Tensor) -> tuple[Tensor, Rows]:
    """(B, L) -> the rows' items (T,) end to end, and where they lie among L columns."""
    return real(items, lengths), rows_of(lengths, items.shape[1])


def every_state(model: nn.Module, items: Tensor, lengths: Tensor) -> Tensor:
    """States (T, D) of all items, row by row."""
    flat, among = packed_rows(items, lengths)
    return model(flat, among, torch.arange(len(flat)))


def last_states(model: nn.Module, items: Tensor, lengths: Tensor) -> Tensor:
    """States (B, D) of the last items, which are scored."""
    flat, among = packed_rows(items, lengths)
    return model(flat, among, among.offsets[1:] - 1)


def shake(model: nn.Module, std: float = 0.4) -> None:
    """Move every parameter off its start, where zeros and ones would hide an error.

    Padding's row of the table too: nothing may read it in a model that reads no padding.
    """
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(std * torch.randn(p.shape, generator=g))


def assert_same(model: nn.Module, got: Tensor, want: Tensor) -> None:
    """The same numbers, and the same gradient of every parameter from each of them."""
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
    weight = torch.cos(torch.arange(got.numel(), dtype=torch.float64)).view_as(got)
    parameters = dict(model.named_parameters())
    # The two may have a part in common, such as states that were given to both.
    ours = torch.autograd.grad((got * weight).sum(), parameters.values(), retain_graph=True)
    theirs = torch.autograd.grad((want * weight).sum(), parameters.values())
    for name, a, b in zip(parameters, ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


def assert_equations(
    model: nn.Module,
    row_states: Callable[..., list[Tensor]],
    *args: object,
    width: int = 7,
    batch: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Scores at every real item are those of ``row_states(model, items (L,), n_u, *args)``."""
    items, lengths = batch or rows(width)
    pairs = zip(items, lengths.tolist(), strict=True)
    want = torch.stack([x for row, n in pairs for x in row_states(model, row, n, *args)[:n]])
    want = want @ model.items.weight[1 : K + 1].T + getattr(model, "bias", 0.0)
    assert_same(model, model.logits(every_state(model, items, lengths)), want)
