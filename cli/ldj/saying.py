"""Sentences for the user, on standard error, each with a word that says what it is."""

from __future__ import annotations

import enum

import rich.console


class Word(enum.Enum):
    """What a sentence is, and how that word looks."""

    ERROR = ("error", "bold red")
    WARNING = ("warning", "yellow")
    NOTE = ("note", "yellow")
    DROPPED = ("dropped", "yellow")
    VALID = ("valid", "green")


def console(*, stderr: bool = True) -> rich.console.Console:
    """A console that breaks no lines, so that sentences can be searched."""
    return rich.console.Console(stderr=stderr, highlight=False, soft_wrap=True)


def say(to: rich.console.Console, word: Word, text: str, *, where: str = "") -> None:
    """Print one sentence.

    Args:
        to: the console.
        word: what it is.
        text: the sentence, printed as it is.
        where: what it is about, before the word.
    """
    name, style = word.value
    if where:
        to.print(f"{printable(where)}: ", markup=False, end="")
    to.print(f"{name}:" if text else name, style=style, end=" " if text else "")
    to.print(printable(text), markup=False)


def printable(text: str) -> str:
    """The text on one line: a file's line breaks and terminal codes are shown, not obeyed."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
