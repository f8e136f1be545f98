"""Transactions on PostgreSQL that never leak a connection and never lie about their outcome."""

from reliakit.database.advisory import AdvisoryLock, AsyncAdvisoryLock
from reliakit.database.async_database import AsyncDatabase
from reliakit.database.database import Database
from reliakit.database.decorator import transactional
from reliakit.database.idempotency import IDEMPOTENCY_DDL
from reliakit.database.outbox import Outbox, OutboxMessage, OutboxStats
from reliakit.database.outcome import TransactionOutcome
from reliakit.database.relay import AsyncRelay, Relay
from reliakit.database.repository import AsyncRepository, Repository
from reliakit.database.settings import DatabaseStats, Isolation, Propagation, TransactionRetry
from reliakit.database.transaction import AsyncTransaction, Transaction

__all__ = [
    "IDEMPOTENCY_DDL",
    "AdvisoryLock",
    "AsyncAdvisoryLock",
    "AsyncDatabase",
    "AsyncRelay",
    "AsyncRepository",
    "AsyncTransaction",
    "Database",
    "DatabaseStats",
    "Isolation",
    "Outbox",
    "OutboxMessage",
    "OutboxStats",
    "Propagation",
    "Relay",
    "Repository",
    "Transaction",
    "TransactionOutcome",
    "TransactionRetry",
    "transactional",
]
