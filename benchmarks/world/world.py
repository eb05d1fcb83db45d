"""A world of facts, made by a seed: people, what is true of them, and the forms in which that can be said.

Words are token ids. A fact is (person, relation, value); values are drawn at random, so that nothing but having read a
fact tells it. Whoever has read it in one form alone is then asked for it in another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from synpro_engine.data import TokenCorpus

PEOPLE, NAMES, RELATIONS, VALUES, FILLERS = 240, 24, 4, 24, 40
STYLES = 4
"""Of prose, each with words and an order of its own."""
EOS = 0
# Ids, kind after kind: words of the forms, of relations (a word in each style and one in questions), names, values.
_IS, _OF, _THEIR, _END, _AND, _QUESTION, _ANSWER = range(1, 8)
_RELATION = 8
_FIRST = _RELATION + RELATIONS * (STYLES + 1)
_LAST = _FIRST + NAMES
_VALUE = _LAST + NAMES
_FILLER = _VALUE + RELATIONS * VALUES
VOCABULARY = _FILLER + FILLERS

FORMS = ("copy", *(f"prose-{style}" for style in range(STYLES)), "questions", "verbose", "one fact", "noise")
"""What a rephraser can make of a document."""
Generator = np.random.Generator


@dataclass(frozen=True, kw_only=True)
class Text:
    """One document: its words, with EOS, and which of them are values that a reader has to know."""

    person: int
    style: int
    words: tuple[int, ...]
    values: tuple[bool, ...]
    right: float = 1.0
    """Part of its values that are as the world has them."""


@dataclass(frozen=True)
class World:
    """Facts, and who of the people is asked about in the text that is trained on."""

    seed: int
    value_PR: NDArray[np.int64] = field(init=False)
    names_P2: NDArray[np.int64] = field(init=False)
    order_SR: NDArray[np.int64] = field(init=False)
    """The order of relations by style; the last row is that of questions."""

    def __post_init__(self) -> None:
        rng = self.draws("facts")
        pairs = rng.choice(NAMES * NAMES, PEOPLE, replace=False)
        made = {
            "value_PR": rng.integers(VALUES, size=(PEOPLE, RELATIONS)),
            "names_P2": np.stack([pairs // NAMES, pairs % NAMES], axis=1),
            "order_SR": np.stack([rng.permutation(RELATIONS) for _ in range(STYLES + 1)]),
        }
        for name, array in made.items():
            object.__setattr__(self, name, array)

    def draws(self, use: str, number: int = 0) -> Generator:
        """Random numbers of one use, which others do not shift."""
        return np.random.default_rng([self.seed, number, *use.encode()])

    @property
    def told(self) -> range:
        """People whose facts the text both tells and asks for."""
        return range(PEOPLE // 2)

    @property
    def reference(self) -> range:
        """People whose facts it tells alone; questions about them are the reference."""
        return range(PEOPLE // 2, 3 * PEOPLE // 4)

    @property
    def validation(self) -> range:
        """The same, and what results are quoted on."""
        return range(3 * PEOPLE // 4, PEOPLE)

    def say(self, person: int, form: str, style: int, rng: Generator, wrong: float = 0.0) -> Text:
        """A person's facts in a form; `style` is that of the document which is rephrased.

        wrong: probability of each value to be another one.
        """
        words: list[int] = []
        values: list[bool] = []
        mistakes = 0

        def add(*some: int, value: bool = False) -> None:
            words.extend(some)
            values.extend([value] * len(some))

        asks = form == "questions"
        told = int(form.removeprefix("prose-")) if form.startswith("prose-") else style
        order = self.order_SR[STYLES if asks else told]
        first, last = self.names_P2[person] + (_FIRST, _LAST)
        if form == "one fact":
            order = rng.choice(order, 1)
        for place, relation in enumerate(order):
            value = int(self.value_PR[person, relation])
            if rng.random() < wrong:
                value, mistakes = (value + int(rng.integers(1, VALUES))) % VALUES, mistakes + 1
            word, value = _RELATION + relation * (STYLES + 1) + (STYLES if asks else told), _value_id(relation, value)
            if form == "noise":
                add(*rng.integers(_FILLER, VOCABULARY, size=5))
                continue
            if form == "verbose":
                add(*rng.integers(_FILLER, VOCABULARY, size=8))
            match "questions" if asks else told:
                case "questions":
                    before, after = (_QUESTION, word, first, last, _ANSWER), ()
                case 0:
                    before, after = (first, last, word), (_END,)
                case 1:
                    before, after = (word, _OF, first, last, _IS), (_END,)
                case 2:
                    before, after = ((first, last) if place == 0 else (_AND, _THEIR)) + (word, _IS), ()
                case _:
                    before, after = (), (_IS, word, _OF, first, last, _END)
            add(*before)
            add(value, value=True)
            add(*after)
        add(EOS)
        return Text(
            person=person, style=told, words=tuple(map(int, words)), values=tuple(values),
            right=1.0 - mistakes / len(order),
        )  # fmt: skip

    def said(self, person: int, relation: int) -> int:
        """The id of the value of a fact."""
        return _value_id(relation, int(self.value_PR[person, relation]))

    def organic(self, copies: int = 1) -> list[Text]:
        """The text that there is: `copies` documents of each person, mostly in style 0, and the questions about some.

        Of two sizes of it the larger one begins with the smaller one.
        """
        texts: list[Text] = []
        for number in range(copies):
            rng = self.draws("organic", number)
            for person in range(PEOPLE):
                style = 0 if rng.random() < 0.7 else int(rng.integers(STYLES))
                texts.append(self.say(person, "copy", style, rng))
            texts += [self.say(person, "questions", 0, rng) for person in self.told]
        return texts

    def distinct_tokens(self, copies: int = 1) -> int:
        """Tokens of that text's documents, of those that are the same word for word one.

        A document is a function of person and style, and most are in style 0: eight times the text is twice of it.
        """
        return sum(map(len, {text.words for text in self.organic(copies)}))

    def asked(self, people: Sequence[int]) -> list[Text]:
        """Every question about these people."""
        rng = self.draws("asked")
        return [self.say(person, "questions", 0, rng) for person in people]


def _value_id(relation: int, value: int) -> int:
    return _VALUE + int(relation) * VALUES + value


def corpus(texts: Sequence[Text], *, values_alone: bool = False) -> TokenCorpus:
    """The texts as tokens; of held-out ones the values alone are targets."""
    return TokenCorpus(
        tokens=np.array([word for text in texts for word in text.words], dtype=np.int32),
        offsets=np.cumsum([0, *(len(text.words) for text in texts)], dtype=np.int64),
        eos_id=EOS,
        text_bytes=0,
        fingerprint="world",
        read_ids=lambda: [f"{number}" for number in range(len(texts))],
        learnt=np.array([value for text in texts for value in text.values]) if values_alone else None,
    )
