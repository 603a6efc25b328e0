"""What a message is: one sentence."""

import re

# What a message of state or settings asks for, beside passing something else.
REMEDIES = "cast|choose|convert|give|name|pass|rename|restore"


def assert_sentence(message: str, verbs: str = "pass|return|must") -> None:
    """One sentence that says what to do, by one of the verbs."""
    assert re.search(rf"\b({verbs})\b", message), message
    assert message.endswith("."), message
    assert "\n" not in message, message
    assert len(message) <= 300, message
