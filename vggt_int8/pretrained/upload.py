"""Upload a model to the Hub, with its card."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from vggt_int8.embedded import EMBEDDED
from vggt_int8.model.vggt import VGGT
from vggt_int8.model_card import model_card
from vggt_int8.pretrained.checkpoint import stored_bytes

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def upload(
    model: VGGT,
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
        sizes = stored_bytes(str(file) for file in folder.glob("*.safetensors"))
        source = model.config.name_or_path
        known = source == EMBEDDED or (_HUB_ID.fullmatch(source) and not Path(source).exists())
        base_model = source if known else None
        card = model_card(model.config.to_dict(), sizes, name=repo_id, base_model=base_model, tags=tags)
        (folder / "README.md").write_text(card, encoding="utf-8")
        return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **commit).commit_url)
