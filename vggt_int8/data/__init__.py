"""Public data sets on disk: resumable downloads, safe archive extraction, and readers.

`download` and `archive` are independent of data sets; `eth3d` lists the archives of each scene. `colmap`, `lens` and
`scans` read the contents: cameras, lens distortion and laser scans.
"""
