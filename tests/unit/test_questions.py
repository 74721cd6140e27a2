"""Questions about lost connections: who is asked, how often, and when a client is told that nobody has it."""

from __future__ import annotations

from itertools import count

import pytest

from rauta.asking.questions import ANSWER_SECONDS, DENIALS, FORGET_SECONDS, RESET_SECONDS, Lost, Question, Questions

SHOP, ELSEWHERE = (0x5064_12C6, 0x5000), (0x5164_12C6, 0x5000)
AGENTS = {SHOP: ("web-1", "web-2", "api-1"), (1, 1): ()}
ALICE = (0x0100_12C6, SHOP[0], 40000, SHOP[1])
BOB = (0x0200_12C6, SHOP[0], 40000, SHOP[1])
LOST = Lost(ALICE, seq=1000, ack=2000)


@pytest.fixture
def questions() -> Questions[str]:
    numbers = count(1)
    return Questions(AGENTS, nonce=lambda: next(numbers))


def asked(questions: Questions[str], lost: Lost = LOST, now: float = 0.0) -> Question[str]:
    question = questions.ask(lost, now)
    assert question is not None
    return question


def denied_by_all(questions: Questions[str], lost: Lost = LOST, now: float = 0.0) -> bool:
    """Whether its client is to be reset."""
    question = asked(questions, lost, now)
    return [questions.deny(question, agent, now) for agent in AGENTS[SHOP]][-1]


# ---- asking ----------------------------------------------------------------------------------------------


def test_all_who_serve_the_vip_are_asked(questions: Questions[str]) -> None:
    question = asked(questions)
    assert (question.lost, question.nonce, question.waiting) == (LOST, 1, {"web-1", "web-2", "api-1"})
    assert questions.find(1) is question


@pytest.mark.parametrize("server", [ELSEWHERE, (1, 1)])
def test_a_vip_that_nobody_serves_is_not_asked_about(questions: Questions[str], server: tuple[int, int]) -> None:
    assert questions.ask(Lost((ALICE[0], server[0], 40000, server[1]), 0, 0), 0.0) is None


def test_while_a_question_is_open_it_is_not_asked_again(questions: Questions[str]) -> None:
    asked(questions)
    assert questions.ask(Lost(ALICE, 5, 6), ANSWER_SECONDS / 2) is None
    assert asked(questions, Lost(BOB, 1, 1)).nonce == 2


@pytest.mark.parametrize("end", ["taken", "denied", "expired"])
def test_afterwards_it_is(questions: Questions[str], end: str) -> None:
    question = asked(questions)
    if end == "taken":
        questions.close(question)
    elif end == "denied":
        for agent in AGENTS[SHOP]:
            questions.deny(question, agent, 0.1)
    else:
        assert questions.expire(ANSWER_SECONDS) == [question]
    assert questions.find(question.nonce) is None
    assert asked(questions, now=ANSWER_SECONDS).nonce == 2


def test_no_two_open_questions_have_one_number() -> None:
    numbers = iter([7, 7, 7, 8])
    questions = Questions(AGENTS, nonce=lambda: next(numbers))
    assert (asked(questions).nonce, asked(questions, Lost(BOB, 1, 1)).nonce) == (7, 8)


def test_numbers_are_random_by_default() -> None:
    nonces = {asked(Questions(AGENTS)).nonce for _ in range(50)}
    assert len(nonces) == 50
    assert max(nonces) > 1 << 56


# ---- time ------------------------------------------------------------------------------------------------


def test_an_unanswered_question_expires(questions: Questions[str]) -> None:
    first, second = asked(questions, now=10.0), asked(questions, Lost(BOB, 1, 1), now=10.4)
    assert questions.deadline() == 10.0 + ANSWER_SECONDS
    assert questions.expire(10.0 + ANSWER_SECONDS - 0.01) == []
    assert questions.expire(10.0 + ANSWER_SECONDS) == [first]
    assert questions.deadline() == 10.4 + ANSWER_SECONDS
    assert questions.expire(99.0) == [second]
    assert questions.deadline() is None


def test_closing_what_has_expired_is_harmless(questions: Questions[str]) -> None:
    question = asked(questions)
    questions.expire(99.0)
    again = asked(questions, now=99.0)
    questions.close(question)
    assert questions.find(again.nonce) is again


# ---- nobody has it ---------------------------------------------------------------------------------------


def test_one_denial_resets_nobody(questions: Questions[str]) -> None:
    """The connection's first request may have been lost, and what was asked about overtook it."""
    assert not denied_by_all(questions)
    assert not denied_by_all(questions, now=RESET_SECONDS - 0.1)


@pytest.mark.parametrize("later", [RESET_SECONDS, FORGET_SECONDS])
def test_the_same_again_some_seconds_later_does(questions: Questions[str], later: float) -> None:
    assert not denied_by_all(questions, now=100.0)
    assert denied_by_all(questions, now=100.0 + later)


def test_denials_in_between_do_not_put_it_off(questions: Questions[str]) -> None:
    results = [denied_by_all(questions, now=100.0 + step * RESET_SECONDS / 4) for step in range(5)]
    assert results == [False] * 4 + [True]


def test_one_reset_for_each_pair(questions: Questions[str]) -> None:
    denied_by_all(questions, now=100.0)
    assert denied_by_all(questions, now=110.0)
    assert not denied_by_all(questions, now=110.1)


def test_another_acknowledgement_is_another_connections(questions: Questions[str]) -> None:
    """One that used the port again, and whose first request was lost. Of a dead one's it never grows."""
    assert not denied_by_all(questions, now=100.0)
    assert not denied_by_all(questions, Lost(ALICE, 1000, 2001), now=110.0)
    assert not denied_by_all(questions, LOST, now=111.0)


def test_another_segment_of_the_same_connection_counts(questions: Questions[str]) -> None:
    assert not denied_by_all(questions, now=100.0)
    assert denied_by_all(questions, Lost(ALICE, 999, 2000), now=110.0)


def test_a_denial_is_forgotten_after_a_while(questions: Questions[str]) -> None:
    denied_by_all(questions, now=100.0)
    assert not denied_by_all(questions, now=100.1 + FORGET_SECONDS)


def test_a_connection_that_was_found_is_not_denied_any_more(questions: Questions[str]) -> None:
    denied_by_all(questions, now=100.0)
    questions.close(asked(questions, now=101.0), found=True)
    assert not denied_by_all(questions, now=110.0)


def test_where_one_agent_is_silent_nobody_is_reset(questions: Questions[str]) -> None:
    for now in (100.0, 110.0, 120.0):
        question = asked(questions, now=now)
        assert not questions.deny(question, "web-1", now)
        assert not questions.deny(question, "api-1", now)
        assert questions.expire(now + ANSWER_SECONDS) == [question]
        assert question.waiting == {"web-2"}


def test_nor_where_others_than_the_agents_may_have_it() -> None:
    """The fallback, which is not asked."""
    questions = Questions(AGENTS, elsewhere={SHOP})
    for now in (100.0, 110.0, 120.0):
        assert not denied_by_all(questions, now=now)
    assert questions.remembered == 0


def test_one_agent_that_denies_twice_is_one(questions: Questions[str]) -> None:
    denied_by_all(questions, now=100.0)
    question = asked(questions, now=110.0)
    assert [questions.deny(question, "web-1", 110.0) for _ in range(5)] == [False] * 5
    assert [questions.deny(question, agent, 110.0) for agent in ("web-2", "api-1")] == [False, True]


def test_what_is_remembered_is_bounded(questions: Questions[str]) -> None:
    """A flood of made-up tuples makes the oldest forgotten, and nothing else."""
    strangers = [Lost((port, SHOP[0], port, SHOP[1]), 0, port) for port in range(DENIALS + 10)]
    for lost in strangers:
        assert not denied_by_all(questions, lost, now=100.0)
    assert questions.remembered == DENIALS
    assert not denied_by_all(questions, strangers[0], now=110.0)
    assert denied_by_all(questions, strangers[-1], now=110.0)
