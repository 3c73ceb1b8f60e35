"""The page: points, cameras and controls of a `Stage` on a viser server.

All user input goes through `Settings`. Points are selected in one thread (`Latest`), so a slider that moves fast causes
few updates. Cameras are drawn once and then moved with their reconstruction.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vggt_int8.disk import message_of
from vggt_int8.export.color import color_table
from vggt_int8.geometry import rotation_to_quaternion
from vggt_int8.viewer.difference import Difference
from vggt_int8.viewer.download import AS_SHOWN, EXPORTS, exported, shown_points
from vggt_int8.viewer.latest import Latest
from vggt_int8.viewer.reconstruction import Reconstruction, View, spacing
from vggt_int8.viewer.settings import COLORS, HIGHEST_PERCENTILE, LAYOUTS, OF_SEVERAL, TINTS, Settings
from vggt_int8.viewer.stage import Stage

FRUSTUM = (0.02, 0.1)  # size of a camera's pyramid: half the way to the next camera, in this range of extents
LINE = 0.03  # thickness of its edges over its size
POINT = 1.3  # a point's diameter over the distance between neighbours
OVERVIEW = "all of it"  # beside the images in the list of places to look from
BAR = (12, 256)  # pixels of the legend's bar
UP = (0.0, -1.0, 0.0)  # the first camera's: OpenCV's y points down

Vector = NDArray[np.float64]  # [3]


class Page:
    """Controls on the right and the scene next to them: `Page(server, reconstructions)` draws everything."""

    def __init__(self, server: Any, reconstructions: Sequence[Reconstruction], settings: Settings) -> None:
        self.server, self.stage = server, Stage(reconstructions)
        self.settings = replace(settings, shown=(True,) * len(reconstructions))
        self.work = Latest()
        self._views = [reconstruction.views() for reconstruction in reconstructions]
        self._frusta: list[tuple[int, View, Any]] = []  # reconstruction, view, handle
        self._entered: View | None = None  # that was looked from last, on the stage
        low, high = (limit * self.stage.extent for limit in FRUSTUM)
        self._grain = reconstructions[0].grain()
        self._frustum = min(max(spacing(self._views[0]) / 2, low), high)
        server.gui.configure_theme(show_logo=False, show_share_button=False)
        server.gui.main_panel.dock_right()
        server.scene.set_up_direction(UP)
        self._add_controls()
        self._add_cameras()
        self._set_initial_camera()
        self.refresh()

    def refresh(self) -> None:
        """Redraw the points with the current settings."""
        self.work.request(self._draw)

    def close(self) -> None:
        """Stop the thread. The server keeps running."""
        self.work.close()

    # ---- controls ----

    def _add_controls(self) -> None:
        gui, several = self.server.gui, len(self.stage.reconstructions) > 1
        with gui.add_folder("Points"):
            colors = [color for color in COLORS if several or color not in OF_SEVERAL]
            self._control(gui.add_dropdown("Colour", colors, initial_value=self.settings.color), "color")
            confidence = gui.add_slider(
                "Leave out, %",
                *(0, HIGHEST_PERCENTILE, 0.5, self.settings.percentile),
                hint="The least confident points of each.",
            )
            self._control(confidence, "percentile")
            self.point_size = gui.add_slider("Point size", 0.1, 5.0, 0.1, 1.0)
            self.point_size.on_update(lambda _: self._resize_points())
            self._legend = gui.add_image(np.zeros((*BAR, 3), np.uint8), visible=False, format="png")
            self._words = gui.add_markdown("")
        if several:
            with gui.add_folder("Reconstructions"):
                self._control(gui.add_dropdown("Layout", LAYOUTS, initial_value=self.settings.layout), "layout")
                same_scale = gui.add_checkbox(
                    "Same scale", self.settings.same_scale, hint="Multiply lengths to fit the first reconstruction."
                )
                self._control(same_scale, "same_scale")
                for index, reconstruction in enumerate(self.stage.reconstructions):
                    self._add_switch(index, gui.add_checkbox(reconstruction.label, True))
                self._comparison = gui.add_markdown("")
        if any(self._views):
            self._add_camera_controls(gui)
        with gui.add_folder("Download"):
            self._format = gui.add_dropdown("Format", (AS_SHOWN, *EXPORTS), initial_value=AS_SHOWN)
            gui.add_button("Download").on_click(lambda event: self._download(event.client))

    def _add_camera_controls(self, gui: Any) -> None:
        with gui.add_folder("Cameras"):
            self.cameras = gui.add_checkbox("Show", True)
            self.cameras.on_update(lambda _: self._show_cameras())
            self.camera_size = gui.add_slider("Size", 0.1, 5.0, 0.1, 1.0)
            self.camera_size.on_update(lambda _: self._resize_cameras())
            names = {
                f"{view.index}: {self.stage.reconstructions[0].scene.file_stem(view.index).partition('_')[2]}": view
                for view in self._views[0]
            }
            if names:
                look_from = gui.add_dropdown("Look from", [OVERVIEW, *names])

                def look(event: Any) -> None:
                    view = names.get(look_from.value)
                    if event.client is not None and view is None:
                        self._show_all_to(event.client)
                    elif event.client is not None:
                        self._jump(event.client, 0, view)

                look_from.on_update(look)

    def _control(self, handle: Any, name: str) -> None:
        """A control bound to a setting."""

        def update(_: Any) -> None:
            self.settings = replace(self.settings, **{name: handle.value})
            if name in ("layout", "same_scale"):
                self._move_cameras()
            if name == "layout":
                self._set_initial_camera()
                for client in self.server.get_clients().values():
                    self._show_all_to(client)
            self.refresh()

        handle.on_update(update)

    def _add_switch(self, index: int, handle: Any) -> None:
        def update(_: Any) -> None:
            shown = (*self.settings.shown[:index], bool(handle.value), *self.settings.shown[index + 1 :])
            self.settings = replace(self.settings, shown=shown)
            self._show_cameras()
            self.refresh()

        handle.on_update(update)

    # ---- points ----

    def _draw(self) -> None:
        settings, counts, meanings = self.settings, [], []
        for index, reconstruction in enumerate(self.stage.reconstructions):
            shown, meaning = self.stage.shown(index, settings)
            with self.server.atomic():
                self.server.scene.add_point_cloud(
                    f"/points/{index}",
                    shown.points,
                    np.ascontiguousarray(shown.colors),
                    point_size=self._point_size(),
                    point_shape="circle",
                    point_shading="flat",  # else viser changes the colours
                    precision="float32",  # else half a metre at 1 km, and steps that are seen
                    scale=shown.scale,
                    position=tuple(shown.place),
                    visible=settings.shown[index],
                )
            pixels = reconstruction.cloud.pixels
            counts.append(f"{reconstruction.label}: {len(shown.points):,} of {pixels:,} points")
            meanings.append(f"{reconstruction.label}: {meaning}")
        self._tell(settings, counts, meanings)

    def _tell(self, settings: Settings, counts: list[str], meanings: list[str]) -> None:
        self._legend.visible = settings.color in ("confidence", "difference")
        if self._legend.visible:
            self._legend.image = np.repeat(color_table()[None], BAR[0], axis=0)
        same = len({meaning.partition(": ")[2] for meaning in meanings}) == 1
        lines = [*counts, *([meanings[0].partition(": ")[2]] if same else meanings)]
        self._words.content = "\n\n".join(lines)
        if len(self.stage.reconstructions) > 1:
            found = zip(self.stage.reconstructions, self.stage.differences(settings), self.stage.obstacles, strict=True)
            self._comparison.content = "\n\n".join(
                f"**{reconstruction.label}**: {_compared(difference, obstacle)}"
                for reconstruction, difference, obstacle in found
            )

    def _point_size(self) -> float:
        return POINT * self._grain * float(self.point_size.value)

    def _resize_points(self) -> None:
        for index in range(len(self.stage.reconstructions)):
            handle = self.server.scene.get_handle_by_name(f"/points/{index}")
            if handle is not None:
                handle.point_size = self._point_size()

    # ---- cameras ----

    def _add_cameras(self) -> None:
        several = len(self.stage.reconstructions) > 1
        for index, views in enumerate(self._views):
            for view in views:
                handle = self.server.scene.add_camera_frustum(
                    f"/cameras/{index}/{view.index}",
                    fov=view.field_of_view,
                    aspect=view.aspect,
                    scale=self._frustum,
                    thickness=LINE * self._frustum,
                    color=TINTS[index % len(TINTS)] if several else (60, 60, 60),
                    image=view.thumbnail,
                    wxyz=_quaternion(view),
                    cast_shadow=False,
                    receive_shadow=False,
                )
                handle.on_click(lambda event, index=index, view=view: self._jump(event.client, index, view))
                self._frusta.append((index, view, handle))
        self._move_cameras()

    def _move_cameras(self) -> None:
        with self.server.atomic():
            for index, view, handle in self._frusta:
                scale, place = self.stage.placed(index, self.settings)
                handle.position = tuple(view.center * scale + place)

    def _show_cameras(self) -> None:
        """Show the cameras that are switched on, except those whose images stand in front of the viewpoint."""
        scale = self._frustum * float(self.camera_size.value)
        places = [self.stage.placed(index, self.settings) for index in range(len(self._views))]
        for index, view, handle in self._frusta:
            shown = bool(self.cameras.value) and self.settings.shown[index]
            hiding = self._entered is not None and self._entered.hidden_by(view.placed(*places[index]), scale)
            handle.visible = shown and not hiding

    def _resize_cameras(self) -> None:
        for _, _, handle in self._frusta:
            handle.scale = self._frustum * float(self.camera_size.value)
        self._show_cameras()

    def _jump(self, client: Any, index: int, view: View | None) -> None:
        """Move the view to the camera of an image, with its field of view. Orbiting then turns around what the image
        shows.
        """
        if client is None or view is None:
            return
        scale, place = self.stage.placed(index, self.settings)
        view = view.placed(scale, place)
        _, down, forward = view.rotation.T
        middle = self.stage.reconstructions[index].extent[0] * scale + place
        ahead = max(float((middle - view.center) @ forward), 0.1 * self.stage.extent)
        self._enter(view)
        with client.atomic():
            client.camera.up_direction = -down
            client.camera.position = view.center
            client.camera.look_at = view.center + ahead * forward
            client.camera.fov = view.field_of_view

    def _enter(self, view: View | None) -> None:
        """Hide the images in front of a camera, or of none, and show again those in front of the previous one."""
        self._entered = view
        self._show_cameras()

    def _overview(self) -> tuple[Vector, Vector]:
        """Position and target of an overview: behind and above the first camera, far enough to show everything."""
        places = [self.stage.placed(index, self.settings)[1] for index in range(len(self.stage.reconstructions))]
        middle = self.stage.reconstructions[0].extent[0] + (places[0] + places[-1]) / 2
        breadth = float(np.linalg.norm(places[-1] - places[0]))
        size = max(self.stage.extent, 0.75 * (self.stage.extent + breadth / 2))  # windows are broader than high
        return (middle + size * np.array([0.6, -0.7, -1.5])), middle

    def _set_initial_camera(self) -> None:
        """For new clients, and for "Reset view"."""
        position, middle = self._overview()
        start = self.server.initial_camera
        start.up = UP
        start.look_at, start.position = tuple(middle), tuple(position)

    def _show_all_to(self, client: Any) -> None:
        position, middle = self._overview()
        self._enter(None)
        with client.atomic():
            client.camera.up_direction = UP
            client.camera.position, client.camera.look_at = position, middle
            client.camera.fov = np.deg2rad(75)

    # ---- download ----

    def _download(self, client: Any) -> None:
        """Send the current points in the selected format. Errors are shown to the client that asked."""
        if client is None:
            return
        settings, format = self.settings, self._format.value
        indices = [index for index, is_shown in enumerate(settings.shown) if is_shown]
        try:
            if format == AS_SHOWN:
                name, content = shown_points([self.stage.shown(index, settings)[0] for index in indices])
            else:
                chosen = [self.stage.reconstructions[index] for index in indices]
                name, content = exported(format, chosen, settings.percentile)
        except (ValueError, OSError) as error:
            client.add_notification("Not downloaded", message_of(error), color="red")
            return
        client.send_file_download(name, content, save_immediately=True)


def _compared(difference: Difference | None, obstacle: str | None) -> str:
    if difference is None:
        return "the first" if obstacle is None else f"no difference: {obstacle}"
    return difference.describe()


def _quaternion(view: View) -> tuple[float, ...]:
    """Rotation as a quaternion, scalar first as viser expects."""
    import torch

    x, y, z, w = rotation_to_quaternion(torch.from_numpy(view.rotation.copy())).tolist()
    return (w, x, y, z)
