"""LoraDpoJobs as a cluster holds them, at every point of their lives."""

from __future__ import annotations

import datetime
from typing import Any

from ldj import seen
from ldj.seen import SeenJob

START = datetime.datetime(2026, 1, 1, 12, 0, 0, tzinfo=datetime.UTC)
UID = "11111111-2222-3333-4444-555555555555"
OUTPUT = "gs://bucket/runs/tiny"


def at(seconds: int) -> datetime.datetime:
    """So many seconds after the job was made."""
    return START + datetime.timedelta(seconds=seconds)


def when(seconds: int) -> str:
    """The same, as Kubernetes writes it."""
    return at(seconds).strftime("%Y-%m-%dT%H:%M:%SZ")


def manifest(*, name: str = "tiny", namespace: str = "team-a", made: int = 0, **status: Any) -> dict[str, Any]:
    """A job with this status."""
    return {
        "apiVersion": "training.loradpo.dev/v1alpha1",
        "kind": "LoraDpoJob",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": UID,
            "generation": 1,
            "creationTimestamp": when(made),
            "managedFields": [{"manager": "ldj"}],
        },
        "spec": {"initializeFromHf": "gs://models/tiny", "output": {"path": OUTPUT}, "cpu": {}},
        "status": status,
    }


def job(**fields: Any) -> SeenJob:
    """The same, read."""
    return seen.read(manifest(**fields))


def timeline(*entries: tuple[str, int, int | None, str]) -> list[dict[str, Any]]:
    """Phases with the seconds of their beginning and end, and why they began."""
    return [
        {"phase": phase, "started": when(began), "reason": reason} | ({"ended": when(ended)} if ended else {})
        for phase, began, ended, reason in entries
    ]


CURVE = [
    {"step": step, "loss": loss, "rewardMargin": margin, "accuracy": accuracy}
    for step, loss, margin, accuracy in (
        *((1, 0.6931, 0.0, 0.0), (50, 0.68, 0.027, 0.61), (100, 0.641, 0.112, 0.66), (150, 0.602, 0.214, 0.69)),
        *((200, 0.566, 0.327, 0.72), (250, 0.531, 0.46, 0.74), (300, 0.512, 0.55, 0.75), (350, 0.49, 0.66, 0.775)),
    )
]

RUNNING: dict[str, Any] = {
    "observedGeneration": 1,
    "phase": "Running",
    "message": "Training: step 350 of 2000.",
    "trainerState": "Training",
    "step": 350,
    "totalSteps": 2000,
    "progress": "350/2000",
    "eta": "1h12m",
    "timeline": timeline(
        ("Pending", 0, 3, "Created"),
        ("Preparing", 3, 128, "Preparing"),
        ("Initializing", 128, 300, "SliceCreated"),
        ("Running", 300, None, "Training"),
    ),
    "slice": {"description": "v5p 2x2x1", "slices": 1, "hosts": 1, "chips": 4, "readyHosts": 1},
    "prepared": {
        "digest": "0123456789abcdef",
        "trainPairs": 61135,
        "validationPairs": 2000,
        "droppedPairs": 12,
        "totalSteps": 2000,
        "tokens": 38000000,
    },
    "restarts": 0,
    "preemptions": 1,
    "stepsLost": 14,
    "lastCheckpoint": {"step": 320, "time": when(1000), "path": f"{OUTPUT}/checkpoints/step-00000320"},
    "metrics": {
        "loss": 0.49,
        "rewardMargin": 0.66,
        "accuracy": 0.775,
        "marginPolicy": 12.1,
        "marginRef": 5.5,
        "chosenReward": 0.31,
        "rejectedReward": -0.35,
        "evalLoss": 0.51,
        "evalAccuracy": 0.76,
        "learningRate": 5e-06,
        "gradNorm": 0.81,
        "tokensPerSecond": 182345.0,
        "mfu": 0.41,
        "parameterCount": 8030261248,
        "trainableParameterCount": 167772160,
        "fractionTrainable": 0.0209,
    },
    "curve": CURVE,
    "advice": [{"code": "FlatMargin", "message": "The reward margin has been flat for 100 steps: try 1e-5."}],
}

FAILED: dict[str, Any] = {
    "observedGeneration": 1,
    "phase": "Failed",
    "message": "The data is wrong.",
    "timeline": timeline(("Pending", 0, 2, "Created"), ("Preparing", 2, 40, "Preparing"), ("Failed", 40, None, "Data")),
    "failure": {
        "class": "Data",
        "reason": "InvalidRow",
        "message": "gs://data/train.jsonl line 17: chosen must be a list of messages.\u001b[2J",
        "phase": "prepare",
        "pod": "tiny-prepare-x7k2p",
        "node": "node-1",
        "exitCode": 65,
        "hint": "Mend that line, or set sliceStrategy: drop.",
    },
}

SUCCEEDED: dict[str, Any] = RUNNING | {
    "phase": "Succeeded",
    "message": "The adapter is in gs://bucket/runs/tiny/adapter.",
    "step": 2000,
    "progress": "2000/2000",
    "eta": None,
    "advice": [],
    "timeline": timeline(
        ("Pending", 0, 3, "Created"),
        ("Preparing", 3, 128, "Preparing"),
        ("Running", 300, 9000, "Training"),
        ("Exporting", 9000, 9100, "Exporting"),
        ("Succeeded", 9100, None, "Exported"),
    ),
    "artifacts": [{"kind": "peft", "path": f"{OUTPUT}/adapter", "step": 2000}],
}
