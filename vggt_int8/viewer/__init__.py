"""Saved reconstructions in a browser: points, cameras with their images, confidence, and how two differ.

    with open_viewer([Path("fp16"), Path("int8")]) as viewer:
        print(viewer.url)
        viewer.wait()

`stage` and what it imports are numbers; `server` alone knows viser, `page` draws on what it is given.
"""

from vggt_int8.viewer.open import HOST, PORT, Viewer, open_viewer
from vggt_int8.viewer.settings import COLORS, LAYOUTS, Settings

__all__ = ["COLORS", "HOST", "LAYOUTS", "PORT", "Settings", "Viewer", "open_viewer"]
