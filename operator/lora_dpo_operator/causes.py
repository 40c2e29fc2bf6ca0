"""What Kubernetes' sentences mean: the reason in one word, and what to do.

Kubelet, scheduler, Job controller and API server tell in prose why something does not start. The few phrases below are
theirs; what matches none of them is still told in full, only without a hint.
"""

from __future__ import annotations

import dataclasses
import re

from lora_dpo_operator.reasons import FailureClass, Reason


@dataclasses.dataclass(frozen=True)
class Cause:
    """What a sentence means.

    Attributes:
        hint: what to do; `{name}` was filled in with the object that is missing.
    """

    reason: str
    class_: FailureClass
    hint: str = ""


_NAME = r"[\"']?(?P<name>[-a-z0-9.]+)[\"']?"

_PHRASES: tuple[tuple[str, Cause], ...] = (
    (
        rf"persistentvolumeclaim {_NAME} not found",
        Cause(Reason.MISSING_REFERENCE, FailureClass.CONFIG, "create the PersistentVolumeClaim {name}"),
    ),
    (
        r"unbound immediate PersistentVolumeClaims",
        Cause(
            Reason.UNBOUND_VOLUME,
            FailureClass.STORAGE,
            "kubectl get pvc: the claim needs a volume or a storage class that makes one",
        ),
    ),
    (
        rf"[Uu]nable to retrieve some image pull secrets \({_NAME}",
        Cause(
            Reason.MISSING_REFERENCE,
            FailureClass.CREDENTIALS,
            "create the pull secret {name}, or correct spec.podTemplate.imagePullSecrets",
        ),
    ),
    (
        rf"serviceaccounts? {_NAME} not found",
        Cause(
            Reason.MISSING_REFERENCE,
            FailureClass.CONFIG,
            "create the ServiceAccount {name}, or correct spec.podTemplate.serviceAccountName",
        ),
    ),
    (
        r"couldn't find key (?P<name>\S+) in (Secret|ConfigMap)",
        Cause(Reason.MISSING_REFERENCE, FailureClass.CONFIG, "add the key {name}"),
    ),
    (
        rf"secret {_NAME} not found",
        Cause(Reason.MISSING_REFERENCE, FailureClass.CREDENTIALS, "create the Secret {name} in the job's namespace"),
    ),
    (
        rf"configmap {_NAME} not found",
        Cause(Reason.MISSING_REFERENCE, FailureClass.CONFIG, "create the ConfigMap {name} in the job's namespace"),
    ),
    (
        r"exceeded quota: (?P<name>[^,]+)",
        Cause(
            Reason.QUOTA_EXCEEDED,
            FailureClass.INFRASTRUCTURE,
            "kubectl describe quota {name}; it goes on by itself once there is room",
        ),
    ),
    (
        r"violates PodSecurity",
        Cause(
            Reason.REFUSED_BY_CLUSTER,
            FailureClass.CONFIG,
            "keep spec.podTemplate within the namespace's Pod Security level",
        ),
    ),
    (
        r"failed calling webhook \"(?P<name>[^\"]+)\"",
        Cause(
            Reason.WEBHOOK_DOWN,
            FailureClass.INFRASTRUCTURE,
            "the webhook {name} does not answer; see whether its pods run. It goes on by itself once it does",
        ),
    ),
    (
        r"admission webhook \"(?P<name>[^\"]+)\" denied",
        Cause(Reason.REFUSED_BY_CLUSTER, FailureClass.CONFIG, "change what the webhook {name} objects to"),
    ),
    (
        r"ValidatingAdmissionPolicy '(?P<name>[^']+)'.* denied",
        Cause(Reason.REFUSED_BY_CLUSTER, FailureClass.CONFIG, "change what the policy {name} objects to"),
    ),
    (
        r"LocalQueue (?P<name>\S+) doesn't exist",
        Cause(
            Reason.NO_QUEUE,
            FailureClass.CONFIG,
            "correct spec.queueName, or create the LocalQueue {name} in the job's namespace",
        ),
    ),
    (
        r"(?P<name>(Local|Cluster)Queue \S+) (doesn't exist|is inactive)",
        Cause(
            Reason.WAITING_FOR_QUEUE,
            FailureClass.INFRASTRUCTURE,
            "the {name} has to be repaired by whoever owns it: kubectl get localqueues,clusterqueues",
        ),
    ),
    (
        r"insufficient quota for (?P<name>\S+) in flavor \S+, request > maximum capacity",
        Cause(
            Reason.WAITING_FOR_QUEUE,
            FailureClass.CONFIG,
            "the queue will never have so much {name}: ask for a smaller slice, or for more quota",
        ),
    ),
    (
        r"insufficient unused quota",
        Cause(
            Reason.WAITING_FOR_QUEUE,
            FailureClass.INFRASTRUCTURE,
            "others have the quota; it goes on by itself once they are done",
        ),
    ),
    (
        r"workload is deactivated",
        Cause(
            Reason.WAITING_FOR_QUEUE,
            FailureClass.INFRASTRUCTURE,
            "it goes on once spec.active of its workload is true again: kubectl get workloads",
        ),
    ),
    (
        r"401 Unauthorized|403 Forbidden|unauthorized|authorization failed|access denied|insufficient_scope",
        Cause(
            Reason.IMAGE_PULL,
            FailureClass.CREDENTIALS,
            "the registry refuses: correct spec.podTemplate.imagePullSecrets, or the nodes' own access",
        ),
    ),
    (
        r"manifest unknown|failed to resolve (reference|image)|[Ii]nvalidImageName|couldn't parse image|: not found",
        Cause(Reason.IMAGE_PULL, FailureClass.CONFIG, "correct name and tag in spec.podTemplate.image"),
    ),
)


def of(text: str, otherwise: Cause) -> Cause:
    """The cause that a sentence tells of.

    Args:
        text: as Kubernetes wrote it.
        otherwise: what to say where the sentence is none of those known.
    """
    for pattern, cause in _PHRASES:
        found = re.search(pattern, text)
        if found:
            name = found.groupdict().get("name") or ""
            return dataclasses.replace(cause, hint=cause.hint.replace("{name}", name))
    return otherwise
