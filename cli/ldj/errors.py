"""Errors of the command line.

```
LdjError
├── DemoError           the demo can't go on
├── FollowTimeoutError  a job had not finished in time
├── KubectlError        kubectl ended with an error
├── PrometheusError     Prometheus can't answer
└── QuickstartError     a program of the quickstart failed
```

Every message says what went wrong and what to do; `ldj` prints it without a traceback.
"""

from __future__ import annotations


class LdjError(Exception):
    """Anything that a user of the command line can be told in a sentence."""


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
