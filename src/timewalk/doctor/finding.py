"""One thing that the doctor looked for."""

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "missing", "absent", "to come"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked for.

    Attributes:
        area: what it belongs to, such as `ffmpeg` or `data sets`.
        name: of the thing.
        state: `ok`; `missing`: the suite cannot do without; `absent`: not here, and not needed;
            `to come`: a stage of the suite fetches or makes it.
        text: what was found.
        remedy: how to get it.
    """

    area: str
    name: str
    state: State
    text: str
    remedy: str | None = None
