"""A TCP proxy before the database that can lose the reply to a COMMIT, or swallow everything."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Final, Self

_COMMIT: Final = b"COMMIT\x00"
_CHUNK: Final = 65_536


class Proxy:
    """Forwards connections to a port of 127.0.0.1, for the time of a `with`."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._pairs: set[_Pair] = set()
        self._replies_to_lose = 0
        self._open = threading.Event()
        self._open.set()
        self.lost_replies = 0
        """Transactions committed whose client was never told."""

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._open.set()
        self._listener.close()
        self.cut()

    def lose_replies(self, count: int) -> None:
        """Let the next COMMITs through and break their connections when the answer comes."""
        with self._lock:
            self._replies_to_lose = count

    def replies_left(self) -> int:
        """How many replies are still to be lost."""
        with self._lock:
            return self._replies_to_lose

    def swallow(self) -> None:
        """Become a black hole: connections stay open, and nothing moves. To TCP both ends are there all the time."""
        self._open.clear()

    def release(self) -> None:
        """End of the black hole: what hangs in it is reset, new connections work."""
        self.cut()
        self._open.set()

    def cut(self) -> None:
        """Break every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            pair.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            pair = _Pair(client)
            with self._lock:
                self._pairs.add(pair)
            threading.Thread(target=self._serve, args=(pair,), daemon=True).start()

    def _serve(self, pair: "_Pair") -> None:
        self._open.wait()
        if not pair.connect(self._to_port):
            self._forget(pair)
            return
        threading.Thread(target=self._answers, args=(pair,), daemon=True).start()
        with suppress(OSError):
            while data := pair.client.recv(_CHUNK):
                self._open.wait()
                if _COMMIT in data and self._may_lose():
                    pair.reply_is_lost = True
                pair.server.sendall(data)
        self._forget(pair)

    def _answers(self, pair: "_Pair") -> None:
        with suppress(OSError):
            while data := pair.server.recv(_CHUNK):
                self._open.wait()
                if pair.reply_is_lost:
                    with self._lock:
                        self.lost_replies += 1
                    break
                pair.client.sendall(data)
        self._forget(pair)

    def _may_lose(self) -> bool:
        with self._lock:
            if not self._replies_to_lose:
                return False
            self._replies_to_lose -= 1
            return True

    def _forget(self, pair: "_Pair") -> None:
        with self._lock:
            self._pairs.discard(pair)
        pair.close()


class _Pair:
    """The two ends of one connection."""

    def __init__(self, client: socket.socket) -> None:
        self.client = client
        self.server: socket.socket = client
        self.reply_is_lost = False

    def connect(self, port: int) -> bool:
        try:
            self.server = socket.create_connection(("127.0.0.1", port))
        except OSError:
            return False
        return True

    def close(self) -> None:
        for end in (self.client, self.server):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
