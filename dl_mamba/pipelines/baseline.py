"""The bar that a text model has to clear: logistic regression on the words of a text, order ignored."""

from __future__ import annotations

import numpy as np

from dl_mamba.pipelines.errors import require


def bag_of_words_accuracy(train: tuple[list[str], np.ndarray], held: tuple[list[str], np.ndarray]) -> float:
    """Accuracy of a logistic regression on word counts, fitted on one part and scored on another.

    Args:
        train: texts, and the class number of each.
        held: the same for the data to score.

    Returns:
        Share of right answers on `held`.

    Raises:
        InputError: scikit-learn is not installed.

    Example:

    >>> import numpy as np
    >>> from dl_mamba.pipelines.baseline import bag_of_words_accuracy
    >>> bag_of_words_accuracy((["fine film", "dull film"], np.array([1, 0])), (["fine"], np.array([1])))
    1.0
    """
    words = require("sklearn.feature_extraction.text", "the baseline").CountVectorizer(token_pattern=r"\S+")
    regression = require("sklearn.linear_model", "the baseline").LogisticRegression(max_iter=2000)
    regression.fit(words.fit_transform(train[0]), train[1])
    return float(regression.score(words.transform(held[0]), held[1]))
