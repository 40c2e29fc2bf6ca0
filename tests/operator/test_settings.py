from __future__ import annotations

import dataclasses

import pytest

from lora_dpo_operator.errors import SettingsError
from lora_dpo_operator.settings import LogFormat, Settings, parse


def test_the_defaults_serve_the_whole_cluster() -> None:
    assert parse([], {}) == Settings()
    assert Settings().namespaces == ()


def test_the_command_line_wins_over_the_environment() -> None:
    environment = {"LORADPO_TRAINER_IMAGE": "trainer:env", "LORADPO_PORT": "9000"}
    found = parse(["--trainer-image", "trainer:line"], environment)
    assert (found.trainer_image, found.port) == ("trainer:line", 9000)


def test_every_setting_can_be_given_both_ways() -> None:
    expected = Settings(
        namespaces=("a", "b"),
        trainer_image="x:1",
        trainer_env=(("A", "1"), ("B", "http://c=d")),
        simulate_tpu=True,
        progress_peers=({"podSelector": {}},),
        port=1,
        lease="system/operator",
        ui=True,
        webhook_certificate="/certificate",
        webhook_port=8443,
        resync_seconds=2,
        progress_seconds=3,
        progress_budget=4,
        recheck_seconds=5,
        serving_seconds=6,
        stalled_seconds=7,
        log_format=LogFormat.TEXT,
        log_level="DEBUG",
    )
    written = {
        "namespaces": "a, b",
        "trainer_image": "x:1",
        "trainer_env": "A=1\nB=http://c=d",
        "simulate_tpu": "true",
        "progress_peers": '[{"podSelector": {}}]',
        "port": "1",
        "lease": "system/operator",
        "ui": "true",
        "webhook_certificate": "/certificate",
        "webhook_port": "8443",
        "resync_seconds": "2",
        "progress_seconds": "3",
        "progress_budget": "4",
        "recheck_seconds": "5",
        "serving_seconds": "6",
        "stalled_seconds": "7",
        "log_format": "text",
        "log_level": "debug",
    }
    assert set(written) == {field.name for field in dataclasses.fields(Settings)}
    assert parse([], {f"LORADPO_{name.upper()}": value for name, value in written.items()}) == expected
    options = [part for name, value in written.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert parse(options, {}) == expected


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("A=1,B=2", (("A", "1"), ("B", "2"))),
        ("NO_PROXY=.local,10.0.0.0/8\n", (("NO_PROXY", ".local,10.0.0.0/8"),)),
        ("A=1\nB=2,3", (("A", "1"), ("B", "2,3"))),
    ],
)
def test_values_on_lines_of_their_own_may_hold_commas(written: str, expected: tuple[tuple[str, str], ...]) -> None:
    assert parse(["--trainer-env", written], {}).trainer_env == expected


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--port", "web", "--port: 'web' is not a number"),
        ("--progress-budget", "0", "--progress-budget: 0 is too small"),
        ("--simulate-tpu", "maybe", "neither true nor false"),
        ("--log-format", "xml", "--log-format: 'xml' is none of json, text"),
        ("--trainer-env", "A", "--trainer-env: 'A' is not NAME=VALUE"),
        ("--progress-peers", "[", "is not JSON"),
        ("--progress-peers", '{"podSelector": {}}', "is not a list of NetworkPolicyPeers"),
        ("--progress-peers", "[{}]", "is not a list of NetworkPolicyPeers"),
        ("--lease", "operator", "--lease: 'operator' is not NAMESPACE/NAME"),
        ("--lease", "a/b/c", "is not NAMESPACE/NAME"),
        ("--trainer-image", " ", "--trainer-image: must not be empty"),
    ],
)
def test_a_wrong_setting_is_named(option: str, value: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        parse([option, value], {})
