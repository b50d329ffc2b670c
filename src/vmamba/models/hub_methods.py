"""The methods by which a model goes to the Hugging Face hub and comes back; huggingface_hub is imported when used."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing_extensions import Self


class HubMethods:
    """`save_pretrained`, `from_pretrained` and `push_to_hub` of a `VSSM`."""

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write weights, configuration and a model card into a folder, as huggingface_hub's mixin does.

        Args:
            save_directory: the folder, made if need be.
            **options: ``push_to_hub=True``, ``repo_id``, ``model_card_kwargs``, and `push_to_hub`'s.

        Returns:
            The commit's URL where it was pushed, else None.

        Raises:
            OutputError: the place cannot be written, or the hub refuses.
        """
        from vmamba.weights.hub import save_pretrained

        return save_pretrained(self, save_directory, **options)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:
        """Build the model of a folder of `save_pretrained`, or of a repository on the Hugging Face hub.

        Args:
            pretrained_model_name_or_path: the folder, or a name such as ``"user/model"``.
            **options: ``revision``, ``token``, ``cache_dir``, ``force_download``, ``local_files_only``; and fields of
                `VSSMConfig` to change, where the weights still fit as in `create_model`.

        Returns:
            The model in evaluation mode, on the CPU.

        Raises:
            CheckpointError: there is no such folder or repository, or it cannot be used.
            ConfigError: an illegal configuration.
        """
        from vmamba.weights.hub import from_pretrained

        return from_pretrained(cls, pretrained_model_name_or_path, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:
        """Upload weights, configuration and a model card to a repository on the Hugging Face hub.

        Args:
            repo_id: a name such as ``"user/model"``, made if need be.
            **options: ``commit_message``, ``private``, ``token``, ``branch``, ``create_pr``.

        Returns:
            The commit's URL.

        Raises:
            OutputError: no connection, no permission, or an illegal name.
        """
        from vmamba.weights.hub import push_to_hub

        return push_to_hub(self, repo_id, **options)
