"""What programs write for a terminal, as HTML."""

from __future__ import annotations

import re
from html import unescape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtf_lightning.farm.page.ansi import Style, style_after, to_html

TAGS = re.compile(r'</?mark>|<span class="[a-z0-9 ]+">|</span>')


@pytest.mark.parametrize(
    ("data", "html"),
    [
        (b"plain\n", "plain\n"),
        (b"<script>alert(1)</script>&", "&lt;script&gt;alert(1)&lt;/script&gt;&amp;"),
        (b"\x1b[31mred\x1b[0m not", '<span class="fg1">red</span> not'),
        (b"\x1b[1;32mok\x1b[39m bold", '<span class="bold fg2">ok</span><span class="bold"> bold</span>'),
        (b"\x1b[38;5;196mx\x1b[m", '<span class="fg9">x</span>'),
        (b"\x1b[38;5;3mx\x1b[m", '<span class="fg3">x</span>'),
        (b"\x1b[38;5;255mx", '<span class="fg7">x</span>'),
        (b"\x1b[48;2;0;0;230mx", '<span class="bg4">x</span>'),
        (b"\x1b[97;101mx", '<span class="fg15 bg9">x</span>'),
        (b"\x1b[38;9mx", "x"),
        (b"\x1b[2K\x1b[1A\x1b[?25lx", "x"),
        (b"\x1b]0;title\x07x\x1b]8;;http://a\x1b\\y", "xy"),
        (b"10%\r50%\r100%\nnext", "100%\nnext"),
        (b"10%\r100%\r\nnext", "100%\nnext"),
        (b"\x1b[31m10%\r100%\nnext", '<span class="fg1">100%\nnext</span>'),
        (b"\x00\x07\x1b\x7f", "␀␇␛␡"),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b"\xc2\x85", "\ufffd"),
        (b"\x1b[999999999999999999mx", "x"),
    ],
)
def test_examples(data, html):
    assert to_html(data) == html


def test_marked():
    assert to_html(b"An <error> and an ERROR", mark="error") == (
        "An &lt;<mark>error</mark>&gt; and an <mark>ERROR</mark>"
    )
    assert to_html(b"a.b aXb", mark="a.b") == "<mark>a.b</mark> aXb"


def test_a_part_begins_with_the_colour_that_holds_there():
    assert style_after(b"\x1b[1m\x1b[34mblue") == Style(foreground=4, bold=True)
    assert to_html(b"still", Style(foreground=4, bold=True)) == '<span class="bold fg4">still</span>'


PIECES = st.sampled_from(
    [b"<", b">", b"&", b'"', b"'", b"\x1b", b"[", b"31m", b"\x1b[31m", b"\x1b]0;", b"\r", b"\n", b"\x07", b"\xff", b"e"]
)


@given(st.lists(PIECES | st.binary(max_size=4), max_size=40).map(b"".join), st.sampled_from(["", "e", "<"]))
def test_nothing_of_it_is_markup(data, mark):
    """Without the tags of our own tables no markup is left, and the same characters stand there marked or not."""
    html = to_html(data, mark=mark)
    text = TAGS.sub("", html)
    assert "<" not in text
    assert ">" not in text
    assert unescape(text) == unescape(TAGS.sub("", to_html(data)))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
