"""This machine's settings for package indexes, handed to image builds as secrets: they never enter an image."""

from __future__ import annotations

import configparser
import json
import os
from collections.abc import Mapping
from pathlib import Path

_KEYS = ("index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "retries")
_BUNDLES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")


def write(folder: Path) -> dict[str, Path]:
    """Write the settings as files, where there are any.

    Args:
        folder: where to; nobody else may read it.

    Returns:
        The build's secrets: id and file.
    """
    options = pip_options(os.environ)
    secrets: dict[str, Path] = {}
    if bundle := certificates(os.environ):
        secrets["ca"] = bundle
    for name, text in (("pip.conf", pip_conf(options)), ("uv.toml", uv_toml(options))):
        if text:
            file = folder / name
            file.touch(mode=0o600)
            file.write_text(text)
            secrets[name] = file
    return secrets


def certificates(env: Mapping[str, str]) -> Path | None:
    """The bundle of certificate authorities that this machine trusts."""
    named = (env.get("SSL_CERT_FILE"), env.get("PIP_CERT"), *_BUNDLES)
    return next((Path(path) for path in named if path and Path(path).is_file()), None)


def pip_options(env: Mapping[str, str], home: Path | None = None, system: Path = Path("/etc")) -> dict[str, str]:
    """The options of pip about where packages come from: files first, then the environment, as pip itself does."""
    home = home or Path(env.get("HOME", "/root"))
    parser = configparser.RawConfigParser()
    files = (
        *(system / "xdg" / "pip" / "pip.conf", system / "pip.conf"),
        *(home / ".pip" / "pip.conf", home / ".config" / "pip" / "pip.conf"),
        *((Path(env["PIP_CONFIG_FILE"]),) if env.get("PIP_CONFIG_FILE") else ()),
    )
    parser.read([str(file) for file in files])
    options: dict[str, str] = {}
    for section in ("global", "install"):
        if parser.has_section(section):
            options |= {key: value for key, value in parser.items(section) if key in _KEYS}
    for key in _KEYS:
        if value := env.get("PIP_" + key.upper().replace("-", "_")):
            options[key] = value
    return options


def pip_conf(options: Mapping[str, str]) -> str:
    """The options as a pip.conf; empty when there are none."""
    lines = [f"{key} = {' '.join(value.split())}" for key, value in sorted(options.items())]
    return "\n".join(["[global]", *lines, ""]) if lines else ""


def uv_toml(options: Mapping[str, str]) -> str:
    """The options as a uv.toml, since uv doesn't read pip's; empty when there are none that it knows."""
    lines: list[str] = []
    if hosts := options.get("trusted-host", "").split():
        lines.append(f"allow-insecure-host = {json.dumps(hosts)}")
    # A JSON string is a TOML string.
    if index := options.get("index-url"):
        lines += ["[[index]]", f"url = {json.dumps(index)}", "default = true"]
    for extra in options.get("extra-index-url", "").split():
        lines += ["[[index]]", f"url = {json.dumps(extra)}"]
    return "\n".join([*lines, ""]) if lines else ""
