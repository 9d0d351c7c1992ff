"""A W&B report with one section for each table and figure of the paper, filled by the runs there.

    python -m experiments.workspace --project sigma [--entity team] [--datasets beauty games]
    python -m experiments.workspace --print   # the definition as JSON, without a network

A report and not a workspace, because each section needs its own choice of runs. Runs are found by
what ``train.py`` logs: the W&B group (config key ``group``, such as ``table2``) and the data set's
name. A run that several experiments share has the group of the one that ran it first, so these few
are found by their settings. Seeds of a bar are averaged.
"""

import argparse
import importlib.util
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import yaml

from experiments.grid import jobs_of
from sigma.callbacks.wandb_mode import has_login
from sigma.errors import UserError
from sigma.runs.identity import identity
from sigma.runs.messages import explained

if TYPE_CHECKING:
    from wandb_workspaces.reports import v2 as wr

PAPERS = ("yelp", "sports", "beauty", "games", "ml_1m")
TEST = ("test/ndcg@10", "test/hr@10", "test/mrr@10")
GROUPS = ("short", "medium", "long")
TITLES = {
    "efficiency/train_samples_per_second": "training samples/s",
    "efficiency/peak_memory_bytes": "peak memory, bytes",
    "efficiency/train_seconds": "training, s",
    "efficiency/parameters": "parameters",
}
# Runs that several experiments ask for, as overrides: the first to run one gives it its group.
SIGMA = ("experiment=table4_ablation", "variant=whole")
RELEASED = ("experiment=released_vs_paper", "variant=whole")
# Runs that differ in these are of different protocols, and are never averaged.
PROTOCOL = ("dataset.max_length", "dataset.mask_history", "dataset.split")
# What tells such a run from others, beside the model's own settings: searches and short runs.
TOLD = ("task.optimizer.lr", "trainer.max_epochs")


@dataclass(frozen=True)
class Section:
    """One table or figure.

    Args:
        title: the heading.
        groups: W&B groups whose runs it shows; none for all.
        shared: overrides of a run it shows, too, of whatever group, found by its settings.
        by: config keys whose values the bars or lines are; of several, the runs are grouped.
        bars: metrics of the summary, a panel each.
        aggregate: what a bar shows of its runs; their mean is that over seeds.
        lines: metrics over epochs, a panel each.
        over: config key on the horizontal axis of ``points``.
        points: metrics of the summary over ``over``, a panel each.
        tables: W&B tables of the summary.
    """

    title: str
    groups: tuple[str, ...] = ()
    shared: tuple[tuple[str, ...], ...] = ()
    by: tuple[str, ...] = ("model.name",)
    bars: tuple[str, ...] = ()
    aggregate: Literal["mean", "max"] = "mean"
    lines: tuple[str, ...] = ()
    over: str = ""
    points: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    datasets: tuple[str, ...] = field(default=PAPERS)


SECTIONS = (
    Section("Table 2: overall performance", ("table2", "table6"), (SIGMA, RELEASED), bars=TEST),
    Section("Tables 3 and 7: efficiency", ("table3",), bars=tuple(TITLES)),
    Section(
        "Tables 4 and 9: ablation",
        ("table4",),
        (SIGMA,),
        by=("model.partial_flip", "model.gate", "model.gru"),
        bars=TEST,
    ),
    Section(
        "Table 5: layers",
        ("table5",),
        (SIGMA,),
        by=("model.num_layers",),
        bars=(*TEST[:2], "efficiency/train_samples_per_second", "efficiency/peak_memory_bytes"),
        datasets=("beauty",),
    ),
    Section(
        "Figure 3: short, medium and long histories",
        ("table2", "table6"),
        (SIGMA, RELEASED),
        bars=tuple(f"test/{group}/{name}" for name in ("ndcg@10", "hr@10") for group in GROUPS),
        tables=("ranks/by_history",),
    ),
    Section(
        "Figure 5: flip range",
        ("figure5",),
        (SIGMA,),
        over="model.r",
        points=TEST[:2],
        datasets=("beauty",),
    ),
    Section(
        "Released code and paper",
        ("released",),
        (RELEASED, ("experiment=released_vs_paper", "variant=paper")),
        by=("model.name", "variant"),
        bars=TEST,
        datasets=("beauty",),
    ),
    Section(
        "Fair search: every model as well tuned",
        ("fair_search",),
        bars=("best/val/ndcg@10",),
        aggregate="max",
        over="task.optimizer.lr",
        points=("best/val/ndcg@10",),
    ),
    Section("Learning curves", lines=("val/ndcg@10", "val/hr@10", "train/loss")),
)


def panels(section: Section) -> list[Any]:
    """The section's panels, in rows of two or three."""
    from wandb_workspaces.reports import v2 as wr

    # A panel groups by one key, a set of runs by several, and its panels with it.
    by = wr.Config(section.by[0]) if len(section.by) == 1 else None
    found: list[Any] = [
        wr.BarPlot(
            title=TITLES.get(name, name), metrics=[name], groupby=by,
            groupby_aggfunc=section.aggregate,
        )
        for name in section.bars
    ]  # fmt: skip
    found += [
        wr.LinePlot(
            title=name, x="epoch", y=[name], title_x="epoch", groupby=by, groupby_aggfunc="mean",
            groupby_rangefunc="minmax",
        )
        for name in section.lines
    ]  # fmt: skip
    found += [
        wr.ScatterPlot(
            title=f"{name} over {section.over}",
            x=wr.Config(section.over), y=wr.SummaryMetric(name),
        )
        for name in section.points
    ]  # fmt: skip
    found += [wr.WeavePanelSummaryTable(table_name=name) for name in section.tables]
    across = 3 if len(found) % 3 == 0 else 2
    width = 24 // across
    for at, panel in enumerate(found):
        panel.layout = wr.Layout(x=at % across * width, y=at // across * 8, w=width, h=8)
    return found


def settings(overrides: Sequence[str], dataset: str) -> dict[str, Any]:
    """Config keys and values by which a run is found, whoever started it first; of any seed."""
    (job,) = jobs_of(*overrides, f"dataset={dataset}", "seed=0")
    own = re.compile(r"model\.[a-z]\w*")  # not the target, nor what lies deeper
    return {k: v for k, v in identity(job.config).items() if own.fullmatch(k) or k in TOLD}


def protocol(dataset: str, where: Sequence[str]) -> dict[str, Any]:
    """Settings that every run shown of a data set has: its own, or those told by ``where``.

    Raises:
        UserError: not of the form ``key=value``, or no value.
    """
    (job,) = jobs_of(f"dataset={dataset}", "seed=0")
    own = identity(job.config)
    found = {key: own[key] for key in PROTOCOL}
    for condition in where:
        key, equals, value = condition.partition("=")
        if not (key and equals and value):
            raise UserError(f"--where takes key=value, such as dataset.max_length=20: {condition}")
        found[key] = yaml.safe_load(value)
    return found


def runs(section: Section, dataset: str, where: Sequence[str] = ()) -> "wr.Runset":
    """Which runs the section shows of a data set; the report's own project is the default."""
    from wandb_workspaces import expr
    from wandb_workspaces.reports import v2 as wr

    def having(key: str, value: Any) -> "expr.FilterExpr":
        # As W&B writes it: ``model.value.r``.
        return expr.Config(expr.groupby_str_to_key(f"config.{key}").name).isin([value])

    either: list[Any] = [expr.Metric("Group").isin(list(section.groups))] if section.groups else []
    for overrides in section.shared:
        either.append(expr.And(*(having(k, v) for k, v in settings(overrides, dataset).items())))
    # One protocol: bars are means, and must not be of runs that mean different things.
    shared = [having(key, value) for key, value in protocol(dataset, where).items()]
    those: list[Any] = [having("dataset.name", dataset), *shared]
    those += [expr.Or(*either)] if either else []
    grouped = [f"config.{key}" for key in section.by] if len(section.by) > 1 else []
    return wr.Runset(name=dataset, filters=expr.And(*those), groupby=grouped)


def report(
    project: str, entity: str, datasets: Sequence[str] | None = None, where: Sequence[str] = ()
) -> "wr.Report":
    """The whole definition; needs no network.

    Args:
        project: W&B project with the runs, where the report is written.
        entity: who owns it.
        datasets: names as in ``conf/dataset`` for every section; None for the paper's of each.
        where: settings of the runs to show, ``key=value``, in place of the data set's own.

    Raises:
        UserError: wandb-workspaces is not installed, or there is no such data set.
    """
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError(
            "The report is written with the package wandb-workspaces, which is not installed: "
            "pip install 'sigma-rec[wandb]'."
        )
    from wandb_workspaces.reports import v2 as wr

    blocks: list[Any] = [wr.TableOfContents()]
    for section in SECTIONS:
        blocks.append(wr.H1(section.title))
        for dataset in datasets or section.datasets:
            blocks.append(wr.H2(dataset))
            blocks.append(
                wr.PanelGrid(runsets=[runs(section, dataset, where)], panels=panels(section))
            )
    return wr.Report(
        project=project,
        entity=entity,
        title="SIGMA: tables and figures",
        description="Made by python -m experiments.workspace; run it again after a change there.",
        width="fluid",
        blocks=blocks,
    )


def save(made: argparse.Namespace) -> str:
    """Write the report to W&B; returns its address.

    Raises:
        UserError: no login, or W&B cannot be reached or refuses.
    """
    if not has_login():
        raise UserError(
            "There is no login to W&B: set WANDB_API_KEY or run wandb login, or see the "
            "definition with --print."
        )
    try:
        import wandb

        entity = made.entity or wandb.Api().default_entity
        return str(report(made.project, entity, made.datasets, made.where).save().url)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"W&B did not take the report: {reason}") from error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--project", default="sigma", help="W&B project of the runs")
    parser.add_argument("--entity", default="", help="its owner; your own default if not given")
    parser.add_argument("--datasets", nargs="+", help="instead of the paper's")
    parser.add_argument(
        "--where", nargs="*", default=[], metavar="key=value",
        help="only runs with this setting, such as dataset.max_length=20",
    )  # fmt: skip
    parser.add_argument("--print", action="store_true", help="the definition as JSON, no network")
    made = parser.parse_args()
    with explained():
        if made.print:
            model = report(made.project, made.entity, made.datasets, made.where)._to_model()
            definition = model.model_dump(mode="json", by_alias=True, exclude_none=True)
            print(json.dumps(definition, indent=1))
        else:
            print(save(made))


if __name__ == "__main__":
    main()
