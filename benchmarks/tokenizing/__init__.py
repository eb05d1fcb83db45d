"""The stage `tokenize` held to the tokenizers library alone, and its memory as a corpus grows."""
