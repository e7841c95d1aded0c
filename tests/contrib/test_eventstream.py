"""What is written to a stream is what its reader gets, whoever chose the texts.

Here live properties of the encoder, judged by a parser that goes by the HTML standard.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pgconcert import ConfigurationError
from pgconcert.contrib.eventstream import KEEP_ALIVE, ServerEvent, retry_line
from tests.contrib.streams import Got, Parser

NASTY = st.text(st.sampled_from("\r\n\0\x0b\x0c\x1c\x85\u2028\u2029\ufeff :aä😀") | st.characters(codec="utf-8"))
ONE_LINE = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"))


def parsed(written: bytes) -> list[Got]:
    return Parser().feed(written.decode())


@given(data=NASTY, event=ONE_LINE, event_id=ONE_LINE)
@example(data="", event="", event_id="")
@example(data="a\r\n\r\nevent: other\ndata: b", event="gap", event_id="7")
@example(data=" leading", event=" name", event_id=" 1")
def test_what_is_read_is_what_was_written(data: str, event: str, event_id: str) -> None:
    """One event, with its data (every line break a LF), its name and its id."""
    events = parsed(ServerEvent(data, event_id, event).lines())
    assert events == [Got(event or "message", re.sub("\r\n|\r", "\n", data), event_id)]


@given(st.lists(NASTY, max_size=5))
def test_events_do_not_run_into_each_other(texts: list[str]) -> None:
    """As many come out as went in, with comments and retries between them, cut anywhere."""
    written = b"".join(KEEP_ALIVE + retry_line(1.5) + ServerEvent(text).lines() for text in texts).decode()
    parser = Parser()
    events = [event for sign in written for event in parser.feed(sign)]
    assert [event.data for event in events] == [re.sub("\r\n|\r", "\n", text) for text in texts]
    assert parser.comments == len(texts)
    assert parser.retry == (1500 if texts else None)


@pytest.mark.parametrize("bad", ["1\n", "1\rdata: x", "1\0"])
def test_an_id_cannot_write_a_field(bad: str) -> None:
    """Line breaks and NUL are refused in an id; the words name what is wrong."""
    with pytest.raises(ConfigurationError, match="the id of a server-sent event"):
        ServerEvent("data", bad)


@pytest.mark.parametrize("bad", ["gap\n", "gap\rdata: x"])
def test_a_name_cannot_write_a_field(bad: str) -> None:
    """Line breaks are refused in the name of an event."""
    with pytest.raises(ConfigurationError, match="the event of a server-sent event"):
        ServerEvent("data", None, bad)


def test_half_a_character_does_not_end_the_stream() -> None:
    """Lone surrogates cannot be written in UTF-8."""
    assert parsed(ServerEvent("a\ud800b").lines()) == [Got("message", "a?b", "")]


def test_data_that_is_no_text() -> None:
    """It is refused when the event is made, where the mistake is."""
    with pytest.raises(ConfigurationError, match="must be a text, not 7"):
        ServerEvent(7)  # type: ignore[arg-type]
