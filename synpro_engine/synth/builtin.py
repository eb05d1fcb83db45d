"""The operations that are built in.

The first two are SynPro's (arXiv 2605.17849): its requirements in our own words, short enough for a model of 135M
parameters, and rewards of the paper's weights, with an anti-copy term that small generators need. The others are forms
that beat paraphrase in public trials of synthetic pretraining text.
"""

from __future__ import annotations

import functools

from synpro_engine.synth import headings
from synpro_engine.synth.keys import TOPIC_CONTENT, Keys
from synpro_engine.synth.operation import Operation
from synpro_engine.synth.parse import EntryForm, parse_entries, parse_rephrase
from synpro_engine.synth.steps import parse_tutorial
from synpro_engine.synth.tables import parse_table

_ALL = {"influence": 3.0, "quality": 1.0, "format": 1.0, "anti_copy": 1.0}
_ENTRIES = {**_ALL, "faithfulness": 1.0}
# Of cells hardly any is a sentence, so that quality and copying cannot be told from their likelihood and order.
_CELLS = {"influence": 3.0, "faithfulness": 1.0, "format": 1.0}

REPHRASE = Operation(
    name="rephrase",
    heading=headings.REPHRASE.text,
    instructions=(
        "You are a text rewriter. Rewrite the input text in other words. Keep every fact, name, number, pronoun, "
        "technical term and example, and keep the layout. Leave out navigation, advertisements and footers. "
        f'Add nothing. Begin with the line "{headings.REPHRASE.text}".'
    ),
    prefill=headings.REPHRASE.text + "\n",
    example=None,
    min_chars=20,
    parser=parse_rephrase,
    rewards={**_ALL, "similarity": 1.0, "structure": 1.0, "length": 1.0},
)

_SOURCE = (
    "The mill at Harwick burned down on 3 May 1871. Its owner, Anna Pell, rebuilt it within two years and hired "
    "40 new workers, because the town had no other employer. She borrowed the money from a bank in Leeds."
)


def _listing(name: str, form: EntryForm, instructions: str, begins: str, answer: str) -> Operation:
    """An operation whose answers are lists of entries; begins: of the first one, as the prefill has it."""
    heading = form.heading.text
    example = (_SOURCE, f"{heading}\n{answer}")
    return Operation(
        name=name,
        heading=heading,
        instructions=instructions,
        prefill=f"{heading}\n{begins}",
        example=example,
        min_chars=20,
        parser=functools.partial(parse_entries, form=form, example=" ".join(example)),
        rewards=_ENTRIES,
    )


REFORMAT = _listing(
    "reformat",
    EntryForm(heading=headings.REFORMAT, keys=TOPIC_CONTENT),
    "You turn the input text into a few study entries: facts, analysis, concepts, comparisons, problems and "
    "solutions, 8 at most. Use only what the text says. Write one entry a line, in plain text: "
    "- Topic: ... Content: ...",
    "- Topic:",
    "- Topic: The fire at Harwick. Content: The mill burned down on 3 May 1871, and two years later it had been "
    "rebuilt.\n"
    "- Topic: Why the mill mattered. Content: Nobody else in the town gave people work, so Anna Pell rebuilt it "
    "and hired 40 more workers.\n"
    "- Topic: Paying for it. Content: A bank in Leeds lent her the money.",
)

FAQ = _listing(
    "faq",
    EntryForm(
        heading=headings.FAQ,
        keys=Keys(
            first="(?:Questions?|Q)", second="(?:Answers?|A)", slots="question|questions|answer|answers", asks=True
        ),
        entry="Question: {topic}\nAnswer: {content}",
        between="\n\n",
    ),
    "You turn the input text into the questions that a reader would ask, with their answers, 8 at most. Go from the "
    "basic to the special. Each answer is a full sentence or two that stands for itself. Use only what the text says. "
    "Write in plain text, each on its own line: Question: ... Answer: ...",
    "Question:",
    "Question: When did the mill at Harwick burn down?\n"
    "Answer: The mill at Harwick was lost to a fire on 3 May 1871.\n\n"
    "Question: Why was the mill built again?\n"
    "Answer: The town had no other employer, so Anna Pell, who owned the mill, rebuilt it within two years.\n\n"
    "Question: Where did the money come from?\n"
    "Answer: A bank in Leeds lent it to Anna Pell.",
)

PROBLEMS = _listing(
    "problems",
    EntryForm(
        heading=headings.PROBLEMS,
        keys=Keys(
            first="(?:Problems?|Exercises?)",
            second="(?:(?:Step-by-step )?Solutions?)",
            slots="problem|problems|solution|solutions|exercise",
            lines=True,
        ),
        entry="Problem: {topic}\nSolution: {content}",
        between="\n\n",
    ),
    "You turn the input text into one to three problems that make a student think, with worked solutions. A problem "
    "gives all that is needed to solve it; where the text has numbers, it asks for a calculation. Use only what the "
    "text says. Write in plain text: Problem: ... Solution: ...",
    "Problem:",
    "Problem: The mill at Harwick burned down in May 1871 and was rebuilt within two years. By when did it work again "
    "at the latest?\n"
    "Solution: Two years after May 1871 is May 1873. So the mill worked again by May 1873.\n\n"
    "Problem: Anna Pell wanted the mill back, but had no money for it. Name a reason for rebuilding it, and her way "
    "to pay.\n"
    "Solution: The town had no other employer, which is a reason to rebuild. A bank in Leeds lent her the money.",
)

_TABLE = (
    _SOURCE,
    f"{headings.TABLE.text}\n"
    "| Subject | Event | Date or number |\n"
    "|---|---|---|\n"
    "| The mill at Harwick | burned down | 3 May 1871 |\n"
    "| Anna Pell, its owner | rebuilt the mill | within two years |\n"
    "| New workers | hired by Anna Pell | 40 |\n"
    "| A bank in Leeds | lent the money | not given |",
)
TABLE = Operation(
    name="table",
    heading=headings.TABLE.text,
    instructions=(
        "You put what the input text says into one markdown table, so that it can be looked up. Name two to four "
        "columns, then write one row for each fact. Use only what the text says, and write nothing but the table."
    ),
    prefill=headings.TABLE.text + "\n|",
    example=_TABLE,
    min_chars=20,
    parser=functools.partial(parse_table, example=" ".join(_TABLE)),
    rewards=_CELLS,
)

_TUTORIAL = (
    _SOURCE,
    f"{headings.TUTORIAL.text}\n"
    "Step 1: Say what happened. A fire on 3 May 1871 destroyed the mill at Harwick.\n"
    "Step 2: Ask why it mattered. The mill was all the work that the town had.\n"
    "Step 3: Follow the money. Anna Pell got it from a bank in Leeds, built for two years and hired 40 workers.",
)
TUTORIAL = Operation(
    name="tutorial",
    heading=headings.TUTORIAL.text,
    instructions=(
        "You turn the input text into a lesson that a beginner can follow: numbered steps, each of which explains one "
        "thing and builds on the one before. Explain terms where they first come up. Use only what the text says. "
        "Write each step as: Step 1: ..."
    ),
    prefill=headings.TUTORIAL.text + "\nStep 1:",
    example=_TUTORIAL,
    min_chars=20,
    parser=functools.partial(parse_tutorial, example=" ".join(_TUTORIAL)),
    rewards=_ENTRIES,
)
