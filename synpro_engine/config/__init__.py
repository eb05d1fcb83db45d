"""Typed, frozen settings and durable artifacts: what every other package rests on."""

from synpro_engine.config.artifact import (
    Manifest,
    atomic_write_text,
    check_replaceable,
    new_artifact,
    outside_artifacts,
    partial_path,
    publish,
    read_manifest,
    remove_directory,
    verify_artifact,
    versions,
    write_manifest,
)
from synpro_engine.config.base import Config, apply_overrides, load_config, read_yaml, to_yaml, validate
from synpro_engine.config.describe import Difference, differences, first_difference
from synpro_engine.config.errors import UserError, brief, first_line, nearest
from synpro_engine.config.integrity import hash_json, sha256_file, verification
from synpro_engine.config.json_text import json_text
from synpro_engine.config.records import (
    Record,
    append_lines,
    as_record,
    parse_record,
    read_json,
    read_record,
    read_records,
    whole_lines,
)

__all__ = [
    "Config",
    "Difference",
    "Manifest",
    "Record",
    "UserError",
    "append_lines",
    "apply_overrides",
    "as_record",
    "atomic_write_text",
    "brief",
    "check_replaceable",
    "differences",
    "first_difference",
    "first_line",
    "hash_json",
    "json_text",
    "load_config",
    "nearest",
    "new_artifact",
    "outside_artifacts",
    "parse_record",
    "partial_path",
    "publish",
    "read_json",
    "read_manifest",
    "read_record",
    "read_records",
    "read_yaml",
    "remove_directory",
    "sha256_file",
    "to_yaml",
    "validate",
    "verification",
    "verify_artifact",
    "versions",
    "whole_lines",
    "write_manifest",
]
