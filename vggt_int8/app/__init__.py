"""A page to try models: images or a video in, two recipes side by side, exports out.

    with open_app("embedded") as app:
        print(app.url)
        app.wait()

`models`, `inputs` and `compared` do the work and know nothing of a page; `page` alone knows gradio.
"""

from vggt_int8.app.limits import Limits
from vggt_int8.app.serve import HOST, LIMITS, PORT, App, open_app

__all__ = ["HOST", "LIMITS", "PORT", "App", "Limits", "open_app"]
