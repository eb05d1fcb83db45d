"""Influence asked outside of a run's stages: of whole files of documents, or of one text token by token."""
