"""The documentation site: pages from the repository's own files, pictures and tables from the code itself.

`hooks` is what mkdocs calls; the other modules know nothing of it.
"""
