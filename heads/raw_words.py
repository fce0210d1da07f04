"""Records whose labels name places: a tag for each word, arcs between words, spans of a text.

A word may be several tokens. Its last one, which alone has read the whole word in a causal model, stands for it: there
is its label, and there its answer is read.
"""

from __future__ import annotations

import re
from itertools import accumulate
from typing import Any

import numpy as np

from dl_mamba.heads.raw import IGNORED, Reader, Record, Row, padded

WORDS = re.compile(r"\w+|[^\w\s]")


class WordReader(Reader):
    """Base: `{"tokens": [words]}`, or `{"text"}`, which is divided into words and punctuation."""

    fields = ("tokens",)
    from_text = "text"

    def words(self, record: Record) -> list[str]:
        """The words of a record."""
        return list(record["tokens"]) if "tokens" in record else WORDS.findall(record["text"])

    def texts(self, record: Record) -> list[str]:
        return [" ".join(self.words(record))]

    def rows(self, record: Record) -> list[Row]:
        words = self.words(record)
        ids = self.tokenizer.ids_of_words(words)
        for word, pieces in zip(words, ids, strict=True):
            if not pieces:
                raise ValueError(f"its word {word!r} has no token; leave it out.")
        places = np.array(list(accumulate(map(len, ids))), int) - 1
        inputs = {"input_ids": self.whole([token for pieces in ids for token in pieces])}
        return [Row(inputs, self.label(record, places, len(inputs["input_ids"])), places, record)]

    def label(self, record: Record, places: np.ndarray, length: int) -> np.ndarray | None:
        """The label of a record whose words stand at `places` of a row."""
        raise NotImplementedError

    def values(self, record: Record, name: str) -> list[Any]:
        """A list with one entry for each word."""
        count = len(self.words(record))
        if len(record[name]) != count:
            raise ValueError(f"it has {count} tokens and {len(record[name])} {name}; one for each token is needed.")
        return list(record[name])


class TagReader(WordReader):
    """`{"tokens", "tags"}`."""

    def label(self, record: Record, places: np.ndarray, length: int) -> np.ndarray | None:
        if "tags" not in record:
            return None
        label = np.full(length, IGNORED, "int32")
        label[places] = [self.number_of(tag) for tag in self.values(record, "tags")]
        return label

    def label_of(self, row: Row | None, length: int) -> np.ndarray:
        return padded(np.zeros(0, "int32") if row is None else row.label, length)

    def answer(self, head: Any, output: np.ndarray, row: Row) -> dict[str, Any]:
        tags = head.decode(output[None])[0][row.places]
        return {"tokens": self.words(row.record), "tags": self.names_of(tags)}


class ArcReader(WordReader):
    """`{"tokens", "heads"}`, and `"relations"` if the task has classes: 0 is the root (or none), i the i-th word."""

    def label(self, record: Record, places: np.ndarray, length: int) -> np.ndarray | None:
        if "heads" not in record:
            return None
        heads = self.values(record, "heads")
        for word, head in enumerate(heads, 1):
            if not isinstance(head, int) or not 0 <= head <= len(places) or head == word:
                wanted = f"0, or another word's number, 1 to {len(places)}, is needed."
                raise ValueError(f"the head of its word {word} is {head!r}; {wanted}")
        label = np.full((length, 2) if self.task.num_classes else (length,), IGNORED, "int32")
        positions = np.concatenate([[0], places + 1])[heads]
        if self.task.num_classes:
            label[places, 0] = positions
            label[places, 1] = [self.number_of(name) for name in self.values(record, "relations")]
        else:
            label[places] = positions
        return label

    def label_of(self, row: Row | None, length: int) -> np.ndarray:
        none = np.zeros((0, 2) if self.task.num_classes else (0,), "int32")
        return padded(none if row is None else row.label, length)

    def answer(self, head: Any, output: np.ndarray, row: Row) -> dict[str, Any]:
        among_words = output[row.places][:, np.concatenate([[0], row.places + 1])]
        heads, relations = head.decode(among_words[None])[0].T
        found = {"tokens": self.words(row.record), "heads": heads.tolist()}
        return {**found, "relations": self.names_of(relations)} if self.task.num_classes else found


class RelationReader(WordReader):
    """`{"tokens", "relations": [{"from", "to", "label"}]}`: any number of relations between words, counted from 1."""

    def label(self, record: Record, places: np.ndarray, length: int) -> np.ndarray | None:
        if "relations" not in record:
            return None
        label = np.full((length, length, self.task.num_classes), IGNORED, "int32")
        label[np.ix_(places, places)] = 0
        for relation in record["relations"]:
            ends = [relation[name] for name in ("from", "to")]
            if any(not isinstance(end, int) or not 1 <= end <= len(places) for end in ends):
                raise ValueError(f"its relation {relation} leads outside the words, which are 1 to {len(places)}.")
            label[places[ends[0] - 1], places[ends[1] - 1], self.number_of(relation["label"])] = 1
        return label

    def label_of(self, row: Row | None, length: int) -> np.ndarray:
        none = np.zeros((0, 0, self.task.num_classes), "int32")
        return padded(none if row is None else row.label, length, axes=2)

    def answer(self, head: Any, output: np.ndarray, row: Row) -> dict[str, Any]:
        found = head.decode(output[np.ix_(row.places, row.places)][None])[0]
        relations = [
            {"from": int(i) + 1, "to": int(j) + 1, "label": self.task.label_names[kind]}
            for i, j, kind in np.argwhere(found)
        ]
        return {"tokens": self.words(row.record), "relations": relations}


class SpanReader(Reader):
    """`{"context", "answers": [{"text", "start"}]}`, perhaps with `"question"`; no answers: the text has none."""

    fields = ("context",)

    def texts(self, record: Record) -> list[str]:
        return [record["context"], *([record["question"]] if record.get("question") else [])]

    def rows(self, record: Record) -> list[Row]:
        question = self.tokenizer.ids(f"{record['question']}\n") if record.get("question") else []
        context, offsets = self.tokenizer.ids_and_offsets(record["context"])
        ids = self.whole([*question, *context])
        label = None if "answers" not in record else self._label(record, offsets, len(question))
        return [Row({"input_ids": ids}, label, np.arange(len(question), len(ids)), {**record, "offsets": offsets})]

    def _label(self, record: Record, offsets: np.ndarray, before: int) -> np.ndarray:
        if not record["answers"]:
            if not self.task.unanswerable:
                raise ValueError(f"it has no answer, and the task {self.task.name!r} always gives one.")
            return np.zeros(2, "int32")
        text, start = (record["answers"][0][name] for name in ("text", "start"))
        there = record["context"][start : start + len(text)] if start >= 0 else ""
        if not text or there != text:
            raise ValueError(f"its answer {text!r} does not stand at letter {start} of the context, but {there!r}.")
        touched = np.flatnonzero((offsets[:, 0] < start + len(text)) & (offsets[:, 1] > start))
        return (touched[[0, -1]] + before + self.task.unanswerable).astype("int32")

    def label_of(self, row: Row | None, length: int) -> np.ndarray:
        return np.full(2, IGNORED, "int32") if row is None else row.label

    def answer(self, head: Any, output: np.ndarray, row: Row) -> dict[str, Any]:
        shift = int(self.task.unanswerable)
        first, last = head.decode(output[np.concatenate([np.arange(shift), row.places + shift])][None])[0] - shift
        if first < 0:
            return {"text": "", "start": None}
        start, end = row.record["offsets"][first, 0], row.record["offsets"][last, 1]
        text = row.record["context"][start:end]
        start += len(text) - len(text.lstrip())  # a token may begin with a space
        return {"text": text.strip(), "start": int(start)}
