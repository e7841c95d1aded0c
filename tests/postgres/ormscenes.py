"""What the tests about sessions of SQLAlchemy share: tables, and what is heard on a channel."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Self

import sqlalchemy as sa
from sqlalchemy import orm

from pgconcert.blocking import Coordinator
from tests.postgres.callers import engine

LIMIT = 30.0


class Base(orm.DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "thing"

    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str] = orm.mapped_column(unique=True)


class Toy(Thing):
    """Of one table with ``Thing``."""


class Pair(Base):
    __tablename__ = "pair"

    left: orm.Mapped[str] = orm.mapped_column(primary_key=True)
    right: orm.Mapped[Any] = orm.mapped_column(sa.Date, primary_key=True)


@contextlib.contextmanager
def tables(url: str) -> Iterator[sa.Engine]:
    """An engine, with the tables until the end of the block."""
    made: sa.Engine = engine("sqlalchemy", url)
    Base.metadata.create_all(made)
    yield made
    Base.metadata.drop_all(made)
    made.dispose()


class Heard:
    """What arrives on a channel, and what does not."""

    def __init__(self, c: Coordinator, *channels: str) -> None:
        self._c = c
        self._channels = channels
        self._messages = c.subscribe(*channels)

    def __enter__(self) -> Self:
        self._messages.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._messages.close()

    def all(self) -> list[Any]:
        """The texts of everything sent before now."""
        self._c.publish(self._channels[0], "the end")
        texts = []
        while (text := self._messages.get(timeout=LIMIT).text) != "the end":
            texts.append(text)
        return texts
