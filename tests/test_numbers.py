"""Numbers that are handed out."""
from miniguest.ring.numbers import Numbers


def test_the_lowest_first_and_what_came_back_before_it() -> None:
    free = Numbers(3, 6)
    assert (len(free), free.take(), free.take(), len(free)) == (3, 3, 4, 1)
    free.give(3)
    free.give(4)
    assert [free.take() for _ in range(4)] == [4, 3, 5, None]
    assert len(free) == 0
