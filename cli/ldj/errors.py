"""Errors of the command line.

```
LdjError
├── ClusterError          the cluster can't answer
│   ├── UnreachableError      nobody answers, or the kubeconfig leads nowhere
│   ├── ForbiddenError        the user may not do this
│   └── NotInstalledError     the cluster doesn't know LoraDpoJobs
├── NoSuchJobError        there is no job of that name
├── RefusedError          the cluster takes the job, or the change of it, for wrong
├── DemoError             the demo can't go on
├── FollowTimeoutError    a job had not finished in time
├── KubectlError          kubectl ended with an error
├── PrometheusError       Prometheus can't answer
└── QuickstartError       a program of the quickstart failed
```

Every message says what went wrong and what to do; `ldj` prints it without a traceback, and ends with the error's exit
code.
"""

from __future__ import annotations

from typing import ClassVar


class LdjError(Exception):
    """Anything that a user of the command line can be told in a sentence.

    Attributes:
        exit_code: what `ldj` ends with: 1 where the answer is no, 3 where the cluster gave none, 4 where there is no
            such job. 2 is a wrong command line or a file that can't be read.
    """

    exit_code: ClassVar[int] = 1


class ClusterError(LdjError):
    """The cluster can't answer."""

    exit_code = 3


class UnreachableError(ClusterError):
    """Nobody answers at the cluster's address, or there is no kubeconfig that says where it is."""


class ForbiddenError(ClusterError):
    """The cluster knows the user, but the user may not do this; or it doesn't know the user."""


class NotInstalledError(ClusterError):
    """The cluster doesn't know LoraDpoJobs."""


class NoSuchJobError(LdjError):
    """There is no job of that name."""

    exit_code = 4


class RefusedError(LdjError):
    """The cluster refuses the job, or the change of it; the message has its own words."""


class DemoError(LdjError):
    """The demo can't go on."""


class FollowTimeoutError(LdjError):
    """A job had not finished in time; the message has its last state."""


class KubectlError(LdjError):
    """kubectl ended with an error; the message has the command and what kubectl said."""


class PrometheusError(LdjError):
    """Prometheus can't answer; the message has its own words."""


class QuickstartError(LdjError):
    """A program of the quickstart failed; the message has its last words."""
