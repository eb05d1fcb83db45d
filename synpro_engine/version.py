"""The version, in a module that imports nothing: the build reads it, manifests carry it, the package shows it."""

VERSION = "0.1.0"
