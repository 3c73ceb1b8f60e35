"""Whole files and whole folders, or none: everything is written under a hidden name first, then renamed.

    write_whole, write_json     a file from its content
    whole_file                  a file that another program writes
    staged_folder               a folder, or some files of an existing one, exchanged for those before
    staging_folder              a hidden place for temporary files of a target, removed afterwards
    append_json_line, sync      append a line to a log; flush to disk
    sweep, undo_exchange        remnants of a kill: removed by the next writer, restored for a reader

`hidden` defines the names, `exchange` exchanges files in a folder.
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
