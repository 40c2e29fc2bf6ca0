from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from lora_dpo_localcluster import dockerfile, errors, jobset, oci, pause, settings, tools

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = """
FROM debian:trixie-slim AS base
RUN echo \\
  hello
FROM base AS packages
COPY <<'SCRIPT' /bin/x
COPY not/an/instruction /here
SCRIPT
COPY requirements/a.txt /a.txt
FROM base AS a
COPY --from=packages /venv /venv
COPY --chown=1:1 src/a src/common /app/
FROM base AS b
COPY src/b /app
"""


def test_a_target_is_made_of_its_own_sources_and_its_parents() -> None:
    assert dockerfile.sources(DOCKERFILE, "a") == ("requirements/a.txt", "src/a", "src/common")
    assert dockerfile.sources(DOCKERFILE, "b") == ("src/b",)


def test_the_key_of_an_image_changes_with_its_sources_alone(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    for path in ("requirements/a.txt", "src/a/x.py", "src/common/x.py", "src/b/x.py"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("1")
    before = dockerfile.key(tmp_path, "a"), dockerfile.key(tmp_path, "b")
    (tmp_path / "src/b/x.py").write_text("2")
    (tmp_path / "src/a/__pycache__").mkdir()
    (tmp_path / "src/a/__pycache__/x.pyc").write_text("compiled")
    assert dockerfile.key(tmp_path, "a") == before[0]
    assert dockerfile.key(tmp_path, "b") != before[1]
    assert dockerfile.key(tmp_path, "a", ("another base",)) != before[0]


def test_the_projects_images_have_only_what_they_need() -> None:
    text = (ROOT / "Dockerfile").read_text()
    lock = "requirements/uv.txt"
    assert dockerfile.sources(text, "operator") == (
        *("crds/lora_dpo_api", "operator/lora_dpo_operator", "requirements/operator.txt", lock),
    )
    assert dockerfile.sources(text, "trainer") == (
        *("crds/lora_dpo_api", "requirements/trainer.txt", lock, "trainer_image/lora_dpo_trainer"),
    )


def test_the_sandbox_program_waits_until_it_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pause"
    file.write_bytes(pause.program(platform.machine()))
    file.chmod(0o755)
    with subprocess.Popen([file]) as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.2)
        process.kill()
    assert process.returncode == -signal.SIGKILL


def test_an_unknown_machine_is_named() -> None:
    with pytest.raises(errors.MissingProgramError, match="s390x"):
        pause.program("s390x")


def test_an_archive_names_its_image_and_holds_its_layer(tmp_path: Path) -> None:
    oci.write_archive(tmp_path / "a.tar", "localhost/x:1", [("x", b"content")], ["/x"])
    with tarfile.open(tmp_path / "a.tar") as archive:
        manifest = json.loads(_read(archive, "manifest.json"))
        config = json.loads(_read(archive, manifest[0]["Config"]))
        assert manifest[0]["RepoTags"] == ["localhost/x:1"]
        assert config["config"]["Entrypoint"] == ["/x"]


def test_a_difference_leaves_out_what_the_reader_has(tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    (rootfs / "etc").mkdir(parents=True)
    (rootfs / "etc" / "hostname").write_text("x")
    layout = tmp_path / "layout"
    digest = oci.write_layout(layout, rootfs, "base")
    manifest, config, layer = oci.blobs(layout, digest)
    oci.write_difference(tmp_path / "d.tar", layout, digest, "localhost/x:1", frozenset({manifest, layer}))
    with tarfile.open(tmp_path / "d.tar") as archive:
        blobs = {name.rpartition("/")[2] for name in archive.getnames() if name.startswith("blobs/")}
        index = json.loads(_read(archive, "index.json"))
    assert blobs == {manifest.removeprefix("sha256:"), config.removeprefix("sha256:")}
    assert index["manifests"][0]["annotations"]["io.containerd.image.name"] == "localhost/x:1"


def test_the_same_files_give_the_same_layout_whenever_they_were_written(tmp_path: Path) -> None:
    rootfs = tmp_path / "rootfs"
    rootfs.mkdir()
    (rootfs / "file").write_text("x")
    first = oci.write_layout(tmp_path / "first", rootfs, "base")
    os.utime(rootfs / "file", (1, 1))
    assert oci.write_layout(tmp_path / "second", rootfs, "base") == first


def test_pips_settings_reach_the_build_and_the_environment_wins(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "pip.conf").write_text("[global]\nindex-url = https://one.invalid/simple\ntimeout = 9\n")
    env = {"PIP_INDEX_URL": "https://two.invalid/simple", "PIP_TRUSTED_HOST": "two.invalid"}
    options = settings.pip_options(env, home=tmp_path, system=tmp_path / "etc")
    assert settings.pip_conf(options) == (
        "[global]\nindex-url = https://two.invalid/simple\ntimeout = 9\ntrusted-host = two.invalid\n"
    )
    assert 'url = "https://two.invalid/simple"\ndefault = true' in settings.uv_toml(options)


def test_a_machine_without_settings_hands_none_in(tmp_path: Path) -> None:
    options = settings.pip_options({}, home=tmp_path, system=tmp_path)
    assert settings.pip_conf(options) == settings.uv_toml(options) == ""


def test_the_key_of_a_tool_is_stable_and_differs_between_modules() -> None:
    keys = [tools.key(module) for module in tools.MODULES]
    assert keys == [tools.key(module) for module in tools.MODULES]
    assert len(set(keys)) == len(keys)


def test_jobsets_webhooks_are_called_by_url_and_only_for_its_pods() -> None:
    source = """
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: mutating-webhook-configuration}
webhooks:
- {name: mjobset.kb.io, clientConfig: {service: {name: s, namespace: n, path: /mutate-jobset}}}
- {name: mpod.kb.io, clientConfig: {service: {name: s, namespace: n, path: /mutate-pod}}}
---
"""
    (made,) = jobset.webhook_manifests(source, b"pem")
    jobsets, pods = made["webhooks"]
    assert jobsets["clientConfig"] == {"url": "https://127.0.0.1:9443/mutate-jobset", "caBundle": "cGVt"}
    assert "objectSelector" not in jobsets
    assert pods["objectSelector"]["matchExpressions"][0]["key"] == "jobset.sigs.k8s.io/jobset-name"


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    member = archive.extractfile(name)
    assert member is not None
    return member.read()
