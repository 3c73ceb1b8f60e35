"""The licence of weights is what their source states, through loading, saving, `inspect` and cards; never a guess."""

import json
import shutil
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import save_file

from vggt_int8 import VGGTInt8
from vggt_int8.model_card import model_card
from vggt_int8.saves.license import License, find_license, license_in

COMMERCIAL = """---
license: other
license_name: a-commercial-licence
license_link: LICENSE
---

# Weights
"""


def test_a_card_states_it(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(COMMERCIAL)
    found = find_license(str(tmp_path), {})
    assert found == License("other", "a-commercial-licence", "LICENSE", "README.md")
    (tmp_path / "weights.pt").write_bytes(b"")
    assert find_license(str(tmp_path / "weights.pt"), {}) == found
    (tmp_path / "README.md").write_text("# Weights\n\nlicense: mit\n")
    assert find_license(str(tmp_path), {}) is None
    (tmp_path / "README.md").write_text("---\nlicense: [mit, cc-by-nc-4.0]\n---\n")
    found = find_license(str(tmp_path), {})
    assert found is not None
    assert (found.id, found.name) == ("other", "mit and cc-by-nc-4.0")
    (tmp_path / "README.md").write_text("---\nlicense: [\n---\n")
    with pytest.warns(UserWarning, match=r"the licence that .*README\.md may state is not known: .*flow node"):
        assert find_license(str(tmp_path), {}) is None


def test_a_card_on_the_hub_states_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text(COMMERCIAL)
    repository, asked = "facebook/VGGT-1B-Commercial", []

    def download(*names: str, **options: object) -> str:
        asked.append((names, options))
        if len(asked) > 1:
            raise EntryNotFoundError("404")
        return str(tmp_path / "README.md")

    monkeypatch.setattr("vggt_int8.saves.license.hf_hub_download", download)
    found = find_license(repository, {"revision": "v1", "device_map": "cpu"})
    link = f"https://huggingface.co/{repository}/blob/main/LICENSE"
    assert found == License("other", "a-commercial-licence", link, f"README.md of {repository}")
    assert asked == [((repository, "README.md"), {"revision": "v1"})]
    assert find_license(repository, {}) is None
    card = model_card({"license": found.to_dict()}, {}, base_model="facebook/VGGT-1B")
    assert f"[`a-commercial-licence`]({link})" in card
    assert "non-commercial use only" not in card


@pytest.mark.parametrize("key", ["license", "modelspec.license"])
def test_a_header_states_it(tmp_path: Path, bare_weights: dict, key: str) -> None:
    weights = {"camera_head.token_norm.bias": bare_weights["camera_head.token_norm.bias"]}
    save_file(weights, tmp_path / "model.safetensors", metadata={key: "cc-by-nc-4.0"})
    for source in (tmp_path, tmp_path / "model.safetensors"):
        assert find_license(str(source), {}) == License("cc-by-nc-4.0", stated_by="model.safetensors")


def test_it_stays_with_the_weights(bare_checkpoint: Path, bare_int8: Path, tmp_path: Path, cli) -> None:
    source, saved = tmp_path / "source", tmp_path / "saved"
    assert "licence of the weights: not stated by its files" in cli("inspect", bare_int8)
    shutil.copytree(bare_checkpoint, source)
    (source / "README.md").write_text(COMMERCIAL)
    VGGTInt8.from_pretrained(source).save_pretrained(saved)
    stated = {"id": "other", "name": "a-commercial-licence", "link": "LICENSE", "stated_by": "README.md"}
    assert json.loads((saved / "config.json").read_text())["license"] == stated
    assert json.loads(cli("inspect", saved, "--json"))["license"] == stated
    card = ModelCard(json.loads(cli("push", saved, "me/x", "--base-model", "a/b", "--dry-run", "--json"))["card"])
    assert (card.data.license, card.data.license_name) == ("other", "a-commercial-licence")
    assert "of the checkpoint they were made from: `a-commercial-licence`, as their source states" in card.content


def test_a_card_without_one_asks_for_it(bare_int8: Path, cli) -> None:
    push = ("push", bare_int8, "me/x", "--dry-run")
    assert "nothing in" in (error := cli(*push, code=2))
    assert "give --license" in error
    assert "license: cc-by-nc-4.0" in cli(*push, "--license", "cc-by-nc-4.0")
    assert "needs --license-name and --license-link" in cli(*push, "--license", "other", code=2)
    assert "belong to --license other" in cli(*push, "--license-name", "mine", code=2)
    named = cli(*push, "--license", "other", "--license-name", "mine", "--license-link", "https://example.org/terms")
    assert "[`mine`](https://example.org/terms)" in named
    text = model_card({}, {})
    assert ModelCard(text).data.license is None
    assert "Which licence that is, nothing says" in text


def test_damaged_words_of_a_config_state_nothing() -> None:
    for value in (None, 3, [], {"name": "x"}, {"id": ""}, {"id": 3}):
        assert license_in({"license": value}) is None
    assert license_in({"license": "mit"}) == License("mit")
    assert license_in({"license": {"id": "mit", "name": 3}}) == License("mit")
