"""Orders in SQLAlchemy, and everybody who wants to know about them: ``DATABASE_URL=... python sqlalchemy_shop.py``.

Two ways to tell: a message for every change, in the transaction that makes it; and one after the commit.
"""

import os

from sqlalchemy import create_engine, make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from pgconcert import Coordinator
from pgconcert.contrib.sqlalchemy import publish_changes, publish_on_commit


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "shop_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer: Mapped[str]
    paid: Mapped[bool] = mapped_column(default=False)


def pay(session: Session, coordinator: Coordinator, number: int) -> None:
    """The order is paid and its customer hears of it, once that is committed."""
    order = session.get_one(Order, number)
    order.paid = True
    publish_on_commit(session, coordinator, "customers", f"thank you, {order.customer}")


def main() -> None:
    engine = create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))
    Base.metadata.create_all(engine)
    stop = publish_changes(Order, "orders")
    with Coordinator(engine) as coordinator, coordinator.subscribe("orders", "customers") as messages:
        with Session(engine) as session, session.begin():
            session.add_all([Order(id=1, customer="Ann"), Order(id=2, customer="Ben")])
        with Session(engine) as session, session.begin():
            pay(session, coordinator, 1)
        with Session(engine) as session:
            pay(session, coordinator, 2)
            session.rollback()  # nobody hears of it
        with Session(engine) as session, session.begin():
            session.delete(session.get_one(Order, 2))
        for _ in range(4):
            message = messages.get(timeout=10)
            print(f"{message.channel}: {message.text}", flush=True)
    stop()
    engine.dispose()


if __name__ == "__main__":
    main()
