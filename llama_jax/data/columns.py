"""Columns by name, of which dots lead into nested ones: "meta.text"."""

import typing

Row = tuple[str, str | None]  # its text, "" where there is none, and its own id
ID_COLUMNS = ("id", "url", "meta.url", "metadata.url")  # the first that a row has is its id


def find(row: dict[str, typing.Any], column: str) -> typing.Any:
    """Return a value of a nested row; None below None. Raises KeyError if there is none."""
    first, _, rest = column.partition(".")
    if column in row or not rest:
        return row[column]
    inner = row[first]
    if inner is None:
        return None
    if not isinstance(inner, dict):
        raise KeyError(column)
    return find(inner, rest)


def names(row: dict[str, typing.Any]) -> list[str]:
    """Return the columns of a nested row."""
    return [
        name
        for key, value in row.items()
        for name in (
            [f"{key}.{inner}" for inner in names(value)] if isinstance(value, dict) else [key]
        )
    ]


def row_of(row: dict[str, typing.Any], column: str) -> Row:
    """Return text and id of a nested row. Raises ValueError if it has no such text."""
    try:
        text = find(row, column)
    except KeyError:
        raise missing(column, names(row)) from None
    if text is None:
        text = ""
    if not isinstance(text, str):
        raise ValueError(f'"{column}" is of type {type(text).__name__}')
    text.encode("utf-8")  # JSON can spell half of a surrogate pair, which is no character
    for name in ID_COLUMNS:
        try:
            value = find(row, name)
        except KeyError:
            continue
        if isinstance(value, str | int):
            return text, str(value)
    return text, None


def missing(column: str, there: list[str]) -> ValueError:
    shown = ", ".join(there[:20]) + (", ..." if len(there) > 20 else "")
    return ValueError(
        f'has no "{column}"; it has {shown or "no columns"}: name the text\'s in data.sources'
    )
