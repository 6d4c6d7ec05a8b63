"""A long link between two network namespaces: delayline.py NAMESPACE ADDRESS NAMESPACE ADDRESS DELAY_MS MBIT_PER_S

Two TUN devices `line`, joined by this process, which hands each packet over after the delay, at no more than the rate. It stands in for
tc's netem, which not every kernel has. Prints a line when it is up; the devices go with the process.
"""

import collections
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

CLONE_NEWNET = 0x4000_0000
TUNSETIFF, TUNSETOFFLOAD = 0x4004_54CA, 0x4004_54D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x1, 0x1000, 0x4000
# TCP's segments come and go as they are sent, up to 64 KiB at a time, with a header that says how to cut them.
TUN_F_CSUM, TUN_F_TSO4 = 0x1, 0x2
MAX_PACKET_BYTES = 65_535 + 10
MAX_WAITING = 20_000


def enter(namespace):
    """Makes what this thread opens next belong to a namespace, named or, as a number, open."""
    fd = namespace if isinstance(namespace, int) else os.open(f"/run/netns/{namespace}", os.O_RDONLY)
    try:
        if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), f"cannot enter network namespace {namespace}")
    finally:
        if fd != namespace:
            os.close(fd)


def tun(namespace, address, peer):
    enter(namespace)
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", b"line", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(fd, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4)
    subprocess.run(["ip", "address", "add", address, "peer", peer, "dev", "line"], check=True)
    subprocess.run(["ip", "link", "set", "line", "mtu", "9000", "up"], check=True)
    return fd


class Direction:
    """Packets on their way to one end."""

    def __init__(self, to, delay_s, bytes_per_s):
        self.to, self.delay_s, self.bytes_per_s = to, delay_s, bytes_per_s
        self.waiting = collections.deque()
        self.free_at = 0.0

    def take(self, packet):
        if len(self.waiting) < MAX_WAITING:
            self.free_at = max(self.free_at, time.monotonic()) + len(packet) / self.bytes_per_s
            self.waiting.append((self.free_at + self.delay_s, packet))

    def deliver(self):
        """Hands over what is due, and tells when the next is."""
        while self.waiting and self.waiting[0][0] <= time.monotonic():
            try:
                os.write(self.to, self.waiting.popleft()[1])
            except OSError:
                pass  # As a full or broken interface does: the packet is lost.
        return self.waiting[0][0] if self.waiting else None


def main(namespace_a, address_a, namespace_b, address_b, delay_ms, mbit_per_s):
    a, b = tun(namespace_a, address_a, address_b), tun(namespace_b, address_b, address_a)
    way = delay_s, bytes_per_s = float(delay_ms) / 1e3, float(mbit_per_s) * 1e6 / 8
    directions = {a: Direction(b, *way), b: Direction(a, *way)}
    poll = select.poll()
    for fd in directions:
        poll.register(fd, select.POLLIN)
    print("up", flush=True)
    while True:
        due = [at for at in [direction.deliver() for direction in directions.values()] if at is not None]
        timeout_ms = max(0.0, (min(due) - time.monotonic()) * 1e3) if due else None
        for fd, _ in poll.poll(timeout_ms):
            for _ in range(64):
                try:
                    directions[fd].take(os.read(fd, MAX_PACKET_BYTES))
                except BlockingIOError:
                    break


if __name__ == "__main__":
    main(*sys.argv[1:])
