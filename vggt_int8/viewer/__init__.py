"""View saved reconstructions in a browser: points, cameras with their images, confidence, and differences.

    with open_viewer([Path("fp16"), Path("int8")]) as viewer:
        print(viewer.url)
        viewer.wait()

`stage` and its imports only compute; only `server` imports viser, and `page` draws on the server it is given.
"""

from vggt_int8.viewer.open import HOST, PORT, Viewer, open_viewer
from vggt_int8.viewer.settings import COLORS, LAYOUTS, Settings

__all__ = ["COLORS", "HOST", "LAYOUTS", "PORT", "Settings", "Viewer", "open_viewer"]
