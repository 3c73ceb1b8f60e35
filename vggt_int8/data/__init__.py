"""Public data sets on disk: resumable downloads, safe archive extraction, and readers.

`download` and `archive` are independent of data sets; `eth3d` lists the archives of each scene. `colmap` and `co3d`
read cameras and poses, `lens` computes lens distortion, `scans` reads laser scans.
"""
