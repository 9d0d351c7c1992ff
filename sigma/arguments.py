"""What arguments may be: ranges stand in their annotations, and ``checked`` holds calls to them.

The command line reads the same annotations before anything is built (``sigma.runs.check``).
"""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, validate_call

Count = Annotated[int, Field(ge=1)]
Number = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Distribution = Literal["uniform", "popularity"]  # of negatives

checked = validate_call(config=ConfigDict(arbitrary_types_allowed=True))
