"""Putting a model onto the Hugging Face Hub, by huggingface_hub (the extra `hub`)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .checkpoints.weight_names import globs_of_a_save
from .errors import CheckpointError, ConfigError
from .hub import client, first_line
from .optional import optional_import
from .temporary import temporary_folder


class HubMixin:
    """diffusers' method for putting a model onto the Hub."""

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        subfolder: str | None = None,
    ) -> Any:
        """Save the model and upload it to a repository on the Hub, which is made if need be.

        Weights of the same variant that are there in another format, or in other shards, are removed with it: beside
        the new config they would be loaded in the place of the new ones. The repository's history keeps them.

        Returns:
            What huggingface_hub says of the commit.

        Raises:
            MissingDependencyError: huggingface_hub is not installed.
            CheckpointError: it cannot be saved or uploaded.
        """
        hub = optional_import("huggingface_hub", "Repositories on the Hugging Face Hub", "hub")
        with temporary_folder("the model") as folder:
            save: Any = self
            save.save_pretrained(folder, safe_serialization=safe_serialization, variant=variant)
            earlier = globs_of_a_save(variant)
            place = repo_id, commit_message, private, token, create_pr, subfolder
            return _push(hub, Path(folder), "the model", earlier, *place)


def push_after_saving(folder: Path, arguments: Mapping[str, Any], earlier: list[str]) -> Any:
    """Upload a folder that was just saved, with the arguments of `push_to_hub`.

    Without a `repo_id`, the repository has the folder's name, in your own namespace.

    Args:
        earlier: patterns of names there that are removed unless the folder has them.

    Raises:
        ConfigError: an argument that does not exist.
        MissingDependencyError, CheckpointError: as of `push_to_hub`.
    """
    names = ("repo_id", "commit_message", "private", "token", "create_pr", "subfolder")
    unknown = sorted(set(arguments) - set(names))
    if unknown:
        raise ConfigError(f"push_to_hub has no argument {', '.join(unknown)}; it takes {', '.join(names)}.")
    hub = optional_import("huggingface_hub", "Repositories on the Hugging Face Hub", "hub")
    what = f"{folder.name} is saved, but"
    return _push(hub, folder, what, earlier, **{"repo_id": folder.resolve().name, **arguments})


def _push(
    hub: Any,
    folder: Path,
    what: str,
    earlier: list[str],
    repo_id: str,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | None = None,
    create_pr: bool = False,
    subfolder: str | None = None,
) -> Any:
    api = client(hub)
    try:
        repo = api.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
        return api.upload_folder(
            repo_id=repo,
            folder_path=folder,
            path_in_repo=subfolder,
            commit_message=commit_message or "Upload AutoencoderKL",
            token=token,
            create_pr=create_pr,
            delete_patterns=earlier,
        )
    except Exception as error:  # of the network below it, of any kind
        raise CheckpointError(
            f"{what} cannot be pushed to {repo_id} on the Hub: {first_line(error)}. {_remedy(hub, error)}"
        ) from error


def _remedy(hub: Any, error: Exception) -> str:
    """What to do about an error of an upload."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, hub.errors.HFValidationError):
        return "Give the name of a repository: NAME, or ORG/NAME."
    if status in (401, 403, 404) or isinstance(error, hub.errors.LocalTokenNotFoundError):
        return "Log in with `hf auth login` or pass a token that may write there."
    if isinstance(error, hub.errors.OfflineModeIsEnabled):
        return "Remove HF_HUB_OFFLINE from the environment."
    return "Check the network, and push it again." if status is None else "Push it again later."
