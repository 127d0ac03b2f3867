"""Names and messages as text: what can be written and drawn, what can be compared, what fits a line."""

import unicodedata


def as_text(name: str) -> str:
    """The name of a file, which need not be text, as something that can be written and drawn: what is no text is escaped."""
    return name.encode(errors="backslashreplace").decode()


def composed(name: str) -> str:
    """A name to be compared: macOS and its archives write an umlaut as two characters, tables and other systems as one."""
    return unicodedata.normalize("NFC", name)


def shorten(text: str, longest: int = 200) -> str:
    """A text in one line that is never cut within a word.

    Args:
        text: what another program says, of any length, with line breaks.
        longest: characters of the result, at least 4.

    Returns:
        The text with single spaces. One that is too long ends with "...", behind its last whole sentence, if that keeps half of the
        room or more, else behind its last whole word.

    Example:
        from resnet_study.strings import shorten

        print(shorten("expected a shape, received none", 20))  # expected a shape...
    """
    text = " ".join(text.split())
    if len(text) <= longest:
        return text
    part = text[: longest - 3]
    end = part.rfind(". ") + 1
    if end >= longest // 2:
        return f"{part[:end]} ..."
    whole = part if text[longest - 3] == " " else part.rpartition(" ")[0]
    return f"{whole.rstrip(' ,;:(') or part}..."  # one word that is too long: it must be cut somewhere
