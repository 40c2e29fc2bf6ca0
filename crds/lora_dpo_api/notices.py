"""What a user should hear, though the job runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Notice:
    """A warning or a piece of advice.

    Attributes:
        code: one CamelCase word for programs; reason of the event.
        path: the field, such as `spec.lora.zeroInitB`.
        message: what was found, why it matters, what to do; without the path.
    """

    code: str
    path: str
    message: str

    def __str__(self) -> str:
        """One sentence with its path."""
        return f"{self.path}: {self.message}"
