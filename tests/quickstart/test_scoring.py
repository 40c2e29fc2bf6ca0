import pytest
import scoring


@pytest.mark.parametrize(
    "answer",
    [
        "Bees make honey.",
        "  Bees make honey.  ",
        "Honey!",
        'They call it "honey."',
        "The honey costs 3.50 dollars.",
        "Dr. Miller says that bees make honey.",
        "J. K. Rowling likes honey.",
    ],
)
def test_one_short_sentence_with_a_keyword_passes(answer: str) -> None:
    assert scoring.score(answer, ["honey"]).passed


@pytest.mark.parametrize(
    "answer",
    [
        "Bees make honey. They live in hives.",
        "Bees make honey! They live in hives.",
        "Is it honey? It is honey.",
        "Bees make honey\nand wax.",
        "Bees make honey and they also make",
        "",
        "   ",
    ],
)
def test_anything_but_one_complete_sentence_fails(answer: str) -> None:
    result = scoring.score(answer, ["honey"])
    assert not result.one_sentence
    assert not result.passed


def test_a_sentence_of_more_than_twenty_words_is_too_long() -> None:
    twenty = " ".join(["honey"] * 20) + "."
    assert scoring.score(twenty, ["honey"]).passed
    assert not scoring.score(f"Sweet {twenty}", ["honey"]).short


def test_an_answer_without_any_accepted_keyword_is_not_correct() -> None:
    result = scoring.score("Bees make silk.", ["honey", "nectar"])
    assert (result.one_sentence, result.short, result.correct) == (True, True, False)


@pytest.mark.parametrize(
    ("text", "keyword", "found"),
    [
        ("An EYE is round.", "eye", True),
        ("An eyebrow is hair.", "eye", False),
        ("He baked a cake.", "bak*", True),
        ("He likes kebak.", "bak*", False),
        ("There are 24 hours.", "24", True),
        ("There are 240 hours.", "24", False),
        ("It is carbon dioxide.", "carbon dioxide", True),
        ("A one-way street.", "way", True),
    ],
)
def test_a_keyword_is_a_whole_word_unless_it_ends_with_a_star(text: str, keyword: str, found: bool) -> None:
    assert scoring.contains_keyword(text, keyword) is found


def test_the_share_counts_answers_that_pass_everything() -> None:
    good = scoring.Score(one_sentence=True, short=True, correct=True)
    bad = scoring.Score(one_sentence=True, short=True, correct=False)
    assert scoring.share([good, bad, bad, good]) == 0.5
    assert scoring.share([]) == 0.0
