"""Faults that are found before a slice is held: at the door, by the operator, or by the preparation's pod.

All of them are made at once, so that they wait side by side; each test then looks at one.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from lora_dpo_api.status import ConditionType, JobPhase
from lora_dpo_localcluster.image import Image

from . import outside
from .conftest import Bucket, Kubectl, wait_for
from .loradpojobs import JOB_LABEL, MODEL, PHASE_LABEL, Job, Operator, manifest, upload_model
from .outside import Outside
from .slice_time import SliceTime, measured

V5P = {"machineType": "ct5p-hightpu-4t", "topology": "2x2x2"}
EIGHT = {"numTrainSteps": 6, "trainBatchSize": 8}


def on(tpu: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"cpu": None, "tpu": tpu, "trainer": EIGHT, **more}


def mounted(volume: dict[str, Any]) -> dict[str, Any]:
    pod = {"volumes": [{"name": "x"} | volume], "volumeMounts": [{"name": "x", "mountPath": "/x"}]}
    return {"podTemplate": pod}


AT_THE_DOOR = {
    "an ambiguous topology": (on({"topology": "2x4"}), "topology needs machineType"),
    "spot with a reservation": (
        on(V5P | {"capacity": {"type": "spot", "reservation": "r"}}),
        "needs the name of a reservation, and no other type takes one",
    ),
    "a learning rate for fine-tuning": ({"optimizer": {"learningRate": 1e-3}}, "must be at most 5e-5"),
}

NOT_ACCEPTED = {
    "topology": (on(V5P | {"topology": "3x3x3"}), "spec.tpu.topology: 3x3x3 is not a topology of ct5p-hightpu-4t"),
    "slices": (on({"acceleratorType": "v6e-8", "slices": 2}), "spec.tpu.slices: 2"),
    "batch": (on(V5P, trainer={"trainBatchSize": 9}), "9 cannot be split evenly over the 8 devices of v5p 2x2x2"),
}

WAITING = {
    "secret": ({"huggingFace": {"secretRef": "absent"}}, "MissingReference", 'secret "absent" not found'),
    "volume-secret": (
        mounted({"secret": {"secretName": "absent"}}),
        "MissingReference",
        "Hint: create the Secret absent in the job's namespace",
    ),
    "configmap": (
        {"podTemplate": {"envFrom": [{"configMapRef": {"name": "absent"}}]}},
        "MissingReference",
        "Hint: create the ConfigMap absent in the job's namespace",
    ),
    "account": (
        {"podTemplate": {"serviceAccountName": "absent"}},
        "MissingReference",
        "Hint: create the ServiceAccount absent",
    ),
    "claim": (
        mounted({"persistentVolumeClaim": {"claimName": "absent"}}),
        "MissingReference",
        "Hint: create the PersistentVolumeClaim absent",
    ),
    "image": (
        {"podTemplate": {"image": "localhost/absent:1"}},
        "ImagePullFailed",
        "Hint: correct name and tag in spec.podTemplate.image",
    ),
    "pull-secret": (
        {"podTemplate": {"image": "localhost/absent:1", "imagePullSecrets": [{"name": "absent"}]}},
        "MissingReference",
        "Hint: create the pull secret absent",
    ),
    "node": ({"prepare": {"nodeSelector": {"no": "such"}}}, "Unschedulable", "node affinity/selector"),
}

ROWS = (MODEL / "prefs.jsonl").read_text().splitlines()[:20]
QUESTION = {"role": "user", "content": "which one?"}


def row(chosen: str | None, rejected: str | None = "that one") -> str:
    """A pair; None leaves the answer's turn out."""
    answers = {"chosen": chosen, "rejected": rejected}
    turns = {
        side: [{"role": "assistant", "content": text}] if text is not None else [] for side, text in answers.items()
    }
    return json.dumps({side: [QUESTION, *answer] for side, answer in turns.items()})


ROWS_THAT_ARE_NO_PAIRS = {
    "bad-json": ([*ROWS, '{"chosen": ['], "InvalidRow", "1 row: not a JSON object (bad-json.jsonl:21)"),
    "missing-key": ([*ROWS, json.dumps({"chosen": [QUESTION]})], "InvalidRow", "missing field (missing-key.jsonl:21"),
    "no-answer": ([*ROWS, row(None)], "InvalidRow", "does not end with an assistant turn (no-answer.jsonl:21"),
    "empty-side": ([row("")] * 20, "NotEnoughPairs", "left out: 20 rows: an empty answer (empty-side.jsonl:1"),
    "equal-sides": ([row("that one")] * 20, "NotEnoughPairs", "20 rows: chosen and rejected are the same"),
    "too-long": ([*ROWS, row("a" * 500)], "PairTooLong", "longer than train_seq_len (too-long.jsonl:21"),
}


def data(bucket: str, file: str = "train", template: str | None = None, **more: Any) -> dict[str, Any]:
    component: dict[str, Any] = {"source": {"type": "url", "trainUrls": [f"{bucket}/data/{file}.jsonl"]}}
    if template:
        component["format"] = {"type": "preference_chat", "chatTemplate": template}
    return {"data": {"components": {"prefs": component}, **more}}


def refused_by_prepare(world: World) -> dict[str, tuple[dict[str, Any], str, str, str]]:
    """Name → spec, and of the failure: class, reason, words."""
    ours, env = world.bucket.url, world.outside.bucket_env
    hub = {"initializeFromHf": "tiny-org/nothing", "podTemplate": {"env": world.outside.hub_env}}
    rewrites = "{{ messages | length }}{% for message in messages %}{{ message.content }}{% endfor %}"
    return {
        **{name: (data(ours, name), "Data", *told) for name, (_, *told) in ROWS_THAT_ARE_NO_PAIRS.items()},
        "empty-glob": (data(ours, "none-*"), "Data", "DataNotFound", "none-*.jsonl"),
        "no-mask": (data(ours, template=rewrites), "Config", "ConfigError", "The chat template rewrites earlier turns"),
        "tokenizer": (
            data(ours, tokenizer="tiny-org/nothing") | {"podTemplate": {"env": world.outside.hub_env}},
            "Config",
            "ModelNotFound",
            "The hub has no model tiny-org/nothing",
        ),
        "rank": ({"lora": {"r": 64}}, "Config", "ConfigError", "above the smallest dimension of k_proj (64 x 32)"),
        "module": (
            {"lora": {"r": 8, "targetModules": ["q_projection"]}},
            "Config",
            "ConfigError",
            "the nearest is q_proj",
        ),
        "no-bucket": (
            {"output": {"path": f"{ours}-absent/runs"}},
            "Config",
            "ConfigError",
            f"there is no bucket {ours}-absent",
        ),
        "read-only": (
            {"output": {"path": f"{world.read_only}/runs"}, "podTemplate": {"env": env}},
            "Credentials",
            "MissingCredentials",
            f"Cannot write {world.read_only}/runs",
        ),
        "expired": (
            {"output": {"path": f"{world.expired}/runs"}, "podTemplate": {"env": env}},
            "Credentials",
            "MissingCredentials",
            f"{world.expired}/runs",
        ),
        "hub-id": (hub, "Config", "ModelNotFound", "The hub has no model tiny-org/nothing at revision main"),
        "gated": (
            hub | {"initializeFromHf": "tiny-org/gated"},
            "Credentials",
            "MissingCredentials",
            "The model tiny-org/gated is gated",
        ),
        "occupied": (
            {"output": {"path": f"{ours}/runs/owner"}},
            "Output",
            "OutputOccupied",
            f"{ours}/runs/owner",
        ),
        "other-base": (
            {"initializeFromHf": f"{ours}/shallow", "adapter": {"initFrom": f"{ours}/adapter"}},
            "Config",
            "ConfigError",
            "belongs to another base than initialize_from_hf: it adapts layer 2, and this model has 2",
        ),
        "too-large": (
            on({"machineType": "ct5lp-hightpu-8t", "topology": "2x4"}, initializeFromHf=f"{ours}/huge"),
            "Config",
            "OutOfDeviceMemory",
            "The model is too large for the slice (v5e 2x4, 8 chips)",
        ),
    }


REFUSED_BY_PREPARE = (
    *ROWS_THAT_ARE_NO_PAIRS,
    *("empty-glob", "no-mask", "tokenizer", "rank", "module"),
    *("no-bucket", "read-only", "expired", "hub-id", "gated", "occupied", "other-base", "too-large"),
)

OTHER_SIZES = {
    "shallow": {"num_hidden_layers": 2},
    "huge": {
        "hidden_size": 8192,
        "intermediate_size": 28_672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}
"""Models whose config.json claims another size than the weights have, which are not read in prepare."""

TOO_LATE = {"huggingFace": {"secretRef": "absent"}, "prepare": {"timeout": "15s"}}


@dataclasses.dataclass(frozen=True, slots=True)
class World:
    """Where the faulty jobs find their data, and don't.

    Attributes:
        read_only: a bucket that takes nothing.
        expired: a bucket whose credentials have expired.
    """

    namespace: str
    bucket: Bucket
    outside: Outside
    read_only: str
    expired: str


@pytest.fixture(scope="module")
def world(operator: Operator, kubectl: Kubectl, trainer_image: Image) -> Iterator[World]:
    """A namespace with the servers outside of the cluster, and buckets."""
    namespace = f"t-{uuid.uuid4().hex[:8]}"
    kubectl.text("create", "namespace", namespace)
    wait_for(lambda: kubectl("-n", namespace, "get", "serviceaccount", "default").returncode == 0, "its account")
    servers = outside.start(kubectl, namespace, trainer_image)
    storage = kubectl.cluster.bucket
    urls = [storage.create(f"test-{kind}-{uuid.uuid4().hex[:12]}") for kind in ("ours", "read-only", "expired")]
    bucket = Bucket(urls[0], storage)
    upload_model(bucket)
    for name, (lines, *_) in ROWS_THAT_ARE_NO_PAIRS.items():
        bucket.write(f"data/{name}.jsonl", "\n".join(lines).encode())
    config = json.loads((MODEL / "base" / "config.json").read_text())
    for name, sizes in OTHER_SIZES.items():
        for file in sorted((MODEL / "base").iterdir()):
            bucket.write(f"{name}/{file.name}", file.read_bytes())
        bucket.write(f"{name}/config.json", json.dumps(config | sizes).encode())
    for file in sorted((MODEL / "adapter_final").iterdir()):
        bucket.write(f"adapter/{file.name}", file.read_bytes())
    for url, rule in zip(urls[1:], ("read-only", "expired"), strict=True):
        servers.rule(url, rule)
    yield World(namespace, bucket, servers, *urls[1:])
    kubectl.text("delete", "namespace", namespace, "--wait=false")


def pull_secret(world: World) -> dict[str, Any]:
    """A Secret that is there, and that the registry refuses."""
    login = {"auth": base64.b64encode(b"somebody:wrong").decode()}
    content = base64.b64encode(json.dumps({"auths": {world.outside.registry: login}}).encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "refused"},
        "type": "kubernetes.io/dockerconfigjson",
        "data": {".dockerconfigjson": content},
    }


@pytest.fixture(scope="module")
def faults(world: World, kubectl: Kubectl) -> Iterator[tuple[str, SliceTime]]:
    """A namespace with every faulty job in it."""
    namespace, bucket = world.namespace, world.bucket.url
    kubectl.text("-n", namespace, "create", "-f", "-", stdin=pull_secret(world))
    image = {"image": f"{world.outside.registry}/private/trainer:1", "imagePullSecrets": [{"name": "refused"}]}
    here = {"prepare": {"nodeSelector": {"kubernetes.io/hostname": world.outside.node}}, "podTemplate": image}
    specs = {name: spec for name, (spec, *_) in (NOT_ACCEPTED | WAITING).items()}
    specs |= {"too-late": TOO_LATE, "refused-pull": here}
    late = {name: spec for name, (spec, *_) in refused_by_prepare(world).items()}
    occupied = late.pop("occupied")
    with measured(kubectl, namespace) as slices:
        owner = Job(kubectl, namespace, "owner")
        owner.apply(manifest("owner", bucket, podTemplate={"nodeSelector": {"no": "such"}}))
        for name, spec in specs.items():
            Job(kubectl, namespace, name).apply(manifest(name, "gs://b", **spec))
        for name, spec in late.items():
            Job(kubectl, namespace, name).apply(manifest(name, bucket, **spec))
        owner.says(ConditionType.PREPARED, "True", "Prepared", timeout=240)
        Job(kubectl, namespace, "occupied").apply(manifest("occupied", bucket, **occupied))
        yield namespace, slices


def test_pods_of_a_slice_would_be_seen(kubectl: Kubectl, faults: tuple[str, SliceTime]) -> None:
    namespace, slices = faults
    labels = {JOB_LABEL: "control", PHASE_LABEL: "train"}
    spec = {"nodeSelector": {"no": "such"}, "containers": [{"name": "x", "image": "localhost/absent:1"}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "control", "labels": labels}, "spec": spec}
    kubectl.text("-n", namespace, "create", "-f", "-", stdin=pod)
    wait_for(lambda: slices.seconds("control") > 0, "the watch to see a pod")
    kubectl.text("-n", namespace, "delete", "pod", "control", "--grace-period=0", "--force")
    # Two readings agree once it counts no longer.
    wait_for(lambda: slices.seconds("control") == slices.seconds("control"), "the watch to see it go")


@pytest.mark.parametrize(("spec", "words"), AT_THE_DOOR.values(), ids=AT_THE_DOOR)
def test_what_can_never_work_is_refused_at_the_door(
    kubectl: Kubectl, faults: tuple[str, SliceTime], spec: dict[str, Any], words: str
) -> None:
    refused = kubectl("-n", faults[0], "apply", "-f", "-", stdin=manifest("tiny", "gs://b", **spec))
    assert refused.returncode != 0
    assert words in refused.stderr


def test_a_name_that_would_break_host_names_is_refused_at_the_door(
    kubectl: Kubectl, faults: tuple[str, SliceTime]
) -> None:
    refused = kubectl("-n", faults[0], "apply", "-f", "-", stdin=manifest("a" * 46, "gs://b"))
    assert "must have at most 45" in refused.stderr


@pytest.mark.parametrize("name", NOT_ACCEPTED)
def test_a_shape_that_does_not_exist_is_not_accepted_and_has_no_pod(
    kubectl: Kubectl, faults: tuple[str, SliceTime], name: str
) -> None:
    namespace, slices = faults
    job = Job(kubectl, namespace, name)
    assert NOT_ACCEPTED[name][1] in job.says(ConditionType.ACCEPTED, "False", "InvalidSpec").message
    assert job.status.phase is JobPhase.PENDING
    assert job.objects() == []
    assert slices.seconds(name) == 0


@pytest.mark.parametrize("name", WAITING)
def test_a_reference_that_is_missing_is_named_with_a_hint_and_holds_no_slice(
    kubectl: Kubectl, faults: tuple[str, SliceTime], name: str
) -> None:
    namespace, slices = faults
    _, reason, words = WAITING[name]
    job = Job(kubectl, namespace, name)
    assert words in job.says(ConditionType.PREPARED, "False", reason).message
    status = job.status
    assert status.phase is JobPhase.PREPARING
    assert words in str(status.message)
    assert job.objects("jobsets") == []
    assert slices.seconds(name) == 0


def test_a_registry_that_refuses_the_pull_secret_is_said(kubectl: Kubectl, faults: tuple[str, SliceTime]) -> None:
    namespace, slices = faults
    job = Job(kubectl, namespace, "refused-pull")
    told = job.says(ConditionType.PREPARED, "False", "ImagePullFailed").message
    assert "Hint: the registry refuses: correct spec.podTemplate.imagePullSecrets" in told
    assert slices.seconds("refused-pull") == 0


@pytest.mark.parametrize("name", REFUSED_BY_PREPARE)
def test_what_prepare_refuses_is_a_failure_with_its_cause_and_holds_no_slice(
    kubectl: Kubectl, world: World, faults: tuple[str, SliceTime], name: str
) -> None:
    namespace, slices = faults
    _, kind, reason, words = refused_by_prepare(world)[name]
    job = Job(kubectl, namespace, name)
    status = job.reaches(JobPhase.FAILED)
    failure = status.failure
    assert failure is not None
    assert (failure.class_, failure.reason, failure.phase) == (kind, reason, "prepare")
    assert words in failure.message
    assert failure.hint
    assert failure.pod
    assert failure.node
    assert failure.exit_code
    assert (status.restarts, job.objects("jobsets")) == (0, [])
    assert slices.seconds(name) == 0


def test_a_preparation_that_waited_too_long_has_failed_of_what_it_waited_for(
    kubectl: Kubectl, faults: tuple[str, SliceTime]
) -> None:
    namespace, slices = faults
    failure = Job(kubectl, namespace, "too-late").reaches(JobPhase.FAILED, timeout=120).failure
    assert failure is not None
    assert (failure.class_, failure.reason, failure.phase) == ("Deadline", "MissingReference", "prepare")
    assert 'secret "absent" not found' in failure.message
    assert slices.seconds("too-late") == 0
