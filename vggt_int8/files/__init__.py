"""Whole files and whole folders, or none: everything is written under a hidden name first, then renamed.

    write_whole, write_json     a file from its content
    whole_file                  a file that a program writes itself
    staged_folder               a folder, or some files of one that is there, exchanged for those before
    staging_folder              a hidden place for work of a target, which is gone afterwards
    append_json_line, sync      a line more in a log; onto the disk
    sweep, undo_exchange        what a kill has left: removed by the next writer, put back for a reader

`hidden` tells of the names, `exchange` of files that are exchanged in a folder.
"""

from vggt_int8.files.hidden import sweep, undo_exchange
from vggt_int8.files.staging import staged_folder, staging_folder, whole_file
from vggt_int8.files.whole import append_json_line, sync, write_json, write_whole

__all__ = [
    "append_json_line",
    "staged_folder",
    "staging_folder",
    "sweep",
    "sync",
    "undo_exchange",
    "whole_file",
    "write_json",
    "write_whole",
]
