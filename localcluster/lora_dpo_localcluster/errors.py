"""Errors of the local cluster.

```
LocalClusterError
├── InvalidNameError     a cluster name that can't name folders and control groups
├── MissingProgramError  a program of the machine is missing and can't be installed here
├── BuildError           a Go program or an image didn't build
├── CommandError         a command in or about the cluster ended with an error
├── NotReadyError        something didn't come up in time
└── NotRunningError      the cluster isn't up
```

Every message says what went wrong, where to look and what to do; `ldj` prints it without a traceback.
"""

from __future__ import annotations


class LocalClusterError(Exception):
    """Anything that a user of the local cluster can be told in a sentence."""


class InvalidNameError(LocalClusterError):
    """A cluster name that can't name folders and control groups."""


class MissingProgramError(LocalClusterError):
    """A program of the machine is missing and can't be installed here."""


class BuildError(LocalClusterError):
    """A Go program or an image didn't build."""


class CommandError(LocalClusterError):
    """A command in or about the cluster ended with an error."""


class NotReadyError(LocalClusterError):
    """Something didn't come up in time."""


class NotRunningError(LocalClusterError):
    """The cluster isn't up."""
