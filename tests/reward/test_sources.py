"""Values of sources: asked for once, told apart by their text."""

from synpro_engine.reward.sources import SourceValues


def test_a_source_is_unseen_until_its_value_is_stored_and_named_once() -> None:
    known = SourceValues()
    assert known.unseen(["b", "a", "b"]) == ["b", "a"]
    known.store(["b"], [0.5])
    assert known.unseen(["b", "a", "a"]) == ["a"]
    known.store(["a"], [-1.0])
    assert (known["a"], known["b"]) == (-1.0, 0.5)
    assert known.unseen(["a", "b"]) == []
