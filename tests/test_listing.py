from vggt_int8.listing import first_few


def test_lists_are_whole_or_say_how_much_is_left_out() -> None:
    assert first_few([]) == ""
    assert first_few(["a", "b", "c"]) == "a, b, c"
    assert first_few(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
    assert first_few([1, 2, 3], 1, between="; ") == "1 and 2 more"


def test_only_entries_that_are_shown_are_spelt() -> None:
    spelt: list[int] = []

    def spell(entry: int) -> str:
        spelt.append(entry)
        return f"<{entry}>"

    assert first_few(range(9), 2, spell=spell, between="; ") == "<0>; <1> and 7 more"
    assert spelt == [0, 1]
