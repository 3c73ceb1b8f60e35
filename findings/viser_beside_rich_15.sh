#!/bin/sh
# pip, viser and rich 15: viser 1.1.1 wants rich below 15. Where rich 15 is pinned, `pip install viser` does not fail: pip
# goes back, version after version, to viser 0.2.23, whose requirements had no upper bound, and installs that in
# silence. That version's page loads a script from www.googletagmanager.com in the browser of everybody who looks at a
# reconstruction; the page of 1.1.1 loads nothing from elsewhere. Who meets it: whoever pins the newest rich beside a 3D
# viewer. The way out: ask for viser>=1.1, which fails and names rich, and pin rich below 15 for it.
#
# Output seen:
#   asked for viser, rich==15.0.0: viser 0.2.23, its page loads https://www.googletagmanager.com/gtag/js
#   asked for viser==1.1.1: viser 1.1.1, its page loads nothing from elsewhere
set -e
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

look() {
  name=$1
  shift
  python3 -m venv "$folder/$name"
  "$folder/$name/bin/pip" -q install --disable-pip-version-check "$@"
  "$folder/$name/bin/python" - "$*" <<'PYTHON'
import gzip
import re
import sys
from importlib.metadata import version
from pathlib import Path

import viser

page = (Path(viser.__file__).parent / "client" / "build" / "index.html").read_bytes()
page = gzip.decompress(page) if page[:2] == b"\x1f\x8b" else page
loaded = re.search(rb"<script[^>]*src=\"(https?://[^\"?]*)", page)
where = loaded[1].decode() if loaded else "nothing from elsewhere"
print(f"asked for {', '.join(sys.argv[1].split())}: viser {version('viser')}, its page loads {where}")
PYTHON
}

look old viser rich==15.0.0 | tee "$folder/out"
look new viser==1.1.1 | tee -a "$folder/out"
grep -q "rich==15.0.0: viser 0.2.23, its page loads https://www.googletagmanager.com" "$folder/out"
grep -q "viser==1.1.1: viser 1.1.1, its page loads nothing from elsewhere" "$folder/out"
