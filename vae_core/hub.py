"""Names on the Hugging Face Hub: repositories, addresses and files in them, brought into the Hub's own cache.

Everything is huggingface_hub's (the extra `hub`): progress bar, cache, resuming, tokens, environment variables. It is
imported only for a name that is not a path on this disk.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from .checkpoints.config_file import CONFIG_NAME
from .checkpoints.json_file import MAX_BYTES
from .checkpoints.open_file import weight_map
from .checkpoints.pretrained import snapshot
from .checkpoints.weight_names import (
    EXTENSIONS,
    WEIGHT_SUFFIXES,
    WEIGHTS_STEM,
    variants_in,
    weight_names,
    weights_among,
)
from .errors import CheckpointError, ConfigError, brief, in_one_line
from .file_names import text_of
from .hub_names import HubName, PathLike, content_address, hub_name
from .optional import optional_import
from .regular_files import read_regular

Result = TypeVar("Result")


@dataclass(frozen=True)
class HubOptions:
    """Where in a repository, and how it is fetched: the arguments of that name of diffusers and huggingface_hub."""

    subfolder: str | None = None
    revision: str | None = None
    token: bool | str | None = None
    cache_dir: PathLike | None = None
    local_dir: PathLike | None = None
    force_download: bool = False
    local_files_only: bool = False

    @classmethod
    def split(cls, arguments: Mapping[str, Any]) -> tuple[HubOptions, dict[str, Any]]:
        """The options among some arguments, and the other arguments. Those of older releases are passed over."""
        names = {field.name for field in dataclasses.fields(cls)}
        given = {name: value for name, value in arguments.items() if name in names and value is not None}
        rest = {name: value for name, value in arguments.items() if name not in names and name not in _PASSED_OVER}
        for name in ("subfolder", "revision", "cache_dir", "local_dir"):
            if given.get(name, "") != "" and not text_of(given[name]):
                raise ConfigError(f"{name} is {brief(given[name])}. Give a name, or leave it out.")
        if "use_auth_token" in arguments:
            given.setdefault("token", arguments["use_auth_token"])
        return cls(**given), rest

    def arguments(self) -> dict[str, Any]:
        """For `hf_hub_download`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del values["subfolder"]
        return values


_SECONDS = 20.0  # for an answer of another server
_PASSED_OVER = ("proxies", "resume_download", "user_agent", "mirror", "use_auth_token", "local_dir_use_symlinks")


def on_disk(
    name: PathLike,
    options: HubOptions | None = None,
    *,
    config_only: bool = False,
    variant: str | None = None,
    use_safetensors: bool | None = None,
) -> Path:
    """The path of a file or of a folder, which is downloaded into the Hub's cache if the name is one on the Hub. Of a
    folder on this disk, that of the subfolder in `options`.

    Of a repository, the config and the weights that `variant` and `use_safetensors` ask for are fetched: of itself, of
    the subfolder in `options`, or of its folder `vae`. The path is then that of the folder with the `config.json`.

    Raises:
        CheckpointError: neither on this disk nor on the Hub, or it cannot be fetched; says why.
        ConfigError: `use_safetensors` is none of its three values.
    """
    if use_safetensors not in (None, True, False):
        raise ConfigError(f"use_safetensors is {brief(use_safetensors)}; give True, False or None.")
    found = hub_name(name)
    options = options or HubOptions()
    if found is None:
        return _below(Path(name), options)
    return _Repository(found, options).fetch(config_only, variant, use_safetensors)


def header_on_disk(name: PathLike, folder: Path, options: HubOptions | None = None, variant: str | None = None) -> Path:
    """As `on_disk`, but of a safetensors file on the Hub the header alone is read, by range requests.

    It is written into `folder`, with the size of the whole file and nothing in place of the weights.
    """
    found = hub_name(name)
    options = options or HubOptions()
    if found is None:
        return _below(Path(name), options)
    return _Repository(found, options).fetch_header(folder, variant)


def _below(path: Path, options: HubOptions) -> Path:
    """A path on this disk, or its subfolder if one is asked for."""
    return snapshot(path) / options.subfolder if options.subfolder else path


def fetch_bytes(address: str, most: int, options: HubOptions) -> bytes:
    """The content of an address on any server, by huggingface_hub's session: proxies, certificates and the offline mode
    are its. Of a page of a file on the Hub, that of the file. No token is sent.

    Raises:
        CheckpointError: it cannot be fetched, or has more than `most` bytes; says why.
    """
    if options.local_files_only:
        raise CheckpointError("local_files_only=True, and it is an address")
    hub = optional_import("huggingface_hub", "Addresses", "hub")
    try:
        answer = hub.get_session().get(content_address(address), timeout=_SECONDS)
        answer.raise_for_status()
        content = answer.content
    except Exception as error:  # of the network, of any kind
        raise CheckpointError(first_line(error)) from None
    if len(content) > most:
        raise CheckpointError(f"it has more than {most} bytes")
    return content


def commit_of(path: Path) -> str | None:
    """The commit that a file in the Hub's cache is of; None for any other."""
    match = re.search(r"snapshots/([0-9a-f]{40})/", path.as_posix())
    return match[1] if match else None


class _Repository:
    def __init__(self, name: HubName, options: HubOptions) -> None:
        if importlib.util.find_spec("huggingface_hub") is None and not name.is_address:
            raise CheckpointError(
                f"{name} does not exist on this disk. If it is a name on the Hugging Face Hub, "
                f'install the extra for it: pip install "seamless-vae[hub]"'
            )
        self.hub = optional_import("huggingface_hub", "Names on the Hugging Face Hub", "hub")
        self.api = client(self.hub)
        self.name = name.folder
        self.folder = ""
        self.unreachable: _NotCachedError | None = None
        self.options = options if options.revision else dataclasses.replace(options, revision=name.revision)

    def fetch(self, config_only: bool, variant: str | None, use_safetensors: bool | None) -> Path:
        if self.name.is_file:
            file = str(self.name.file)
            path = self._download(file)
            if not config_only:
                self._shards(file, path, self._download)
                self._config_beside()
            return path
        config = self._config()
        if not config_only:
            self._weights(variant, use_safetensors, self._download)
        return config.parent

    def fetch_header(self, folder: Path, variant: str | None) -> Path:
        def header(file: str) -> Path:
            return self._header(file, folder / PurePosixPath(file).relative_to(self.folder))

        if self.name.is_file:
            file = str(self.name.file)
            self.folder = PurePosixPath(file).parent.as_posix()
            path = header(file)
            config = self._config_beside()
            self._shards(file, path, header)
        else:
            path = folder
            config = self._config()
            self._weights(variant, None, header)
        if config is not None:
            (folder / config.name).write_bytes(read_regular(config, MAX_BYTES))
        return path

    def _config_beside(self) -> Path | None:
        """The `config.json` in the folder of a file of weights, which belongs to them; None if there is none."""
        file = PurePosixPath(self.name.file or "")
        return self._try(self._download, (file.parent / CONFIG_NAME).as_posix())

    def _config(self) -> Path:
        """The `config.json` of the folder that is meant."""
        folder = "/".join(part for part in (self.name.file, self.options.subfolder) if part)
        for place in (PurePosixPath(folder), PurePosixPath(folder, "vae")):
            found = self._try(self._download, (place / CONFIG_NAME).as_posix())
            if found is not None:
                self.folder = place.as_posix()
                return found
        if self.unreachable is not None:
            raise self.unreachable
        weights = [file for file in self._listed() if file.endswith(WEIGHT_SUFFIXES)]
        remedy = f"Give one of its files: {self.name.repo}/{weights[0]}." if weights else "Check the name."
        where = f" in {folder}" if folder else ", neither itself nor in `vae`"
        raise CheckpointError(f"the repository {self.name.repo} has no {CONFIG_NAME}{where}. {remedy}")

    def _weights(self, variant: str | None, use_safetensors: bool | None, get: Callable[[str], Path]) -> None:
        """Get the weights in the folder that is meant, chosen as `checkpoints.pretrained.find_weights` does."""
        extensions = EXTENSIONS[use_safetensors]
        if any(self._got(name, get) for extension in extensions for name in weight_names(variant, extension)):
            return
        if self.unreachable is not None:
            raise self.unreachable
        present = [
            path.name for path in map(PurePosixPath, self._listed()) if path.parent == PurePosixPath(self.folder)
        ]
        variants = variants_in(present)
        weights = weights_among(present, use_safetensors)
        if variant is None and len(variants) == 1:
            return self._weights(variants[0], use_safetensors, get)
        if variant is None and not variants and len(weights) == 1:
            get(self._in_folder(weights[0]))
            return None
        wanted = f"weights of the variant {variant!r}" if variant else f"{WEIGHTS_STEM}.safetensors or .bin"
        has = f"it has {', '.join(weights[:4])}" if weights else "it has no weights"
        one = self._in_folder(weights[0]) if weights else ""
        remedy = f"Give the name of a file, such as {self.name.repo}/{one}." if one else "Check the name."
        raise CheckpointError(f"the repository {self.name.repo} has no {wanted} ({has}). {remedy}")

    def _got(self, name: str, get: Callable[[str], Path]) -> bool:
        """Whether the folder has weights of that name, which are then there, with all shards of an index."""
        file = self._in_folder(name)
        path = self._try(get, file)
        if path is None:
            return False
        self._shards(file, path, get)
        return True

    def _shards(self, file: str, path: Path, get: Callable[[str], Path]) -> None:
        """Get the shards that a file of the repository names, which is at a path now, if it is an index."""
        if file.endswith(".json"):
            for shard in sorted(set(weight_map(path).values())):
                get((PurePosixPath(file).parent / shard).as_posix())

    def _in_folder(self, name: str) -> str:
        return PurePosixPath(self.folder, name).as_posix()

    def _download(self, file: str) -> Path:
        arguments = self.options.arguments()
        return Path(self._ask(file, lambda: self.api.hf_hub_download(self.name.repo, file, **arguments)))

    def _header(self, file: str, place: Path) -> Path:
        options = self.options
        place.parent.mkdir(parents=True, exist_ok=True)
        cached = self.hub.try_to_load_from_cache(
            self.name.repo, file, cache_dir=options.cache_dir, revision=options.revision
        )
        whole = options.local_files_only or options.local_dir is not None or isinstance(cached, str)
        if whole or not file.endswith((".safetensors", ".sft")):
            _link(self._download(file).resolve(), place)
            return place
        found = self._ask(
            file,
            lambda: self.api.parse_safetensors_file_metadata(
                self.name.repo, file, revision=options.revision, token=options.token
            ),
        )
        return _write_header(found, place)

    def _try(self, get: Callable[[str], Path], file: str) -> Path | None:
        """A file of the repository; None if it has none of that name, or offline, if that one is not in the cache."""
        try:
            return get(file)
        except _NoSuchFileError:
            return None
        except _NotCachedError as error:
            self.unreachable = self.unreachable or error
            self.options = dataclasses.replace(self.options, local_files_only=True)  # the Hub is not asked again
            return None

    def _listed(self) -> list[str]:
        try:
            return self.api.list_repo_files(self.name.repo, revision=self.options.revision, token=self.options.token)
        except Exception:  # for a message only
            return []

    def _ask(self, file: str, question: Callable[[], Result]) -> Result:
        """The Hub's answer, its errors as sentences."""
        errors = self.hub.errors
        repo = self.name.repo
        revision = self.options.revision
        try:
            return _forced(question)
        except errors.GatedRepoError as error:
            raise CheckpointError(
                f"{repo} is gated: accept its terms on its page on the Hub, then log in with `hf auth login` or pass "
                f"a token."
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise CheckpointError(
                f"there is neither a path {self.name} on this disk nor a repository {repo} on the Hub that you may "
                f"read. Check the name; if the repository is private, log in with `hf auth login` or pass a token."
            ) from error
        except errors.RevisionNotFoundError as error:
            raise CheckpointError(f"the repository {repo} has no revision {revision!r}. Check the name.") from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            raise _NotCachedError(
                f"{file} of {repo} is not in the Hub's cache, and the Hub is not asked or cannot be reached "
                f"({first_line(error)}). Connect to the network, or give a path on this disk."
            ) from error
        except errors.EntryNotFoundError as error:
            raise _NoSuchFileError(
                f"the repository {repo} has no file {file}. Check the name, and the revision."
            ) from error
        except errors.HFValidationError as error:
            raise CheckpointError(
                f"{self.name} is not a name on the Hub: {first_line(error)}. Give ORG/NAME, or a path on this disk."
            ) from error
        except Exception as error:  # of the network or the disk below it, of any kind
            is_local = getattr(error, "filename", None) is not None
            remedy = "Pass another cache_dir." if is_local else "Check the network and try again."
            raise CheckpointError(
                f"{file} of {repo} cannot be fetched from the Hub: {first_line(error)}. {remedy}"
            ) from error


class _NoSuchFileError(CheckpointError):
    """A repository without a file of that name."""


class _NotCachedError(CheckpointError):
    """A file that is not in the cache, while the Hub is not asked."""


def _forced(question: Callable[[], Result]) -> Result:
    """The answer; of a forced download that failed, the reason that huggingface_hub gives as the cause of its error."""
    try:
        return question()
    except ValueError as error:
        reason = error.__cause__
        if type(error) is ValueError and isinstance(reason, Exception):
            raise reason from None
        raise


def client(hub: Any) -> Any:
    """huggingface_hub's client for the Hub that the environment names now."""
    return hub.HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None, library_name="seamless-vae")


def _link(target: Path, place: Path) -> None:
    """The file at another place as well: by a link where the system allows one, else by a copy."""
    try:
        place.symlink_to(target)
    except OSError:  # Windows allows them to some users alone
        shutil.copyfile(target, place)


def _write_header(found: Any, path: Path) -> Path:
    """A safetensors file of this header, as long as the whole file, with a hole in place of the weights."""
    entries: dict[str, Any] = {"__metadata__": found.metadata} if found.metadata else {}
    end = 0
    for name, tensor in found.tensors.items():
        entries[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": tensor.data_offsets}
        end = max(end, tensor.data_offsets[1])
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        file.truncate(8 + len(header) + end)
    return path


def first_line(error: Exception) -> str:
    """What an error says, without its details, and without the full stop at its end."""
    return in_one_line(next(iter(str(error).strip().splitlines()), "")).rstrip(". ") or type(error).__name__
