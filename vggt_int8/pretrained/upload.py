"""Uploads a model to the Hub, with its card."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError

from vggt_int8.model.network import Network
from vggt_int8.model.network_config import NetworkConfig
from vggt_int8.model_card import model_card
from vggt_int8.pretrained.checkpoint import read_headers, stored_bytes
from vggt_int8.pretrained.source import load_config
from vggt_int8.saves.base import Base, base_in, base_of, is_hub_id
from vggt_int8.saves.errors import CheckpointError
from vggt_int8.saves.license import License, find_license, license_in
from vggt_int8.saves.plain_files import check_weight_files
from vggt_int8.saves.save_id import check_one_save


def upload(
    model: Network,
    api: HfApi,
    repo_id: str,
    *,
    private: bool | None,
    max_shard_size: str,
    tags: Sequence[str],
    **commit: Any,
) -> str:
    """Save the model to a temporary folder, with a model card, and upload it. Returns the commit's URL.

    commit: further arguments of `HfApi.upload_folder`.
    """
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    _make_branch(api, repo_id, commit.get("revision"), commit.get("create_pr", False))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        (folder / "README.md").write_text(card_of(model, folder, repo_id, tags), encoding="utf-8")
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **commit).commit_url)


def card_of(model: Network, folder: Path, name: str, tags: Sequence[str] = ()) -> str:
    """The model card of a model saved in `folder`. name: what the card's example loads."""
    sizes = stored_bytes(str(file) for file in folder.glob("*.safetensors"))
    base = _base(model.config) or Base()
    return model_card(model.config.to_dict(), sizes, name=name, base_model=base.id, base_file=base.file, tags=tags)


@dataclass(frozen=True)
class Upload:
    """What is uploaded: the files of a checkpoint, and its card, which becomes README.md."""

    folder: Path
    files: list[str]
    card: str
    based: bool  # whether the card names the base model
    licensed: bool  # whether it names their licence, or where to find it

    def sizes(self) -> dict[str, int]:
        """Name -> bytes."""
        files = {name: (self.folder / name).stat().st_size for name in self.files}
        return {**files, "README.md": len(self.card.encode())}


def _make_branch(api: HfApi, repo_id: str, revision: str | None, pull_request: bool) -> None:
    """The branch to commit to, from main, unless it is there; as transformers does. The Hub itself makes none."""
    if revision is not None and not revision.startswith("refs/") and not pull_request:
        api.create_branch(repo_id, branch=revision, exist_ok=True)


def check_repository(repo_id: str) -> None:
    """Raise ValueError unless this is a valid repository name."""
    if not is_hub_id(repo_id):
        raise ValueError(f"{repo_id!r} is no repository on the Hub: give owner/name, such as me/VGGT-1B-quantized.w8a8")


def prepare(
    folder: Path,
    repo_id: str,
    base_model: str | None,
    evidence: Sequence[tuple[str, str]],
    tags: Sequence[str],
    license: License | None = None,
) -> Upload:
    """Check a saved checkpoint, digests included, and make its card. license: of the weights; None for the one they
    state.

    Raises `CheckpointError` and FileNotFoundError.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder: pass one that `quantize` or save_pretrained() wrote")
    config = load_config(str(folder), {})
    check_weight_files(folder, None)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise CheckpointError(f"{folder} holds no safetensors: load it and save_pretrained() it, then push that")
    names = [str(path) for path in weights]
    read_headers(names)
    check_one_save(names, verify=True)
    files = ["config.json", *(path.name for path in sorted(folder.glob("*.safetensors.index.json")))]
    base, sizes = _base(config) or Base(), stored_bytes(names)
    if base_model is not None:
        base = Base(base_model, base.file if base.id in (None, base_model) else None)
    stated = license or license_in(config) or find_license(str(folder), {})
    content = config.to_dict() | {"license": None if stated is None else stated.to_dict()}
    card = model_card(
        content, sizes, name=repo_id, base_model=base.id, base_file=base.file, tags=tags, evidence=evidence
    )
    based = base.id is not None
    return Upload(folder, [*files, *(path.name for path in weights)], card, based, based or stated is not None)


def _base(config: NetworkConfig) -> Base | None:
    """What the weights were made from according to their config, else the Hub id they were loaded from."""
    return base_in(config) or base_of(config.name_or_path, None)


def send(upload: Upload, repo_id: str, *, private: bool, revision: str | None, pull_request: bool) -> str:
    """Upload all files in one commit, to a repository that is created if necessary. Returns the commit's URL.

    Raises RuntimeError, with advice, if the Hub refuses or cannot be reached.
    """
    api = HfApi()
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        _make_branch(api, repo_id, revision, pull_request)
        operations = [CommitOperationAdd("README.md", upload.card.encode())]
        operations += [CommitOperationAdd(name, str(upload.folder / name)) for name in upload.files]
        info = api.create_commit(
            repo_id,
            operations,
            commit_message="Upload VGGT INT8",
            revision=revision,
            create_pr=pull_request,
        )
    except HfHubHTTPError as error:
        status = error.response.status_code
        way_out = ": sign in (hf auth login), or set HF_TOKEN to a token that may write" if status in (401, 403) else ""
        raise RuntimeError(
            f"the Hub says {status} to {repo_id}{way_out} ({' '.join(str(error).split()):.300})"
        ) from error
    except Exception as error:  # httpx has many kinds, of which the Hub's library exports none
        if not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        raise RuntimeError(
            f"{constants.ENDPOINT} cannot be reached ({error}): check network, proxy, HF_ENDPOINT"
        ) from error
    return str(info.pr_url if pull_request else info.commit_url)
