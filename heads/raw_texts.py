"""Records whose label is about whole texts: classes, numbers, pairs, choices; and texts that are to be continued."""

from __future__ import annotations

from typing import Any

import numpy as np

from dl_mamba.heads.raw import IGNORED, Reader, Record, Row, end_of_text, padded, softmax
from dl_mamba.heads.tasks import NLPTaskType

MASK = "[MASK]"


class TextReader(Reader):
    """`{"text"}` with `"label"`, or with `"labels"` where there are several."""

    from_text = "text"
    cuts = True

    def rows(self, record: Record) -> list[Row]:
        return [Row({"input_ids": self.ids(record["text"])}, self.label(record), record=record)]

    def label(self, record: Record) -> np.ndarray | None:
        """The label of a record as the head takes it."""
        value = record.get("labels", record.get("label"))
        if value is None:
            return None
        if self.task.problem_type == "regression":
            return self._numbers(value)
        if self.task.problem_type == "single_label":
            return np.array(self.number_of(value), "int32")
        known = np.zeros(self.task.num_classes, "int32")
        known[[self.number_of(name) for name in value]] = 1
        return known

    def _numbers(self, value: Any) -> np.ndarray:
        numbers = np.array(value, "float32").reshape(-1)
        if len(numbers) != self.task.num_classes or not np.isfinite(numbers).all():
            raise ValueError(f"{value!r} is its label; {self.task.num_classes} finite numbers are needed.")
        return numbers

    def label_of(self, row: Row | None, length: int) -> np.ndarray:
        if row is not None:
            return row.label
        if self.task.problem_type == "regression":
            return np.full(self.task.num_classes, np.nan, "float32")
        return np.full(self.task.num_classes if self.task.problem_type == "multi_label" else (), IGNORED, "int32")

    def answer(self, head: Any, output: np.ndarray, row: Row) -> dict[str, Any]:
        if self.task.problem_type == "regression":
            return {"value": output.tolist() if len(output) > 1 else float(output[0])}
        if self.task.problem_type == "multi_label":
            scores = 1 / (1 + np.exp(-output.astype("float64")))
            return {
                "labels": [self.task.label_names[i] for i in np.flatnonzero(output > 0)],
                "scores": self._by(scores),
            }
        scores = softmax(output)
        return {"label": self.task.label_names[int(scores.argmax())], "scores": self._by(scores)}

    def _by(self, scores: np.ndarray) -> dict[str, float]:
        return {name: round(float(score), 6) for name, score in zip(self.task.label_names, scores, strict=True)}


class PairReader(TextReader):
    """`{"text_a", "text_b"}` with `"label"`."""

    fields = ("text_a", "text_b")
    from_text = None

    def rows(self, record: Record) -> list[Row]:
        first, second = (self.ids(record[name]) for name in self.fields)
        if self.task.encoding == "bi":
            inputs = {"input_ids": first, "pair_input_ids": second}
        else:
            types = np.repeat([0, 1], [len(first), len(second)]).astype("int32")
            inputs = {"input_ids": np.concatenate([first, second]), "token_type_ids": types}
        return [Row(inputs, self.label(record), record=record)]


class ChoiceReader(Reader):
    """`{"choices": [...]}`, perhaps with `"question"`; `"label"` counts from 0, or `"labels"` has a number for each."""

    fields = ("choices",)
    cuts = True

    def texts(self, record: Record) -> list[str]:
        question = f"{record['question']}\n" if record.get("question") else ""
        return [question + choice for choice in record["choices"]]

    def rows(self, record: Record) -> list[Row]:
        return [Row({"input_ids": [self.ids(text) for text in self.texts(record)]}, self._label(record), record=record)]

    def _label(self, record: Record) -> np.ndarray | None:
        value, count = record.get("labels", record.get("label")), len(record["choices"])
        if value is None:
            return None
        if self.task.problem_type == "regression":
            if np.shape(value) != (count,):
                raise ValueError(f"{value!r} are its labels; one number for each of the {count} choices is needed.")
            return np.array(value, "float32")
        if not isinstance(value, int) or not 0 <= value < count:
            raise ValueError(f"{value!r} is its label; the number of the right choice, 0 to {count - 1}, is needed.")
        return np.array(value, "int32")

    def label_of(self, row: Row | None, length: int) -> np.ndarray:
        """Of `length` choices."""
        if self.task.problem_type == "regression":
            known = np.zeros(0) if row is None else row.label
            return np.pad(known, (0, length - len(known)), constant_values=np.nan).astype("float32")
        return np.array(IGNORED, "int32") if row is None else row.label

    def answer(self, head: Any, output: np.ndarray, row: Row) -> dict[str, Any]:
        choices, output = row.record["choices"], output[: len(row.record["choices"])]
        best = head.decode(output[None])[0]
        if self.task.problem_type == "regression":
            return {"order": best.tolist(), "scores": output.tolist(), "best": choices[best[0]]}
        return {"label": int(best), "choice": choices[best], "scores": softmax(output).round(6).tolist()}


class LanguageReader(Reader):
    """`{"text"}`, divided into rows of `max_length` (or 512) tokens; or `{"prompt", "completion"}`, one row.

    A text is continued as it is; a completion follows the prompt on a new line, and ends with the end-of-text token.
    """

    block = 512

    @property
    def from_text(self) -> str:
        """A string to generation and completion is a text, to summaries, translation and dialogue a prompt."""
        continues = self.task.task_type in (NLPTaskType.TEXT_GENERATION, NLPTaskType.TEXT_COMPLETION)
        return "text" if continues else "prompt"

    def texts(self, record: Record) -> list[str]:
        return [record[name] for name in ("text", "prompt", "completion") if name in record]

    def rows(self, record: Record) -> list[Row]:
        if "prompt" in record:
            return [self._pair(record)]
        ids = np.array([*self.tokenizer.ids(record["text"]), end_of_text(self.tokenizer)], "int32")
        size = self.tokenizer.max_length or self.block
        return [self._row(ids[start : start + size], record) for start in range(0, len(ids), size)]

    def _pair(self, record: Record) -> Row:
        prompt = self.tokenizer.ids(self.beginning(record))
        completion = [*self.tokenizer.ids(record.get("completion") or ""), end_of_text(self.tokenizer)]
        ids = self.whole([*prompt, *completion])
        label = np.where(np.arange(len(ids)) < len(prompt), IGNORED, ids)
        return Row({"input_ids": ids}, label, record=record)

    def beginning(self, record: Record) -> str:
        """What the model goes on from."""
        return f"{record['prompt']}\n" if "prompt" in record else record["text"]

    def _row(self, ids: np.ndarray, record: Record) -> Row:
        return Row({"input_ids": ids}, ids, record=record)

    def label_of(self, row: Row | None, length: int) -> np.ndarray:
        return padded(np.zeros(0, "int32") if row is None else row.label, length)


class MaskedReader(LanguageReader):
    """`{"text"}`: each row hides 15 % of its tokens anew whenever it is drawn (Devlin et al., "BERT", 2018, 3.1).

    Of these four fifths read as the end-of-text token, a tenth as any token, and a tenth as themselves.
    """

    share = 0.15

    @property
    def from_text(self) -> str:
        return "text"

    def hidden(self, row: Row, random: np.random.Generator) -> Row:
        """A row with other tokens hidden."""
        ids = np.array(row.record["ids"])
        chosen = random.random(len(ids)) < self.share
        chosen[random.integers(len(ids))] |= not chosen.any()
        how = random.random(len(ids))
        read = np.where(
            how < 0.8, end_of_text(self.tokenizer), random.integers(self.tokenizer.vocab_size, size=len(ids))
        )
        shown = np.where(chosen & (how < 0.9), read, ids).astype("int32")
        return Row({"input_ids": shown}, np.where(chosen, ids, IGNORED).astype("int32"), record=row.record)

    def rows(self, record: Record) -> list[Row]:
        """Rows with hidden tokens; where the text has `[MASK]`, one row in which these tokens alone are hidden."""
        if MASK not in record["text"]:
            return super().rows(record)
        end, ids, places = end_of_text(self.tokenizer), [], []
        pieces = self.tokenizer.ids_of_words(part.strip() for part in record["text"].split(MASK))
        for number, piece in enumerate(pieces):
            if number:
                places.append(len(ids))
                ids.append(end)
            ids += piece if record["text"].split(MASK)[number].strip() else []
        return [Row({"input_ids": self.whole(ids)}, places=np.array(places), record=record)]

    def _row(self, ids: np.ndarray, record: Record) -> Row:
        row = Row({"input_ids": ids}, record={**record, "ids": ids})
        return self.hidden(row, np.random.default_rng(ids))

    def answer(self, head: Any, output: np.ndarray, row: Row) -> dict[str, Any]:
        """The text with the most probable tokens in place of `[MASK]`."""
        if row.places is None:
            raise ValueError(f"write {MASK} where a token of {row.record['text'][:40]!r} is to be found.")
        ids = np.array(row.inputs["input_ids"])
        ids[row.places] = output[row.places].argmax(-1)
        return {"text": self.tokenizer.decode([ids])[0], "tokens": self.tokenizer.decode(ids[row.places][:, None])}
