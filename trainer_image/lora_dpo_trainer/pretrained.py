"""Where a pretrained checkpoint or tokenizer comes from: a hub id, an fsspec URL, or a local folder."""

from __future__ import annotations

import dataclasses
import fnmatch
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_dpo_trainer import chat, errors, hub, storage

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
CONFIGS = ("config.json", "generation_config.json")
_INDEX = "model.safetensors.index.json"
_COPY_AGAIN = "Copy the checkpoint again."
_SAMPLES = 16
_SAMPLE_BYTES = 1 << 16


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A folder in the Hugging Face layout, wherever it lies.

    Attributes:
        name: As the user wrote it: hub id, URL or path.
        revision: Commit, branch or tag; for hub ids only.
    """

    name: str
    revision: str | None = None

    @property
    def is_hub(self) -> bool:
        """Whether this is a hub id: `org/model`, and no folder of that name here."""
        return "://" not in self.name and not self.name.startswith(("/", ".", "~")) and not Path(self.name).exists()

    def names(self) -> tuple[str, ...]:
        """Names of the files in it.

        Raises:
            ModelNotFound: there is nothing.
        """
        found = self._hub_info()[1] if self.is_hub else storage.children(self.name)
        if not found:
            raise errors.ModelNotFound(f"There is no checkpoint at {self.name}: the folder is missing or empty.")
        return found

    def read(self, names: Sequence[str]) -> dict[str, bytes]:
        """The contents of those of the named (small) files that exist."""
        present = [name for name in names if name in self.names()]
        if self.is_hub:
            folder = self.local_folder(present)
            return {name: (folder / name).read_bytes() for name in present}
        return {name: storage.read_bytes(storage.join(self.name, name)) for name in present}

    def config(self) -> dict[str, Any]:
        """The model's `config.json`.

        Raises:
            ModelNotFound: there is none, or it is no JSON object.
        """
        content = self.read(["config.json"]).get("config.json")
        if content is None:
            raise errors.ModelNotFound(f"There is no config.json in {self.name}.")
        try:
            value = json.loads(content)
        except ValueError as error:
            raise errors.ModelNotFound(f"{self.name}/config.json is not JSON: {error}.") from error
        if not isinstance(value, dict):
            raise errors.ModelNotFound(f"{self.name}/config.json is not a JSON object.")
        return value

    def require_weights(self) -> None:
        """Raise ModelNotFound unless there are safetensors, all of them, and each whole (the hub's are)."""
        names = self.names()
        files = [name for name in names if fnmatch.fnmatch(name, "*.safetensors")]
        if not files:
            raise errors.ModelNotFound(f"There is no *.safetensors file in {self.name}.")
        if self.is_hub:
            return
        lost = sorted(self._listed() - set(names))
        if lost:
            raise errors.ModelNotFound(f"{self.name} has no {lost[0]}, which {_INDEX} lists.", hint=_COPY_AGAIN)
        for name in files:
            fault = _fault(storage.join(self.name, name))
            if fault is not None:
                raise errors.ModelNotFound(f"{name} in {self.name} is not whole: {fault}.", hint=_COPY_AGAIN)

    def _listed(self) -> set[str]:
        """Files that the index names, where there is one."""
        content = self.read([_INDEX]).get(_INDEX)
        if content is None:
            return set()
        try:
            return set(json.loads(content)["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise errors.ModelNotFound(f"{_INDEX} in {self.name} has no weight_map.", hint=_COPY_AGAIN) from error

    def digest(self) -> str:
        """Hex digest of the weights: the commit of a hub id, else of the files' checksums."""
        if self.is_hub:
            return hashlib.sha256(f"{self.name}@{self._hub_info()[0]}".encode()).hexdigest()
        parts = [
            f"{name}={_weights_identity(storage.join(self.name, name))}"
            for name in self.names()
            if name == "config.json" or fnmatch.fnmatch(name, "*.safetensors")
        ]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    def local_folder(self, patterns: Sequence[str]) -> Path:
        """A folder on this machine with the files that match; a local one is returned as it is."""
        if self.is_hub:
            return self._hub_download(patterns)
        if storage.is_local(self.name):
            return storage.local_path(self.name)
        key = hashlib.sha256(self.name.encode()).hexdigest()[:16]
        folder = Path(tempfile.gettempdir()) / "loradpo" / f"base-{key}"
        for name in self.names():
            if any(fnmatch.fnmatch(name, pattern) for pattern in patterns) and not (folder / name).exists():
                storage.download(storage.join(self.name, name), folder / name)
        return folder

    def _hub_info(self) -> tuple[str, tuple[str, ...]]:
        import huggingface_hub
        from huggingface_hub import errors as hub_errors

        try:
            info = hub.ask(
                lambda: huggingface_hub.HfApi().model_info(self.name, revision=self.revision), f"the model {self.name}"
            )
        except (
            hub_errors.RepositoryNotFoundError,
            hub_errors.RevisionNotFoundError,
            hub_errors.HFValidationError,
        ) as e:
            raise errors.ModelNotFound(
                f"The hub has no model {self.name} at revision {self.revision or 'main'}, and there is no such folder.",
                hint="Check initialize_from_hf and revision; a private or gated model needs HF_TOKEN with access.",
            ) from e
        return str(info.sha), tuple(sorted(sibling.rfilename for sibling in info.siblings or ()))

    def _hub_download(self, patterns: Sequence[str]) -> Path:
        import huggingface_hub
        from huggingface_hub import errors as hub_errors

        try:
            folder = hub.ask(
                lambda: huggingface_hub.snapshot_download(
                    self.name, revision=self.revision, allow_patterns=list(patterns), max_workers=4
                ),
                f"the files of {self.name}",
            )
        except hub_errors.GatedRepoError as error:
            raise errors.MissingCredentials(
                f"The model {self.name} is gated.", hint="Set HF_TOKEN to a token of an account that was given access."
            ) from error
        return Path(folder)


def load_tokenizer(
    source: Pretrained, *, template: str | None = None, mask_user_turns: bool = True
) -> chat.ChatTokenizer:
    """Read a tokenizer with its chat template, offline where the files are reachable."""
    files = source.read(chat.TOKENIZER_FILES)
    return chat.load(files, where=source.name, template=template, mask_user_turns=mask_user_turns)


def _fault(url: str) -> str | None:
    """What is wrong with the length of a safetensors file; its header says how long it must be.

    The format: 8 bytes with the header's length, the header as JSON, the tensors
    (https://huggingface.co/docs/safetensors/index#format).
    """
    found = storage.size(url)
    with storage.open_read(url) as file:
        length = int.from_bytes(file.read(8), "little")
        if length > found - 8:
            return f"its header would be longer than the file of {found} bytes"
        try:
            tensors = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
            wanted = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError):
            return "it does not begin with a header of the format"
    return None if wanted == found else f"it has {found} of {wanted} bytes"


def _weights_identity(url: str) -> str:
    """Identity of a large file; a local one by its size and samples, for hashing 100 GB takes minutes."""
    if not storage.is_local(url):
        return storage.identity(url)
    path = storage.local_path(url)
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for index in range(_SAMPLES):
            file.seek(max(size - _SAMPLE_BYTES, 0) * index // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()
