"""What a message is: one sentence."""

import re


def assert_sentence(message: str) -> None:
    """One sentence that says what to do."""
    verbs = r"\b(cast|choose|convert|give|name|pass|rename|restore|return|must)\b"
    assert re.search(verbs, message), message
    assert message.endswith("."), message
    assert "\n" not in message, message
    assert len(message) <= 300, message
