from __future__ import annotations

from cal_schemas.counted import are, counted


def test_one_is_singular_and_many_are_grouped_by_thousands() -> None:
    assert [counted(count, "row") for count in (0, 1, 1500)] == ["0 rows", "1 row", "1,500 rows"]
    assert [are(count) for count in (0, 1, 2)] == ["are", "is", "are"]
