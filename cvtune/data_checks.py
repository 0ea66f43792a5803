"""From facts to verdicts: what `cvtune check` finds in order in a data set, worth a note, or wrong. Pure functions."""

from __future__ import annotations

from cvtune.checks import Check, judged
from cvtune.data.inspect import Copies, Facts

FEW_IMAGES, FEW_OF_CLASS = 200, 20  # training images, in all and of a class, below which scores say little
SHOWN = 12  # classes that a line counts


def checks(facts: Facts, max_corrupt: float, needed: int, room: int) -> list[Check]:
    """One line per subject.

    Args:
        max_corrupt: share of images that may be unusable, see `data.max_corrupt`.
        needed: bytes that the decoded images would take.
        room: bytes that the cache folder has for them.
    """
    return [
        _images(facts),
        _classes(facts),
        _sizes(facts),
        _files(facts, max_corrupt),
        _kinds(facts),
        _copies(facts, facts.exact, "exact copies", f"all {facts.total} images"),
        _copies(facts, facts.near, "near copies", f"{facts.decoded} of {facts.total} images, gray thumbnails of 16 px"),
        _content(facts),
        _cache(needed, room),
    ]


def _images(facts: Facts) -> Check:
    found = f"{facts.total}: " + ", ".join(f"{number} {part}" for part, number in facts.images.items())
    few = facts.images["train"] < FEW_IMAGES
    test = "" if facts.images["test"] else "no test images: nothing is left to confirm with"
    notes = [found, *([few_images(facts.images["train"], facts.images["val"])] if few else [])]
    folds = _folds(facts)
    by_folds = f"compare by cross-validation (--set data.folds={folds}), " if folds > 1 else ""
    advice = f"Bring more images, {by_folds}and start from pretrained weights"
    if test:
        return judged("images", found, [], "", [found, test], "Set data.test_share above 0, or confirm.top=0")
    return judged("images", found, [], "", notes if few else [], advice)


def few_images(train: int, val: int) -> str:
    """What it means that there are fewer than FEW_IMAGES training images."""
    worth = f": each of the {val} validation images is {1 / val:.1%} of it" if val else ""
    return f"below {FEW_IMAGES} training images ({train}) every score is mostly luck{worth}"


def _folds(facts: Facts) -> int:
    """Folds that the images suffice for, at most 5: each wants an image of every class."""
    if facts.task != "classify":
        return min(5, (facts.images["train"] + facts.images["val"]) // 2)
    return min(5, *(train + val for train, val in zip(facts.counts["train"], facts.counts["val"], strict=True)))


def _classes(facts: Facts) -> Check:
    counts = dict(zip(facts.classes, facts.counts["train"], strict=True))
    unit = "of the pixels looked at" if facts.task == "segment" else "training images"
    total = max(1, sum(counts.values()))
    shown = {name: f"{n / total:.1%}" if facts.task == "segment" else str(n) for name, n in counts.items()}
    listed = ", ".join(f"{name} {number}" for name, number in list(shown.items())[:SHOWN])
    more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
    found = f"{len(counts)} ({facts.task}), {unit}: {listed}{more}"
    rare = [name for name, n in counts.items() if n < FEW_OF_CLASS]
    notes = []
    if facts.imbalance >= 2:
        notes.append(f"the most frequent has {facts.imbalance:.1f} times as much as the rarest")
    if rare and facts.task != "segment":
        notes.append(f"fewer than {FEW_OF_CLASS} of {', '.join(rare[:5])}{' ...' if len(rare) > 5 else ''}")
    advice = "Compare by val_balanced_accuracy, which `objective = auto` does from 3 times on, and see the ranges below"
    if facts.task != "classify":
        advice = "See the ranges below"
    return judged("classes", found, [], "", [found, *notes] if notes else [], advice)


def _sizes(facts: Facts) -> Check:
    low, median, high = facts.shorter
    found = f"shorter side {low} to {high} px, {median} in the median; longest side {facts.longer[2]} px"
    tiny = [found, "some have less than 8 px"] if low < 8 and median >= 16 else []
    return judged("sizes", found, [], "", tiny, "Look at the smallest ones: they may be thumbnails or cut off")


def _files(facts: Facts, max_corrupt: float) -> Check:
    share = len(facts.broken) / max(1, facts.total)
    formats = ", ".join(f"{number} {name}" for name, number in list(facts.formats.items())[:6])
    looked = "all decoded" if facts.decoded == facts.total else f"{facts.decoded} of {facts.total} decoded (seed 0)"
    fine = f"{formats or 'no headers'}; {looked}, none broken"
    broken = f"{len(facts.broken)} cannot be used ({looked}): {'; '.join(facts.broken[:3])}"
    broken += f" and {len(facts.broken) - 3} more" if len(facts.broken) > 3 else ""
    remedy = "Mend or remove them"
    if share > max_corrupt:
        return judged("files", fine, [broken], f"{remedy}, or raise data.max_corrupt above {share:.3f}")
    return judged("files", fine, [], "", [broken] if facts.broken else [], f"{remedy}; until then they are skipped")


def _kinds(facts: Facts) -> Check:
    found = ", ".join(f"{number} {kind}" for kind, number in facts.kinds.items())
    remedy = "All images of a study are of one kind: convert the others, or keep them in a data set of their own"
    return judged("kinds", found, [found] if len(facts.kinds) > 1 else [], remedy)


def _copies(facts: Facts, copies: Copies, name: str, looked: str) -> Check:
    if name == "exact copies" and facts.total > 1 and copies.extra == facts.total - 1:
        red = f"all {facts.total} images have the same bytes ({copies.example})"
        return judged(name, "", [red], "There is nothing to learn: look how the files were written")
    notes = []
    if copies.extra:
        notes.append(f"{copies.extra} images could go, for example {copies.example}")
    if copies.conflicts:
        notes.append(f"{copies.conflicts} have another label than their copy")
    notes += [f"{number} of {part} are in train, too" for part, number in copies.leaked.items()]
    advice = "Remove them, or keep them in one part with the column `group` of a manifest: scores are too good"
    if not copies.leaked:
        advice = "Correct the labels" if copies.conflicts else "Remove them, if they are no repetitions on purpose"
    return judged(name, f"none in {looked}", [], "", [*notes, f"looked at {looked}"] if notes else [], advice)


def _content(facts: Facts) -> Check:
    found = f"spatial information {facts.complexity:.0f} of gray images at 32 px (Yu and Winkler 2013)"
    if facts.blank == facts.decoded:
        return judged("content", found, ["every image has a single value"], "Look how the files were written")
    notes = [found, f"{facts.blank} images have a single value"] if facts.blank else []
    return judged("content", found, [], "", notes, "Look at them: they may be failed exposures")


def _cache(needed: int, room: int) -> Check:
    found = f"decoded images take about {needed / 1e9:.2g} GB, {room / 1e9:.2g} GB are there for them"
    advice = (
        "They are then kept compressed and decoded at each access, which is slower: name a larger disk with --cache"
    )
    return judged("cache", found, [], "", [found] if needed > room else [], advice)
