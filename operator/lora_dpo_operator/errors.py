"""What can go wrong in the operator.

    OperatorError
    ├── SettingsError            the command line or the environment is wrong
    ├── NameTakenError           an object of that name exists, and is not this job's
    ├── LeadershipLostError      another replica of the operator works now
    ├── GatewayError             the API server did not do what was asked
    │   ├── NotFoundError        404
    │   ├── ConflictError        409: it exists already, another field manager owns it, or another uid
    │   ├── RejectedError        400, 422: it will be refused every time
    │   ├── ForbiddenError       401, 403
    │   └── UnavailableError     429, 5xx, a broken connection, no answer in time or none that is one: worth another try
    │       └── OldDefinitionError   LoraDpoJob's definition has no place for what the status says
    ├── TrialError               the job of `helm test` did not succeed
    └── ProgressError            rank 0 did not answer, or not with a progress report

Nothing here knows kopf: `handlers` translates at the edge.
"""

from __future__ import annotations


class OperatorError(Exception):
    """Base of every error that the operator raises on purpose."""


class SettingsError(OperatorError):
    """The command line or the environment is wrong."""


class NameTakenError(OperatorError):
    """An object of the name that this job needs belongs to someone else.

    Attributes:
        passing: to a deleted job of the same name, whose objects are on their way out.
    """

    def __init__(self, kind: str, name: str, owner: str, *, passing: bool = False) -> None:
        self.kind = kind
        self.name = name
        self.passing = passing
        super().__init__(
            f"{kind} {name} still belongs to an earlier {owner}, which was deleted; this job goes on once it is gone"
            if passing
            else f"{kind} {name} exists already and belongs to {owner}; delete it, or give this job another name"
        )


class LeadershipLostError(OperatorError):
    """Another replica of the operator works now, or may begin to: this one must not write any more."""


class GatewayError(OperatorError):
    """The API server did not do what was asked.

    Attributes:
        status: the HTTP status, 0 when there was no answer.
        reason: the API server's own sentence.
    """

    def __init__(self, verb: str, what: str, status: int, reason: str) -> None:
        self.verb = verb
        self.what = what
        self.status = status
        self.reason = reason
        super().__init__(f"{verb} {what}: {reason}" + (f" (HTTP {status})" if status else ""))


class NotFoundError(GatewayError):
    """There is no such object."""


class ConflictError(GatewayError):
    """The object exists already, or belongs to another field manager, or has another uid."""


class RejectedError(GatewayError):
    """The API server or an admission webhook refuses the object, and would every time."""


class ForbiddenError(GatewayError):
    """The operator's service account may not do this."""


class UnavailableError(GatewayError):
    """The API server cannot answer now; worth another try."""


class OldDefinitionError(UnavailableError):
    """The cluster's definition of LoraDpoJob is an earlier release's; worth another try once it is replaced."""

    def __init__(self, verb: str, what: str, status: int, reason: str) -> None:
        super().__init__(
            verb,
            what,
            status,
            f"the cluster's definition of LoraDpoJob is older than this operator: {reason}. Install the definition of "
            "the operator's release: helm upgrade with crds.enabled=true, or kubectl apply",
        )


class TrialError(OperatorError):
    """The job of a trial did not succeed."""


class ProgressError(OperatorError):
    """Rank 0 did not answer, or not with a progress report."""
