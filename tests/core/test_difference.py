from lit_fed.core.difference import differences, listed


def test_every_setting_that_is_not_the_same_is_named_by_its_key() -> None:
    there = {"same": 1, "a": {"b": {"c": 1, "d": [1, 2]}, "gone": True}, "empty": {}}
    here = {"same": 1, "a": {"b": {"c": 2, "d": [1, 2]}}, "empty": {"new": "x"}}
    assert differences(there, here) == [
        "a.b.c: 1 there, 2 here",
        "a.gone: True there, None here",
        "empty: {} there, None here",
        "empty.new: None there, 'x' here",
    ]
    assert differences(there, there) == []


def test_a_dozen_is_listed_and_the_rest_counted() -> None:
    assert listed(["one", "two"]) == "\n  one\n  two"
    lines = listed([str(number) for number in range(14)]).splitlines()
    assert lines == ["", *(f"  {number}" for number in range(12)), "  and 2 more"]
