"""Types whose values travel: for the tests of codecs."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, IntFlag, StrEnum
from typing import Literal, NewType, TypeVar
from uuid import UUID

T = TypeVar("T")
NAIVE = datetime(2024, 2, 29, 12, 30, 1, 5)  # noqa: DTZ001
UTC_1 = timezone(timedelta(hours=1))
SOME_ID = UUID("12345678-1234-5678-1234-567812345678")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Mixed(Enum):
    NONE = 0
    ALL = "all"


class Rights(IntFlag):
    READ = 1
    WRITE = 2


class Name(StrEnum):
    ADA = "ada"


OrderId = NewType("OrderId", int)


@dataclass
class Line:
    item: str
    count: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    id: OrderId
    lines: list[Line]
    price: Decimal | None = None
    tags: dict[str, str] = field(default_factory=dict)
    total: int = field(init=False, default=7)


@dataclass
class Node:
    name: str
    children: list[Node] = field(default_factory=list)
    parent: Node | None = None


@dataclass
class Created:
    id: int
    kind: Literal["created"] = "created"


@dataclass
class Deleted:
    id: int
    kind: Literal["deleted", "gone"] = "deleted"


@dataclass
class Made:
    id: int
    kind: Literal["made", "created"]


@dataclass
class Picky:
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"secret {self.size}")


@dataclass
class Special(Line):
    extra: int = 0
