"""Public data sets on this disk: downloads that resume, archives that stay in their folder, and readers.

`download` and `archive` know no data set; `eth3d` knows which archives a scene has. `colmap`, `lens` and `scans` read
what such data sets hold: cameras, how a lens bends rays, and laser scans.
"""
