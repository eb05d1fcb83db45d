"""Files that lie in object stores: addresses, listings, reading by ranges, copies in both directions.

Credentials, endpoints and regions are those of the environment and of each store's own configuration files.
"""

from synpro_engine.storage.fetching import at_hand, file_at_hand
from synpro_engine.storage.outputs import all_at_hand, copy_artifact, writing_to
from synpro_engine.storage.places import LocalPlace, Place, is_remote, joined, local_path, place, place_name
from synpro_engine.storage.reading import RemoteFile
from synpro_engine.storage.remembering import remembered
from synpro_engine.storage.stores import find_files
from synpro_engine.storage.writing import put_directory, put_file, remove_files

__all__ = [
    "LocalPlace",
    "Place",
    "RemoteFile",
    "all_at_hand",
    "at_hand",
    "copy_artifact",
    "file_at_hand",
    "find_files",
    "is_remote",
    "joined",
    "local_path",
    "place",
    "place_name",
    "put_directory",
    "put_file",
    "remembered",
    "remove_files",
    "writing_to",
]
