"""Docstrings of modules as Markdown; a Griffe extension for mkdocstrings.

They are written as text: equations indented, lists with a hanging indent and without empty lines
between their points. Markdown would run such points together, and read a star as emphasis.
"""

import re
from typing import Any

from griffe import Extension, Module

# "(4-6) text", "- text" or "name=value    text": a point, and where its text begins.
POINT = re.compile(r"(\([\d, -]+\)|-) +|(\S+)  +")
STARS = re.compile(r"\*\w+\*|\*\*|\*")


class TextDocstrings(Extension):
    def on_module(self, *, mod: Module, **kwargs: Any) -> None:
        if mod.docstring is not None:
            mod.docstring.value = "\n\n".join(map(markdown, mod.docstring.value.split("\n\n")))


def markdown(block: str) -> str:
    """One block of text, up to an empty line, as Markdown."""
    if block.startswith("    "):
        return block
    lines: list[str] = []
    inside = False  # a point of a list
    for line in block.splitlines():
        point = POINT.match(line)
        if point:
            label = f"`{point[2]}`: " if point[2] else f"{point[1]} ".removeprefix("- ")
            lines += ["", f"- {label}{escaped(line[point.end() :])}"]
        elif line.startswith(" ") and inside:
            lines.append(f"    {escaped(line.strip())}")
        elif line.startswith("    "):  # an equation amid the text
            lines += ["", line, ""]
        else:
            lines += ["", escaped(line)] if inside else [escaped(line)]
        inside = bool(point) or (inside and line.startswith(" "))
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Stars that are no emphasis, but for those in code, escaped."""
    parts = text.split("`")
    parts[::2] = [STARS.sub(lambda s: s[0] if len(s[0]) > 1 else r"\*", p) for p in parts[::2]]
    return "`".join(parts)
