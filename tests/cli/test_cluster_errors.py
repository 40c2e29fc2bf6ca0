"""What a user hears when the cluster can't do what was asked: a sentence and an exit code, never a traceback.

A server with recorded answers of a real API server stands in for clusters that are broken in ways the local one isn't.
"""

from __future__ import annotations

import dataclasses
import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ldj.main import main
from lora_dpo_api import yaml12

from . import jobs

JOBS = "/apis/training.loradpo.dev/v1alpha1/namespaces/team-a/loradpojobs"


def status(code: int, message: str, **details: str) -> tuple[int, Any]:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}
    return code, body | ({"details": details} if details else {})


FORBIDDEN = status(
    403,
    'loradpojobs.training.loradpo.dev "tiny" is forbidden: User "jane" cannot get resource "loradpojobs" in API group '
    '"training.loradpo.dev" in the namespace "team-a"',
    name="tiny",
    group="training.loradpo.dev",
    kind="loradpojobs",
)
UNKNOWN_USER = status(401, "Unauthorized")
NO_DEFINITION = (404, "404 page not found\n")
NO_SUCH_JOB = status(404, 'loradpojobs.training.loradpo.dev "tiny" not found', name="tiny", kind="loradpojobs")
BROKEN = status(500, "etcdserver: request timed out")


@dataclasses.dataclass
class Answers:
    """The stand-in for the API server.

    Attributes:
        by_request: method and path to status and body; whatever isn't there gets `otherwise`.
        asked: what it was asked, in order.
    """

    address: str = ""
    otherwise: tuple[int, Any] = NO_SUCH_JOB
    by_request: dict[tuple[str, str], tuple[int, Any]] = dataclasses.field(default_factory=dict)
    asked: list[tuple[str, str, Any]] = dataclasses.field(default_factory=list)


@pytest.fixture
def answers() -> Iterator[Answers]:
    recorded = Answers()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            sent = json.loads(self.rfile.read(length)) if length else None
            path = self.path.partition("?")[0]
            recorded.asked.append((self.command, path, sent))
            code, body = recorded.by_request.get((self.command, path), recorded.otherwise)
            text = (body if isinstance(body, str) else json.dumps(body)).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_PATCH = do_GET  # noqa: N815

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        recorded.address = f"http://127.0.0.1:{server.server_port}"
        yield recorded
        server.shutdown()
        thread.join()


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """How the program ended."""

    code: int
    stdout: str
    stderr: str


@dataclasses.dataclass(frozen=True, slots=True)
class Program:
    """`ldj` from its entry point on, in this process, with a kubeconfig of its own."""

    folder: Path
    capture: pytest.CaptureFixture[str]

    def kubeconfig(self, server: str) -> Path:
        file = self.folder / "kubeconfig"
        cluster = {"name": "c", "cluster": {"server": server}}
        context = {"name": "here", "context": {"cluster": "c", "user": "u", "namespace": "team-a"}}
        config = {"apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context]}
        config |= {"users": [{"name": "u", "user": {"token": "secret-token"}}], "current-context": "here"}
        file.write_text(yaml12.dumps(config))
        return file

    def __call__(self, *argv: str | Path) -> Result:
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in argv])
        told = self.capture.readouterr()
        assert "secret-token" not in told.out + told.err
        return Result(int(ended.value.code or 0), told.out, told.err)


@pytest.fixture
def program(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    return Program(tmp_path, capsys)


@pytest.fixture
def ldj(program: Program, answers: Answers) -> Callable[..., Result]:
    config = program.kubeconfig(answers.address)
    return lambda *argv: program(*argv, f"--kubeconfig={config}")


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (FORBIDDEN, 3, 'You may not do this: loradpojobs.training.loradpo.dev "tiny" is forbidden: User "jane"'),
        (UNKNOWN_USER, 3, "The cluster doesn't know you (Unauthorized). Log in again"),
        (
            NO_DEFINITION,
            3,
            "This cluster doesn't know LoraDpoJob (training.loradpo.dev/v1alpha1). Install the operator",
        ),
        (NO_SUCH_JOB, 4, "There is no LoraDpoJob tiny in the namespace team-a."),
        (BROKEN, 3, "The cluster answers with 500: etcdserver: request timed out"),
    ],
    ids=["no permission", "unknown user", "no definition", "no such job", "a broken cluster"],
)
@pytest.mark.parametrize("command", ["status", "suspend"])
def test_a_cluster_that_says_no_is_told_in_a_sentence(
    command: str, answer: tuple[int, Any], code: int, words: str, ldj: Callable[..., Result], answers: Answers
) -> None:
    answers.otherwise = answer
    result = ldj(command, "tiny")
    assert (result.code, len(result.stderr.splitlines())) == (code, 1), result.stderr
    assert result.stderr.startswith(f"error: {words}")


def test_nobody_at_the_address_is_told_in_a_sentence(program: Program) -> None:
    result = program("status", "tiny", "--kubeconfig", program.kubeconfig("http://127.0.0.1:9"))
    assert result.code == 3
    assert "The cluster at http://127.0.0.1:9 doesn't answer" in result.stderr
    assert "`kubectl cluster-info` asks the same" in result.stderr


@pytest.mark.parametrize("content", [None, "", "a: [", "- 1\n", "contexts: 7\n", "{}"])
def test_a_kubeconfig_that_is_none_is_told_in_a_sentence(
    content: str | None, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = program.folder / "kubeconfig"
    if content is not None:
        file.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(file))
    result = program("watch", "--once")
    assert result.code == 3
    assert f"No cluster is known: {file} can't be used" in result.stderr


def test_a_context_that_is_not_there_is_told_in_a_sentence(program: Program) -> None:
    result = program("status", "tiny", "--context=there", "--kubeconfig", program.kubeconfig("http://127.0.0.1:9"))
    assert result.code == 3
    assert "there" in result.stderr


@pytest.mark.parametrize("name", ["", "../pods/x", "a b", "-x/", "Tiny"])
def test_a_word_that_is_no_name_never_becomes_a_path(name: str, ldj: Callable[..., Result], answers: Answers) -> None:
    result = ldj("status", name)
    assert result.code in (2, 4)
    assert answers.asked == []


def test_the_namespace_of_the_context_is_taken_unless_another_is_named(
    ldj: Callable[..., Result], answers: Answers
) -> None:
    ldj("status", "tiny")
    ldj("status", "tiny", "--namespace=team/b")
    assert [path for _, path, _ in answers.asked] == [f"{JOBS}/tiny", f"{JOBS}/tiny".replace("team-a", "team%2Fb")]


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [
        ("suspend", jobs.SUCCEEDED, "tiny has finished (Succeeded): there is nothing to suspend or resume."),
        ("resume", jobs.FAILED, "`ldj retry` tries it again."),
        ("retry", jobs.RUNNING, "tiny is Running: only a job that has failed can be tried again."),
        ("plot", {"phase": "Preparing", "message": "Reading."}, "tiny has no curve yet: it is Preparing, Reading."),
    ],
)
def test_what_makes_no_sense_now_is_refused_and_changes_nothing(
    command: str, status: dict[str, Any], words: str, ldj: Callable[..., Result], answers: Answers
) -> None:
    answers.otherwise = (200, jobs.manifest(**status))
    result = ldj(command, "tiny")
    assert result.code == 1
    assert words in result.stderr
    assert [method for method, _, _ in answers.asked] == ["GET"]


def test_suspend_changes_the_one_field(ldj: Callable[..., Result], answers: Answers) -> None:
    answers.otherwise = (200, jobs.manifest(**jobs.RUNNING))
    assert ldj("suspend", "tiny").stdout == "tiny suspended; `ldj status tiny` tells how it goes\n"
    assert answers.asked[-1] == ("PATCH", f"{JOBS}/tiny", {"spec": {"runPolicy": {"suspend": True}}})
    assert ldj("resume", "tiny").stdout == "tiny is not suspended already\n"


def test_retry_asks_with_an_annotation(ldj: Callable[..., Result], answers: Answers) -> None:
    answers.otherwise = (200, jobs.manifest(**jobs.FAILED))
    assert ldj("retry", "tiny").code == 0
    method, _, sent = answers.asked[-1]
    assert method == "PATCH"
    assert list(sent["metadata"]["annotations"]) == ["training.loradpo.dev/retry"]


def test_a_job_is_data_for_programs(ldj: Callable[..., Result], answers: Answers) -> None:
    answers.otherwise = (200, jobs.manifest(**jobs.RUNNING))
    read = json.loads(ldj("status", "tiny", "-o", "json").stdout)
    assert (read["status"]["phase"], "managedFields" in read["metadata"]) == ("Running", False)
    assert yaml12.loads(ldj("status", "tiny", "-o", "yaml").stdout) == read


def test_changes_are_lines_of_json_for_programs(ldj: Callable[..., Result], answers: Answers) -> None:
    answers.otherwise = (200, {"items": [jobs.manifest(**jobs.RUNNING)], "metadata": {}})
    (line,) = ldj("watch", "--once", "--json").stdout.splitlines()
    read = json.loads(line)
    assert (read["namespace"], read["name"], read["phase"], read["loss"]) == ("team-a", "tiny", "Running", "0.49")


def test_a_picture_that_cannot_be_written_is_told_in_a_sentence(ldj: Callable[..., Result], answers: Answers) -> None:
    answers.otherwise = (200, jobs.manifest(**jobs.RUNNING))
    result = ldj("plot", "tiny", "--png", "/nowhere/x.png")
    assert (result.code, "can't be written" in result.stderr) == (1, True)


def test_the_program_itself_ends_with_a_sentence_and_the_code(program: Program) -> None:
    config = program.kubeconfig("http://127.0.0.1:9")
    as_plugin = Path(sys.executable).with_name("kubectl-ldj")
    answer = subprocess.run([as_plugin, "status", "tiny", f"--kubeconfig={config}"], capture_output=True, text=True)
    assert (answer.returncode, len(answer.stderr.splitlines()), answer.stdout) == (3, 1, "")
    assert answer.stderr.startswith("error: The cluster at http://127.0.0.1:9 doesn't answer")
