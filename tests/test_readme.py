"""The README's ten lines run as they stand, offline, with the embedded model in the place of the public one."""

import re
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("readme", ["README.md", "README.zh-CN.md"])
def test_the_ten_lines_run_offline(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: Any, **__: Any) -> Any:
        raise AssertionError("the network is asked")

    text = (ROOT / readme).read_text(encoding="utf-8")
    lines = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0]
    assert lines.count('"facebook/VGGT-1B"') == 1
    lines = lines.replace('"facebook/VGGT-1B"', '"embedded"').replace('"cuda"', '"cpu"', 1)
    for number in range(3):
        source = ROOT / "vggt_int8" / "assets" / "scenes" / "room" / f"image_{number}.png"
        (tmp_path / "photos").mkdir(exist_ok=True)
        shutil.copy(source, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    names: dict[str, Any] = {}
    exec(compile(lines, readme, "exec"), names)
    assert names["pred"].depth.shape[1] == 3
    assert names["model"].config.quantization_config.recipe["name"] == "int8_dynamic"
    assert (tmp_path / "vggt-1b-int8" / "model.safetensors").is_file()
