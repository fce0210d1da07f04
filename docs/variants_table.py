"""Write the table of variants into README.md, between its two marks: `python docs/variants_table.py`."""

from __future__ import annotations

from pathlib import Path

from dl_mamba import variants

README = Path(__file__).resolve().parents[1] / "README.md"
BEGIN, END = "<!-- variants: begin -->", "<!-- variants: end -->"


def table() -> str:
    """One row a preset: name, sizes, parameters of the backbone."""
    rows = [
        "| variant | family | layers | d_model | d_inner | d_state | vocabulary (rows) | parameters |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in variants.names():
        config = variants.load(name)
        family = "Mamba" if name.startswith("mamba-") else "Mamba2"
        vocabulary = f"{config.vocab_size:,} ({config.embedding_rows:,})"
        rows.append(
            f"| `{name}` | `{family}` | {config.num_layers} | {config.d_model} | {config.d_inner} | {config.d_state} "
            f"| {vocabulary} | {config.num_parameters:,} |"
        )
    return "\n".join(rows)


def with_table(readme: str) -> str:
    """The text with the table between the marks."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
