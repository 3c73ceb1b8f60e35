"""Upload a model to the Hub, with its card."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from vggt_int8.embedded import EMBEDDED
from vggt_int8.model.network import Network
from vggt_int8.model_card import model_card
from vggt_int8.pretrained.checkpoint import stored_bytes

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


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
    """Save the model to a temporary folder, with a model card, and upload it. Returns the commit's address.

    commit: what `HfApi.upload_folder` takes beside the folder.
    """
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        model.save_pretrained(folder, max_shard_size=max_shard_size)
        (folder / "README.md").write_text(card_of(model, folder, repo_id, tags), encoding="utf-8")
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **commit).commit_url)


def card_of(model: Network, folder: Path, name: str, tags: Sequence[str] = ()) -> str:
    """The model card of a model that is saved in `folder`; name: what the card's example loads."""
    sizes = stored_bytes(str(file) for file in folder.glob("*.safetensors"))
    source = model.config.name_or_path
    known = source == EMBEDDED or (_HUB_ID.fullmatch(source) and not Path(source).exists())
    return model_card(model.config.to_dict(), sizes, name=name, base_model=source if known else None, tags=tags)
