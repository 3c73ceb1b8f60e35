"""Checks once and early whether the Hub can be reached at all.

Its library retries an unresponsive server six times, 23 seconds in total, for every file of a model.
"""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url, is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from vggt_int8.embedded import EMBEDDED
from vggt_int8.saves.errors import CheckpointError

NO_NETWORK = f"No network? {EMBEDDED!r} names the small model inside this package"
_FIRST_FILES = ("config.json", SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)


def check_hub(source: str, options: Mapping[str, Any], filename: str | None = None) -> None:
    """Raise `CheckpointError` for a Hub id without anything in the cache, if the Hub is disabled or unresponsive, or
    refuses access to a gated repository.

    options: those of `from_pretrained`.
    filename: the single file that is wanted; None for a whole model.

    Cached models load without any request. If the Hub responds at all, its own library explains best what is wrong with
    a name or a token.
    """
    if not options.get("force_download") and _is_cached(
        source, options, _FIRST_FILES if filename is None else (filename,)
    ):
        return
    filename = filename or "config.json"
    lacking = f"cannot get the {filename} of {source!r}: it is neither a folder here nor in the cache, and"
    if is_offline_mode() or options.get("local_files_only"):
        raise CheckpointError(
            f"{lacking} the Hub is not asked (HF_HUB_OFFLINE or local_files_only). Allow it, or download the files and "
            f"pass their folder. {NO_NETWORK}"
        )
    url = hf_hub_url(source, filename, subfolder=options.get("subfolder"), revision=options.get("revision"))
    try:
        get_hf_file_metadata(url, token=options.get("token"), timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except GatedRepoError as error:
        raise CheckpointError(
            f"cannot get the {filename} of {source!r}: access is granted on request, and this account has none. Ask "
            f"for it at {constants.ENDPOINT}/{source}, then log in by `hf auth login` or HF_TOKEN, or download the "
            "files elsewhere and pass their path"
        ) from error
    except HfHubHTTPError:
        return
    except Exception as error:  # httpx has many kinds, of which the Hub's library exports none
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"{lacking} {constants.ENDPOINT} cannot be reached ({reason:.200}). Check the network, the proxy and "
            f"HF_ENDPOINT, or download the files elsewhere and pass their folder. {NO_NETWORK}"
        ) from error


def _is_cached(source: str, options: Mapping[str, Any], files: tuple[str, ...]) -> bool:
    names = ["/".join(filter(None, [options.get("subfolder"), name])) for name in files]
    found = (try_to_load_from_cache(source, name, options.get("cache_dir"), options.get("revision")) for name in names)
    return any(isinstance(path, str) for path in found)
