"""`scene.glb` in a page of three.js, as people embed it: from a camera of the file one sees what its image shows.

Opt-in, since three.js comes from npm: `npm pack three`, unpack it, and VGGT_INT8_THREE=FOLDER/package pytest -m slow
tests/export/test_three.py. The browser is looked for by tests/browser.py.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import eventually, page_of, picture_of
from vggt_int8.export import ExportOptions, PointOptions, Scene, write_scene

THREE = "VGGT_INT8_THREE"
SIDE = 448  # of the canvas, pixels
PAGE = """<!doctype html><body style="margin:0"><script type="importmap">
{"imports": {"three": "./three/build/three.module.js", "three/addons/": "./three/examples/jsm/"}}</script>
<script type="module">
import * as THREE from "three";
import { GLTFLoader } from "three/addons/loaders/GLTFLoader.js";
const renderer = new THREE.WebGLRenderer({ preserveDrawingBuffer: true });
renderer.setSize(SIDE, SIDE);
document.body.append(renderer.domElement);
const scene = new THREE.Scene();
const gltf = await new GLTFLoader().loadAsync("./scene.glb");
scene.add(gltf.scene);
const points = gltf.scene.getObjectByName("points");
points.material.size = SIDE / SIZE + 1;
points.material.sizeAttenuation = false;
window.look = (camera, what) => {
  for (const name of ["points", "frusta", "images"])
    gltf.scene.getObjectByName(name).visible = what.includes(name);
  renderer.render(scene, gltf.cameras[camera]);
};
window.look(0, ["points", "frusta", "images"]);
document.title = "ready";
</script></body>"""


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/index.html"
    finally:
        server.shutdown()


@pytest.mark.slow
def test_three_js_shows_points_and_pictures_as_the_images_do(tmp_path: Path, exact: Scene) -> None:
    three = os.environ.get(THREE)
    if three is None:
        pytest.skip(f"opt-in: {THREE} names no folder of three.js")
    write_scene(tmp_path, exact, ("glb",), ExportOptions(PointOptions(confidence_percentile=0)))
    (tmp_path / "three").symlink_to(Path(three).resolve())
    height, width = exact.size
    assert height == width
    page_text = PAGE.replace("SIDE", str(SIDE)).replace("SIZE", str(width))
    (tmp_path / "index.html").write_text(page_text)
    with served(tmp_path) as url, page_of(url, (SIDE, SIDE)) as page:
        assert eventually(lambda: page.title() == "ready")
        page.screenshot(path=str(tmp_path / "all.png"))
        for camera in (0, 3, 7):
            picture = Image.fromarray(exact.colors[camera].numpy())
            for what, bound in (("images", 10), ("points", 8)):
                page.evaluate(f"look({camera}, ['{what}'])")
                seen = picture_of(page)
                Image.fromarray(seen).save(tmp_path / f"{camera}_{what}.png")
                # A glTF camera looks through the middle of the picture, half a pixel of the network's image from there.
                placed = Image.fromarray(np.roll(seen, SIDE // width // 2, axis=(0, 1)))
                small = np.asarray(placed.resize((width, height), Image.Resampling.BOX)).astype(int)
                # A median: edges, and pixels of a surface that no other image sees, may differ.
                difference = np.median(np.abs(small - np.asarray(picture).astype(int)).max(axis=-1)[1:, 1:])
                assert difference <= bound, f"{what} from camera {camera}: {difference}; see {tmp_path}"
