from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from vggt_int8.disk import message_of
from vggt_int8.export import ExportOptions, Scene, bundle


def test_a_full_disk_is_named_and_nothing_stays_on_it(
    tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_some(folder: Path, *_: Any, **__: Any) -> None:
        (folder / "predictions.npz").write_bytes(b"PK")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(bundle, "write_scene", write_some)
    with pytest.raises(OSError, match="No space") as raised:
        bundle.write_bundle(tmp_path / "download", {"fp16": scene}, "npz", ExportOptions())
    assert message_of(raised.value) == f"{tmp_path}/download/npz: No space left on device"
    assert list(tmp_path.iterdir()) == []
