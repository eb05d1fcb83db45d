"""Typed, frozen settings and durable artifacts: what every other package rests on."""

from synpro_engine.config.artifact import (
    Manifest,
    atomic_write_text,
    check_replaceable,
    hash_json,
    new_artifact,
    partial_path,
    publish,
    read_manifest,
    remove_directory,
    sha256_file,
    versions,
    write_manifest,
)
from synpro_engine.config.base import Config, apply_overrides, load_config, read_yaml, to_yaml, validate
from synpro_engine.config.errors import UserError, brief, nearest

__all__ = [
    "Config",
    "Manifest",
    "UserError",
    "apply_overrides",
    "atomic_write_text",
    "brief",
    "check_replaceable",
    "hash_json",
    "load_config",
    "nearest",
    "new_artifact",
    "partial_path",
    "publish",
    "read_manifest",
    "read_yaml",
    "remove_directory",
    "sha256_file",
    "to_yaml",
    "validate",
    "versions",
    "write_manifest",
]
