"""Do intricate images want a lower learning rate?

uv run cvtune advise DATA workflows/advice/complex_images.py
"""

from cvtune.rule import Rule


def rule() -> Rule:
    return Rule(
        name="complex_images",
        says="Intricate images want a lower rate than plain ones.",
        untestable="it compares sets of images. Compare what `cvtune lr` suggests for several of yours.",
    )
