"""What a message is: one sentence."""

import re


def assert_sentence(message: str) -> None:
    """One sentence that says what to do."""
    assert re.search(r"\b(pass|return|must)\b", message), message
    assert message.endswith("."), message
    assert "\n" not in message, message
    assert len(message) <= 300, message
