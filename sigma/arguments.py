"""What arguments may be: ranges stand in their annotations, and ``checked`` holds calls to them.

The command line reads the same annotations before anything is built (``sigma.runs.check``).
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, validate_call


def file_name(name: str) -> str:
    """The name, if a file or folder may have it, with an ending and a digest behind.

    Raises:
        ValueError: it would be a path, or none that every file system takes.
    """
    bad = {"/", "\\"} & set(name) or name in (".", "..") or not name.isprintable()
    if bad or len(name.encode()) > 100:
        raise ValueError("a name for files: at most 100 bytes, without / and \\ and line ends")
    return name


Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Distribution = Literal["uniform", "popularity"]  # of negatives

Name = Annotated[str, AfterValidator(file_name)]  # of a data set or a model

checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))
