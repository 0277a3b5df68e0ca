"""Text that is whole Unicode: what a file or an answer can hold."""

from quietstar.errors import SettingsError


def half_character(text: str) -> int | None:
    """Where the first lone surrogate stands, which neither a file nor an answer can hold; None where there is none."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return error.start
    return None


def check_text(name: str, text: str | None) -> None:
    """Raise SettingsError where a text holds halves of characters: bytes of a command line that are no UTF-8, say."""
    if (index := half_character(text or "")) is not None:
        raise SettingsError(
            f"{name} is no whole Unicode text: character {index + 1} is {(text or '')[index]!a}; give text in UTF-8"
        )
