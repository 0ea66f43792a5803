"""The model card of `best/`: what the model is, how good, trained on what and how, where its limits are, how to use it.

After Mitchell et al. 2019, "Model cards for model reporting". It says what was measured and what was not.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cvtune.recipe import FIELDS, Recipe, Value
from cvtune.study import Study

DOES = {
    "classify": "tells which one of {} classes an image shows",
    "multilabel": "tells which of {} classes an image shows, any number of them",
    "segment": "gives each pixel of an image one of {} classes",
}
WORST = 5  # classes that are named as the hardest
NAMED = 30  # classes that are listed by name
HERE = ("--storage", "--cache")  # options of a command that name places of one machine


@dataclass(frozen=True)
class Card:
    """What a card is written from.

    Attributes:
        recipe: that the weights were trained by.
        provenance: of `study.json`.
        weights: what `metrics.json` says of them.
        report: that the trial was chosen for, by metric.
        test: metric -> value and the ends of its 95 % interval; empty where nothing was tested.
        classes: a row for each class: class, recall, and more.
        comparison: what the confirmation says, in sentences.
    """

    study: Study
    recipe: Recipe
    provenance: Mapping[str, Any]
    weights: Mapping[str, Any]
    report: Mapping[str, Any]
    test: Mapping[str, tuple[float, float, float]]
    classes: Sequence[Mapping[str, Any]]
    comparison: Sequence[str]


def write_card(card: Card) -> str:
    """The card as Markdown."""
    does = DOES[card.provenance.get("task") or "classify"].format(len(card.classes) or "its")
    sections = {
        f"{card.study.name}: `{card.recipe.model.name}`": [
            f"A network that {does}, found by [cvtune](#reproduce) in the study `{card.study.name}`."
        ],
        "How good it is": list(_scores(card)),
        "Which weights these are": [_weights(card)],
        "What it was trained on": list(_data(card)),
        "How it was trained": list(_recipe(card)),
        "How to use it": list(_use(card)),
        "Limits": [f"- {limit}" for limit in _limits(card)],
        "Reproduce": list(_origin(card)),
    }
    marks = ["#"] + ["##"] * (len(sections) - 1)
    parts = [f"{m} {title}\n\n" + "\n".join(lines) for m, (title, lines) in zip(marks, sections.items(), strict=True)]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """A name of the user's as text that Markdown and HTML show as it is."""
    safe = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#!])", r"\\\1", " ".join(safe.split()))


def _scores(card: Card) -> Iterator[str]:
    if card.test:
        yield "| on test images | value | 95 % interval |"
        yield "|---|---|---|"
        for name, (value, low, high) in card.test.items():
            yield f"| {name} | {value:.4f} | {low:.4f} to {high:.4f} |"
        yield ""
        yield "The intervals are of these weights, over the choice of the test images (a bootstrap); other seeds add to"
        yield "that. `per_class.csv` and, of images with one class, `confusion.csv` (rows: true classes) hold the rest."
    else:
        objective, score = card.study.objective, card.study.score(card.report)
        yield f"{objective} = {score:.4f} on the validation images, which is too good: it is the best"
        yield "of many that were looked at. No test image was scored."
    for sentence in card.comparison:
        yield f"\n{plain(sentence)}"


def _weights(card: Card) -> str:
    told = card.weights
    if told["file"] is None:
        return f"There are none: {plain(told['why'])}."
    which = f"`{told['file']}`: trial {told['trial']}, seed {told['seed']}, after epoch {told['epoch']}"
    score = f"{told['objective']} = {told['score']:.4f}"
    if told["confirmed"]:
        return (
            f"{which}. The recipe `{told['label']}` won the confirmation; of its {told['seeds']} seeds this one is the "
            f"best on the validation images ({score})."
        )
    return (
        f"{which} ({score}). It is the best trial of the search, chosen on the validation images; nothing was "
        "confirmed with fresh seeds."
    )


def _data(card: Card) -> Iterator[str]:
    images = card.provenance.get("images") or {}
    names = [plain(str(row["class"])) for row in card.classes]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    yield f"- source: `{card.study.data.source}`"
    yield f"- images: {', '.join(f'{count} {part}' for part, count in images.items()) or 'not noted'}"
    yield f"- fingerprint of the images and their labels: `{card.provenance.get('data_fingerprint') or 'not noted'}`"
    if names:
        yield f"- {len(names)} classes: {', '.join(names[:NAMED])}{more}"


def _recipe(card: Card) -> Iterator[str]:
    changed = differing(card.recipe)
    yield "All values are in `recipe.json`; these are not the defaults:\n"
    yield "| value | is | default |"
    yield "|---|---|---|"
    for name, value in changed.items():
        yield f"| `{name}` | {plain(_shown(value))} | {plain(_shown(FIELDS[name].default))} |"
    for epoch, values in card.recipe.changes:
        told = ", ".join(f"`{name}` = {plain(_shown(value))}" for name, value in values.items())
        yield f"\nFrom epoch {epoch} on: {told}."


def differing(recipe: Recipe) -> dict[str, Value]:
    """The values of a recipe that are not the defaults, by dotted name; `changes` apart."""
    return {name: value for name, value in recipe.flat().items() if value != FIELDS[name].default}


def _use(card: Card) -> Iterator[str]:
    size = card.recipe.image_sizes[-1]
    how = "its shorter side resized and the center cut out" if card.recipe.data.fit == "crop" else "both sides resized"
    yield f"Images become squares of {size} px ({how}), as for validation. This folder is all that is needed:\n"
    yield "```sh\ncvtune predict path/to/best photo.jpg folder/\n```\n"
    yield "```python\nfrom pathlib import Path\n"
    yield "from cvtune.predict import find_images, predict\nfrom cvtune.trained import Model\n"
    yield 'model = Model(Path("path/to/best"))'
    yield 'for told in predict(model, find_images(["photo.jpg"])):'
    yield "    print(told.image.path, told.classes, told.chances, told.error)\n```\n"
    yield "`safetensors.torch.load_file` gives the plain weights, with the keys of the architecture's own `state_dict`."


def _limits(card: Card) -> Iterator[str]:
    rated = [row for row in card.classes if row.get("recall") is not None]
    worst = sorted(rated, key=lambda row: row["recall"])[:WORST] if len(rated) > 2 else []
    part = "test" if card.test else "validation"
    if worst:
        told = ", ".join(f"{plain(str(row['class']))} {row['recall']:.0%}" for row in worst)
        yield f"Recall of the hardest classes on the {part} images: {told}."
    absent = sum(row.get("recall") is None for row in card.classes)
    if absent and rated:
        yield f"{absent} of the classes do not occur in the {part} images: nothing is known of how well it tells them."
    unknown = (
        "" if card.provenance.get("task") == "multilabel" else "An image of none of the classes is given one too. "
    )
    yield f"{unknown}Images unlike those of the source (other cameras, sites or times) were not tried."
    yield "Probabilities are the network's own and were not calibrated" + (
        f" (expected calibration error {card.test['ece'][0]:.3f})." if "ece" in card.test else "."
    )


def _origin(card: Card) -> Iterator[str]:
    versions = card.provenance.get("versions") or {}
    told = ", ".join(f"{name} {versions[name]}" for name in ("cvtune", "python", "torch", "ray") if name in versions)
    yield f"- versions: {told or 'not noted'}; git commit of the working folder: {card.provenance.get('git_commit')}"
    yield f"- command: `{command(card.provenance.get('command') or ()).replace('`', '')}`"
    for ref, digest in (card.provenance.get("code") or {}).items():
        yield f"- code of the study's own: `{ref}`, SHA-256 {digest[:16]}"
    yield f"- the recipe as a workflow: `cvtune best {card.study.name}`"


def command(line: Sequence[str]) -> str:
    """A command line as it is typed anywhere: a card is handed on, so where this machine keeps things is left out."""
    kept: list[str] = []
    words = iter(line[1:])
    for word in words:
        if word in HERE:
            next(words, None)
        elif not word.startswith(tuple(f"{option}=" for option in HERE)):
            kept.append(word)
    return shlex.join(["cvtune", *kept])


def _shown(value: Value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
