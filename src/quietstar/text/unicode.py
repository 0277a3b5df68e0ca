"""Checks that text is valid Unicode, so that a file or a response can hold it."""

from quietstar.errors import SettingsError


def half_character(text: str) -> int | None:
    """Return the index of the first lone surrogate, which cannot be encoded in UTF-8; None if there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def check_text(name: str, text: str | None) -> None:
    """Raise SettingsError if a text has lone surrogates, such as bytes of a command line that are not UTF-8."""
    if (index := half_character(text or "")) is not None:
        raise SettingsError(
            f"{name} is not valid Unicode: character {index + 1} is {(text or '')[index]!a}; give text in UTF-8"
        )
