"""Reasons of conditions and events, in one place: programs and alerts depend on them."""

from __future__ import annotations

import enum


class Reason(enum.StrEnum):
    """One word for programs."""

    ACCEPTED = "Accepted"
    INVALID_SPEC = "InvalidSpec"
    NAME_TAKEN = "NameTaken"
    REFUSED_BY_CLUSTER = "RefusedByCluster"
    QUOTA_EXCEEDED = "QuotaExceeded"
    WEBHOOK_DOWN = "WebhookDown"
    CONTROLLER_DOWN = "JobSetControllerDown"

    PREPARING = "Preparing"
    PREPARED = "Prepared"
    PREPARE_WAITS = "PrepareWaits"
    PREPARE_FAILED = "PrepareFailed"
    PREPARE_TIMEOUT = "PrepareTimeout"
    NO_REPORT = "NoReport"
    MISSING_REFERENCE = "MissingReference"
    IMAGE_PULL = "ImagePullFailed"
    UNSCHEDULABLE = "Unschedulable"
    UNBOUND_VOLUME = "UnboundVolume"

    WAITING_FOR_QUEUE = "WaitingForQueue"
    WAITING_FOR_CAPACITY = "WaitingForCapacity"
    SCHEDULED = "Scheduled"
    NO_KUEUE = "KueueNotInstalled"
    NO_QUEUE = "LocalQueueNotFound"

    SLICE_CREATED = "SliceCreated"
    INITIALIZING = "Initializing"
    TRAINING = "Training"
    RESTARTING = "Restarting"
    PREEMPTED = "Preempted"
    TRAINED = "Trained"

    SUSPENDED = "SuspendedByUser"
    RESUMED = "Resumed"

    REACHABLE = "Reachable"
    UNREACHABLE = "Unreachable"

    FINITE = "Finite"
    NON_FINITE = "NonFinite"
    STALLED = "Stalled"

    SIMULATED = "SimulatedTpu"

    EXPORTING = "Exporting"
    EXPORT_FAILED = "ExportFailed"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    SLICE_FAILED = "SliceFailed"
    QUEUE_TIMEOUT = "QueueTimeout"
    STARTUP_TIMEOUT = "StartupTimeout"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    OUT_OF_MEMORY = "OutOfMemory"
    CRASHED = "Crashed"
    CRASH_LOOP = "CrashLoop"
    RETRIED = "Retried"
    MAINTENANCE = "HostMaintenance"
    NO_MAINTENANCE = "NoneAnnounced"
    SPEC_CHANGED = "SpecChangedWhileRunning"
    KILLED = "Killed"


class FailureClass(enum.StrEnum):
    """Whose matter a failure is."""

    CONFIG = "Config"
    DATA = "Data"
    STORAGE = "Storage"
    CREDENTIALS = "Credentials"
    ENVIRONMENT = "Environment"
    OUTPUT = "Output"
    MODEL = "Model"
    TRAINING = "Training"
    INFRASTRUCTURE = "Infrastructure"
    DEADLINE = "Deadline"
    INTERNAL = "Internal"
