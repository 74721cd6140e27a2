"""What can go wrong in the lab, in words for the person who ran it."""

from __future__ import annotations

from rauta.errors import RautaError


class LabError(RautaError):
    """Something that was tried did not work. The message says what was tried, what happened, and what to do."""


class UsageError(LabError):
    """The command line asks for something that does not exist."""


class EnvironmentLacks(LabError):
    """This machine cannot do what was asked. Raised before anything is created."""


class CommandError(LabError):
    """A program that the lab ran failed, or did not finish in time."""


class NotReady(LabError):
    """A condition did not become true before its deadline."""


class NotComparable(LabError):
    """Two runs were made under different conditions. The message names every field that differs."""
