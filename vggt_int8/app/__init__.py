"""A web page for trying models: upload images or a video, compare two recipes, download exports.

    with open_app("embedded") as app:
        print(app.url)
        app.wait()

`models`, `inputs` and `compared` do the work, independently of the page; only `page` imports gradio.
"""

from vggt_int8.app.limits import Limits
from vggt_int8.app.serve import HOST, LIMITS, PORT, App, open_app

__all__ = ["HOST", "LIMITS", "PORT", "App", "Limits", "open_app"]
