"""What a name means on the Hugging Face Hub. Nothing is asked of it here."""

from __future__ import annotations

import dataclasses
import errno
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import unquote

from .checkpoints.config_file import CONFIG_NAME
from .checkpoints.weight_names import PIPELINE_NAME, WEIGHT_SUFFIXES
from .errors import CheckpointError, brief, in_one_line
from .file_names import text_of

PathLike = str | os.PathLike[str]

_HUB_SERVERS = ("huggingface.co", "www.huggingface.co", "hf.co")
# A Path of one has a single slash.
_ADDRESS = re.compile(r"https?:/{1,2}(?P<site>[^/]+)(?P<path>/.*)?", re.IGNORECASE)
_IN_REPO = re.compile(r"/(?P<repo>[^/]+/[^/]+)(?:/(?P<page>blob|resolve|raw|tree)(?=/))?(?:/(?P<rest>.+))?")
_OTHER_PAGES = re.compile(r"/(?:datasets|spaces|collections|papers|docs|blog)/|(?:/[^/]+){2}/(?:commits?|discussions)/")
_REVISION = re.compile(r"refs/(?:pr|convert)/[^/]+|[^/]+")  # of a pull request, one with slashes
_AT_REVISION = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+)@(?P<rest>.+)")  # as HfFileSystem has it
_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[^\\:*?\"<>|]+)?")


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub (`org/name`), and a file in it where one was named."""

    repo: str
    file: str | None = None
    revision: str | None = None

    @property
    def is_address(self) -> bool:
        return self.revision is not None

    @property
    def is_file(self) -> bool:
        """Whether it names a file of the repository, and not a folder."""
        return self.file is not None and self.file.endswith((*WEIGHT_SUFFIXES, ".json"))

    @property
    def folder(self) -> HubName:
        """Of a config, or of a pipeline's index, the folder, by which it may be named as on a disk."""
        file = PurePosixPath(self.file or "")
        if file.name not in (CONFIG_NAME, PIPELINE_NAME):
            return self
        folder = file.parent.as_posix()
        return dataclasses.replace(self, file=None if folder == "." else folder)

    def __str__(self) -> str:
        return f"{self.repo}/{self.file}" if self.file else self.repo


def hub_name(name: PathLike) -> HubName | None:
    """What a name means on the Hub; None for a path: one that exists, or that cannot be a name on the Hub.

    Takes `org/name`, `org/name/folder/file.safetensors`, and addresses with `/blob/`, `/resolve/` or neither, also as
    a browser gives them: with %20 for a space, `?download=true`, or without https://; and those of HfFileSystem,
    `hf://org/name@revision/file.safetensors`.

    Raises:
        CheckpointError: an address of another site, or what is not a name at all.
    """
    text = text_of(name)
    if not text:
        if isinstance(name, Mapping):
            raise CheckpointError(
                "a dictionary was given for a path. AutoencoderKL.from_single_file takes a state dict; otherwise give "
                "the path of a file or of a folder."
            )
        raise CheckpointError(
            f"the path is {brief(name)}. Give the path of a file or of a folder, or a name on the Hugging Face Hub."
        )
    _check_path(text)
    text = text if isinstance(name, str) else PurePosixPath(text.replace("\\", "/")).as_posix()
    if text.startswith(tuple(f"{server}/" for server in _HUB_SERVERS)) and not os.path.exists(text):
        text = f"https://{text}"
    is_of_filesystem = text.startswith("hf://")
    text = text.removeprefix("hf://")
    text = text if os.path.exists(text) else text.rstrip("/")
    at_revision = _AT_REVISION.fullmatch(text) if is_of_filesystem else None
    if at_revision is not None:
        return _at_revision(at_revision["repo"], at_revision["rest"])
    address = _ADDRESS.fullmatch(re.split("[?#]", text)[0])
    if address is not None:
        if not _is_hub(address["site"]):
            raise CheckpointError(
                f"{text} is not an address of the Hugging Face Hub. Download the file, and give its path on this disk."
            )
        path = (address["path"] or "").rstrip("/")
        if _OTHER_PAGES.match(f"{path}/"):
            raise CheckpointError(
                f"{text} is not the address of a model's files. Give https://huggingface.co/ORG/NAME/blob/main/FILE."
            )
        found = _IN_REPO.fullmatch(path)
        if found is None:
            raise CheckpointError(
                f"{text} is an address without a repository. Give https://huggingface.co/ORG/NAME/..."
            )
        repo = unquote(found["repo"])
        rest = unquote(found["rest"] or "").rstrip("/")
        return HubName(repo, rest or None) if found["page"] is None else _at_revision(repo, rest)
    if not _NAME.fullmatch(text) or text.startswith(".") or os.path.exists(text):
        return None
    org, repo, *rest = text.split("/")
    if ".." in (repo, *rest):
        return None
    if not rest and repo.endswith(WEIGHT_SUFFIXES):
        return None  # a file in a folder
    return HubName(f"{org}/{repo}", "/".join(rest) or None)


def _at_revision(repo: str, rest: str) -> HubName:
    """A revision and what comes behind it, with a slash between them, as a name in a repository."""
    found = _REVISION.match(unquote(rest))
    revision = found[0] if found else ""
    return HubName(repo, unquote(rest)[len(revision) + 1 :] or None, revision or None)


def _check_path(path: str) -> None:
    """Raise CheckpointError for what the system cannot look for at all."""
    try:
        os.lstat(path)
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            raise CheckpointError(
                f"the path {brief(path)} is not a valid one: {in_one_line(error)}. Check it."
            ) from None


def content_address(text: str) -> str:
    """The address of a file's content: on the Hub not that of the page which shows it; any other as it is."""
    text = re.sub(r"^(https?):/+", r"\1://", text)  # a Path of one has a single slash
    address = _ADDRESS.fullmatch(text)
    return text.replace("/blob/", "/resolve/", 1) if address is not None and _is_hub(address["site"]) else text


def _is_hub(site: str) -> bool:
    return site.lower() in (*_HUB_SERVERS, _endpoint_server().lower())


def _endpoint_server() -> str:
    """The server that huggingface_hub asks, where it is another one (HF_ENDPOINT)."""
    return re.sub(r"^https?://", "", os.environ.get("HF_ENDPOINT", "")).strip("/")
