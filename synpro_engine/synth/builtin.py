"""The operations that are built in.

The prompts of the first two follow the requirements of SynPro (arXiv 2605.17849) in our own words, short enough for a
model of 135M parameters; their rewards have the paper's weights, and an anti-copy term that small generators need.
"""

from __future__ import annotations

import functools

from synpro_engine.synth.operation import Operation
from synpro_engine.synth.parse import parse_reformat, parse_rephrase
from synpro_engine.synth.parsed import REFORMAT_HEADING, REPHRASE_HEADING

_ALL = {"influence": 3.0, "quality": 1.0, "format": 1.0, "anti_copy": 1.0}
_ENTRIES = {**_ALL, "faithfulness": 1.0}

REPHRASE = Operation(
    name="rephrase",
    heading=REPHRASE_HEADING,
    instructions=(
        "You are a text rewriter. Rewrite the input text in other words. Keep every fact, name, number, pronoun, "
        "technical term and example, and keep the layout. Leave out navigation, advertisements and footers. "
        f'Add nothing. Begin with the line "{REPHRASE_HEADING}".'
    ),
    prefill=REPHRASE_HEADING + "\n",
    example=None,
    min_chars=20,
    parser=parse_rephrase,
    rewards={**_ALL, "similarity": 1.0, "structure": 1.0, "length": 1.0},
)

_EXAMPLE = (
    "The mill at Harwick burned down on 3 May 1871. Its owner, Anna Pell, rebuilt it within two years and hired "
    "40 new workers, because the town had no other employer. She borrowed the money from a bank in Leeds.",
    f"{REFORMAT_HEADING}\n"
    "- Topic: The fire at Harwick. Content: The mill burned down on 3 May 1871, and two years later it had been "
    "rebuilt.\n"
    "- Topic: Why the mill mattered. Content: Nobody else in the town gave people work, so Anna Pell rebuilt it "
    "and hired 40 more workers.\n"
    "- Topic: Paying for it. Content: A bank in Leeds lent her the money.",
)

REFORMAT = Operation(
    name="reformat",
    heading=REFORMAT_HEADING,
    instructions=(
        "You turn the input text into a few study entries: facts, analysis, concepts, comparisons, problems and "
        "solutions, 8 at most. Use only what the text says. Write one entry a line, in plain text: "
        "- Topic: ... Content: ..."
    ),
    prefill=REFORMAT_HEADING + "\n- Topic:",
    example=_EXAMPLE,
    min_chars=20,
    parser=functools.partial(parse_reformat, example=" ".join(_EXAMPLE)),
    rewards=_ENTRIES,
)
