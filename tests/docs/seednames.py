"""The public names of the libraries that people come from, each as its own documentation has it.

Here live those lists alone, by the heading that the page `coming-from.md` gives the library. A name that stands twice
there (of a class and of its method) stands once here; options, constants, environment variables and objects in the
database that a program has to know are names, too.
"""

from __future__ import annotations

from typing import Final

NAMES_OF: Final = {
    "elephantine": """
        Publish Subscribe Subscriber NewSubscriber Run Bounce SubscriberOption
        WithOnReconnect WithPingDB WithPingInterval WithPingGrace SendListenerPing PingChannel
        ChannelSubscription ChannelName NotifyWithPayload
        FanOut NewFanOut FanOutOption WithOverflowPolicy OverflowPolicy OverflowDrop OverflowError ErrListenerOverflow
        Listen ListenAll Notify EnableRecovery FanOutRecoveryOption WithBounceThreshold Polled
        JobLock NewJobLock JobLockOptions PingInterval StaleAfter CheckInterval Timeout RunWithContext RunInJobLock Stop
        Identity JobLockState held lost released job_lock
        WithTX TransactionBeginner DBExec Rollback SafeRollback IsConstraintError SetConnStringVariables
        Text Int32 Int64 Date Time UUID PText PBool PInt2 PInt32 PInt64 PTime PUUID
        TextOrNull BigintOrNull TimeOrNull ToUUIDPointer
        GetJobLock InsertJobLock PingJobLock StealJobLock ReleaseJobLock AcquireTXLock
        GracefulShutdown CancelOnStop CancelOnQuit ErrGroup Required ErrTaskDisabled GoWithRetries listen-test
    """,
    "go-session-lock": """
        NewRunner Runner Run Stop loopTick tasksPerSession logger name client
        Tasker Task GetID Database StartSession EndSession BumpSession GetWork FinishTasks Code
        DBFinder ScanTask Scanner Logger Printf Errorf Tracer StartSpanWithContext SQLErrorSessionNotFound SL001
        NewRunnerServer lockmock mocks BackgroundRate BackgroundDuration BackgroundError
        session session_id session_task work_lock throw_session_not_found start_session bump_session end_session
        get_work get_task_count get_task_count_for_session pickup_tasks_for_session get_tasks_for_session finish_tasks
    """,
    "latch": """
        Event String Handler Envelope id reply_event payload Reply err Signal
        Locker AcquireLock ReleaseLock Signaler Notify Subscribe Listen Subscription Wait Close
        Coordinator New
    """,
    "go-toolbox": """
        Publisher Subscriber Broker Publish Subscribe Close ErrClosed InMemory NewInMemory Postgres NewPostgres
    """,
    "@imqueue/pg-pubsub": """
        PgPubSub connect close destroy listen unlisten unlistenAll notify activeChannels inactiveChannels allChannels
        isActive channels options logger pgClient
        retryDelay retryLimit acquireInterval singleListener filtered executionLock handleSignals
        end error reconnect message
        PG_PUBSUB_SCHEMA_NAME PG_PUBSUB_SHUTDOWN_TIMEOUT PG_PUBSUB_EXECUTION_LOCK SCHEMA_NAME SHUTDOWN_TIMEOUT
        RETRY_DELAY RETRY_LIMIT IS_ONE_PROCESS ACQUIRE_INTERVAL EXECUTION_LOCK UNIQUE_LOCK_TTL DefaultOptions
        RX_LOCK_CHANNEL
        PgIpLock channel uniqueKey schemaName init onRelease acquire release isAcquired dispose hasInstances
        NoLock AnyLock pack unpack signature enableGracefulShutdown
    """,
}
