"""The storm's table: a line for everything that must not happen, and how often it did."""

import json
import platform
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from sigma.runs.files import CHECKOUT
from sigma.runs.provenance import git_state

PAGE = CHECKOUT / "docs" / "reliability.md"
HEAD = ("part", "what must not happen", "among", "happened")
BETWEEN = re.compile(r"(<!-- storm -->\n).*?(<!-- /storm -->)", re.DOTALL)


def machine() -> str:
    """Processor, cores and memory in words."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else []
    name = names[0] if names else platform.processor()
    memory = psutil.virtual_memory().total / 2**30
    return f"{name}, {psutil.cpu_count()} cores, {memory:.0f} GiB, {platform.system()}"


def heading(seed: int, minutes: float) -> dict[str, Any]:
    git = git_state(CHECKOUT)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": f"{(git['commit'] or 'unknown')[:7]}{' and changes' if git['dirty'] else ''}",
        "machine": machine(),
        "seed": seed,
        "minutes": minutes,
    }


def title(results: dict[str, Any]) -> str:
    return (
        f"{results['date']}, commit {results['commit']}, {results['machine']}, "
        f"seed {results['seed']}, {results['minutes']:g} minutes"
    )


def lines(results: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """The table's lines, in the columns of ``HEAD``."""
    for name, part in results["parts"].items():
        for what, (times, among) in part["faults"].items():
            yield name, what, f"{part['tried'][among]:,} {among}", f"{times:,}"
        others = part["tried"].keys() - {among for _, among in part["faults"].values()}
        words = [f"{part['tried'][what]:,} {what}" for what in sorted(others)]
        words += [f"{what} {value:,.4g}" for what, value in part["numbers"].items()]
        words += [part["note"]] if part["note"] else []
        if words:
            yield name, f"({'; '.join(words)})", "", ""


def markdown(results: dict[str, Any]) -> str:
    rows = [HEAD, (*("---" for _ in HEAD[:-1]), "---:"), *lines(results)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{title(results)}:\n\n{table}\n"


def write_page(results: Path) -> None:
    """Put a storm's table into ``docs/reliability.md``."""
    table = markdown(json.loads(results.read_text()))
    text = BETWEEN.sub(lambda marks: f"{marks[1]}{table}{marks[2]}", PAGE.read_text())
    PAGE.write_text(text)
