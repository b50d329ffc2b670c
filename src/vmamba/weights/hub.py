"""The Hugging Face hub: `VSSM`'s methods, carried out by huggingface_hub's own mixin, which is imported when used.

A repository or folder holds ``model.safetensors``, ``config.json`` (`VSSMConfig.to_dict`) and a model card.
"""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import PyTorchModelHubMixin, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

from vmamba.architecture.config import RUNTIME, VSSMConfig
from vmamba.errors import CheckpointError, OutputError, VMambaError
from vmamba.output import write_atomically
from vmamba.weights import adapt_to, read_weights, save_weights
from vmamba.weights.loading import config_to_store, describe

Model = TypeVar("Model")

_CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_CARD: dict[str, Any] = {
    "library_name": "vmamba",
    "pipeline_tag": "image-classification",
    "tags": ["vmamba", "state-space-model"],
    "paper_url": "https://arxiv.org/abs/2401.10166",
}


class _Files:
    """How the mixin writes and reads a model: whole files, strict loading, no code."""

    plain: type[Any]
    config: VSSMConfig
    runtime: Mapping[str, Any]  # what the caller wants, whatever is stored

    def _save_pretrained(self, save_directory: Path) -> None:
        weights = self.state_dict()  # type: ignore[attr-defined]
        described = config_to_store(self.config, weights, self.plain).to_dict()
        metadata = {"format": "pt", "config": json.dumps(described)}
        save_weights(save_directory / _WEIGHTS[0], weights, metadata)
        text = json.dumps(described, indent=2) + "\n"
        write_atomically(save_directory / _CONFIG, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        config: Any = None,  # the mixin's copy of config.json, which it also spreads over the options
        **options: Any,
    ) -> Any:
        path = _local_weights(model_id)
        if path is None:
            download = functools.partial(
                hf_hub_download,
                repo_id=model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            try:
                path = Path(download(filename=_WEIGHTS[0]))
            except LocalEntryNotFoundError:
                raise
            except EntryNotFoundError:
                path = Path(download(filename=_WEIGHTS[1]))
        file = read_weights(path)
        if config is None:
            options = {**describe(file, str(path)).config.to_dict(), **options}
        model = cls.plain(VSSMConfig.from_stored(options).replace(**cls.runtime))
        model.load_state_dict(adapt_to(file.state_dict, model, str(path)))
        return model.eval()


def _local_weights(model_id: str) -> Path | None:
    """The weight file in a folder; None where ``model_id`` is no folder."""
    folder = Path(model_id)
    if not folder.is_dir():
        return None
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise CheckpointError(f"{folder} holds none of {', '.join(_WEIGHTS)}; give a folder of save_pretrained")


def _hub_class(plain: type[Any], runtime: Mapping[str, Any] | None = None) -> type[Any]:
    """A subclass of both the model's class and the mixin."""
    bases = (_Files, PyTorchModelHubMixin, plain)
    made: type[Any] = types.new_class(f"Hub{plain.__name__}", bases, {**_CARD, "tags": list(_CARD["tags"])})
    made.plain, made.runtime = plain, runtime or {}
    return made


def _as_hub(model: Any) -> Any:
    """A view of ``model``, same modules and tensors, that has the mixin's methods."""
    view = object.__new__(_hub_class(type(model)))
    view.__dict__.update(model.__dict__)
    return view


def save_pretrained(model: Any, folder: str | Path, **options: Any) -> str | None:
    """See `VSSM.save_pretrained`."""
    with _mistakes(OutputError, f"cannot save to {folder}"):
        url: str | None = _as_hub(model).save_pretrained(folder, **options)
        return url


def from_pretrained(plain: type[Model], source: str | Path, **options: Any) -> Model:
    """See `VSSM.from_pretrained`."""
    if Path(source).is_file():
        raise CheckpointError(f"{source} is a file; vmamba.load reads it")
    with _mistakes(CheckpointError, f"cannot load {source}, which is neither a folder here nor a repository in reach"):
        runtime = {name: options.pop(name) for name in RUNTIME if name in options}
        model: Model = _hub_class(plain, runtime).from_pretrained(source, **options)
    model.__dict__.pop("_hub_mixin_config", None)  # the mixin's copy; the model has its own
    return model


def push_to_hub(model: Any, repo_id: str, **options: Any) -> str:
    """See `VSSM.push_to_hub`."""
    with _mistakes(OutputError, f"cannot push to {repo_id}"):
        url: str = _as_hub(model).push_to_hub(repo_id, **options)
        return url


@contextmanager
def _mistakes(kind: type[VMambaError], what: str) -> Iterator[None]:
    """Turn what the mixin raises for a wrong name, a missing file, a full disk or no network into ``kind``."""
    try:
        yield
    except VMambaError:
        raise
    except (OSError, EntryNotFoundError, HFValidationError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise kind(f"{what} ({reason})") from error
