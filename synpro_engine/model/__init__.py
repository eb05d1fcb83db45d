"""Decoders on Megatron-Core: building them, reading and writing them, scoring tokens with them.

Importing this package loads nothing: import the module that is needed (`model.config` is cheap, `model.build`
loads Megatron).
"""
