"""Scores of answers that are about places: tags and entities, arcs and relations, spans; and of language models."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dl_mamba.heads.raw import softmax
from dl_mamba.pipelines.errors import require
from dl_mamba.pipelines.scores import Scores, class_scores, label_scores

Answers = Sequence[Mapping[str, Any]]
ENTITY = re.compile(r"(O|[BI]-.+)")


def tag_scores(names: Sequence[str], records: Answers, answers: Answers, logits: Sequence[np.ndarray] | None) -> Scores:
    """Tags of words, each for itself, and as entities where they are written B-, I- and O.

    Args:
        names: of the tags.
        records: with `tokens` and `tags`.
        answers: with `tags`.
        logits: (words, tags) of each record, or None where tags are not scored apart.
    """
    number = {name: place for place, name in enumerate(names)}
    true, given = (np.array([number[tag] for item in items for tag in item["tags"]]) for items in (records, answers))
    found = label_scores(names, true, given) if logits is None else class_scores(names, true, np.concatenate(logits))
    metrics = {**found.metrics, "tokens": len(true), "examples": len(records)}
    table = found.table
    if any(name != "O" for name in names) and all(map(ENTITY.fullmatch, names)):
        entities = entity_scores([item["tags"] for item in records], [item["tags"] for item in answers])
        metrics["entities"] = entities.metrics
        table = [*entities.table, *table]
    return Scores(metrics, table, found.figures)


def entity_scores(true: Sequence[list[str]], given: Sequence[list[str]]) -> Scores:
    """Entities with exactly the right words and the right type, as conlleval counts them.

    Example:

    >>> from dl_mamba.pipelines.place_scores import entity_scores
    >>> entity_scores([["B-A", "I-A", "O", "B-B"]], [["B-A", "I-A", "O", "O"]]).metrics
    {'precision': 1.0, 'recall': 0.5, 'f1': 0.6666666666666666, 'support': 2}
    """
    evaluator = require("nervaluate", "entity scores").Evaluator
    types = sorted({tag[2:] for row in [*true, *given] for tag in row if tag != "O"})
    of = lambda rows, kind: [[tag if tag[2:] in kind else "O" for tag in row] for row in rows]  # noqa: E731
    table, every = [], None
    for kind in [*([name] for name in types), types]:
        found = evaluator(of(true, kind), of(given, kind), tags=list(kind), loader="list").evaluate()["overall"][
            "strict"
        ]
        every = _rates(found.correct, found.actual, found.possible)
        table.append({"class": f"entity {kind[0]}", **every, "predicted": found.actual})
    return Scores(every, table[:-1])


def _rates(right: int, given: int, wanted: int) -> dict[str, Any]:
    precision, recall = right / given if given else 0.0, right / wanted if wanted else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1, "support": wanted}


def arc_scores(records: Answers, answers: Answers) -> Scores:
    """Share of words with the right head (UAS), and with the right relation too (LAS); a row for each relation.

    Example:

    >>> from dl_mamba.pipelines.place_scores import arc_scores
    >>> wanted = {"heads": [2, 0], "relations": ["det", "root"]}
    >>> arc_scores([wanted], [{"heads": [2, 0], "relations": ["det", "det"]}]).metrics
    {'uas': 1.0, 'las': 0.5, 'tokens': 2, 'examples': 1}
    """
    heads = [list(zip(*(item["heads"] for item in pair), strict=True)) for pair in zip(records, answers, strict=True)]
    right = np.array([wanted == given for row in heads for wanted, given in row])
    metrics, table = {"uas": float(right.mean())}, []
    if "relations" in answers[0]:
        wanted, given = ([name for item in items for name in item["relations"]] for items in (records, answers))
        both = right & np.array([a == b for a, b in zip(wanted, given, strict=True)])
        metrics["las"] = float(both.mean())
        hits, found, there = (Counter(x) for x in (np.array(wanted)[both].tolist(), given, wanted))
        table = [
            {"class": name, **_rates(hits[name], found[name], there[name]), "predicted": found[name]}
            for name in sorted({*wanted, *given})
        ]
    return Scores({**metrics, "tokens": len(right), "examples": len(records)}, table)


def relation_scores(records: Answers, answers: Answers) -> Scores:
    """Relations between words, each with the right ends and the right label."""
    key = lambda item: {(r["from"], r["to"], r["label"]) for r in item["relations"]}  # noqa: E731
    counts = {name: Counter() for name in ("right", "given", "wanted")}
    for record, answer in zip(records, answers, strict=True):
        wanted, given = key(record), key(answer)
        for name, found in (("right", wanted & given), ("given", given), ("wanted", wanted)):
            counts[name].update(label for _, _, label in found)
    kinds = sorted({*counts["given"], *counts["wanted"]})
    table = [
        {"class": kind, **_rates(*(counts[name][kind] for name in counts)), "predicted": counts["given"][kind]}
        for kind in kinds
    ]
    return Scores({**_rates(*(found.total() for found in counts.values())), "examples": len(records)}, table)


def span_scores(records: Answers, answers: Answers) -> Scores:
    """Exact match and F1 over words, as SQuAD counts them: the best of the right answers, articles and case left out.

    Source: Rajpurkar et al., "SQuAD", 2016, section 6.1; "Know What You Don't Know", 2018, for texts without answer.

    Example:

    >>> from dl_mamba.pipelines.place_scores import span_scores
    >>> found = span_scores([{"answers": [{"text": "the red cat"}]}], [{"text": "a cat"}]).metrics
    >>> found["exact_match"], round(found["f1"], 3)
    (0.0, 0.667)
    """
    pairs = [_span_pair(record, answer["text"]) for record, answer in zip(records, answers, strict=True)]
    answered = np.array([bool(record["answers"]) for record in records])
    exact, f1 = np.array(pairs).T
    metrics = {"exact_match": float(exact.mean()), "f1": float(f1.mean()), "examples": len(records)}
    for name, there in (("answerable", answered), ("unanswerable", ~answered)):
        if there.any() and not there.all():
            metrics[name] = {"exact_match": float(exact[there].mean()), "f1": float(f1[there].mean())}
    return Scores(metrics)


def _span_pair(record: Mapping[str, Any], text: str) -> tuple[float, float]:
    given, right = _words(text), [_words(answer["text"]) for answer in record["answers"]] or [[]]
    return max(float(given == wanted) for wanted in right), max(_overlap(given, wanted) for wanted in right)


def _words(text: str) -> list[str]:
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _overlap(given: list[str], wanted: list[str]) -> float:
    if not given or not wanted:
        return float(given == wanted)
    return 2 * (Counter(given) & Counter(wanted)).total() / (len(given) + len(wanted))


def language_scores(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Scores:
    """Perplexity of the labelled tokens, and the share that is the most probable one.

    Args:
        pairs: for each row labels (n,), negative where there is none, and the logits (n, vocabulary) of these tokens.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.pipelines.place_scores import language_scores
    >>> language_scores([(np.array([1, -100]), np.zeros((2, 4)))]).metrics["perplexity"]
    4.0
    """
    nats, right, count, rows = 0.0, 0, 0, 0
    for labels, logits in pairs:
        known = labels >= 0
        chances = softmax(logits[known])
        nats -= np.log(np.maximum(chances[np.arange(known.sum()), labels[known]], 1e-300)).sum()
        right += int((chances.argmax(-1) == labels[known]).sum())
        count, rows = count + int(known.sum()), rows + 1
    metrics = {"perplexity": float(np.exp(nats / count)), "nats_per_token": float(nats / count)}
    return Scores({**metrics, "accuracy": right / count, "tokens": count, "examples": rows})
