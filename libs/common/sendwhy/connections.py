"""Whether Kafka and PostgreSQL can be used with the settings as they are, and if not, which setting to change.

The libraries hide the cause: aiokafka says "Unable to bootstrap" of a wrong password as of a broker that is away, and
tries again for ever. So each start asks first, by one connection: a certain fault ends the process with one line, and
what may pass (a server that starts, a name that isn't known yet) is waited for, with a bound.
"""

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

import asyncpg
import structlog
from aiokafka import errors as kafka_errors
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import KafkaError
from aiokafka.protocol.metadata import MetadataRequest

from sendwhy.kafka import TopicsMissing, connection_options, let_go
from sendwhy.logs import describe
from sendwhy.settings import PREFIX, KafkaSettings, SystemExit2

ASK_SECONDS = 10.0
PAUSE_SECONDS = 0.5
TOLD_EVERY_SECONDS = 10.0
# Less than Kubernetes and the local stack give a start; longer than a broker takes for its own.
START_SECONDS = 90.0
EXIT_TRY_AGAIN = 3
_CERTIFICATE_EXPIRED, _NAME_MISMATCH, _ADDRESS_MISMATCH = 10, 62, 64
# How OpenSSL says that the other side isn't content with our certificate, or wants one.
_CERTIFICATE_ALERTS = (
    *("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNKNOWN_CA", "CERTIFICATE_UNKNOWN"),
    *("CERTIFICATE_EXPIRED", "HANDSHAKE_FAILURE"),
)
_NO_TLS = ("WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE", "UNKNOWN_PROTOCOL")
_CLOSED = (ConnectionResetError, ConnectionAbortedError, BrokenPipeError, asyncio.IncompleteReadError, ssl.SSLEOFError)
_RIGHTS = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
)
_REFUSED = (kafka_errors.SaslAuthenticationFailed, kafka_errors.AuthenticationFailedError)

log = structlog.get_logger("sendwhy")


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong, and the setting by which to change it. Not `is_certain`: it may pass by itself."""

    setting: str
    what: str
    is_certain: bool = True

    def __str__(self) -> str:
        return f"{PREFIX}{self.setting}: {self.what}"


class CannotStart(Exception):
    """One line on why the service doesn't start; `code` is its exit code."""

    def __init__(self, line: str, code: int) -> None:
        super().__init__(line)
        self.line, self.code = line, code


def kafka_fault(error: BaseException, protocol: str) -> Fault:
    """What an error of Kafka's clients says about the settings."""
    if isinstance(error, TopicsMissing):
        what = f"this Kafka has no {error}: run `python -m sendwhy topics`, or give the right to read it"
        return Fault("KAFKA_BOOTSTRAP_SERVERS", what, is_certain=False)
    for cause in _causes(error):
        fault = _certificate_fault(cause, "KAFKA_BOOTSTRAP_SERVERS", "KAFKA_SSL_CAFILE") or _sasl_fault(cause)
        if fault is not None:
            return fault
        if isinstance(cause, ssl.SSLError) and any(alert in f"{cause.reason}" for alert in _CERTIFICATE_ALERTS):
            return Fault("KAFKA_SSL_CERTFILE", "the broker asks for a client certificate that it trusts")
        if isinstance(cause, ssl.SSLError) and f"{cause.reason}" in _NO_TLS:
            return Fault("KAFKA_SECURITY_PROTOCOL", f"is {protocol}, and the port doesn't speak TLS")
    if any(isinstance(cause, _CLOSED) for cause in _causes(error)) or "closed" in f"{error}":
        what = f"is {protocol}, and the broker hangs up: another protocol is spoken at this port, or it starts just now"
        return Fault("KAFKA_SECURITY_PROTOCOL", what, is_certain=False)
    return Fault("KAFKA_BOOTSTRAP_SERVERS", f"Kafka can't be used ({type(error).__name__})", is_certain=False)


def _sasl_fault(error: BaseException) -> Fault | None:
    if isinstance(error, _REFUSED):
        return Fault("KAFKA_SASL_PASSWORD", f"the broker refuses it, or {PREFIX}KAFKA_SASL_USERNAME")
    if isinstance(error, kafka_errors.UnsupportedSaslMechanismError):
        return Fault("KAFKA_SASL_MECHANISM", "the broker doesn't offer it")
    if isinstance(error, kafka_errors.IllegalSaslStateError):
        return Fault("KAFKA_SECURITY_PROTOCOL", "the port asks for no password")
    if isinstance(error, _RIGHTS):
        return Fault("KAFKA_SASL_USERNAME", "lacks rights at the broker (docs/kafka-acls.md)")
    return None


def postgres_fault(error: BaseException) -> Fault:
    """What an error of a connection to PostgreSQL says about SENDWHY_DATABASE_URL."""
    for cause in _causes(error):
        if (fault := _certificate_fault(cause, "DATABASE_URL", "DATABASE_URL")) is not None:
            return fault
        for kind, what in _POSTGRES_FAULTS.items():
            if isinstance(cause, kind):
                return Fault("DATABASE_URL", what)
    if type(error) is ConnectionError and "rejected SSL" in f"{error}":
        # asyncpg has no class for it.
        return Fault("DATABASE_URL", "its sslmode asks for TLS, and the server has none")
    return Fault("DATABASE_URL", f"PostgreSQL can't be reached ({type(error).__name__})", is_certain=False)


_POSTGRES_FAULTS: dict[type[BaseException], str] = {
    asyncpg.InvalidPasswordError: "the server refuses the role or its password",
    asyncpg.InvalidAuthorizationSpecificationError: "the server lets this role in only by other means:"
    " with TLS (sslmode=verify-full), from another address, or under another name",
    asyncpg.InvalidCatalogNameError: "there is no such database",
    asyncpg.InsufficientPrivilegeError: "the role may not enter this database",
    asyncpg.ClientConfigurationError: "its sslmode, sslrootcert, sslcert or sslkey can't be used",
    ssl.SSLError: "its sslrootcert, sslcert or sslkey can't be used, or the server doesn't take them",
    FileNotFoundError: "its sslrootcert, sslcert or sslkey names no file",
    ValueError: "it can't be read as an address",
}


def _certificate_fault(error: BaseException, whom: str, authority: str) -> Fault | None:
    """`whom`: the setting with the server's address; `authority`: the one with the certificates to trust."""
    if not isinstance(error, ssl.SSLCertVerificationError):
        return None
    if error.verify_code == _CERTIFICATE_EXPIRED:
        return Fault(whom, "the server's certificate has expired")
    if error.verify_code in (_NAME_MISMATCH, _ADDRESS_MISMATCH):
        return Fault(whom, "the server's certificate is for another host name")
    where = " (sslrootcert)" if whom == authority else ""
    return Fault(authority, f"nobody trusted here vouches for the server's certificate{where}: {error.verify_message}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    current: BaseException | None = error
    for _ in range(6):
        if current is None:
            return
        yield current
        current = current.__cause__ or current.__context__


async def ask_kafka(settings: KafkaSettings) -> Fault | None:
    """Connect to one of the brokers as our clients do; None: it answers."""
    fault: Fault | None = None
    options = connection_options(settings)
    for host, port, _ in collect_hosts(options.pop("bootstrap_servers")):
        try:
            async with asyncio.timeout(ASK_SECONDS):
                connection = await create_conn(host, port, request_timeout_ms=int(ASK_SECONDS * 1000), **options)
                try:
                    await connection.send(MetadataRequest([]))
                finally:
                    await let_go(connection.close())
            return None
        except (OSError, TimeoutError, KafkaError, ValueError) as error:
            found = kafka_fault(error, settings.kafka_security_protocol)
            fault = found if fault is None or found.is_certain else fault
    return fault


async def ask_postgres(url: str) -> Fault | None:
    """Connect as our pool does; None: it works."""
    try:
        connection = await asyncpg.connect(url, timeout=ASK_SECONDS)
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        return postgres_fault(error)
    await connection.close()
    return None


async def reach(
    name: str,
    ask: Callable[[], Awaitable[Fault | None]],
    *,
    seconds: float = START_SECONDS,
    pause: float = PAUSE_SECONDS,
) -> None:
    """Return once `ask` finds no fault. A certain one, or any at the end of the time, ends the process by one line."""
    begun = time.monotonic()
    told = begun - TOLD_EVERY_SECONDS
    while (fault := await ask()) is not None:
        if fault.is_certain:
            raise SystemExit2(str(fault))
        now = time.monotonic()
        if now - begun >= seconds:
            raise SystemExitAgain(f"{fault}, for {seconds:.0f} s")
        if now - told >= TOLD_EVERY_SECONDS:
            log.warning("the start waits for a server", server=name, fault=str(fault))
            told = now
        await asyncio.sleep(pause)


class SystemExitAgain(SystemExit2):
    """What may be over at the next start: one line on stderr, exit code 3."""

    def __init__(self, line: str) -> None:
        super().__init__(line)
        self.code = EXIT_TRY_AGAIN


async def once_kafka_serves(
    act: Callable[[], Awaitable[None]],
    protocol: str,
    *,
    seconds: float = START_SECONDS,
    pause: float = PAUSE_SECONDS,
) -> None:
    """Do what only a Kafka with topics, leaders and coordinators lets us do: a broker that has just been started, or a
    busy machine's, answers long before it has them. Raises CannotStart when it doesn't get there, or never will."""
    begun = time.monotonic()
    told = begun - TOLD_EVERY_SECONDS
    while True:
        try:
            return await act()
        except (KafkaError, TopicsMissing, OSError) as error:
            fault, now = kafka_fault(error, protocol), time.monotonic()
            if fault.is_certain or now - begun >= seconds:
                raise CannotStart(str(fault), EXIT_TRY_AGAIN) from error
            if now - told >= TOLD_EVERY_SECONDS:
                log.warning("the start waits for Kafka", error=describe(error), fault=str(fault))
                told = now
        await asyncio.sleep(pause)
