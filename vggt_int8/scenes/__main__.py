"""Commands of scenes:

python -m vggt_int8.scenes bundle [--to DIR]
    Write the scenes that ship with the package (to `vggt_int8/assets/scenes` unless told otherwise).
python -m vggt_int8.scenes render --split free --index 7 --views 8 --size 112 112 --to FOLDER
    Write one scene in the same format: images, depth, cameras. `load_scene(FOLDER)` reads it.
"""

import argparse
from pathlib import Path

from vggt_int8.encoding import accept_any_character
from vggt_int8.scenes.seeds import SPLITS
from vggt_int8.scenes.stored import BUNDLED_FOLDER, store_bundled, store_rendered


def main(arguments: list[str] | None = None) -> None:
    accept_any_character()
    args = _parser().parse_args(arguments)
    if args.command == "bundle":
        for name in store_bundled(args.to):
            print(f"wrote {args.to / name}")
    else:
        store_rendered(args.to, args.split, args.index, args.views, args.size)
        print(f"wrote {args.to}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vggt_int8.scenes", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    bundle = commands.add_parser("bundle")
    bundle.add_argument("--to", type=Path, default=BUNDLED_FOLDER, help="folder for the scenes' folders")
    render = commands.add_parser("render")
    render.add_argument("--split", choices=list(SPLITS), default="free")
    render.add_argument("--index", type=int, default=0, help="which scene of the split")
    render.add_argument("--views", type=int, default=8)
    render.add_argument("--size", type=int, nargs=2, default=(112, 112), metavar=("H", "W"))
    render.add_argument("--to", type=Path, required=True, help="folder to write")
    return parser


if __name__ == "__main__":
    main()
