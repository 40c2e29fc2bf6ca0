"""An image as the rest of the package hands it around."""

from __future__ import annotations

import dataclasses
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True)
class Image:
    """An image built on this machine.

    Attributes:
        name: with a tag that is a hash of everything the image is made from.
        archive: the archive that holds it, if one does.
        layout: the OCI layout that holds it, if one does.
        digest: of its manifest in the layout.
    """

    name: str
    archive: Path | None = None
    layout: Path | None = None
    digest: str = ""
