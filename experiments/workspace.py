"""A W&B report with one section for each table and figure of the paper, filled by the runs there.

    python -m experiments.workspace --project sigma [--entity team] [--datasets beauty games]

A section shows the runs of a W&B group (config key ``group``, such as ``table2``) and data set. A
run that several experiments share has the group of the one that ran it first, so these few are
found by their settings.
"""

import argparse
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import wandb

from experiments.grid import expand
from sigma.callbacks.wandb_settings import choose_mode, has_login
from sigma.errors import UserError
from sigma.runs.identity import identity
from sigma.runs.messages import explained, one_line

try:
    from wandb_workspaces import expr
    from wandb_workspaces.reports import v2 as wr
except ImportError:
    raise SystemExit("error: pip install -e '.[wandb]' brings what writes the report.") from None

PAPERS, BEAUTY = ("yelp", "sports", "beauty", "games", "ml_1m"), ("beauty",)
TEST = ("test/ndcg@10", "test/hr@10", "test/mrr@10")
BY_LENGTH = tuple(f"test/{g}/{m}@10" for m in ("ndcg", "hr") for g in ("short", "medium", "long"))
COST = ("efficiency/train_samples_per_second", "efficiency/peak_memory_bytes")
# Runs that several experiments ask for, as overrides: the first to run one gives it its group.
SIGMA = ("experiment=table4_ablation", "variant=whole")
RELEASED = ("experiment=released_vs_paper", "variant=whole")
MENDED = ("experiment=released_vs_paper", "variant=paper")
# Runs that differ in these are of different protocols, and are never averaged.
PROTOCOL = ("dataset.max_length", "dataset.split", "evaluation.monitor")
# What sets such a run apart from searches and short runs, beside the model's own settings.
TRAINING = ("task.optimizer.lr", "trainer.max_epochs")


class Section(NamedTuple):
    """One table or figure: ``metrics`` of the summary as bars, a panel each.

    They are of these W&B ``groups`` (none for all) and of ``shared`` runs, averaged by the values
    of the config keys ``by``, or with ``over`` points over this config key. ``lines`` are metrics
    over epochs, ``tables`` of the summary.
    """

    title: str
    groups: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    shared: tuple[tuple[str, ...], ...] = ()
    by: tuple[str, ...] = ("model.name",)
    datasets: tuple[str, ...] = PAPERS
    over: str = ""
    lines: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()


ABLATION, LAYERS = ("model.partial_flip", "model.gate", "model.gru"), ("model.num_layers",)
OVERALL = ("table2", "table6")
MENDABLE = ("look_ahead", "flip_until", "cross_gate", "reinit_mamba", "padding_item", "mix")
MENDABLE += ("shared_mamba", "gate_residual")
VARIANT = ("model.name", *(f"model.{name}" for name in MENDABLE))
SECTIONS = (
    Section("Table 2: overall performance", OVERALL, TEST, (SIGMA, RELEASED)),
    Section("Tables 3 and 7: efficiency", ("table3",), (*COST, "efficiency/parameters")),
    Section("Tables 4 and 9: ablation", ("table4",), TEST, (SIGMA,), ABLATION),
    Section("Table 5: layers", ("table5",), (*TEST, *COST), (SIGMA,), LAYERS, BEAUTY),
    Section("Figure 3: length of histories", OVERALL, BY_LENGTH, (SIGMA, RELEASED)),
    Section("Figure 3: ranks", OVERALL, (), (SIGMA, RELEASED), tables=("ranks/by_history",)),
    Section("Figure 5: flip range", ("figure5",), TEST, (SIGMA,), (), BEAUTY, over="model.r"),
    Section("Released code", ("released",), TEST, (RELEASED, MENDED), VARIANT, BEAUTY),
    Section("Fair search", ("fair_search",), ("best/val/ndcg@10",), over="task.optimizer.lr"),
    Section("Learning curves", lines=("val/ndcg@10", "val/hr@10", "train/loss")),
)


def panels(section: Section) -> list[Any]:
    """The section's panels, in rows of two or three."""
    # A panel groups by one key; by several it is grouped with its set of runs.
    by = wr.Config(section.by[0]) if len(section.by) == 1 else None
    panels: list[Any] = [wr.WeavePanelSummaryTable(table_name=name) for name in section.tables]
    for name in section.metrics:
        if section.over:
            x, y = wr.Config(section.over), wr.SummaryMetric(name)
            panels.append(wr.ScatterPlot(title=f"{name} over {section.over}", x=x, y=y))
        else:
            panels.append(wr.BarPlot(metrics=[name], groupby=by, groupby_aggfunc="mean"))
    for name in section.lines:
        panels.append(wr.LinePlot(x="epoch", y=[name], groupby=by, groupby_aggfunc="mean"))
    across = 3 if len(panels) % 3 == 0 else 2
    width = 24 // across
    for at, panel in enumerate(panels):
        panel.layout = wr.Layout(x=at % across * width, y=at // across * 8, w=width, h=8)
    return panels


@cache
def settings(*overrides: str) -> dict[str, Any]:
    """Config keys and values that decide a run's result."""
    return identity(expand(overrides)[0].config)


def runs(section: Section, dataset: str) -> Any:
    """Which runs the section shows of a data set; the report's own project is the default."""

    def having(key: str, value: Any) -> Any:
        # As W&B writes it: ``model.value.r``.
        return expr.Config(expr.groupby_str_to_key(f"config.{key}").name).isin([value])

    either: list[Any] = [expr.Metric("Group").isin(list(section.groups))] if section.groups else []
    for overrides in section.shared:
        run = settings(*overrides, f"dataset={dataset}")
        model = [k for k in run if k.startswith("model.") and k.count(".") == 1 and k[-1] != "_"]
        either.append(expr.And(*(having(k, run[k]) for k in [*model, *TRAINING])))
    # One protocol: bars are means, and must not be of runs that mean different things.
    protocol = settings(f"dataset={dataset}")
    those = [having("dataset.name", dataset), *(having(key, protocol[key]) for key in PROTOCOL)]
    those += [expr.Or(*either)] if either else []
    grouped = [f"config.{key}" for key in section.by] if len(section.by) > 1 else []
    return wr.Runset(name=dataset, filters=expr.And(*those), groupby=grouped)


def report(project: str, entity: str = "", datasets: Sequence[str] | None = None) -> Any:
    """The definition; without ``datasets`` each section has its own."""
    blocks: list[Any] = [wr.TableOfContents()]
    for section in SECTIONS:
        blocks.append(wr.H1(section.title))
        for dataset in datasets or section.datasets:
            grid = wr.PanelGrid(runsets=[runs(section, dataset)], panels=panels(section))
            blocks += [wr.H2(dataset), grid]
    title = "SIGMA: tables and figures"
    return wr.Report(project, entity=entity, title=title, width="fluid", blocks=blocks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--project", default="sigma", help="W&B project of the runs")
    parser.add_argument("--entity", default="", help="its owner; your own default if not given")
    parser.add_argument("--datasets", nargs="+", help="instead of the paper's")
    typed = parser.parse_args()
    with explained():
        if not has_login():
            raise UserError("There is no login to W&B: set WANDB_API_KEY.")
        if choose_mode() in ("offline", "disabled"):
            raise UserError(
                "W&B is told to stay offline (WANDB_MODE, wandb offline or a settings file), and a "
                "report is made online; WANDB_MODE=online allows it."
            )
        try:
            entity = typed.entity or wandb.Api().default_entity
            print(report(typed.project, entity, typed.datasets).save().url)
        except Exception as error:
            raise UserError(f"W&B did not take the report: {one_line(error)}") from error


if __name__ == "__main__":
    main()
