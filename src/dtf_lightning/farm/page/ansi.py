"""What a program wrote for a terminal, as HTML: colours as classes, all else as text. Pure.

Rules that this file guards:
- Nothing of the output is markup: every character of it is escaped, and classes come from the tables here.
- Every byte leaves something to see, but for what moves a terminal's cursor: what is no UTF-8 is shown as U+FFFD, control
  characters as their pictures (U+2400 and on).
- Of a line that a program has drawn over by carriage returns the last drawing is shown, as a terminal would.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from html import escape

_TOKEN = re.compile(
    "\x1b\\[([0-9;:]*)m"  # 1: colours and weights (SGR)
    "|\x1b\\[[0-?]*[ -/]*[@-~]"  # other control sequences (ECMA-48, section 5.4)
    "|\x1b\\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\\\)"  # titles and links
    "|\x1b[()][0-9A-B]"  # character sets
)
_PICTURES = {code: 0x2400 + code for code in range(32) if code not in (9, 10)} | {127: 0x2421}
_PICTURES |= dict.fromkeys(range(128, 160), 0xFFFD)
_BASIC = (
    (0, 0, 0), (205, 0, 0), (0, 205, 0), (205, 205, 0), (0, 0, 238), (205, 0, 205), (0, 205, 205), (229, 229, 229),
    (127, 127, 127), (255, 0, 0), (0, 255, 0), (255, 255, 0), (92, 92, 255), (255, 0, 255), (0, 255, 255), (255, 255, 255),
)  # fmt: skip
"""The sixteen colours as xterm has them: of others the nearest of these is shown."""


@dataclass(frozen=True)
class Style:
    """How text looks: colours are 0 to 15, or `None` for the terminal's own."""

    foreground: int | None = None
    background: int | None = None
    bold: bool = False
    dim: bool = False
    italic: bool = False
    underline: bool = False

    def classes(self) -> str:
        """As names of classes."""
        names = [name for name in ("bold", "dim", "italic", "underline") if getattr(self, name)]
        names += [] if self.foreground is None else [f"fg{self.foreground}"]
        names += [] if self.background is None else [f"bg{self.background}"]
        return " ".join(names)


PLAIN = Style()
_SWITCHES = {
    1: ("bold", True), 2: ("dim", True), 3: ("italic", True), 4: ("underline", True),
    23: ("italic", False), 24: ("underline", False),
}  # fmt: skip


def to_html(data: bytes, style: Style = PLAIN, mark: str = "") -> str:
    """Return output as HTML for a `<pre>`.

    Args:
        style: what holds where it begins.
        mark: text that is marked wherever it stands, small and capital letters alike.
    """
    text = _drawn_last(data.decode(errors="replace"))
    marked = re.compile(re.escape(mark), re.IGNORECASE) if mark else None
    parts: list[str] = []
    position = 0
    for token in _TOKEN.finditer(text):
        parts.append(_styled(text[position : token.start()], style, marked))
        style, position = _after(style, token), token.end()
    parts.append(_styled(text[position:], style, marked))
    return "".join(parts)


def style_after(data: bytes, style: Style = PLAIN) -> Style:
    """Return the style that holds behind some output."""
    for token in _TOKEN.finditer(data.decode(errors="replace")):
        style = _after(style, token)
    return style


def _drawn_last(text: str) -> str:
    text = text.replace("\r\n", "\n")
    if "\r" not in text:
        return text
    lines = (line.rstrip("\r") for line in text.split("\n"))
    # Colours that a line's earlier drawings have set hold on.
    return "\n".join(_colours(line[:at]) + line[at:] for line in lines for at in (line.rfind("\r") + 1,))


def _colours(text: str) -> str:
    return "".join(token.group() for token in _TOKEN.finditer(text) if token.group(1) is not None)


def _styled(text: str, style: Style, marked: re.Pattern[str] | None) -> str:
    if not text:
        return ""
    text = text.translate(_PICTURES)
    if marked is None:
        shown = escape(text)
    else:
        shown, position = "", 0
        for found in marked.finditer(text):
            shown += f"{escape(text[position : found.start()])}<mark>{escape(found.group())}</mark>"
            position = found.end()
        shown += escape(text[position:])
    classes = style.classes()
    return f'<span class="{classes}">{shown}</span>' if classes else shown


def _after(style: Style, token: re.Match[str]) -> Style:
    if token.group(1) is None:
        return style
    codes = [int(code) if code and len(code) < 4 else 0 for code in re.split("[;:]", token.group(1))]
    while codes:
        code = codes.pop(0)
        if code == 0:
            style = PLAIN
        elif code in _SWITCHES:
            name, on = _SWITCHES[code]
            style = replace(style, **{name: on})
        elif code == 22:
            style = replace(style, bold=False, dim=False)
        elif code in (38, 48):
            colour = _colour(codes)
            style = replace(style, foreground=colour) if code == 38 else replace(style, background=colour)
        elif code in (39, 49):
            style = replace(style, foreground=None) if code == 39 else replace(style, background=None)
        else:
            style = _basic(style, code)
    return style


def _basic(style: Style, code: int) -> Style:
    for first, name, base in (
        (30, "foreground", 0),
        (40, "background", 0),
        (90, "foreground", 8),
        (100, "background", 8),
    ):
        if first <= code < first + 8:
            return (
                replace(style, foreground=base + code - first)
                if name == "foreground"
                else replace(style, background=base + code - first)
            )
    return style


def _colour(codes: list[int]) -> int | None:
    """Take a colour of 256, or of red, green and blue, from the codes."""
    kind = codes.pop(0) if codes else 0
    if kind == 5 and codes:
        number = codes.pop(0)
        if number < 16:
            return number
        if number >= 232:
            return _nearest((8 + 10 * (number - 232),) * 3)
        levels = (0, 95, 135, 175, 215, 255)
        number = min(number, 231) - 16
        return _nearest((levels[number // 36], levels[number // 6 % 6], levels[number % 6]))
    if kind == 2 and len(codes) >= 3:
        red, green, blue = codes.pop(0), codes.pop(0), codes.pop(0)
        return _nearest((red, green, blue))
    codes.clear()
    return None


def _nearest(colour: tuple[int, int, int]) -> int:
    def distance(number: int) -> int:
        return sum((one - other) ** 2 for one, other in zip(colour, _BASIC[number], strict=True))

    return min(range(len(_BASIC)), key=distance)
