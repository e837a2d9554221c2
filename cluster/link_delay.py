"""Carry frames between two interfaces, each way after a delay: `python link_delay.py ONE OTHER MILLISECONDS`.

For kernels without netem. It says "ready", and ends when its standard input does. Frames keep what the kernel says of
unfinished checksums and of segments that go as one, so that interfaces need no settings of their own.
"""

import collections
import select
import socket
import sys
import time

_EVERYTHING = 0x0003
_SOL_PACKET, _PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING = 263, 15, 23
_LARGEST = 70_000
_BUFFER = 16 * 2**20


def main() -> int:
    """Carry frames until the standard input ends; return 0."""
    one, other, delay = _opened(sys.argv[1]), _opened(sys.argv[2]), float(sys.argv[3]) / 1000
    partner = {one: other, other: one}
    late: collections.deque[tuple[float, socket.socket, bytes]] = collections.deque()
    print("ready", flush=True)
    while True:
        wait = max(0.0, late[0][0] - time.monotonic()) if late else None
        readable = select.select([one, other, sys.stdin], [], [], wait)[0]
        if sys.stdin in readable:
            return 0
        for end in (end for end in partner if end in readable):
            try:
                late.append((time.monotonic() + delay, partner[end], end.recv(_LARGEST)))
            except OSError:  # the interface was taken down or away: as on a line, what was on it is lost
                continue
        while late and late[0][0] <= time.monotonic():
            _, end, frame = late.popleft()
            try:
                end.send(frame)
            except OSError:
                continue


def _opened(interface: str) -> socket.socket:
    """Return a socket that hears what comes in at an interface, and sends out of it."""
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
    end.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    end.setblocking(False)
    end.bind((interface, _EVERYTHING))
    return end


if __name__ == "__main__":
    sys.exit(main())
