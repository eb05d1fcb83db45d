"""What a word is to patterns: letters and digits, with the marks on them, which `\\w` leaves out."""

import itertools
import unicodedata


def _marks() -> str:
    """Unicode's combining marks as the inside of a character class: vowel signs, accents, points."""
    numbers = [*range(0x20000), *range(0xE0100, 0xE01F0)]  # no mark stands elsewhere
    marks = [number for number in numbers if unicodedata.category(chr(number))[0] == "M"]
    # Neighbours have the same distance from their places in the list.
    runs = [[one for _, one in run] for _, run in itertools.groupby(enumerate(marks), lambda pair: pair[1] - pair[0])]
    return "".join(f"{chr(run[0])}-{chr(run[-1])}" for run in runs)


WORD = rf"\w[\w{_marks()}]*"
"""A run of letters, digits and underscores, whole in scripts whose vowels are signs (Hindi, Tamil, pointed Arabic)."""
