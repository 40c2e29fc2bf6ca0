"""What the admission webhook answers: the same checks as in every reconcile, before the API server takes a job.

The schema and the admission policies refuse most mistakes without the operator. This catches what they cannot say, such
as a topology that no machine type has, while whoever applies the job is still looking. It never changes a job.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lora_dpo_operator import accept
from lora_dpo_operator.observed import Refused
from lora_dpo_operator.settings import Settings

API_VERSION = "admission.k8s.io/v1"
_WARNING_LENGTH = 256
"""Of longer warnings the API server shows no more
(https://kubernetes.io/docs/reference/access-authn-authz/extensible-admission-controllers/#response)."""


class MalformedReviewError(ValueError):
    """A request that is no AdmissionReview of a LoraDpoJob."""


def answer(review: Any, settings: Settings) -> dict[str, Any]:
    """The AdmissionReview that answers another one.

    Raises:
        MalformedReviewError: it is none, or of another version.
    """
    if not isinstance(review, Mapping) or review.get("apiVersion") != API_VERSION:
        raise MalformedReviewError(f"expected an AdmissionReview of {API_VERSION}")
    request = review.get("request")
    if not isinstance(request, Mapping) or not isinstance(request.get("uid"), str):
        raise MalformedReviewError("the AdmissionReview has no request with a uid")
    job = request.get("object")
    if not isinstance(job, Mapping) or not isinstance(job.get("metadata"), Mapping):
        raise MalformedReviewError("the request has no object with metadata")
    response = {"uid": request["uid"], **_verdict(dict(job), request.get("oldObject"), settings)}
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": response}


def _verdict(job: dict[str, Any], before: Any, settings: Settings) -> dict[str, Any]:
    """Allowed or not; what was stored before this version's rules can still be labelled, finished and deleted."""
    if "deletionTimestamp" in job["metadata"] or (isinstance(before, Mapping) and _asked(before) == _asked(job)):
        return {"allowed": True}
    verdict = accept.judge(job, settings)
    if isinstance(verdict, Refused):
        return {"allowed": False, "status": {"code": 422, "reason": "Invalid", "message": verdict.message}}
    return {"allowed": True, "warnings": [str(notice)[:_WARNING_LENGTH] for notice in verdict.notices]}


def _asked(job: Mapping[str, Any]) -> tuple[Any, Any]:
    """What a verdict depends on."""
    return job.get("spec"), (job.get("metadata") or {}).get("labels")
