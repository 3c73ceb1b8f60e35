"""`vggt-int8 app`: a web page for trying models: upload images or a video, compare two recipes, download exports."""

from typing import Annotated, Any

import typer

from vggt_int8.cli import console, options, pages
from vggt_int8.cli.loading import Backend, Device, Dtype, fetch, resolve_device, resolve_dtype
from vggt_int8.embedded import EMBEDDED, EMBEDDED_NAMES


def app_page(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            "-m",
            help=f"A folder, a file, a model on the Hugging Face Hub, or one that ships: {EMBEDDED_NAMES}.",
            autocompletion=options.offer_embedded,
        ),
    ] = EMBEDDED,
    backend: Backend = "auto",
    device: Device = None,
    dtype: Dtype = None,
    host: pages.Host = "127.0.0.1",
    port: pages.Port = 7860,
    max_images: Annotated[
        int, typer.Option(help="Images, or frames of a video, of one reconstruction.", **options.between(1))
    ] = 32,
    max_upload_mb: Annotated[
        float, typer.Option(help="Largest accepted file, in millions of bytes.", **options.between(0.001, 1e6))
    ] = 200.0,
    keep_minutes: Annotated[
        float, typer.Option(help="Time after which uploads and results are deleted.", **options.between(1))
    ] = 60.0,
    open_browser: pages.OpenBrowser = False,
    as_json: options.Json = False,
) -> None:
    """Serve a web page that reconstructs uploaded images with two recipes side by side, until Ctrl-C."""
    from vggt_int8.address import check_address

    check_address(host, port)
    place: dict[str, Any] = {"device_map": str(resolve_device(device)), "dtype": resolve_dtype(dtype)}
    from vggt_int8.app import Limits, open_app

    limits = Limits(upload_bytes=round(max_upload_mb * 1e6), images=max_images, seconds=60 * keep_minutes)
    fetch(model)
    with console.step(f"Starting the page of {model}"):
        served = open_app(model, host=host, port=port, limits=limits, backend=backend, **place)
    with served:
        end = "Ctrl-C ends it, and deletes what visitors brought."
        pages.serve(served, "app", {"model": model}, end=end, open_browser=open_browser, as_json=as_json)
