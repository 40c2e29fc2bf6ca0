from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path

import pytest

from lora_dpo_localcluster import errors, locks, namespace, tools, waiting

MODULE = tools.FAKE_GCS_SERVER
GO = """#!/bin/sh
case "$1" in
env) echo go1.26.8 ;;
build) echo built >> {log}; {build} ;;
esac
"""


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The file with a line for each build; `go` is a script that makes what is asked for."""
    monkeypatch.setenv("LDJ_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    (tmp_path / "bin").mkdir()
    log = tmp_path / "builds"
    log.touch()
    write_go(tmp_path / "bin" / "go", log, 'while [ "$1" != -o ]; do shift; done; touch "$2fake-gcs-server"')
    return log


def write_go(path: Path, log: Path, build: str) -> None:
    path.write_text(GO.format(log=log, build=build))
    path.chmod(0o755)


def test_a_module_is_built_once(builds: Path) -> None:
    first = tools.ensure(print, (MODULE,))
    again = tools.ensure(print, (MODULE,))
    assert first == again
    assert first.program(MODULE, "fake-gcs-server").is_file()
    assert builds.read_text() == "built\n"


def test_what_a_killed_build_left_is_not_used(builds: Path) -> None:
    part = tools.built_folder(MODULE).with_name(f"{tools.built_folder(MODULE).name}.part")
    part.mkdir(parents=True)
    (part / "fake-gcs-server").write_text("half")
    built = tools.ensure(print, (MODULE,))
    assert built.program(MODULE, "fake-gcs-server").read_text() == ""
    assert not part.exists()


def test_a_failed_build_says_what_go_said_and_is_tried_again(builds: Path) -> None:
    go = builds.parent / "bin" / "go"
    good = go.read_text()
    write_go(go, builds, "echo 'missing go.sum entry'; exit 1")
    with pytest.raises(errors.BuildError, match=r"missing go\.sum entry"):
        tools.ensure(print, (MODULE,))
    go.write_text(good)
    assert tools.ensure(print, (MODULE,)).program(MODULE, "fake-gcs-server").is_file()


def test_a_build_without_its_program_is_refused(builds: Path) -> None:
    write_go(builds.parent / "bin" / "go", builds, "true")
    with pytest.raises(errors.BuildError, match="built no fake-gcs-server"):
        tools.ensure(print, (MODULE,))


def test_a_module_may_bring_files_alone(builds: Path) -> None:
    definitions = builds.parent / "module" / "crds"
    definitions.mkdir(parents=True)
    (definitions / "monitor.yaml").write_text("kind: CustomResourceDefinition\n")
    definitions.chmod(0o555)
    go = builds.parent / "bin" / "go"
    found = json.dumps({"Dir": str(definitions.parent)})
    go.write_text(f"#!/bin/sh\n[ \"$1\" = mod ] && echo '{found}' || echo go1.26.8\n")
    copied = tools.Copied("example.com/monitors", "crds", "definitions")
    module = dataclasses.replace(tools.MONITORING, copied=(copied,))
    folder = tools.ensure(print, (module,)).folder(module)
    assert (folder / "definitions" / "monitor.yaml").read_text() == "kind: CustomResourceDefinition\n"
    assert builds.read_text() == ""


def test_a_module_that_cannot_be_fetched_is_said(builds: Path) -> None:
    (builds.parent / "bin" / "go").write_text(
        '#!/bin/sh\n[ "$1" = mod ] && echo \'{"Error": "403 Forbidden"}\' && exit 1 || echo go1.26.8\n'
    )
    with pytest.raises(errors.BuildError, match="403 Forbidden"):
        tools.ensure(print, (tools.MONITORING,))


def test_waiting_ends_when_the_process_that_is_waited_for_has(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("first\nthe reason\n")
    with pytest.raises(errors.NotReadyError, match=r"its process ended.*\n.*\nthe reason"):
        waiting.until(lambda: False, "godot", timeout=60, log=log, alive=lambda: False)


def test_waiting_names_what_did_not_come() -> None:
    with pytest.raises(errors.NotReadyError, match="godot"):
        waiting.until(lambda: False, "godot", timeout=0, interval=0.001)


def test_killed_processes_are_gone_when_kill_returns() -> None:
    with subprocess.Popen(["sleep", "98765"]) as process:
        namespace.kill_all(lambda: namespace.processes_with(["sleep", "98765"]), "the test")
        assert process.wait() == -9


def test_the_lock_is_for_one_at_a_time(tmp_path: Path) -> None:
    with locks.locked(tmp_path / "lock"):
        taken = subprocess.run(["flock", "--nonblock", tmp_path / "lock", "true"], check=False)
        assert taken.returncode == 1
    assert subprocess.run(["flock", "--nonblock", tmp_path / "lock", "true"], check=False).returncode == 0
