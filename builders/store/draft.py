"""What a publisher fills."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from builders.errors import ArtifactError
from builders.keys import Json
from builders.store.shelf import Entry


@dataclass(kw_only=True)
class Draft:
    """An entry in the making: write files below `path`."""

    path: Path
    metadata: dict[str, Json] = field(default_factory=dict)
    """What should be known of the artifact but does not change its key."""
    published: Entry | None = None

    @property
    def entry(self) -> Entry:
        """What the draft became."""
        if self.published is None:
            raise ArtifactError(f"{self.path}: not published yet; leave the publish block first")
        return self.published
